"""The commands that plan a run, as processes: quick, without torch, and what they write is what train.py takes."""

import json
import resource
from pathlib import Path

import pytest

from tests.commands import call
from tests.processes.launch import python

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "configs" / "laws" / "paper.json"
# Runs the script given and fails where it imported torch.
WITHOUT_TORCH = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
sys.exit("torch" in sys.modules)
"""


@pytest.mark.parametrize("more", [(), ("--gpus", 64, "--gpu", "a100"), ("--out", "planned.yaml")])
def test_a_plan_takes_less_than_a_second_of_processor_time(more: tuple, tmp_path: Path) -> None:
    words = [tmp_path / word if word == "planned.yaml" else word for word in more]

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = python("tools/plan.py", "--law", PAPER, "--flops", "1e22", *words)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert any(seconds() < 1 for _ in range(3))  # on a busy machine the first may read files from the disk


@pytest.mark.parametrize("base", [(), ("--base", ROOT / "configs" / "train" / "quickstart.yaml")])
def test_a_plan_imports_no_torch(base: tuple, tmp_path: Path) -> None:
    words = ("--law", PAPER, "--flops", "1e20", "--gpus", 8, "--out", tmp_path / "planned.yaml", *base)
    done = python("-c", WITHOUT_TORCH, ROOT / "tools" / "plan.py", *words)
    assert done.returncode == 0, done.stderr


def test_train_py_accounts_for_the_plan_that_was_written(tmp_path: Path) -> None:
    out = tmp_path / "planned.yaml"
    words = ("--law", PAPER, "--flops", "1e22", "--gpus", 8, "--out", out, "--json")
    planned = json.loads(call("tools/plan.py", *words).stdout)
    words = ("--dry-run", "--account", "--config", out, "--n-ctx", 1280, "--gpus", 8, "--json")
    done = call("train.py", *words)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["memory_gb"] == pytest.approx(planned["memory_gb"], abs=1e-3)
    assert found["steps"] == planned["steps"]
    # N is the law's, quoted to three digits, and the model's to one per cent of it.
    assert found["time"]["hours"] == pytest.approx(planned["hours"], rel=0.01)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--account",), "--account: goes with --dry-run"),
        (("--dry-run", "--n-ctx", "1280"), "--n-ctx: goes with --dry-run --account"),
        (("--gpu-memory", "80"), "--gpu-memory: goes with --dry-run --account"),
    ],
)
def test_options_of_another_mode_are_refused(words: tuple, message: str) -> None:
    done = python("train.py", "--config", ROOT / "configs/train/gpu.yaml", *words)
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")
    assert done.stderr.startswith(f"error: {message}")
