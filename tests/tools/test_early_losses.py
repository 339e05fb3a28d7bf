"""Losses at earlier milestones against those at the end, of runs whose ranks are known."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from videoscaling.scaling.runs import RunTable, read
from videoscaling.tools.benchmarks.early_losses import early_losses
from videoscaling.utils.errors import UserError

LAST = [1.0, 1.005, 1.02, 1.03, 1.04, 1.05]


def table(folder: Path, early: Sequence[float], last: Sequence[float] = LAST) -> RunTable:
    """Runs of one size with losses at 100 and 400 tokens, and one that stopped before."""
    lines = ["run_id,N,T,B,lr,loss", "short,1000,100,10,0.5,0.9"]
    for number, losses in enumerate(zip(early, last)):
        lines += [f"r{number},1000,{T},10,{0.01 * (number + 1)},{loss}" for T, loss in zip((100, 400), losses)]
    path = folder / "runs.csv"
    path.write_text("\n".join(lines))
    return read(path)


def test_of_equal_ranks_all_worse_runs_could_have_been_stopped(tmp_path: Path) -> None:
    (found,) = early_losses(table(tmp_path, early=[2 * loss for loss in LAST]), 400)
    assert (found.N, found.T, found.runs, found.above) == (1000, 100, 6, 4)
    assert found.correlation == pytest.approx(1)
    assert found.highest == pytest.approx(0.005)


def test_the_best_run_may_have_been_the_worst_and_the_unfinished_one_is_left_out(tmp_path: Path) -> None:
    (found,) = early_losses(table(tmp_path, early=[2 - loss for loss in LAST]), 400)
    assert found.correlation == pytest.approx(-1)
    assert found.highest == pytest.approx(1.0 / 0.95 - 1)
    assert found.above == 0


def test_too_few_runs_are_refused(tmp_path: Path) -> None:
    for end, last in ((400, LAST[:5]), (500, LAST)):
        with pytest.raises(UserError, match=f"--tokens {end}: no size has 6 runs"):
            early_losses(table(tmp_path, early=last, last=last), end)
