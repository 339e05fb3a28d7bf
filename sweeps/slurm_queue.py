"""Follows Slurm's queue: which cells of a sweep have a job, which have ended, and which need one."""

import dataclasses
import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from videoscaling.sweeps.grid import Sweep
from videoscaling.sweeps.slurm import FOLDER, check_options, damaged, logs, parts, read_submission, submit, tokens_of
from videoscaling.sweeps.state import ENDED, FAILURE, CellState, cell_status, fault_of_sweep, forget_failure
from videoscaling.training.run import Run
from videoscaling.utils.errors import plural
from videoscaling.utils.results import Failure, write_failure

if TYPE_CHECKING:
    from videoscaling.sweeps.local import Interrupt

POLL_SECONDS, IDLE_POLL_SECONDS = 1.0, 20.0  # seconds between polls of the queue: at first, and when nothing changes
SQUEUE_SECONDS = 60.0
Queue = Mapping[str, str]  # {run id: "JOB STATE (reason)"}


def submit_and_wait(
    sweep: Sweep,
    report: Callable[[Run, str], None],
    interrupt: "Interrupt",
    on_poll: Callable[[list[Run]], None] = lambda running: None,
) -> None:
    """Submit the cells that are neither finished nor in the queue, and poll the queue until all have ended.

    A cell whose job ends before the cell is finished is submitted again, up to ``executor.retries`` times without a
    later checkpoint. A signal ends the polling; the jobs continue.

    Args:
        report: called with each cell that ended and its state, or "again".
        on_poll: called with the cells whose jobs run, twice a second.

    Raises:
        UserError: sbatch is missing or refuses the jobs.
        DataFault: the data of a cell are damaged; the other jobs are cancelled, and write checkpoints.
    """
    check_options(sweep.keys.executor.slurm)
    cells = _OpenCells(sweep, report)
    first_poll, pause, outage_reported = True, POLL_SECONDS, False
    while cells.open and not interrupt.caught:
        queue = queue_of(sweep.directory)
        if queue is None:  # a controller that does not answer will
            if not outage_reported:
                print("Slurm's queue does not answer; waiting for it", file=sys.stderr, flush=True)
            outage_reported = True
            _sleep(IDLE_POLL_SECONDS, interrupt)
            continue
        outage_reported = False
        if first_poll:
            cells.forget_failures(queue)
        running = cells.running(queue)
        ended = cells.close_ended(queue)
        todo = cells.allowed(cells.without_job(queue, at_once=first_poll))
        answered = cells.submit(todo)
        first_poll = False
        if not answered:
            pause = IDLE_POLL_SECONDS
        elif ended or todo or cells.missing:
            pause = POLL_SECONDS
        else:
            pause = min(1.3 * pause, IDLE_POLL_SECONDS)
        _sleep(pause, interrupt, functools.partial(on_poll, running))


@dataclasses.dataclass(frozen=True)
class _Submission:
    """The last submission of a cell.

    Attributes:
        part: the cells of its job, whose checkpoints all count, as a cell may wait for its turn.
        tokens: of their checkpoints then.
        fruitless: how many submissions before it ended without a later checkpoint, one after another.
    """

    part: Sequence[Run]
    tokens: int
    fruitless: int


class _OpenCells:
    """The cells of a sweep that have not ended.

    Attributes:
        open: the cells by their run ids.
        missing: those that the last poll was the first not to find in the queue: a requeued job is missing for a
            moment.
    """

    def __init__(self, sweep: Sweep, report: Callable[[Run, str], None]) -> None:
        self._sweep, self._report = sweep, report
        self.open = {run.config.run_dir.name: run for run in sweep.cells}
        self.missing: set[str] = set()
        self._submissions: dict[str, _Submission] = {}

    def forget_failures(self, queue: Queue) -> None:
        """Let cells that an earlier start of the sweep gave up have a job again."""
        for name, run in self.open.items():
            if name not in queue:
                forget_failure(run)

    def running(self, queue: Queue) -> list[Run]:
        return [run for name, run in self.open.items() if " RUNNING" in queue.get(name, "")]

    def close_ended(self, queue: Queue) -> bool:
        """Report the cells that have ended; returns whether there were any.

        Raises:
            DataFault: the data of one are damaged.
        """
        before = len(self.open)
        for name, run in list(self.open.items()):
            status = cell_status(run)
            if status.state not in ENDED:
                continue
            del self.open[name]
            self._report(run, status.state)
            if status.failure is not None and status.failure.data_fault:
                _cancel(task for cell, task in queue.items() if cell in self.open)
                raise fault_of_sweep(status.failure.reason)
        return len(self.open) < before

    def without_job(self, queue: Queue, at_once: bool) -> list[str]:
        """The cells that have been out of the queue for two polls, or ``at_once`` all that are out of it."""
        absent = [name for name in self.open if name not in queue]
        found = [name for name in absent if at_once or name in self.missing]
        self.missing = set(absent).difference(found)
        return found

    def allowed(self, names: Iterable[str]) -> dict[str, int]:
        """Those that may be submitted, with their fruitless submissions so far; the others have failed."""
        todo = {}
        for name in names:
            run, last = self.open[name], self._submissions.get(name)
            fruitless = 0
            if last is not None and sum(map(tokens_of, last.part)) <= last.tokens:
                fruitless = last.fruitless + 1
            if fruitless > self._sweep.keys.executor.retries:
                ended = f"its Slurm job ended {plural(fruitless, 'time')} without a later checkpoint"
                reason = f"{ended}; see {logs(self._sweep.directory)}"
                write_failure(run.config.run_dir / FAILURE, Failure(reason, attempts=fruitless))
                del self.open[name]
                self._report(run, CellState.FAILED)
                continue
            todo[name] = fruitless
            if fruitless > 0:
                self._report(run, "again")
        return todo

    def submit(self, todo: Mapping[str, int]) -> bool:
        """Submit ``allowed``'s cells; returns whether the controller answered."""
        cells = [self.open[name] for name in todo]
        before = [(part, sum(map(tokens_of, part))) for part in parts(self._sweep, cells)]
        if cells and submit(self._sweep, cells) is None:
            return False
        for part, tokens in before:
            for name in (run.config.run_dir.name for run in part):
                self._submissions[name] = _Submission(part, tokens, todo[name])
        return True


def queue_of(directory: Path) -> dict[str, str] | None:
    """{run id: "JOB STATE (reason)"} of the cells whose job is in Slurm's queue; None if it does not answer.

    Jobs are found by their names, which are written to a file before the submission.
    """
    records = {path.stem: path for path in (directory / FOLDER).glob("*.json")}
    if not records:
        return {}
    command = ["squeue", "-h", "-r", "-o", "%j|%F|%K|%T|%r"]  # name, job, index in its array, state, reason
    try:
        # All of the user's jobs: a list of names may be longer than a command line.
        me = ["--user", str(os.getuid())]
        out = subprocess.run([*command, *me], capture_output=True, text=True, timeout=SQUEUE_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if out.returncode:
        return None
    tasks: dict[str, str] = {}
    # Run ids by submission and task: a record of 1,000 jobs is read once, not for each.
    cells: dict[str, list[list[str]]] = {}
    for line in out.stdout.splitlines():
        name, _, rest = line.partition("|")
        if name not in records:
            continue
        job, index, state, reason = rest.split("|", 3)
        number = int(index) if index.isdigit() else 0
        why = f" ({reason})" if state == "PENDING" and reason != "None" else ""
        if name not in cells:
            cells[name] = [[cell["run_id"] for cell in part] for part in read_submission(records[name])["tasks"]]
        if number >= len(cells[name]):
            raise damaged(records[name], f"it has no task {number}")
        for run_id in cells[name][number]:
            tasks[run_id] = f"{job}_{number} {state}{why}"
    return tasks


def _cancel(tasks: Iterable[str]) -> None:
    """Cancel the jobs of ``queue_of``'s ``tasks``: their cells write checkpoints and stop."""
    jobs = sorted({task.split()[0] for task in tasks})
    if jobs:
        subprocess.run(["scancel", *jobs], timeout=SQUEUE_SECONDS)


def _sleep(seconds: float, interrupt: "Interrupt", meanwhile: Callable[[], None] = lambda: None) -> None:
    """Sleep, but wake soon after a signal; ``meanwhile`` is called twice a second."""
    end = time.monotonic() + seconds
    while not interrupt.caught and (left := end - time.monotonic()) > 0:
        meanwhile()
        time.sleep(min(left, 0.5))
