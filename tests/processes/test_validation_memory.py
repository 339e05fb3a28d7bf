"""Sharded models whose validation fills the memory of one process: all of them find a smaller pass, before step 1."""

from pathlib import Path

import pytest
import torch

from tests.processes.trainings import together, train_it
from tests.training.test_trainer import overrides, result


def short_in_validation(keys: list[str], most: int, rank: int) -> int:
    """A training in which the memory of ``rank`` holds ``most`` samples of validation."""
    import videoscaling.training.trainer

    plain = videoscaling.training.trainer.denoising_loss

    def limited(model: torch.nn.Module, process: object, *samples: torch.Tensor) -> torch.Tensor:
        if len(samples[0]) > most and torch.distributed.get_rank() == rank:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(model, process, *samples)

    videoscaling.training.trainer.denoising_loss = limited  # the validation's; the step has its own name for it
    return train_it(keys)


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_processes_agree_on_a_smaller_validation_pass(cache: Path, tmp_path: Path, parallel: str) -> None:
    more = ("train.tokens=512", f"train.parallel={parallel}")
    together(tmp_path / "plain", train_it, overrides(cache, tmp_path, "plain", *more), world=2)
    text = together(tmp_path / "log", short_in_validation, overrides(cache, tmp_path, "x", *more), 1, 1, world=2)
    assert [line for line in text.splitlines() if "out of GPU memory" in line][-1].count("validation.batch=1,") == 1
    ours, theirs = (result(tmp_path / name)["milestones"][-1] for name in ("x", "plain"))
    assert ours["ema_val_loss"] == pytest.approx(theirs["ema_val_loss"], rel=1e-6)
    assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-6)
