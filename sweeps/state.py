"""The state of each cell, read from its run directory; import and export of finished cells for a committed folder.

No torch here: a thousand cells are to be asked within a second.
"""

import dataclasses
import math
import shutil
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from videoscaling.training.logs.log_files import MetricsRow
from videoscaling.training.result import finished_result, recorded, result_damage, resumable_step
from videoscaling.training.run import Run
from videoscaling.utils.errors import DataFault, UserError
from videoscaling.utils.files import atomic_write, parse_json
from videoscaling.utils.locks import is_locked
from videoscaling.utils.results import DATA_FAULT, FILE, Failure, RunResult, read_failure, write_result

FAILURE = "failure.json"  # written by who gave the cell up: its pool, or for a lost job who follows the jobs
TAIL_BYTES = 4096  # the last line of metrics.jsonl is within them


class CellState(StrEnum):
    """What became of a cell, read from its run directory."""

    PENDING = "pending"  # not begun, or finished without an optimiser and to be trained further
    RUNNING = "running"  # a process has locked its folder
    STOPPED = "stopped"  # a signal ended it, or it is to be trained further; it will continue
    LOST = "lost"  # its process ended without a record; it will continue
    DONE = "done"
    DIVERGED = "diverged"  # a loss was not finite, which is a result
    FAILED = "failed"
    DAMAGED = "damaged"  # its result, or the record of its failure, was altered; it is trained again


FINISHED = (CellState.DONE, CellState.DIVERGED)
ENDED = (*FINISHED, CellState.FAILED)
UNFINISHED = tuple(state for state in CellState if state not in ENDED)


@dataclass(frozen=True)
class CellStatus:
    """The state and progress of a cell.

    Attributes:
        tokens: trained so far.
        milestone: the last one in tokens of those that the sweep asks for now and that were measured.
        loss: the EMA's there.
        rate: training FLOPs per second of its process, with all runs that the process trains.
        share: the cell's last logged share of that process.
        reason: why it is damaged.
        failure: why it failed.
        job: its Slurm job and the queue's word for it, if it is unfinished and in the queue.
    """

    state: CellState
    tokens: int = 0
    milestone: int | None = None
    loss: float | None = None
    rate: float | None = None
    share: float | None = None
    reason: str | None = None
    failure: Failure | None = None
    job: str | None = None

    def to_json(self) -> dict[str, object]:
        """What ``status --json`` says of a cell."""
        more = asdict(self.failure) if self.failure else {"reason": self.reason}
        more |= {"job": self.job}
        known = {name: value for name, value in more.items() if value not in (None, False)}
        measured = {"milestone": self.milestone, "loss": self.loss}
        return {"state": self.state, "tokens": self.tokens, **measured, **known}


def cell_status(run: Run, results: str | None = None) -> CellStatus:
    """The status of a cell.

    Args:
        results: a folder of finished cells, which count as this sweep's.
    """
    directory = run.config.run_dir
    if (directory / FAILURE).exists():
        failure = read_failure(directory / FAILURE)
        return _damaged(directory / FAILURE) if failure is None else CellStatus(CellState.FAILED, failure=failure)
    final = finished(run, results)
    if final is not None:
        seconds, flops, state = final.get("seconds"), final.get("flops"), CellState(final["status"])
        rate = flops / seconds if flops and seconds and state == CellState.DONE else None
        return CellStatus(state, final["tokens"], *_last_loss(run, final), rate)
    runs = is_locked(directory)
    begun = (directory / "config.yaml").exists()
    damage = result_damage(directory)
    if damage is None and results and not begun:
        damage = result_damage(_committed(run, results).config.run_dir)
    if damage is not None and not runs:
        return CellStatus(CellState.DAMAGED, reason=damage)
    if not begun:
        return CellStatus(CellState.PENDING)
    result, last = recorded(run), last_metrics(directory)
    grows = result.get("status") == "done"  # it was finished once, before later milestones were asked for
    anew = grows and not resumable_step(directory)
    if anew and not runs:
        return CellStatus(CellState.PENDING)
    share = last["share"] if last else None
    rate = run.flops_per_token * last["tokens_per_second"] / share if last else None
    tokens = max(0 if anew else result["tokens"], last["tokens"] if last else 0)
    waits = grows or result.get("status") == "preempted"
    state = CellState.RUNNING if runs else CellState.STOPPED if waits else CellState.LOST
    return CellStatus(state, tokens, *_last_loss(run, result), rate, share)


def data_fault(run: Run) -> str:
    """The data fault that ended a run, or an empty string."""
    path = run.config.run_dir / DATA_FAULT
    if not path.exists():
        return ""
    failure = read_failure(path)
    return failure.reason if failure else _damaged(path).reason


def finished(run: Run, results: str | None = None) -> RunResult | None:
    """The final result of a cell, from its own folder or else from ``results``; None without one."""
    own = finished_result(run)
    return own if own is not None or results is None else finished_result(_committed(run, results))


def label_heldout(run: Run) -> None:
    """Write into the result of a finished cell whether its size is held out now: fits read results only."""
    result = finished_result(run)
    if result is not None and result.get("config") and result.get("heldout", run.config.heldout) != run.config.heldout:
        marked = result | {"heldout": run.config.heldout}
        marked["config"] = result["config"] | {"heldout": run.config.heldout}
        write_result(run.config.run_dir, marked)


def fault_of_sweep(reason: str) -> DataFault:
    """The error that ends a sweep when the data of one cell are damaged."""
    return DataFault(f"{reason}; then run the sweep again: it stopped, as its other cells read the same data")


def forget_failure(run: Run) -> None:
    """Remove the record of a cell's failure, so that it is tried again."""
    (run.config.run_dir / FAILURE).unlink(missing_ok=True)


def import_result(run: Run, results: str) -> None:
    """Copy a finished cell from ``results`` into its own folder, unless it is there already."""
    committed = _committed(run, results)
    if finished_result(run) is None and finished_result(committed) is not None:
        _copy(committed.config.run_dir, run.config.run_dir)


def export_result(run: Run, results: str) -> bool:
    """Copy a finished cell's result and its losses into ``results``; returns whether it is finished."""
    own, there = finished_result(run), _committed(run, results)
    if own is None:
        return False
    if finished_result(there) != own:
        _copy(run.config.run_dir, there.config.run_dir)
    return True


def last_metrics(directory: Path) -> MetricsRow | None:
    """The last complete line of a run's metrics.jsonl; None without one, or if it is damaged."""
    try:
        with (directory / "metrics.jsonl").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(file.tell() - TAIL_BYTES, 0))
            lines = file.read().split(b"\n")[:-1]
        last = parse_json(lines[-1], "metrics.jsonl", dict)
    except (OSError, IndexError, UserError):
        return None
    counts = [last.get("tokens"), last.get("tokens_per_second"), last.setdefault("share", 1.0)]  # older: no share
    whole = all(isinstance(count, int | float) and 0 < count < math.inf for count in counts)
    return last if whole and last["share"] <= 1 else None


def _damaged(path: Path) -> CellStatus:
    return CellStatus(CellState.DAMAGED, reason=f"{path}: not as it was written")


def _last_loss(run: Run, result: RunResult) -> tuple[int | None, float | None]:
    """The last of ``run``'s milestones that ``result`` has, and its loss: a result may have later ones too."""
    asked = [m for m in result["milestones"] if m.get("nominal") in run.config.train.milestones]
    return (asked[-1]["nominal"], asked[-1].get("ema_val_loss")) if asked else (None, None)


def _committed(run: Run, results: str) -> Run:
    folder = Path(results)
    config = dataclasses.replace(run.config, out=str(folder), name=run.config.run_dir.name)
    return dataclasses.replace(run, config=config)


def _copy(source: Path, target: Path) -> None:
    """Copy a result and its per-sample losses; the result last, so that it is never without its losses."""
    files = [*sorted((source / "validation").glob("*.npy")), source / FILE]
    for path in files:
        with atomic_write(target / path.relative_to(source)) as tmp:
            shutil.copyfile(path, tmp)
