"""Runs that are trained together are the runs they would be alone."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.training.processes import finish, killed_together, start
from tests.training.test_trainer import losses, metrics, overrides, result
from training.checkpoint import checkpoint_paths
from training.config import Config, load_config
from training.ensemble import CONSOLE, StackedStep, train_together
from training.feed import Feed, Samples
from training.trainer import PREEMPTED, train
from utils.errors import UserError

ROWS = 8


def own(row: int) -> list[str]:
    """What is a run's own in a stack, but its name."""
    return [
        f"seed={row}",
        "data.seed=5",
        f"optim.lr={5e-4 * 1.5**row}",
        f"optim.weight_decay={0.1 * (row % 2)}",
        f"optim.beta1={0.9 - 0.02 * row}",
        f"optim.beta2_half_life={2e4 * (1 + row)}",
        f"optim.clip={[1.0, 0.1][row % 2]}",
    ]


def configs(cache: Path, out: Path, *more: str, rows: int = ROWS) -> list[Config]:
    return [load_config(None, overrides(cache, out, str(row), *own(row), *more)) for row in range(rows)]


def same(ours: Path, theirs: Path, rtol: float = 1e-5) -> None:
    """Two run directories tell of the same run: every logged step, every sample of validation, the result."""
    np.testing.assert_allclose(losses(ours).astype(float), losses(theirs).astype(float), rtol=rtol)
    for mine, yours in zip(metrics(ours), metrics(theirs)):
        assert {k: v for k, v in mine.items() if k not in ("loss", "grad_norm")} == {
            k: v for k, v in yours.items() if k not in ("loss", "grad_norm")
        }
    scored = [sorted(p.name for p in (directory / "validation").glob("*")) for directory in (ours, theirs)]
    assert scored[0] == scored[1]
    for name in scored[0]:
        ours_all, theirs_all = (np.load(directory / "validation" / name) for directory in (ours, theirs))
        np.testing.assert_allclose(ours_all, theirs_all, rtol=10 * rtol)
    mine, yours = result(ours), result(theirs)
    assert mine.keys() == yours.keys()
    for key in mine.keys() - {"seconds", "git_revision", "milestones", "config"}:
        assert mine[key] == yours[key], key
    for values in (mine["config"], yours["config"]):
        del values["out"]
    assert mine["config"] == yours["config"]
    assert len(mine["milestones"]) == len(yours["milestones"])
    for a, b in zip(mine["milestones"], yours["milestones"]):
        assert a.keys() == b.keys()
        for key in a:
            # A standard error of 16 clips follows single samples, which follow single weights.
            assert a[key] == pytest.approx(b[key], rel=10 * rtol if key.endswith("_se") else rtol), key
    newest = [[p.name for p in checkpoint_paths(d / "checkpoints")[:1]] for d in (ours, theirs)]
    assert newest[0] == newest[1]


@pytest.mark.parametrize("more", [("train.micro_batch=3",), ("optim.schedule=wsd", "train.dtype=bfloat16")])
def test_each_of_eight_equals_the_run_alone(cache: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    more = ("train.milestones=[1280]", "checkpoint.every_steps=20", *more)
    assert train_together(configs(cache, tmp_path / "together", *more)) == 0
    coarse = "train.dtype=bfloat16" in more
    for row, config in enumerate(configs(cache, tmp_path / "alone", *more)):
        assert train(config) == 0
        # bfloat16 rounds to 4e-3 at every product, and kernels differ in which.
        same(tmp_path / "together" / str(row), tmp_path / "alone" / str(row), 2e-2 if coarse else 1e-5)
    ends = [result(tmp_path / "together" / str(row))["milestones"][-1]["ema_val_loss"] for row in range(ROWS)]
    assert len(set(ends)) == ROWS


def test_a_run_that_diverges_is_recorded_and_the_others_go_on(cache: Path, tmp_path: Path) -> None:
    more = ("train.max_skipped=3", "train.milestones=[1280]", "checkpoint.every_steps=8")
    several = configs(cache, tmp_path / "together", *more, rows=4)
    several[1].optim.lr, several[1].optim.clip = 1e30, 1e30
    assert train_together(several) == 0
    alone = configs(cache, tmp_path / "alone", *more, rows=4)
    alone[1].optim.lr, alone[1].optim.clip = 1e30, 1e30
    for row in range(4):
        assert train(alone[row]) == 0
        same(tmp_path / "together" / str(row), tmp_path / "alone" / str(row))
    statuses = [result(tmp_path / "together" / str(row))["status"] for row in range(4)]
    assert statuses == ["done", "diverged", "done", "done"]


def test_a_stack_goes_on_alone_and_a_run_alone_in_a_stack(cache: Path, tmp_path: Path) -> None:
    short = ("train.tokens=2560", "optim.warmup_tokens=256")
    whole = ("train.milestones=[2560]", "optim.warmup_tokens=256")
    assert train_together(configs(cache, tmp_path / "x", *short, rows=3)) == 0
    assert train(configs(cache, tmp_path / "x", *whole, rows=3)[2]) == 0  # one goes on alone, the others together
    assert train_together(configs(cache, tmp_path / "x", *whole, rows=3)) == 0
    assert train_together(configs(cache, tmp_path / "unbroken", *whole, rows=3)) == 0
    for row in range(3):
        same(tmp_path / "x" / str(row), tmp_path / "unbroken" / str(row))
    before = [(tmp_path / "x" / str(row) / "result.json").stat().st_mtime_ns for row in range(3)]
    assert train_together(configs(cache, tmp_path / "x", *whole, rows=3)) == 0  # finished runs are left as they are
    assert [(tmp_path / "x" / str(row) / "result.json").stat().st_mtime_ns for row in range(3)] == before


def test_runs_steps_apart_wait_for_one_another(cache: Path, tmp_path: Path) -> None:
    """As a kill leaves them that comes while one after the other saves."""
    whole = ("checkpoint.every_steps=10", "checkpoint.keep=9")
    several = configs(cache, tmp_path / "x", *whole, rows=3)
    assert train_together(several) == 0
    for row, steps in ((0, (50, 40)), (1, (50,))):
        (tmp_path / "x" / str(row) / "result.json").unlink()
        for step in steps:
            shutil.rmtree(tmp_path / "x" / str(row) / "checkpoints" / f"step_{step:07d}")
    (tmp_path / "x" / "2" / "result.json").unlink()
    assert train_together(several) == 0
    assert train_together(configs(cache, tmp_path / "unbroken", *whole, rows=3)) == 0
    for row in range(3):
        same(tmp_path / "x" / str(row), tmp_path / "unbroken" / str(row))


def test_killed_in_mid_stack_and_run_again(cache: Path, tmp_path: Path) -> None:
    more = ("checkpoint.every_steps=7", "train.milestones=[1280]")
    words = [overrides(cache, tmp_path / "x", str(row), *own(row), *more) for row in range(3)]
    codes = finish(start(tmp_path / "log", killed_together, words, 23))
    assert codes == [-signal.SIGKILL]
    assert not (tmp_path / "x" / "0" / "checkpoints" / "step_0000050").exists()
    assert train_together(configs(cache, tmp_path / "x", *more, rows=3)) == 0
    assert train_together(configs(cache, tmp_path / "unbroken", *more, rows=3)) == 0
    for row in range(3):
        same(tmp_path / "x" / str(row), tmp_path / "unbroken" / str(row), 0)  # bit for bit


def test_a_signal_stops_all_members(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Feed.step

    def step(self: Feed, number: int) -> Samples:
        if number == 12:
            os.kill(os.getpid(), signal.SIGUSR2)
        return plain(self, number)

    several = configs(cache, tmp_path / "x", rows=3)
    with monkeypatch.context() as patch:
        patch.setattr(Feed, "step", step)
        assert train_together(several) == PREEMPTED
    assert {checkpoint_paths(c.run_dir / "checkpoints")[0].name for c in several} == {"step_0000013"}
    assert {result(c.run_dir)["status"] for c in several} == {"preempted"}
    assert train_together(several) == 0
    assert train_together(configs(cache, tmp_path / "unbroken", rows=3)) == 0
    for row in range(3):
        same(tmp_path / "x" / str(row), tmp_path / "unbroken" / str(row), 0)


@pytest.mark.parametrize("word", ["data.seed=6", "train.batch_tokens=256", "train.tokens=5120", "ema.width=0.1"])
def test_runs_that_cannot_share_their_steps_are_refused(cache: Path, tmp_path: Path, word: str) -> None:
    several = configs(cache, tmp_path, rows=2)
    several[1] = load_config(None, overrides(cache, tmp_path, "1", *own(1), word))
    with pytest.raises(UserError, match="differ in more than"):
        train_together(several)
    assert not list(tmp_path.iterdir())


def test_what_ends_all_is_told_to_each(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: StackedStep, *arguments: object) -> None:
        raise RuntimeError("the arithmetic is at fault")

    monkeypatch.setattr(StackedStep, "gradients", broken)
    several = configs(cache, tmp_path, rows=2)
    with pytest.raises(RuntimeError):
        train_together(several, consoles=True)
    for config in several:
        lines = (config.run_dir / CONSOLE).read_text().splitlines()
        assert lines[-1] == "RuntimeError: the arithmetic is at fault"
        assert sum(str(config.run_dir) in line for line in lines) == 1


@pytest.mark.slow
def test_compiled_rows_equal_compiled_runs_also_after_some_have_ended(cache: Path, tmp_path: Path) -> None:
    more = ("train.compile=true", "train.max_skipped=2")
    several = configs(cache, tmp_path / "together", *more, rows=4)
    alone = configs(cache, tmp_path / "alone", *more, rows=4)
    for config in (*several[2:], *alone[2:]):
        config.optim.lr, config.optim.clip = 1e30, 1e30
    assert train_together(several) == 0
    for row, config in enumerate(alone):
        assert train(config) == 0
        same(tmp_path / "together" / str(row), tmp_path / "alone" / str(row))
