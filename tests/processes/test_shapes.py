"""Clips of several shapes on two processes: the numbers of one."""

from pathlib import Path

import numpy as np
import pytest

from tests.processes.trainings import together, train_it
from tests.training.test_shapes import NAMES, both, keys_of  # noqa: F401
from tests.training.test_trainer import losses, result


@pytest.mark.slow
def test_two_processes_train_as_one(both: list[Path], tmp_path: Path) -> None:
    more = ("train.milestones=[1280]", "train.micro_batch=1")
    together(tmp_path / "log" / "one", train_it, keys_of(both, tmp_path, "one", *more))
    wanted = result(tmp_path / "one")
    for parallel in ("ddp", "fsdp"):
        keys = keys_of(both, tmp_path, parallel, f"train.parallel={parallel}", *more)
        together(tmp_path / "log" / parallel, train_it, keys, world=2)
        np.testing.assert_allclose(losses(tmp_path / parallel), losses(tmp_path / "one"), rtol=1e-5)
        found = result(tmp_path / parallel)
        assert [found[key] for key in ("run_id", "flops", "exact_flops", "shapes")] == [
            wanted[key] for key in ("run_id", "flops", "exact_flops", "shapes")
        ]
        for ours, theirs in zip(found["milestones"], wanted["milestones"]):
            for name in NAMES:
                assert ours["by_shape"][name]["ema_val_loss"] == pytest.approx(
                    theirs["by_shape"][name]["ema_val_loss"], rel=1e-5
                )
