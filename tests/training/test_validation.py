"""Sizes of validation's forward passes, and the memory that finding them takes."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import videoscaling.training.trainer
import videoscaling.training.validation
from tests.training.stacked.test_loop import configs
from tests.training.test_static_shapes import trainer_of
from videoscaling.training.stacked.step import StackedStep
from videoscaling.training.train import prepare
from videoscaling.training.trainer import RAW_SHARE, Trainer


def sizes_of_passes(trainer: Trainer, share: int) -> list[int]:
    """The samples in each forward pass over one of ``share`` clips."""
    sizes: list[int] = []

    def losses(x0: torch.Tensor, *more: Any) -> torch.Tensor:
        sizes.append(len(x0))
        return torch.ones(len(x0))

    trainer.validator.validate(losses, share=share)
    assert len(sizes) == trainer.validator.passes(share)
    return sizes


@pytest.mark.parametrize(
    ("batch", "compiled", "whole", "raw"),
    [
        (32, False, [32], [8]),
        (1000, False, [32], [8]),
        (12, False, [11] * 3, [8]),
        (5, False, [5] * 7, [4] * 2),
        (32, True, [32], [32]),  # one size, so that one graph is compiled
        (5, True, [5] * 7, [5] * 2),
    ],
)
def test_passes_are_as_large_as_asked(
    cache: Path, tmp_path: Path, batch: int, compiled: bool, whole: list[int], raw: list[int]
) -> None:
    """Of 16 clips at two times each; the raw weights see four of the clips."""
    trainer = trainer_of(cache, tmp_path, f"validation.batch={batch}", f"train.compile={compiled}".lower())
    assert sizes_of_passes(trainer, 1) == whole
    assert sizes_of_passes(trainer, RAW_SHARE) == raw
    assert sizes_of_passes(trainer, 1) == whole  # a smaller share does not make later passes smaller


def test_stacked_runs_try_no_size_twice(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = StackedStep([Trainer(*prepare(c)) for c in configs(cache, tmp_path, "validation.batch=20", rows=4)])
    plain, tried = videoscaling.training.validation.validate_rows, []

    def small_memory(*arguments: Any, **more: Any) -> Any:
        tried.append(more["batch"])
        if more["batch"] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(*arguments, **more)

    monkeypatch.setattr(videoscaling.training.validation, "validate_rows", small_memory)
    stack.find_validation_batch()
    assert tried == [5, 3, 2, 1, 1]  # of each run's samples; the last for the averaged weights
    assert {trainer.validator.batch for trainer in stack.trainers} == {4}


def test_the_rehearsal_is_freed_before_the_sharded_passes(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(cache, tmp_path)
    trainer.sharded = trainer.validator._sharded = True
    few_blocks, validate_rows = (
        videoscaling.training.trainer.few_blocks,
        videoscaling.training.validation.validate_rows,
    )
    rehearsals: list[weakref.ref] = []
    alive: list[bool] = []

    def recorded(*arguments: Any) -> torch.nn.Module:
        model = few_blocks(*arguments)
        rehearsals.append(weakref.ref(model))
        return model

    def watched(*arguments: Any, **more: Any) -> Any:
        alive.append(rehearsals[0]() is not None)
        return validate_rows(*arguments, **more)

    monkeypatch.setattr(videoscaling.training.trainer, "few_blocks", recorded)
    monkeypatch.setattr(videoscaling.training.validation, "validate_rows", watched)
    trainer.find_validation_batch()
    assert alive == [True, False, False]
