"""What killed processes left of a run goes at its next start, and a run whose lock is gone writes nothing more."""

import shutil
from pathlib import Path

import pytest

from tests.training.test_trainer import overrides, result, run
from videoscaling.training.checkpoints.checkpoint import checkpoint_paths, read_state
from videoscaling.training.config import load_config
from videoscaling.training.step import TrainStep
from videoscaling.training.train import train
from videoscaling.utils.errors import UserError
from videoscaling.utils.process_ids import machine_code


def names(folder: Path) -> set[str]:
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return {name for name in paths if not name.startswith("tensorboard")}


def leave_halves(folder: Path) -> None:
    """What kills at several moments leave, by this version and by older ones; no process 2 ** 22 + 1 exists."""
    (newest,) = checkpoint_paths(folder / "checkpoints")
    suffix = f"{machine_code()}-4194305.tmp"
    for name in (".result.json.17.tmp", ".metrics.jsonl.00000000-17.tmp", f".failure.json.{suffix}"):
        (folder / name).write_text("half")
    (folder / "validation" / ".640.npy.00000000-17.tmp").write_text("half")
    (newest / ".state.json.17.tmp").write_text("half")
    (newest / "optimizer.safetensors").write_bytes(b"no longer listed")
    for name in (".step_0000001.tmp", ".step_0000002.00000000-17.tmp", ".step_0000003.old.tmp"):
        (newest.parent / name).mkdir()
        (newest.parent / name / "model.safetensors").write_text("half")


def test_a_finished_run_loses_what_its_process_left(cache: Path, tmp_path: Path) -> None:
    run(cache, tmp_path, "x", "train.tokens=640", "checkpoint.final=ema")
    whole, found = names(tmp_path / "x"), result(tmp_path / "x")
    leave_halves(tmp_path / "x")
    notes = tmp_path / "x" / ".notes.tmp"
    notes.write_text("a user's own")
    (tmp_path / "x" / ".other.json.17.tmp").write_text("not written by a run")
    assert run(cache, tmp_path, "x", "train.tokens=640", "checkpoint.final=ema") == found
    assert names(tmp_path / "x") - whole == {".notes.tmp", ".other.json.17.tmp"}


def test_a_folder_that_was_being_replaced_comes_back(cache: Path, tmp_path: Path) -> None:
    run(cache, tmp_path, "x", "train.tokens=640", "checkpoint.keep=1")
    (newest,) = checkpoint_paths(tmp_path / "x" / "checkpoints")
    newest.rename(newest.with_name(f".{newest.name}.old.tmp"))
    shutil.copytree(newest.with_name(f".{newest.name}.old.tmp"), newest.with_name(f".{newest.name}.tmp"))
    run(cache, tmp_path, "x", "train.tokens=1280", "optim.warmup_tokens=64", "checkpoint.keep=9")
    assert [path.name for path in checkpoint_paths(newest.parent)] == ["step_0000010", newest.name]
    assert read_state(newest)["step"] == 5
    assert not list(newest.parent.glob(".step*"))


def test_a_run_whose_lock_was_removed_writes_no_checkpoint(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = TrainStep.run

    def step(self: TrainStep, samples: object, tokens: int) -> None:
        plain(self, samples, tokens)
        if tokens == 128 * 5:
            (tmp_path / "x" / ".lock").unlink()

    monkeypatch.setattr(TrainStep, "run", step)
    with pytest.raises(UserError, match=r"its lock \.lock was removed or replaced"):
        train(load_config(None, overrides(cache, tmp_path, "x", "checkpoint.every_steps=4", "checkpoint.keep=9")))
    assert [path.name for path in checkpoint_paths(tmp_path / "x" / "checkpoints")] == ["step_0000004"]
    assert not (tmp_path / "x" / "result.json").exists()
