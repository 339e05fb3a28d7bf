"""What a refactoring must not change: a law file, a plan, a run of 50 steps, and the same run in a stack.

python tests/test_record.py    writes tests/record.json anew, for a change that is meant to change a number and says so
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAPER = ROOT / "configs" / "laws" / "paper.json"
RECORD = ROOT / "tests" / "record.json"
# The law is fitted in float64. Its rounding (1e-16) leaves the place of a minimum uncertain by its root, 1e-8: another
# processor's BLAS gives Tc 2e-8 away. Draws are written with six decimals, and may round to the next.
LAW_RTOL, DRAWS_ATOL = 1e-6, 1.5e-6
# A plan evaluates closed forms in float64.
PLAN_RTOL = 1e-12
# Training is float32, 6e-8 an operation; kernels of other processors sum in another order, and over 50 steps at this
# rate that grew to 4e-7 of a loss. A stack sums in another order too.
RUN_RTOL = 1e-5
STEPS, RATE = 50, 1e-3


def numbers(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """The leaves of a JSON value, each with its place."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(item, f"{path}.{key}")
    else:
        yield path, value


def same(found: object, recorded: object, rtol: float, atol: float = 0.0) -> None:
    ours, theirs = dict(numbers(found)), dict(numbers(recorded))
    assert list(ours) == list(theirs)  # in this order: a file's bytes but for rounding
    for place, value in theirs.items():
        if isinstance(value, float):
            assert ours[place] == pytest.approx(value, rel=rtol, abs=atol), place
        else:
            assert ours[place] == value, place


def law() -> dict:
    """The law of the committed study, without who fitted it when."""
    from tests.commands import call

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "law.json"
        cells = ROOT / "results" / "mini" / "cells"
        done = call("tools/fit.py", "all", cells, "--method", "grids", "--prior", PAPER, "--out", out)
        assert done.returncode == 0, done.stderr
        fitted = json.loads(out.read_text())
    return {key: value for key, value in fitted.items() if key not in ("name", "provenance")}


def plan() -> dict:
    from tests.commands import call

    done = call("tools/plan.py", "--law", PAPER, "--flops", "1e20", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def trained(cache: Path, out: Path, name: str, stacked: bool) -> dict:
    """Every step's loss and the milestones of a run, alone or with another in a stack."""
    import torch

    from tests.training.test_trainer import losses, overrides, result
    from videoscaling.training.config import load_config
    from videoscaling.training.stacked.loop import train_stacked
    from videoscaling.training.train import train

    torch.set_num_threads(1)
    keys = [f"optim.lr={RATE}", "train.milestones=[3200]", f"train.tokens={STEPS * 128}"]
    first = load_config(None, overrides(cache, out, name, *keys))
    if stacked:
        other = load_config(None, overrides(cache, out, f"{name}-other", *keys, "optim.lr=5e-4"))
        assert train_stacked([first, other]) == 0
    else:
        assert train(first) == 0
    done = result(out / name)
    kept = {key: done[key] for key in ("status", "N", "B", "tokens", "flops", "milestones")}
    for milestone in kept["milestones"]:
        del milestone["losses_crc32"]  # of losses to the last bit, which differs between machines
    return json.loads(json.dumps(kept | {"losses": losses(out / name).tolist()}))


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads(RECORD.read_text())


def test_the_law_of_the_committed_study() -> None:
    committed = json.loads((ROOT / "results" / "mini" / "law.json").read_text())
    found = law()
    assert list(found) == [key for key in committed if key not in ("name", "provenance")]
    for key, value in found.items():
        same(value, committed[key], LAW_RTOL, DRAWS_ATOL if key == "draws" else 0.0)


def test_a_plan(record: dict) -> None:
    same(plan(), record["plan"], PLAN_RTOL)


@pytest.mark.parametrize("stacked", [False, True])
def test_a_run_of_fifty_steps_alone_and_in_a_stack(cache: Path, tmp_path: Path, record: dict, stacked: bool) -> None:
    found = trained(cache, tmp_path, "run", stacked)
    assert len(found["losses"]) == STEPS
    same(found, record["run"], RUN_RTOL)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(ROOT))
    from tests.conftest import make_cache

    with tempfile.TemporaryDirectory() as folder:
        run = trained(make_cache(Path(folder) / "cache"), Path(folder), "run", False)
    RECORD.write_text(json.dumps({"plan": plan(), "run": run}, indent=1) + "\n")
