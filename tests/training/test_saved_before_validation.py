"""A run killed during validation loses nothing: it saves its checkpoint before, and validates before the next step."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import videoscaling.training.checkpoints.checkpoint
from tests.training.stacked.test_loop import configs, same
from tests.training.test_trainer import losses, metrics, newest_step, overrides, result, run
from videoscaling.diffusion.validation import ValidationResult
from videoscaling.training.checkpoints.checkpoint import checkpoint_paths, find_checkpoint, read_state
from videoscaling.training.config import load_config
from videoscaling.training.stacked.loop import train_stacked
from videoscaling.training.stacked.step import StackedStep
from videoscaling.training.step import TrainStep
from videoscaling.training.train import train
from videoscaling.training.trainer import Trainer
from videoscaling.utils.errors import UserError

MILESTONES = ("train.tokens=2560", "train.milestones=[1280]", "optim.warmup_tokens=128")


def dies(*arguments: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("at", [1280, 2560])
def test_a_run_that_dies_in_validation_measures_before_its_next_step(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    whole = run(cache, tmp_path, "whole", *MILESTONES)
    plain, step = Trainer.validate, TrainStep.run
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "validate", lambda self: dies() if self.tokens == at else plain(self))
        with pytest.raises(torch.OutOfMemoryError):
            train(load_config(None, overrides(cache, tmp_path, "x", *MILESTONES)))
    assert newest_step(tmp_path / "x") == at // 128
    unmeasured = read_state(find_checkpoint(tmp_path / "x"))["milestones"]
    assert [m["nominal"] for m in unmeasured] == [m for m in (1280, 2560) if m < at]
    order: list[str] = []
    monkeypatch.setattr(Trainer, "validate", lambda self: order.append("scores") or plain(self))
    monkeypatch.setattr(TrainStep, "run", lambda self, *more: order.append("step") or step(self, *more))
    done = run(cache, tmp_path, "x", *MILESTONES)
    assert order == ["scores", *["step"] * 10, "scores"][: 12 if at == 1280 else 1]
    assert done["milestones"] == whole["milestones"]
    assert metrics(tmp_path / "x") == metrics(tmp_path / "whole")
    ours, theirs = (find_checkpoint(tmp_path / name) for name in ("x", "whole"))
    assert read_state(ours)["milestones"] == read_state(theirs)["milestones"] == whole["milestones"]
    for kind in ("model", "ema", "optimizer"):
        assert (ours / f"{kind}.safetensors").read_bytes() == (theirs / f"{kind}.safetensors").read_bytes()
    for path in (tmp_path / "whole" / "validation").iterdir():
        assert (tmp_path / "x" / "validation" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_kill_around_the_milestones_record_loses_and_repeats_no_point_of_tensorboard(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    whole = run(cache, tmp_path, "whole", *MILESTONES)
    plain, seen = videoscaling.training.checkpoints.checkpoint.update_state, []

    def points(tag: str, name: str = "x") -> list[tuple[int, float]]:
        events = EventAccumulator(str(tmp_path / name / "tensorboard"), {"scalars": 0}).Reload()
        return [(point.step, point.value) for point in events.Scalars(tag)]

    def tokens(tag: str) -> list[int]:
        return [at for at, _ in points(tag)]

    def killed(*arguments: Any, **more: Any) -> None:
        seen.append((tokens("train/loss"), tokens("validation/ema_val_loss")))  # what a kill here would leave on disk
        if after:
            plain(*arguments, **more)
        dies()

    with monkeypatch.context() as patch:
        patch.setattr(videoscaling.training.checkpoints.checkpoint, "update_state", killed)
        with pytest.raises(torch.OutOfMemoryError):
            train(load_config(None, overrides(cache, tmp_path, "x", *MILESTONES)))
    assert seen == [([128 * step for step in range(1, 11)], [1280])]
    done = run(cache, tmp_path, "x", *MILESTONES)
    assert done["milestones"] == whole["milestones"]
    assert metrics(tmp_path / "x") == metrics(tmp_path / "whole")
    assert tokens("validation/ema_val_loss") == [1280, 2560]
    assert tokens("train/loss") == [128 * step for step in range(1, 21)]
    for tag in ("train/loss", "validation/ema_val_loss", "validation/val_loss"):
        assert points(tag) == points(tag, "whole")


def test_stacked_runs_that_die_in_validation_measure_before_their_next_step(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train_stacked(configs(cache, tmp_path / "whole", *MILESTONES, rows=2)) == 0
    with monkeypatch.context() as patch:
        patch.setattr(StackedStep, "validate", dies)
        with pytest.raises(torch.OutOfMemoryError):
            train_stacked(configs(cache, tmp_path / "x", *MILESTONES, rows=2))
    # Both had asked for their scores, so that both had saved.
    assert train_stacked(configs(cache, tmp_path / "x", *MILESTONES, rows=2)) == 0
    for row in range(2):
        same(tmp_path / "x" / str(row), tmp_path / "whole" / str(row), 0)


def test_weights_whose_validation_is_not_finite_leave_the_checkpoint_before(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Trainer.after_validation

    def not_finite(self: Trainer, raw: ValidationResult, ema: ValidationResult) -> None:
        plain(self, replace(raw, loss=math.nan) if self.tokens == 2560 else raw, ema)

    monkeypatch.setattr(Trainer, "after_validation", not_finite)
    done = run(cache, tmp_path, "x", *MILESTONES, "checkpoint.keep=1")
    assert (done["status"], [m["nominal"] for m in done["milestones"]]) == ("diverged", [1280])
    assert [path.name for path in checkpoint_paths(tmp_path / "x" / "checkpoints")] == ["step_0000010"]


def test_a_validation_that_never_fits_ends_the_run_before_its_first_step(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import videoscaling.training.validation

    monkeypatch.setattr(videoscaling.training.validation, "validate_rows", lambda *arguments, **more: dies())
    monkeypatch.setattr(TrainStep, "run", lambda *_: pytest.fail("trained"))
    with pytest.raises(UserError, match="out of GPU memory"):
        train(load_config(None, overrides(cache, tmp_path, "x")))


def test_trying_validation_first_changes_no_number(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = run(cache, tmp_path, "tried", *MILESTONES)
    monkeypatch.setattr(Trainer, "find_validation_batch", lambda self: None)
    assert run(cache, tmp_path, "untried", *MILESTONES)["milestones"] == tried["milestones"]
    np.testing.assert_array_equal(losses(tmp_path / "tried"), losses(tmp_path / "untried"))
    assert result(tmp_path / "tried")["status"] == "done"
