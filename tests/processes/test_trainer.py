"""Training as processes: torchrun, signals, exit statuses."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.commands import call
from tests.processes import launch
from tests.processes.launch import ROOT, wait_until
from tests.processes.trainings import finish, start, together, train_it
from tests.training.test_trainer import command, losses, metrics, newest_step, overrides, result, run
from videoscaling.training.config import load_config
from videoscaling.training.train import train
from videoscaling.utils.errors import PREEMPTED, UserError


@pytest.mark.parametrize("torchrun", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["forked", "torchrun"])
def test_two_processes_and_accumulation_equal_one(cache: Path, tmp_path: Path, torchrun: bool) -> None:
    one = run(cache, tmp_path, "one")
    pieces = run(cache, tmp_path, "pieces", "train.micro_batch=3")
    if torchrun:
        out = launch.run(command(cache, tmp_path, "two", processes=2))
        assert out.returncode == 0, out.stderr
    else:
        together(tmp_path / "log", train_it, overrides(cache, tmp_path, "two"), world=2)
    two = result(tmp_path / "two")
    assert len(losses(tmp_path / "one")) == 50
    for name, other in (("pieces", pieces), ("two", two)):
        # Sums in another order: float32's 6e-8, grown over 50 steps.
        np.testing.assert_allclose(losses(tmp_path / name), losses(tmp_path / "one"), rtol=1e-5)
        for key in ("val_loss", "ema_val_loss"):
            assert other["milestones"][0][key] == pytest.approx(one["milestones"][0][key], rel=1e-6)


VALIDATE = """
import os
import sys
import torch
from videoscaling.data.latents import LatentCache
from videoscaling.train import leave
from videoscaling.training.config import load_config
from videoscaling.training.run import resolve
from videoscaling.training.trainer import Trainer

config = load_config(None, sys.argv[1:])
cache = LatentCache(config.data.cache)
trainer = Trainer(resolve(config, cache.meta), cache)
trainer.restore()
loss = trainer._validate(trainer.ema)
if trainer.main:
    print(trainer.step, repr(loss.loss), repr(loss.standard_error))
torch.distributed.destroy_process_group()
leave(0)
"""


@pytest.mark.slow
def test_one_checkpoint_has_one_validation_loss_on_one_process_and_two(cache: Path, tmp_path: Path) -> None:
    done = run(cache, tmp_path, "x")["milestones"][-1]
    (tmp_path / "validate.py").write_text(VALIDATE)
    for processes in (1, 2):
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        out = launch.run(
            [sys.executable, *torchrun, tmp_path / "validate.py", *overrides(cache, tmp_path, "x")],
            env=launch.environment(PYTHONPATH=str(ROOT)),
        )
        assert out.returncode == 0, out.stderr
        step, loss, error = out.stdout.split()[-3:]
        assert int(step) == 50
        assert float(loss) == pytest.approx(done["ema_val_loss"], rel=1e-6)
        assert float(error) == pytest.approx(done["ema_val_se"], rel=1e-5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
@pytest.mark.parametrize("forked", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["forked", "train.py"])
def test_a_signal_checkpoints_and_asks_to_be_run_again(cache: Path, tmp_path: Path, number: int, forked: bool) -> None:
    more = ("train.tokens=1e8", "checkpoint.every_steps=100000")
    if forked:
        (process,) = start(tmp_path / "log", train_it, overrides(cache, tmp_path, "x", *more))
    else:
        process = launch.popen(command(cache, tmp_path, "x", *more))
    wait_until(lambda: (tmp_path / "x" / "metrics.jsonl").exists() and len(metrics(tmp_path / "x")) > 3)
    os.kill(process.pid, number)
    assert (finish([process])[0] if forked else process.wait(launch.PATIENCE)) == PREEMPTED
    assert result(tmp_path / "x")["status"] == "preempted"
    assert newest_step(tmp_path / "x") == metrics(tmp_path / "x")[-1]["step"]


def test_a_directory_in_use_is_refused(cache: Path, tmp_path: Path) -> None:
    more = ("train.tokens=1e8",)
    start(tmp_path / "log", train_it, overrides(cache, tmp_path, "x", *more))
    wait_until(lambda: (tmp_path / "x" / "metrics.jsonl").exists())
    with pytest.raises(UserError, match="another process is working in it"):
        train(load_config(None, overrides(cache, tmp_path, "x", *more)))


@pytest.mark.slow
def test_too_many_processes_for_the_batch_and_too_few_validation_clips(cache: Path, tmp_path: Path) -> None:
    out = launch.run(command(cache, tmp_path, "x", "train.batch_tokens=96", processes=2))
    assert out.returncode != 0
    assert "3 clips cannot be shared by 2 processes; nearest: 64 or 128" in out.stderr
    with pytest.raises(UserError, match="validation.clips=17: the cache has 16 validation clips"):
        train(load_config(None, overrides(cache, tmp_path, "y", "validation.clips=17")))


def test_users_errors_exit_with_2_and_one_line(cache: Path, tmp_path: Path) -> None:
    for more in ("optim.lrr=1", "train.batch_tokens=100", "data.cache=/nowhere"):
        out = call("train.py", *overrides(cache, tmp_path, "x", more))
        assert (out.returncode, out.stderr.count("\n")) == (2, 1), out.stderr
        assert out.stderr.startswith("error: ")
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_the_environment_does_not_change_the_numbers(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(cache, tmp_path, "plain", "train.tokens=1280")
    settings = {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}
    out = launch.run(command(cache, tmp_path, "x", "train.tokens=1280"), env=launch.environment(**settings))
    assert out.returncode == 0, out.stderr
    assert result(tmp_path / "x")["milestones"] == plain["milestones"]


@pytest.mark.slow
def test_two_processes_stop_together_and_one_continues(cache: Path, tmp_path: Path) -> None:
    settings = ("train.tokens=2e5", "log.every_steps=7", "checkpoint.every_steps=100000", "train.milestones=[128]")
    process = launch.popen(command(cache, tmp_path, "x", *settings, processes=2))
    wait_until(lambda: (tmp_path / "x" / "metrics.jsonl").exists() and len(metrics(tmp_path / "x")) > 1)
    process.send_signal(signal.SIGTERM)  # torchrun hands it to both
    assert process.wait(launch.PATIENCE) != 0
    stopped = newest_step(tmp_path / "x")
    assert stopped > 1
    # Ended soon after the stop: over a thousand steps, sums in another order grow into visible differences.
    settings = (f"train.tokens={(stopped + 20) * 128}", *settings[1:])
    one, both = (run(cache, tmp_path, name, *settings) for name in ("one", "x"))
    np.testing.assert_allclose(losses(tmp_path / "x"), losses(tmp_path / "one"), rtol=1e-4)
    assert both["milestones"][-1]["tokens"] == one["milestones"][-1]["tokens"]
    assert both["milestones"][-1]["ema_val_loss"] == pytest.approx(one["milestones"][-1]["ema_val_loss"], rel=1e-4)
