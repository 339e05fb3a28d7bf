"""Many runs in one process: stacks of models of one shape, moved in lock-step.

Each member is an ordinary ``Trainer`` whose buffers are rows of common ones, so that its checkpoints, metrics and
result are written by the code of a run alone. Only the arithmetic is done for all rows at once (``training.rows``).
Several stacks take turns, step by step; on a GPU each has a stream of its own, so that their small kernels overlap.
"""

import contextlib
import ctypes
import traceback
from collections.abc import Generator, Iterator
from typing import NamedTuple, TextIO

import torch
import torch.distributed as dist

from training.config import Config
from training.memory import fit_memory
from training.records import finished_result
from training.refusals import check_directory
from training.rows import StackedStep
from training.stacks import stack_key
from training.stop import StopRequest
from training.trainer import PREEMPTED, SCORES, Scores, Trainer, prepare
from utils.errors import UserError
from utils.files import exclusive

CONSOLE = "console.log"
# Of glibc's mallopt: a block of rows is large enough to be mapped anew, page by page, at every use (a fifth of the
# time of four runs of 2x64 and eight clips); kept, it is there already.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, KEPT_BYTES = -1, -3, 1 << 30


class Stack(NamedTuple):
    """Runs that share their steps, and the context in which all of their work is done."""

    members: list[Trainer]
    stream: contextlib.AbstractContextManager


def train_together(configs: list[Config], wait: bool = False, consoles: bool = False) -> int:
    """Run ``configs`` to their ends or to a signal; those that may share their steps (``training.stacks``) do.

    Each goes on from its own checkpoint, whoever wrote it: a stack of another size, or the run alone. A finished run
    is left as it is.

    Args:
        wait: if another process is working in a run's directory, wait for it instead of refusing.
        consoles: write what each run says to console.log in its directory, and what ends them all to each.

    Returns:
        The exit status, as of ``training.trainer.train``.

    Raises:
        UserError: a configuration, the cache or a run directory is at fault.
    """
    keep_memory()
    prepared = [prepare(config) for config in configs]
    stacks: dict[str, Stack] = {}
    for run, cache in prepared:
        if finished_result(run) is None:
            stack = stacks.setdefault(stack_key(run.config), Stack([], _stream()))
            with stack.stream:
                stack.members.append(Trainer(run, cache))
    members = [member for stack in stacks.values() for member in stack.members]
    spoken: dict[Trainer, TextIO] = {}
    with contextlib.ExitStack() as held:
        try:
            for member in members if consoles else []:
                member.config.run_dir.mkdir(parents=True, exist_ok=True)
                path = member.config.run_dir / CONSOLE
                spoken[member] = held.enter_context(path.open("a", buffering=1))
            # In one order wherever stacks meet, so that two do not wait for each other.
            for member in sorted(members, key=lambda member: str(member.config.run_dir)):
                held.enter_context(exclusive(member.config.run_dir, wait))
            for stack in stacks.values():
                # Whoever was waited for may have finished some.
                stack.members[:] = [member for member in stack.members if finished_result(member.run) is None]
                for member in stack.members:
                    with stack.stream, _console(spoken.get(member)):
                        check_directory(member.config)
                        member.restore()
                        member.claim_directory()
            statuses = _in_turn([stack for stack in stacks.values() if stack.members], spoken)
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


def _stream() -> contextlib.AbstractContextManager:
    """A context of work that need not wait for other work: on a GPU a stream, elsewhere nothing."""
    return torch.cuda.stream(torch.cuda.Stream()) if torch.cuda.is_available() else contextlib.nullcontext()


def _in_turn(stacks: list[Stack], consoles: dict[Trainer, TextIO]) -> list[str]:
    """Take all stacks to their ends, a step of each after the other; returns how each run ended."""
    if not stacks:
        return []
    ended: list[str] = []
    going = {member for stack in stacks for member in stack.members}
    with StopRequest(1, stacks[0].members[0].config.train.timeout_minutes) as stop:
        turns = [(stack.stream, _steps(stack.members, consoles, stop, going)) for stack in stacks]
        while turns:
            for turn in list(turns):
                stream, steps = turn
                try:
                    with stream:
                        next(steps)
                except StopIteration as end:
                    ended += end.value
                    turns.remove(turn)
    return ended


def _steps(
    members: list[Trainer], consoles: dict[Trainer, TextIO], stop: StopRequest, going: set[Trainer]
) -> Generator[None, None, list[str]]:
    """Take a stack through its members' courses, pausing after each step; returns how each member ended.

    Args:
        going: the runs of this process that have not ended, of all stacks; they share its time.
    """
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
                going.discard(member)

    learn = StackedStep(members)
    if learn.device.type == "cuda":
        fit_memory(learn, learn.samples(members[0].step), True)
    for member in members:
        courses[member] = member.course(lambda: halt)
        go_on(member)
    while wishes:
        for member in wishes:
            member.share = 1 / len(going)
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
        yield
    return list(ended.values())


@contextlib.contextmanager
def _console(file: TextIO | None) -> Iterator[None]:
    """What is said goes to ``file``; without one, where it always goes."""
    if file is None:
        yield
        return
    with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield
