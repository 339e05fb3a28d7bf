"""What concerns several stacked runs: refusals, errors and warnings, reported to each."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import videoscaling.training.stacked.loop
import videoscaling.training.train
from tests.training.stacked.test_loop import configs, own
from tests.training.test_trainer import overrides
from videoscaling.training.config import load_config
from videoscaling.training.stacked.loop import CONSOLE, train_stacked
from videoscaling.training.stacked.step import StackedStep
from videoscaling.training.train import train
from videoscaling.utils.errors import UserError
from videoscaling.utils.locks import lock_run_dir


@pytest.mark.parametrize("word", ["validation.seed=6", "train.batch_tokens=256", "train.tokens=5120", "ema.width=0.1"])
def test_runs_that_cannot_share_their_steps_are_refused(cache: Path, tmp_path: Path, word: str) -> None:
    several = configs(cache, tmp_path, rows=2)
    several[1] = load_config(None, overrides(cache, tmp_path, "1", *own(1), word))
    with pytest.raises(UserError, match="differ in more than"):
        train_stacked(several)
    assert not list(tmp_path.iterdir())


def test_what_ends_all_is_reported_to_each(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: StackedStep, *arguments: object) -> None:
        raise RuntimeError("the arithmetic is at fault")

    monkeypatch.setattr(StackedStep, "backward", broken)
    several = configs(cache, tmp_path, rows=2)
    with pytest.raises(RuntimeError):
        train_stacked(several, consoles=True)
    for config in several:
        lines = (config.run_dir / CONSOLE).read_text().splitlines()
        assert lines[-1] == "RuntimeError: the arithmetic is at fault"
        assert sum(str(config.run_dir) in line for line in lines) == 1


def test_a_users_error_is_reported_to_each_in_one_line(cache: Path, tmp_path: Path) -> None:
    several = configs(cache, tmp_path, rows=2)
    assert train(several[1]) == 0
    several[1].optim.eps = 1e-7
    with pytest.raises(UserError, match="made by another configuration"):
        train_stacked(several, consoles=True)
    for config in several:
        (line,) = (config.run_dir / CONSOLE).read_text().splitlines()
        assert line.startswith(f"error: {several[1].run_dir}: made by another configuration")


def test_what_a_run_is_warned_of_is_in_its_console(cache: Path, tmp_path: Path) -> None:
    several = configs(cache, tmp_path, "train.tokens=1280", "checkpoint.every_steps=5", rows=2)
    assert train_stacked(several) == 0
    for config in several:
        (config.run_dir / "result.json").unlink()
    damaged = several[1].run_dir / "checkpoints" / "step_0000010" / "model.safetensors"
    damaged.write_bytes(b"half of it")
    assert train_stacked(several, consoles=True) == 0
    ours, theirs = ((config.run_dir / CONSOLE).read_text() for config in several)
    assert "trying the checkpoint before it" in theirs
    assert str(damaged.parent) not in ours


@pytest.mark.parametrize("module", [videoscaling.training.stacked.loop, videoscaling.training.train])
def test_runs_that_were_finished_while_they_were_waited_for(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object
) -> None:
    """By the processes of a pool that was killed: they are at their ends, and keep their averages alone."""
    config = configs(cache, tmp_path, "checkpoint.final=ema", rows=1)[0]

    @contextlib.contextmanager
    def waited(directory: Path, wait: bool = False) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(videoscaling.training.train, "lock_run_dir", lock_run_dir)
            assert train(config) == 0
        before.append((directory / "metrics.jsonl").stat().st_mtime_ns)
        with lock_run_dir(directory, wait):
            yield

    before: list[int] = []
    monkeypatch.setattr(module, "lock_run_dir", waited)
    together = module is videoscaling.training.stacked.loop
    assert (train_stacked([config], wait=True) if together else train(config, wait=True)) == 0
    assert before == [(config.run_dir / "metrics.jsonl").stat().st_mtime_ns]
