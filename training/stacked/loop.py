"""Many runs in one process: models of one shape, moved in lock-step.

Each member is an ordinary ``Trainer`` whose buffers are rows of common ones, so that its checkpoints, metrics and
result are written by the code of a run alone. Only the arithmetic is done for all rows at once
(``training.stacked.step``).
"""

import contextlib
import ctypes
import traceback
from collections.abc import Generator, Iterator
from typing import TextIO

import torch
import torch.distributed as dist

from videoscaling.training.checks import check_directory
from videoscaling.training.config import Config
from videoscaling.training.data_check import data_faults_recorded
from videoscaling.training.memory import fit_memory
from videoscaling.training.result import finished_result
from videoscaling.training.signals import StopRequest
from videoscaling.training.stacked.stack_key import stack_key
from videoscaling.training.stacked.step import StackedStep
from videoscaling.training.trainer import SCORES, Scores, Trainer, prepare
from videoscaling.utils.errors import PREEMPTED, UserError
from videoscaling.utils.locks import exclusive

CONSOLE = "console.log"
# Of glibc's mallopt: a block of rows is large enough to be mapped anew, page by page, at every use (a fifth of the
# time of four runs of 2x64 and eight clips); kept, it is there already.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, KEPT_BYTES = -1, -3, 1 << 30


def train_together(configs: list[Config], wait: bool = False, consoles: bool = False) -> int:
    """Run ``configs``, which ``stack_key`` says may share their steps, to their ends or to a signal.

    Each goes on from its own checkpoint, whoever wrote it: a stack of another size, or the run alone. A finished run
    is left as it is.

    Args:
        wait: if another process is working in a run's directory, wait for it instead of refusing.
        consoles: write what each run says to console.log in its directory, and what ends them all to each.

    Returns:
        The exit status, as of ``training.trainer.train``.

    Raises:
        UserError: a configuration, the cache or a run directory is at fault, or the runs cannot share their steps.
    """
    with data_faults_recorded(configs):
        return _train_together(configs, wait, consoles)


def _train_together(configs: list[Config], wait: bool, consoles: bool) -> int:
    keep_memory()
    prepared = [prepare(config) for config in configs]
    prepared = [(run, cache) for run, cache in prepared if finished_result(run) is None]
    if len({stack_key(run.config) for run, _ in prepared}) > 1:
        raise UserError("these runs differ in more than their seeds, rates and optimisers: train them one by one")
    spoken: dict[Trainer, TextIO] = {}
    with contextlib.ExitStack() as held:
        try:
            members = [Trainer(run, prepared[0][1]) for run, _ in prepared]
            for member in members if consoles else []:
                member.config.run_dir.mkdir(parents=True, exist_ok=True)
                path = member.config.run_dir / CONSOLE
                spoken[member] = held.enter_context(path.open("a", buffering=1))
            # In one order wherever stacks meet, so that two do not wait for each other.
            for member in sorted(members, key=lambda member: str(member.config.run_dir)):
                held.enter_context(exclusive(member.config.run_dir, wait))
            # Whoever was waited for may have finished some.
            members = [member for member in members if finished_result(member.run) is None]
            for member in members:
                with _console(spoken.get(member)):
                    check_directory(member.config)
                    member.restore()
                    member.claim_directory()
            statuses = _fit(members, spoken) if members else []
        except Exception as error:
            for console in spoken.values():
                told = [f"error: {error}\n"] if isinstance(error, UserError) else traceback.format_exception(error)
                console.writelines(told)
            raise
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
    return PREEMPTED if "preempted" in statuses else 0


def keep_memory() -> None:
    """Have this process keep the memory it has freed, where its C library can."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def _fit(members: list[Trainer], consoles: dict[Trainer, TextIO]) -> list[str]:
    """Take all members through their courses; returns how each ended."""
    halt = False
    ended: dict[Trainer, str] = {}
    wishes: dict[Trainer, str] = {}
    courses: dict[Trainer, Generator[str, Scores | None, str]] = {}

    def go_on(member: Trainer, answer: Scores | None = None) -> None:
        with _console(consoles.get(member)):
            try:
                wishes[member] = courses[member].send(answer)
            except StopIteration as end:
                ended[member] = end.value
                wishes.pop(member, None)

    with StopRequest(1, members[0].config.train.timeout_minutes) as stop:
        learn = StackedStep(members)
        if learn.device.type == "cuda":
            fit_memory(learn, learn.samples(members[0].step), True)
        learn.fit_validation()
        for member in members:
            courses[member] = member.course(lambda: halt)
            go_on(member)
        while wishes:
            for member in wishes:
                member.share = 1 / len(wishes)
            if learn.crowded(len(wishes)):
                if members[0].config.train.compile:
                    torch._dynamo.reset()  # it gives up on a function that it has compiled for too many shapes
                learn = StackedStep(list(wishes), learn.micro_batch)
            asking = [member for member in wishes if wishes[member] == SCORES]
            if asking:
                scores = learn.scores()
                for member in asking:
                    go_on(member, scores[learn.members.index(member)])
                continue
            # Runs that were interrupted while they saved may be steps apart: those ahead wait for the others.
            step = min(member.step for member in wishes)
            moving = [member for member in wishes if member.step == step]
            learn(learn.samples(step), moving[0].tokens, moving)
            halt = stop.agreed()  # once, so that a signal amid their checkpoints stops all at the same step
            for member in moving:
                go_on(member)
    return list(ended.values())


@contextlib.contextmanager
def _console(file: TextIO | None) -> Iterator[None]:
    """What is said goes to ``file``; without one, where it always goes."""
    if file is None:
        yield
        return
    with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield
