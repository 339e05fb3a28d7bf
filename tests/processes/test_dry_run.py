"""A dry run as the command."""

import json
from pathlib import Path

import pytest

from tests.commands import call
from tests.processes import launch
from tests.training.test_trainer import command, overrides
from videoscaling.training.planning.memory_formula import activation_bytes


def test_the_command_exits_with_2(cache: Path, tmp_path: Path) -> None:
    for more, message in (
        (["--dry-run", "train.batch_tokens=0"], "train.batch_tokens: not"),
        (["--json"], "--json: go"),
    ):
        out = call("train.py", *overrides(cache, tmp_path, "x", *more))
        assert (out.returncode, out.stderr.count("\n"), out.stdout) == (2, 1, ""), out.stderr
        assert out.stderr.startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_over_two_processes_the_first_one_speaks(cache: Path, tmp_path: Path) -> None:
    more = ["train.parallel=fsdp", "train.context_parallel=2", "model.heads=2", "--dry-run", "--json"]
    out = launch.run(command(cache, tmp_path, "x", *more, processes=2))
    assert out.returncode == 0, out.stderr
    found = json.loads(out.stdout)
    weights = 4 * found["parameters"]["total"] // 2
    assert (found["time"]["processes"], found["memory"]["weights"]) == (2, weights)
    assert found["parameters"]["blocks' matrices"] == found["N"]
    shape = {"layers": 1, "width": 32, "text_tokens": found["data"]["text_lengths"]["padded_to"], "clips": 4}
    kept = activation_bytes(**shape, n_ctx=32 // 2, dtype="float32", recompute=False)  # half of all four clips
    assert found["memory"]["activations"] == kept
    assert not list(tmp_path.iterdir())
