"""The state of each cell, read from its run directory; import and export of finished cells for a committed folder.

No torch here: a thousand cells are to be asked within a second.
"""

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

from videoscaling.training.result import finished_result, recorded, result_damage, resumable_step
from videoscaling.training.run import Run
from videoscaling.utils.errors import UserError
from videoscaling.utils.files import atomic_write, parse_json
from videoscaling.utils.locks import is_locked
from videoscaling.utils.results import DATA_FAULT, FILE, read_record, write_result

FAILURE = "failure.json"  # written by who gave the cell up: its pool, or for a lost job who follows the jobs
FINISHED = ("done", "diverged")
UNFINISHED = ("pending", "running", "stopped", "lost", "damaged")  # states of cells that are still to be trained
TAIL = 4096  # bytes: the last line of metrics.jsonl is within them


def cell_state(run: Run, results: str | None = None) -> dict[str, Any]:
    """The state of a cell: {"state", "tokens", "loss", "rate", "share"}, and "reason" if it failed or is damaged.

    The states:
        "pending": not begun, or finished without an optimiser and to be trained further.
        "running": a process has locked its folder.
        "stopped": a signal ended it, or it is to be trained further; it will continue.
        "lost": its process ended without a record; it will continue.
        "done", "diverged", "failed": ended.
        "damaged": its result, or the record of its failure, was altered; it is trained again.

    "loss" is the EMA's at the last milestone. "rate" is the training FLOPs per second of its process, with all runs
    that the process trains, or None. "share" is the cell's last logged share of that process, or None.

    Args:
        results: a folder of finished cells, which count as this sweep's.
    """
    directory = run.config.run_dir
    if (directory / FAILURE).exists():
        record = read_record(directory / FAILURE)
        return _damaged(directory / FAILURE) if record is None else {**_nothing("failed"), **record}
    final = finished(run, results)
    if final is not None:
        seconds, flops = final.get("seconds"), final.get("flops")
        rate = flops / seconds if flops and seconds and final["status"] == "done" else None
        return {"state": final["status"], "tokens": final["tokens"], "loss": _loss(final), "rate": rate, "share": None}
    runs = is_locked(directory)
    begun = (directory / "config.yaml").exists()
    damage = result_damage(directory)
    if damage is None and results and not begun:
        damage = result_damage(_committed(run, results).config.run_dir)
    if damage is not None and not runs:
        return {**_nothing("damaged"), "reason": damage}
    if not begun:
        return _nothing("pending")
    result, last = recorded(run), last_metrics(directory)
    grows = result.get("status") == "done"  # it was finished once, before later milestones were asked for
    anew = grows and not resumable_step(directory)
    if anew and not runs:
        return _nothing("pending")
    share = last["share"] if last else None
    rate = run.flops_per_token * last["tokens_per_second"] / share if last else None
    tokens = max(0 if anew else result["tokens"], last["tokens"] if last else 0)
    values = {"tokens": tokens, "loss": _loss(result), "rate": rate, "share": share}
    waits = grows or result.get("status") == "preempted"
    return {"state": "running" if runs else "stopped" if waits else "lost", **values}


def data_fault(run: Run) -> str:
    """The data fault that ended a run, or an empty string."""
    path = run.config.run_dir / DATA_FAULT
    return (read_record(path) or _damaged(path))["reason"] if path.exists() else ""


def finished(run: Run, results: str | None = None) -> dict[str, Any] | None:
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


def last_metrics(directory: Path) -> dict[str, Any] | None:
    """The last complete line of a run's metrics.jsonl; None without one, or if it is damaged."""
    try:
        with (directory / "metrics.jsonl").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(file.tell() - TAIL, 0))
            lines = file.read().split(b"\n")[:-1]
        last = parse_json(lines[-1], "metrics.jsonl", dict)
    except (OSError, IndexError, UserError):
        return None
    counts = [last.get("tokens"), last.get("tokens_per_second"), last.setdefault("share", 1.0)]  # older: no share
    whole = all(isinstance(count, int | float) and 0 < count < math.inf for count in counts)
    return last if whole and last["share"] <= 1 else None


def _damaged(path: Path) -> dict[str, Any]:
    return {**_nothing("damaged"), "reason": f"{path}: not as it was written"}


def _nothing(state: str) -> dict[str, Any]:
    return {"state": state, "tokens": 0, "loss": None, "rate": None, "share": None}


def _loss(result: dict[str, Any]) -> float | None:
    return result["milestones"][-1].get("ema_val_loss") if result["milestones"] else None


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
