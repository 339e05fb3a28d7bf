"""Stacked runs: several runs of one model shape, trained in one process, step by step together.

Each run is an ordinary ``Trainer`` whose buffers are rows of common ones, so that its checkpoints, metrics and result
are written by the code of a single run. Only the arithmetic is done for all rows at once (``training.stacked.step``).
"""

import contextlib
import ctypes
import traceback
from collections.abc import Iterator
from typing import TextIO

import torch
import torch.distributed as dist

from videoscaling.training.checkpoints.writer import finished_after_errors
from videoscaling.training.checks import check_directory
from videoscaling.training.config import Config
from videoscaling.training.data_check import data_faults_recorded
from videoscaling.training.memory import find_micro_batch
from videoscaling.training.result import finished_result
from videoscaling.training.signals import StopRequest
from videoscaling.training.stacked.stack_key import stack_key
from videoscaling.training.stacked.step import StackedStep
from videoscaling.training.train import prepare
from videoscaling.training.trainer import Trainer
from videoscaling.utils.errors import PREEMPTED, UserError
from videoscaling.utils.locks import lock_run_dir
from videoscaling.utils.os_errors import open_log
from videoscaling.utils.results import CONSOLE

# Of glibc's mallopt: a block of rows is large enough to be mapped anew, page by page, at every use (a fifth of the
# time of four runs of 2x64 and eight clips); kept, it is there already.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, KEPT_BYTES = -1, -3, 1 << 30


def train_stacked(configs: list[Config], wait: bool = False, consoles: bool = False) -> int:
    """Train ``configs``, which ``stack_key`` says may share their steps, to their ends or to a signal.

    Each resumes from its own checkpoint, also from one that a single run or a stack of another size wrote. A finished
    run is left as it is.

    Args:
        wait: if another process is working in a run's directory, wait for it instead of refusing.
        consoles: write each run's output to console.log in its directory, and an error that ends all runs to each.

    Returns:
        The exit status, as of ``training.train.train``.

    Raises:
        UserError: a configuration, the cache or a run directory is at fault, or the runs cannot share their steps.
    """
    with data_faults_recorded(configs):
        return _train_stacked(configs, wait, consoles)


def _train_stacked(configs: list[Config], wait: bool, write_consoles: bool) -> int:
    keep_memory()
    prepared = [prepare(config) for config in configs]
    prepared = [(run, cache) for run, cache in prepared if finished_result(run) is None]
    if any(run.shapes for run, _ in prepared):
        raise UserError("data.cache: stacked runs have clips of one shape; train these runs one by one")
    if len({stack_key(run.config) for run, _ in prepared}) > 1:
        raise UserError("these runs differ in more than their seeds, rates and optimisers: train them one by one")
    consoles: dict[Trainer, TextIO] = {}
    with contextlib.ExitStack() as locks:
        try:
            trainers = [Trainer(run, prepared[0][1]) for run, _ in prepared]
            for trainer in trainers if write_consoles else []:
                trainer.config.run_dir.mkdir(parents=True, exist_ok=True)
                path = trainer.config.run_dir / CONSOLE
                consoles[trainer] = locks.enter_context(open_log(path))
            # In one order wherever stacks meet, so that two do not wait for each other.
            for trainer in sorted(trainers, key=lambda trainer: str(trainer.config.run_dir)):
                locks.enter_context(lock_run_dir(trainer.config.run_dir, wait))
            # The process that was waited for may have finished some.
            trainers = [trainer for trainer in trainers if finished_result(trainer.run) is None]
            for trainer in trainers:
                with _console(consoles.get(trainer)):
                    check_directory(trainer.config)
                    trainer.restore()
                    trainer.claim_directory()
            statuses = _fit(trainers, consoles) if trainers else []
        except Exception as error:
            lines = [f"error: {error}\n"] if isinstance(error, UserError) else traceback.format_exception(error)
            for console in consoles.values():
                console.writelines(lines)
            raise
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
    return PREEMPTED if "preempted" in statuses else 0


def keep_memory() -> None:
    """Keep freed memory in this process (glibc only)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def _fit(trainers: list[Trainer], consoles: dict[Trainer, TextIO]) -> list[str]:
    """Train all runs to their ends or to a signal; returns the status of each."""
    writers = [trainer.writer for trainer in trainers]
    with StopRequest(1, trainers[0].config.train.timeout_minutes) as stop, finished_after_errors(writers):
        stacked = StackedStep(trainers)
        if stacked.device.type == "cuda":
            samples = stacked.samples(trainers[0].step)
            find_micro_batch(stacked, samples, n_ctx=len(trainers) * trainers[0].run.n_ctx, verbose=True)
        stacked.find_validation_batch()
        for trainer in trainers:
            with _console(consoles.get(trainer)):
                trainer.begin()
                _finish_if_ended(trainer)
        while running := [trainer for trainer in trainers if trainer.status == "running"]:
            for trainer in running:
                trainer.share = 1 / len(running)
            if stacked.should_shrink(len(running)):
                if trainers[0].config.train.compile:
                    torch._dynamo.reset()  # it gives up on a function that it has compiled for too many shapes
                stacked = StackedStep(running, stacked.micro_batch)
            due = [trainer for trainer in running if trainer.due]
            if due:
                results = stacked.validate()
                for trainer in due:
                    with _console(consoles.get(trainer)):
                        trainer.after_validation(*results[stacked.trainers.index(trainer)])
                        _finish_if_ended(trainer)
                continue
            # Runs that were interrupted while they saved may be steps apart: those ahead wait for the others.
            step = min(trainer.step for trainer in running)
            active = [trainer for trainer in running if trainer.step == step]
            stacked.run(stacked.samples(step), active[0].tokens, active)
            stopping = stop.agreed()  # once, so that a signal amid their checkpoints stops all at the same step
            for trainer in active:
                with _console(consoles.get(trainer)):
                    trainer.after_step(stopping)
                    _finish_if_ended(trainer)
    return [trainer.status for trainer in trainers]


def _finish_if_ended(trainer: Trainer) -> None:
    """Write the result of an ended run at once: the others may train for hours more."""
    if trainer.status != "running":
        trainer.finish()


@contextlib.contextmanager
def _console(file: TextIO | None) -> Iterator[None]:
    """Redirect stdout and stderr to ``file``, if there is one."""
    if file is None:
        yield
        return
    with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield
