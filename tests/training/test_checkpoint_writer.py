"""Checkpoints are written beside training: the step waits for the copy alone, and nothing is lost at the end."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.training.test_trainer import newest_step, overrides, run
from videoscaling.training.checkpoints import checkpoint
from videoscaling.training.checkpoints.checkpoint import find_checkpoint, read_state, read_tensors
from videoscaling.training.checkpoints.writer import CheckpointWriter
from videoscaling.training.config import load_config
from videoscaling.training.step import TrainStep
from videoscaling.training.train import train
from videoscaling.training.trainer import Trainer

KEYS = ("train.tokens=1280", "checkpoint.every_steps=4", "checkpoint.keep=9")


def held(monkeypatch: pytest.MonkeyPatch, release: threading.Event, step: int) -> list[str]:
    """Hold the save of ``step`` until ``release``; returns the events as they come."""
    plain, train_step, events = checkpoint.save_checkpoint, TrainStep.run, []

    def save(directory: Path, at: int, *more: object) -> Path:
        if at == step:
            assert release.wait(60)
        events.append(f"saved {at}")
        return plain(directory, at, *more)

    def step_once(self: TrainStep, samples: object, tokens: int) -> None:
        events.append(f"step {tokens // 128 + 1}")
        train_step(self, samples, tokens)
        if len(events) > step + 1:  # two steps after the save began
            release.set()

    monkeypatch.setattr(checkpoint, "save_checkpoint", save)
    monkeypatch.setattr(TrainStep, "run", step_once)
    return events


def test_steps_do_not_wait_for_the_files_and_the_checkpoint_is_of_its_own_step(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(cache, tmp_path, "plain", *KEYS)
    with monkeypatch.context() as patch:
        events = held(patch, threading.Event(), 4)
        run(cache, tmp_path, "held", *KEYS)
    assert events.index("saved 4") > events.index("step 6")
    assert {f"saved {step}" for step in (4, 8, 10)} < set(events)
    for step in (4, 8, 10):
        ours, theirs = (tmp_path / name / "checkpoints" / f"step_{step:07d}" for name in ("held", "plain"))
        for kind in ("model", "ema", "optimizer"):
            mine, yours = read_tensors(ours, kind), read_tensors(theirs, kind)
            assert all(torch.equal(mine[name], yours[name]) for name in yours)
        assert read_state(ours)["counts"] == read_state(theirs)["counts"]


def test_an_error_of_training_leaves_the_save_whole(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    held(monkeypatch, release, 4)
    plain = Trainer.after_step

    def after_step(self: Trainer, stopping: bool) -> None:
        plain(self, stopping)
        if self.step == 5:
            threading.Timer(0.1, release.set).start()
            raise MemoryError

    monkeypatch.setattr(Trainer, "after_step", after_step)
    with pytest.raises(MemoryError):
        train(load_config(None, overrides(cache, tmp_path, "x", *KEYS)))
    assert newest_step(tmp_path / "x") == 4
    find_checkpoint(tmp_path / "x")


def test_a_failed_save_ends_the_run_within_a_step(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    plain = TrainStep.run

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "x")

    def step_once(self: TrainStep, samples: object, tokens: int) -> None:
        steps.append(tokens // 128 + 1)
        for thread in threading.enumerate():
            if thread.name == "checkpoint":
                thread.join()
        plain(self, samples, tokens)

    monkeypatch.setattr(checkpoint, "save_checkpoint", full)
    monkeypatch.setattr(TrainStep, "run", step_once)
    with pytest.raises(OSError, match="No space"):
        train(load_config(None, overrides(cache, tmp_path, "x", *KEYS)))
    assert steps == [1, 2, 3, 4, 5]


def test_one_save_is_under_way_at_most_and_its_copy_is_kept_until_it_is_written() -> None:
    writer, release, seen = CheckpointWriter(), threading.Event(), []
    weight = torch.ones(3)
    copies = writer.copy({"model": {"w": weight}}, True)

    def write() -> None:
        assert release.wait(60)
        seen.append(copies["model"]["w"].tolist())

    writer.start(write)
    weight += 1
    threading.Timer(0.1, release.set).start()
    again = writer.copy({"model": {"w": weight}}, True)  # waits
    assert seen == [[1.0] * 3]
    assert again["model"]["w"].tolist() == [2.0] * 3
    assert writer.copy({"model": {"w": weight}}, False) == {"model": {}}


@pytest.mark.parametrize("later", [CheckpointWriter.check, CheckpointWriter.wait])
def test_an_error_is_raised_once(later: Callable[[CheckpointWriter], None]) -> None:
    writer = CheckpointWriter()

    def write() -> None:
        raise OSError(5, "Input/output error")

    writer.start(write)
    writer._thread.join()
    with pytest.raises(OSError, match="Input/output"):
        later(writer)
    writer.wait()
