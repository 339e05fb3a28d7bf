"""Hours and costs of a sweep's cells, from the throughput of cells that have run, or from a rate that is given."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from videoscaling.sweeps.config import COMMANDS_AT_ONCE
from videoscaling.sweeps.grid import Sweep
from videoscaling.sweeps.state import UNFINISHED, CellState, CellStatus
from videoscaling.training.run import Run
from videoscaling.utils.errors import plural


def flops_of(cell: Run) -> float:
    """Training FLOPs of a cell, by C_token."""
    return cell.flops_per_token * cell.config.train.tokens


@dataclass(frozen=True)
class Estimate:
    """The time that the cells would take.

    Attributes:
        hours: of each cell, on the processes it runs on; a cell that shares a process has its share. None if no
            throughput is known.
        source: where the throughput is from, as text.
    """

    hours: list[float | None]
    source: str

    def left(self, sweep: Sweep, states: Sequence[CellStatus], at_once: float) -> float | None:
        """Hours until the last cell ends, with ``at_once`` processes training; None if no throughput is known."""
        rest, alone = [], []
        for cell, hours, state in zip(sweep.cells, self.hours, states):
            if state.state not in UNFINISHED:
                continue
            if hours is None:
                return None
            rest.append(hours * max(1 - state.tokens / cell.config.train.tokens, 0))
            share = state.share if state.state == CellState.RUNNING else None
            alone.append(rest[-1] / (share or 1.0))  # its process moves the others that share it meanwhile
        return max(sum(rest) / max(at_once, 1.0), max(alone, default=0.0))


def estimate(sweep: Sweep, states: Sequence[CellStatus]) -> Estimate:
    """Hours of every cell, by the measured rate of the cells nearest in ln N and ln B, else by ``cost``'s rate."""
    measured: dict[tuple[int, int], list[float]] = {}
    for cell, state in zip(sweep.cells, states):
        if state.rate:
            measured.setdefault((cell.N, cell.config.train.batch_tokens), []).append(math.log(state.rate))
    means = {shape: sum(logs) / len(logs) for shape, logs in measured.items()}
    given = sweep.keys.cost.flops_per_second
    assumed = given * _devices(sweep) if given else None

    def rate_of(cell: Run) -> float | None:
        if not means:
            return assumed
        N, B = cell.N, cell.config.train.batch_tokens
        near = min(means, key=lambda shape: math.hypot(math.log(shape[0] / N), math.log(shape[1] / B)))
        return math.exp(means[near])

    rates = {(cell.N, cell.config.train.batch_tokens): rate_of(cell) for cell in sweep.cells}
    hours = []
    for cell in sweep.cells:
        rate = rates[cell.N, cell.config.train.batch_tokens]
        hours.append(flops_of(cell) / rate / 3600 if rate else None)
    count = sum(map(len, measured.values()))
    if means:
        source = f"measured on {plural(count, 'cell')} of this sweep"
    elif given:
        source = f"from cost.flops_per_second={given:g} in the YAML, not measured"
    else:
        source = "unknown: no cell has run yet, and the YAML gives no cost.flops_per_second"
    return Estimate(hours, source)


def device_hours(sweep: Sweep, hours: Sequence[float | None]) -> float | None:
    """Hours of GPUs (of workers, on the CPU) that cells of these ``hours`` take; None where one is unknown."""
    if None in hours:
        return None
    return sum(hours) * _devices(sweep)


def width(sweep: Sweep) -> int | None:
    """Cells trained at once, if the YAML gives it."""
    executor = sweep.keys.executor
    if executor.kind != "slurm":
        return executor.workers or (COMMANDS_AT_ONCE if executor.kind == "command" else None)
    keys = executor.slurm
    # As sweeps.local.machine does it inside a job.
    groups = keys.gpus // executor.processes * executor.runs_per_gpu if keys.gpus else 0
    inside = executor.workers or groups or (keys.cpus or 1) // executor.processes
    jobs = math.ceil(len(sweep.cells) / keys.runs_per_job)
    return min(keys.array, jobs) * min(keys.runs_per_job, max(inside, 1))


def _devices(sweep: Sweep) -> float:
    """GPUs that one cell takes (on the CPU: workers); a fraction if cells share one."""
    executor = sweep.keys.executor
    return executor.world / executor.runs_per_gpu
