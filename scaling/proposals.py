"""A ledger as grids of cells that could be run, and what to add to each: the part of ``extend`` that knows sweeps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling import cells
from videoscaling.scaling.belief import Found, Grid, believe, expect, found
from videoscaling.scaling.extend import Decision, Settings, decide
from videoscaling.scaling.laws import Law
from videoscaling.scaling.optimum import WINDOW, Optimum
from videoscaling.scaling.points import at_nominal, grid_optima
from videoscaling.scaling.runs import Ledger

# Cells of one grid that are asked for at once: a study of that many in a row costs as much as one by one, see
# docs/sweeps.md.
TOGETHER = 4
# A finer step than a factor of 1.2 decides nothing: that far from the optimum a loss is .03 % above the lowest.
FINEST = math.log(1.2)
# Relative, of a run's loss, where neither repeats nor spare cells tell.
NOISE = 1e-3
# Repeats that must be there before they are believed, and spare cells that say there is less noise than NOISE: three
# that agree by luck would end a study.
REPEATS = 5
# Where every run of a grid diverged, at rates that span this much, lower ones are not what it lacks: three decades.
# Rates that train the ladder's smallest and largest sizes lie within one.
LIFELESS = math.log(1000)


@dataclass(frozen=True)
class Asked:
    """One (lr, B) of a grid to train once more, and why. ``T`` as in the grid."""

    N: float
    T: float
    lr: float
    B: float
    why: str


@dataclass(frozen=True)
class State:
    """A grid, the fit's verdict on it, and what is asked for.

    Attributes:
        optimum: what a fit makes of it.
        decision: of ``scaling.extend``; its cells are numbers in ``grid``.
        asked: what to train: the decision's cells, or those that the verdict asks for where a fit would not use the
            grid though its best cell is known.
    """

    grid: Grid
    optimum: Optimum
    decision: Decision
    asked: tuple[Asked, ...]

    @property
    def lifeless(self) -> bool:
        """Whether every run diverged, over so wide a range of rates that no lower one is asked for."""
        return lifeless(self.grid)


def noise_of(ledger: Ledger, optima: Sequence[Optimum]) -> tuple[float, str]:
    """(relative standard deviation of a run's loss from seed to seed, where it comes from in words)."""
    squares, spare = 0.0, 0
    for _, _, rows in ledger.grids():
        rows = rows[np.isfinite(ledger.loss[rows])]
        key = np.stack([np.log(ledger.lr[rows]).round(6), np.log(ledger.B[rows]).round(6)], axis=1)
        _, cell = np.unique(key, axis=0, return_inverse=True)
        for number in np.unique(cell):
            logs = np.log(ledger.loss[rows[cell == number]])
            squares, spare = squares + np.sum((logs - logs.mean()) ** 2), spare + len(logs) - 1
    if spare >= REPEATS:
        return math.sqrt(squares / spare), f"{spare} repeats"
    known = [o for o in optima if o.spare and math.isfinite(o.scatter)]
    if spare := sum(o.spare for o in known):
        pooled = math.sqrt(sum(o.spare * (o.scatter / o.loss) ** 2 for o in known) / spare)
        if pooled > (0 if spare >= REPEATS else NOISE):
            return pooled, f"the cells' scatter around their grids' quadratics, {spare} spare cells"
    return NOISE, "an assumption, as nothing repeats yet"


def candidates(lr: NDArray, B: NDArray, clip: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The (lr, B) of a grid that could be run: its rates and batches, half-way between, and one step outside.

    Args:
        lr, B: [runs].
        clip: the smallest batch and the step of batches, in tokens; 0 where unknown.
    """
    axes = []
    for values in (lr, B):
        # To the last digit as they were run, so that a repeat is one.
        logs, first = np.unique(np.log(values).round(6), return_index=True)
        step, between = max(cells.step(logs), FINEST), np.diff(logs) > 2 * FINEST
        added = np.append(((logs[1:] + logs[:-1]) / 2)[between], [logs[0] - step, logs[-1] + step])
        axes.append((values[first], np.exp(added)))
    rates, batches = np.append(axes[0][0], _rounded(axes[0][1])), np.concatenate(axes[1])
    if clip:
        batches = np.maximum(np.round(batches / clip), 1) * clip
    rates, batches = np.unique(rates), np.unique(batches)
    return np.repeat(rates, len(batches)), np.tile(batches, len(rates))


def _rounded(values: Sequence[float] | NDArray) -> NDArray[np.float64]:
    """To four digits: rates that people can read."""
    return np.array([float(f"{value:.4g}") for value in values])


def _alike(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two (lr, B) are nearer each other than tells anything: steps halved again and again would never end."""
    return all(abs(math.log(a / b)) < FINEST / 2 * (1 + 1e-3) for a, b in zip(one, other))


def grid_of(
    ledger: Ledger, N: float, T: float, waiting: Sequence[tuple[float, float]] = (), largest: float = math.inf
) -> Grid:
    """The grid of a ledger's rows, all of one (N, T).

    Args:
        waiting: (lr, B) that are to be run already: not asked again.
        largest: batch that can be run, in tokens.
    """
    lr, B = candidates(
        np.concatenate([ledger.lr, [a for a, _ in waiting]]),
        np.concatenate([ledger.B, [b for _, b in waiting]]),
        float(ledger.n_ctx.max()),
    )
    place = np.stack([np.log(lr), np.log(B)], axis=1)

    def cell_of(rate: float, batch: float) -> int:
        return int(np.argmin(np.abs(place - np.log([rate, batch])).sum(axis=1)))

    loss, runs, absent = np.full(len(lr), math.nan), np.zeros(len(lr), dtype=np.int64), np.zeros(len(lr), dtype=bool)
    found: dict[int, list[float]] = {}
    for rate, batch, value in zip(ledger.lr, ledger.B, ledger.loss):
        found.setdefault(cell_of(rate, batch), []).append(float(value))
    for cell, values in found.items():
        finite = [value for value in values if math.isfinite(value)]
        # One seed's divergence is bad luck where others live.
        loss[cell], runs[cell] = (np.mean(finite), len(finite)) if finite else (math.inf, len(values))
    for rate, batch in waiting:
        absent[cell_of(rate, batch)] = True
    # One side at a time: what is believed of a corner beyond two of them is a guess about a guess.
    outside = [(values < ran.min()) | (values > ran.max()) for values, ran in ((lr, ledger.lr), (B, ledger.B))]
    absent |= (outside[0] & outside[1]) | (largest < B)
    if not np.isfinite(ledger.loss).any():  # a rate that is too high leaves nothing to look for above it
        absent |= lr > ledger.lr.min() * (1 - 1e-6)
    return Grid(N, T, lr, B, loss, runs, absent)


def lifeless(grid: Grid) -> bool:
    """Whether every run of the grid diverged, at rates that span ``LIFELESS``."""
    return not grid.lives and bool(np.ptp(np.log(grid.lr[grid.seen])) > LIFELESS * (1 - 1e-6))


def states(
    ledger: Ledger,
    law: Law,
    settings: Callable[[float], Settings],
    noise: float | None,
    waiting: Callable[[float, float], Sequence[tuple[float, float]]],
    largest: Callable[[float], float] = lambda N: math.inf,
) -> tuple[list[State], float, str]:
    """What to add to each grid, the noise that was assumed, and where that comes from.

    Args:
        ledger: the sweep's results; held-out rows only if they are to be extended.
        law: exponents expected of B_opt and lr_opt.
        settings: from the noise, how grids are judged.
        noise: relative, of a run's loss; None is measured.
        waiting: (N, T) -> the cells of that grid that have no result yet.
        largest: N -> the largest batch that can be run, in tokens.
    """
    optima = grid_optima(at_nominal(ledger), WINDOW)
    moved = at_nominal(ledger)
    source = "given"
    if noise is None:
        noise, source = noise_of(moved, optima)
    judged = settings(noise)
    grids = [grid_of(moved.rows(rows), N, T, waiting(N, T), largest(N)) for N, T, rows in moved.grids()]
    told: list[Found] = []
    # By its own cells alone: grids are not to tell each other what they have heard.
    for grid in grids:
        told.append(found(grid, believe(grid, expect(grid, (), law), judged.noise, judged.rough)))
    made = []
    for number, (grid, optimum) in enumerate(zip(grids, optima)):
        decision = decide(grid, told[:number] + told[number + 1 :], law, judged, TOGETHER)
        wanted = [(float(grid.lr[p.cell]), float(grid.B[p.cell]), p.why) for p in decision.cells]
        if lifeless(grid):
            wanted = []
        elif not wanted and not optimum.usable:
            there = [*waiting(grid.N, grid.T), *zip(grid.lr[grid.seen], grid.B[grid.seen])]
            wanted = [
                (float(lr), B, f"the fit's verdict, {optimum.verdict}, asks for it")
                for lr, B in zip(_rounded([lr for lr, _ in optimum.run_next]), [B for _, B in optimum.run_next])
                if largest(grid.N) >= B and not any(_alike((lr, B), cell) for cell in there)
            ][:TOGETHER]
        made.append(State(grid, optimum, decision, tuple(Asked(grid.N, grid.T, *cell) for cell in wanted)))
    return made, noise, source
