"""Cost and state of a sweep, as text and as JSON. No torch here."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from videoscaling.sweeps.cost import Estimate, device_hours, estimate, flops_of, width
from videoscaling.sweeps.grid import Sweep
from videoscaling.sweeps.slurm_queue import queue_of
from videoscaling.sweeps.state import ENDED, UNFINISHED, CellState, CellStatus, cell_status
from videoscaling.training.run import Run, label
from videoscaling.utils.errors import plural
from videoscaling.utils.messages import warn
from videoscaling.utils.progress import duration

WATCH_SECONDS = 5.0
PLAN_HEADER = ("run id", "size", "N", "T", "B", "lr", "steps", "FLOPs", "hours")
UNLISTED = (CellState.PENDING, CellState.DONE, CellState.DIVERGED)  # the others are named one by one


def states_of(sweep: Sweep, jobs: dict[str, str] | None = None) -> list[CellStatus]:
    """``cell_status`` of every cell, with the job of unfinished ones in Slurm's queue (``jobs``, by run id).

    A running job may be on a node whose lock is not visible here, so its cells that have begun count as running.
    """
    states = []
    for cell in sweep.cells:
        status = cell_status(cell, sweep.keys.results)
        job = (jobs or {}).get(cell.config.run_dir.name)
        if job is not None and status.state not in ENDED:
            state = status.state
            if state in (CellState.LOST, CellState.STOPPED):
                runs = " RUNNING" in job or " COMPLETING" in job
                state = CellState.RUNNING if runs else CellState.STOPPED
            status = replace(status, state=state, job=job)
        states.append(status)
    return states


# -- the plan --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlannedCell:
    """A cell that would be trained, as --json prints it."""

    run_id: str
    size: str
    N: int
    T: int
    milestones: list[int]
    B: int
    lr: float
    seed: int
    steps: int
    flops: float
    hours: float | None
    heldout: bool
    state: CellState


@dataclass(frozen=True)
class Plan:
    """The cells that would be trained, with the sums of FLOPs and hours; ``rate`` says where the hours come from."""

    cells: list[PlannedCell]
    flops: float
    device_hours: float | None
    cost: float | None
    hours: float | None
    rate: str


def plan(sweep: Sweep, states: Sequence[CellStatus], estimate: Estimate) -> Plan:
    """The plan of a sweep whose cells are in these ``states``."""
    cells = [
        PlannedCell(
            run_id=cell.config.run_dir.name,
            size=cell.config.model.size,
            N=cell.N,
            T=cell.config.train.tokens,
            milestones=cell.config.train.milestones,
            B=cell.config.train.batch_tokens,
            lr=cell.config.optim.lr,
            seed=cell.config.seed,
            steps=cell.steps,
            flops=flops_of(cell),
            hours=hours,
            heldout=cell.config.heldout,
            state=state.state,
        )
        for cell, state, hours in zip(sweep.cells, states, estimate.hours)
    ]
    hours = device_hours(sweep, estimate.hours)
    price = sweep.keys.cost.price_per_hour
    return Plan(
        cells,
        flops=sum(cell.flops for cell in cells),
        device_hours=hours,
        cost=None if hours is None or price is None else hours * price,
        hours=estimate.left(sweep, states, width(sweep) or 1),
        rate=estimate.source,
    )


def plan_text(sweep: Sweep, planned: Plan) -> str:
    """``plan`` as a table."""
    table, marks = [PLAN_HEADER], [""]
    for cell in planned.cells:
        counts = (f"{cell.N:,}", f"{cell.T:,}", f"{cell.B:,}")
        costs = (f"{cell.steps:,}", f"{cell.flops:.2e}", "?" if cell.hours is None else f"{cell.hours:.3g}")
        table.append((cell.run_id, cell.size, *counts, f"{cell.lr:.2e}", *costs))
        there = f"  {cell.state}" if cell.state not in (CellState.PENDING, CellState.RUNNING) else ""
        marks.append(("  held out" if cell.heldout else "") + there)
    lines = aligned(table, marks)
    lines.append(f"{plural(len(planned.cells), 'cell')}, {planned.flops:.3g} FLOPs")
    if planned.device_hours is None:
        return "\n".join([*lines, f"hours {planned.rate}"])
    price = sweep.keys.cost.price_per_hour
    cost = f", cost {planned.cost:,.2f} at {price:g} an hour" if price else ""
    at_once = f"{width(sweep)} at a time" if width(sweep) else "one at a time"
    lines.append(
        f"{planned.device_hours:.3g} hours of GPUs (on the CPU: of workers){cost}; what is left takes "
        f"{planned.hours:.3g} hours {at_once}; throughput {planned.rate}"
    )
    return "\n".join(lines)


# -- state -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Best:
    """The lowest loss of a size, among its cells at the latest milestone."""

    name: str
    tokens: int
    loss: float


@dataclass(frozen=True)
class SweepStatus:
    """The states of a sweep's cells, counted; the time left, and the best of each size so far."""

    counts: dict[CellState, int]
    hours_left: float | None
    rate: str
    best: dict[str, Best]
    states: Sequence[CellStatus]

    def to_json(self, sweep: Sweep) -> dict[str, object]:
        """What ``status --json`` prints."""
        cells = [
            {"run_id": cell.config.run_dir.name, "name": label(cell.config), "progress": _progress(cell, state)}
            | state.to_json()
            for cell, state in zip(sweep.cells, self.states)
        ]
        best = {size: asdict(one) for size, one in self.best.items()}
        return {"counts": self.counts, "hours_left": self.hours_left, "rate": self.rate, "best": best, "cells": cells}


def status(sweep: Sweep, states: Sequence[CellStatus], estimate: Estimate) -> SweepStatus:
    """The status of a sweep whose cells are in these ``states``."""
    return SweepStatus(
        dict(Counter(state.state for state in states)),
        hours_left=hours_left(sweep, states, estimate),
        rate=estimate.source,
        best=_best(sweep.cells, states),
        states=states,
    )


def hours_left(sweep: Sweep, states: Sequence[CellStatus], estimate: Estimate) -> float | None:
    """Hours until the last cell ends; None where no throughput is known."""
    # In processes: stacked cells share one, and their hours are shares of it too. Cells that have begun and logged
    # nothing yet may be one process or many.
    at_once = sum(state.share or 0 for state in states if state.state == CellState.RUNNING) or width(sweep) or 1
    return estimate.left(sweep, states, at_once)


def status_text(sweep: Sweep, summary: SweepStatus) -> str:
    """``status`` in lines: counts, time left, the best, Slurm's queue, and the cells under way or in trouble."""
    counts = ", ".join(f"{count} {state}" for state, count in sorted(summary.counts.items()))
    lines = [f"{sweep.directory}: {plural(len(sweep.cells), 'cell')}: {counts}"]
    if any(summary.counts.get(state) for state in UNFINISHED):
        hours = summary.hours_left
        lines.append(
            f"  time left {'unknown' if hours is None else duration(3600 * hours)}; throughput {summary.rate}"
        )
    for size, best in summary.best.items():
        lines.append(f"  best {size}: loss {best.loss:.5g} at {best.tokens:,} tokens, {best.name}")
    jobs = [state.job for state in summary.states if state.state == CellState.PENDING and state.job is not None]
    if queued := Counter(job.partition(" ")[2] for job in jobs):
        lines.append("  pending by their jobs: " + ", ".join(f"{n} {said}" for said, n in queued.most_common()))
    for cell, state in zip(sweep.cells, summary.states):
        if state.state in UNLISTED:
            continue
        words = f"  {state.state} {cell.config.name}: "
        if state.state in (CellState.FAILED, CellState.DAMAGED):
            lines.append(words + (state.failure.reason if state.failure else state.reason))
            continue
        loss = f", loss {state.loss:.5g} at {state.milestone:,} tokens" if state.loss is not None else ""
        job = f", job {state.job}" if state.job is not None else ""
        why = f" ({state.reason})" if state.reason is not None else ""
        lines.append(f"{words}{_progress(cell, state):.0%} of {cell.text}{loss}{job}{why}")
    return "\n".join(lines)


def _progress(cell: Run, state: CellStatus) -> float:
    return min(state.tokens / cell.config.train.tokens, 1.0)


def watched(lines: str) -> str:
    """A status with the time of day, after clearing the screen."""
    return f"\x1b[H\x1b[2J{time.strftime('%H:%M:%S')}  {lines}"


def aligned(table: Sequence[tuple[str, ...]], marks: Sequence[str]) -> list[str]:
    """Rows of words as lines, in columns; a row's mark at its end."""
    widths = [max(map(len, column)) for column in zip(*table)]
    return [
        "  ".join(word.rjust(wide) for word, wide in zip(words, widths)) + mark for words, mark in zip(table, marks)
    ]


def _best(cells: Sequence[Run], states: Sequence[CellStatus]) -> dict[str, Best]:
    best: dict[str, Best] = {}
    for cell, state in zip(cells, states):
        if state.loss is None or state.state == CellState.DIVERGED:
            continue
        mine = Best(label(cell.config), state.milestone, state.loss)
        there = best.get(cell.config.model.size)
        if there is None or (-mine.tokens, mine.loss) < (-there.tokens, there.loss):
            best[cell.config.model.size] = mine
    return best


def print_status(sweep: Sweep, as_json: bool = False, watch: bool = False) -> int:
    """Print the state of the sweep, with ``watch`` until all cells are finished; returns 1 if a cell failed."""
    while True:
        jobs = queue_of(sweep.directory) if sweep.keys.executor.kind == "slurm" else {}
        if jobs is None:
            warn("Slurm's queue does not answer: cells that run on other nodes may show as lost")
        states = states_of(sweep, jobs)
        summary = status(sweep, states, estimate(sweep, states))
        text = json.dumps(summary.to_json(sweep)) if as_json else status_text(sweep, summary)
        print(watched(text) if watch and not as_json else text, flush=True)
        over = all(state.state in ENDED for state in states)
        if over or not watch:
            return 1 if summary.counts.get(CellState.FAILED) else 0
        time.sleep(WATCH_SECONDS)
