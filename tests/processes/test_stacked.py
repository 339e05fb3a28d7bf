"""Stacked runs whose process is killed."""

import signal
from pathlib import Path

import pytest

from tests.processes.trainings import finish, killed_together, start
from tests.training.stacked.test_loop import configs, own, same
from tests.training.test_trainer import overrides
from videoscaling.training.stacked.loop import train_stacked


@pytest.mark.slow
def test_killed_in_mid_stack_and_run_again(cache: Path, tmp_path: Path) -> None:
    more = ("checkpoint.every_steps=7", "train.milestones=[1280]")
    words = [overrides(cache, tmp_path / "x", str(row), *own(row), *more) for row in range(3)]
    codes = finish(start(tmp_path / "log", killed_together, words, 23))
    assert codes == [-signal.SIGKILL]
    assert not (tmp_path / "x" / "0" / "checkpoints" / "step_0000050").exists()
    assert train_stacked(configs(cache, tmp_path / "x", *more, rows=3)) == 0
    assert train_stacked(configs(cache, tmp_path / "unbroken", *more, rows=3)) == 0
    for row in range(3):
        same(tmp_path / "x" / str(row), tmp_path / "unbroken" / str(row), 0)  # bit for bit
