"""Which cells of a grid to train next, and whether any: decided by what they could still change.

A grid is done when its chosen cell is believed to be within a tolerance of the best one there is. Until then the cell
comes next from which the choice is expected to gain most: beyond an edge, between two cells, or one more run of a cell
that was run before. One rule for all of them, on ``scaling.belief``; nothing is drawn at random.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.belief import Belief, Found, Grid, believe, expect, found
from videoscaling.scaling.laws import Law
from videoscaling.scaling.optimum import COEFFICIENTS

# Of the loss: a tenth of what a factor of two in the rate costs.
TOLERANCE = 1e-3
# A grid is done when the chance that its choice misses the tolerance is below this.
DOUBT = 0.1
# In standard errors, how far above the choice's a cell's expected loss may lie for it to be a rival. The errors of
# cells far off are crude, and there are many of them: summed over fifty corners, they would never let a grid be done.
RIVAL = 2.5
# The same of the lowest cell of an edge, above which nothing beyond that edge is one. What lies there would have to be
# better than the choice besides, at odds of less than one half: the chance of both is about that of RIVAL.
SHUT = 2.0
# Standard normal quadrature for the gain of a cell that is yet to be seen.
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(21)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
# Draws of a grid's losses for the chance of a miss: the same ones each time, so that decisions repeat.
_DRAWS = 1000


@dataclass(frozen=True)
class Settings:
    """How a grid is judged.

    Attributes:
        noise: relative standard deviation of a run's loss, from seed to seed.
        rough: the same of a cell's own deviation from a smooth surface, which a repeat would show again.
        tolerance: of the loss, relative.
        doubt: chance of a miss below which a grid is done.
    """

    noise: float
    rough: float = 0.0
    tolerance: float = TOLERANCE
    doubt: float = DOUBT


@dataclass(frozen=True)
class Proposal:
    """A cell to train: its number in the grid, and why, in words."""

    cell: int
    why: str


@dataclass(frozen=True)
class Decision:
    """What to do about a grid.

    Attributes:
        choice: the cell believed to be best of those that have a finite result; None without any.
        miss: the chance that another cell is better by more than the tolerance; 1 without a choice.
        regret: the choice's expected loss above the best cell's, relative; nan without a choice.
        cells: to train next, none if the grid is done.
        found: what the grid tells the others.
    """

    choice: int | None
    miss: float
    regret: float
    cells: tuple[Proposal, ...]
    found: Found


def decide(grid: Grid, others: Sequence[Found], law: Law, settings: Settings, most: int) -> Decision:
    """The next cells of a grid, ``most`` of them at most, and the state of its choice.

    Args:
        grid: its cells and their results.
        others: what the other grids tell.
        law: exponents expected of B_opt and lr_opt, where few grids tell.

    Several cells at once are chosen as if each had come out as expected: the belief's errors shrink, its means stay.
    """
    belief = believe(grid, expect(grid, others, law), settings.noise, settings.rough)
    choice, chance, regret = judge(grid, belief, settings)
    cells: list[Proposal] = []
    ahead, asked = belief, replace(grid, runs=grid.runs.copy(), loss=grid.loss.copy())
    miss = chance
    while len(cells) < most and (miss > settings.doubt or (asked.runs > 0).sum() <= COEFFICIENTS):
        gains = gain(asked, ahead, settings)
        if miss <= settings.doubt:  # it is other cells that are missing: repeats would never end
            gains[asked.runs > 0] = -math.inf
        if not np.isfinite(gains).any():
            break
        cell = int(np.argmax(gains))
        cells.append(Proposal(cell, _why(grid, asked, cell)))
        ahead = as_expected(ahead, cell, settings.noise)
        asked.runs[cell] += 1
        if np.isnan(asked.loss[cell]):
            asked.loss[cell] = 1.0  # it may be chosen then: any number but inf
        if choice is not None:
            miss = judge(asked, ahead, settings)[1]
    return Decision(choice, chance, regret, tuple(cells), found(grid, belief))


def judge(grid: Grid, belief: Belief, settings: Settings) -> tuple[int | None, float, float]:
    """(choice, chance that it misses the tolerance, expected regret), over the cells that are to be had."""
    finite = np.flatnonzero((grid.runs > 0) & np.isfinite(grid.loss))
    if not len(finite):
        return None, 1.0, math.nan
    choice = int(finite[np.argmin(belief.mean[finite])])
    rivals, covariance = np.flatnonzero(rival(grid, belief, choice, settings)), belief.covariance
    values, axes = np.linalg.eigh(covariance[np.ix_(rivals, rivals)])
    root = (axes * np.sqrt(np.clip(values, 0.0, None))) @ axes.T  # symmetric: no sign is left to the library
    drawn = belief.mean[rivals] + np.random.default_rng(0).standard_normal((_DRAWS, len(rivals))) @ root
    lost = drawn[:, np.searchsorted(rivals, choice)] - drawn.min(axis=1)
    return choice, float((lost > settings.tolerance).mean()), float(lost.mean())


def rival(grid: Grid, belief: Belief, choice: int, settings: Settings) -> NDArray[np.bool_]:
    """Which cells may be better than the choice by more than the tolerance, and the choice itself: [cells]."""
    own, shared = np.diag(belief.covariance), belief.covariance[choice]
    error = np.sqrt(np.clip(own + own[choice] - 2 * shared, 0.0, None))
    rivals = ~grid.absent & (belief.mean - belief.mean[choice] + settings.tolerance <= RIVAL * error)
    rivals &= ~shut(grid, belief, choice, np.hypot(error, math.sqrt(2) * settings.rough))
    rivals[choice] = True
    return rivals


def shut(grid: Grid, belief: Belief, choice: int, error: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which cells lie beyond an edge of the runs that is worse than the choice all along: [cells].

    Losses have one valley: what is as good as the choice hangs together with it, so that a line between the two, all
    rates at a batch or all batches at a rate, holds a cell as good. The belief does not know this. A step beyond the
    runs its error is a third of the excess expected there, which leaves every cell a chance to be the best, and a run
    so far out is expected to tell much of the quadratic within.

    Args:
        error: [cells], standard errors of ln loss less the choice's, on a smooth surface.
    """
    seen, beyond = grid.seen, np.zeros(len(grid.lr), dtype=bool)
    for across, along, bend in ((grid.B, grid.lr, belief.quadratic[3]), (grid.lr, grid.B, belief.quadratic[4])):
        # The lowest point of a line may lie between its cells.
        above = belief.mean - belief.mean[choice] - max(bend, 0.0) * _half_step(along) ** 2 / 2
        sides = ((across[seen].min(), across < across[seen].min()), (across[seen].max(), across > across[seen].max()))
        for edge, outside in sides:
            line = np.flatnonzero(across == edge)
            ran, lowest = along[line[grid.runs[line] > 0]], along[line[np.argmin(belief.mean[line])]]
            # An edge whose lowest cell lies beyond its own runs is not known.
            if ran.min() <= lowest <= ran.max() and np.all(above[line] > SHUT * error[line]):
                beyond |= outside
    return beyond


def _half_step(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[cells], in ln: from each cell half of the way to the farther of its neighbours on an axis."""
    there, where = np.unique(values, return_inverse=True)
    steps = np.diff(np.log(there))
    return (np.maximum(np.append(steps, 0.0), np.append(0.0, steps)) / 2)[where]


def gain(grid: Grid, belief: Belief, settings: Settings) -> NDArray[np.float64]:
    """How much lower the choice's expected loss is expected to be after one more run of each cell, [cells].

    The choice is one of the cells that were run. -inf for cells that are not to be had, or that a run would tell
    nothing new of.
    """
    variance = np.clip(np.diag(belief.covariance), 0.0, None) + settings.noise**2
    moved = belief.covariance / np.sqrt(variance + 1e-18)
    own = belief.mean[:, None] + np.diag(moved)[:, None] * _NODES
    run = np.flatnonzero((grid.runs > 0) & ~np.isinf(grid.loss))
    if len(run):
        reach = 4 * np.abs(moved[run]).max(axis=1)
        near = run[belief.mean[run] - reach <= (belief.mean[run] + reach).min()]
        others = belief.mean[near][:, None, None] + moved[near][:, :, None] * _NODES
        gains = belief.mean[run].min() - np.minimum(others.min(axis=0), own) @ _WEIGHTS
        gains[~rival(grid, belief, int(run[np.argmin(belief.mean[run])]), settings)] = -math.inf
    else:
        gains = -own @ _WEIGHTS
    useless = grid.absent | ((grid.runs > 0) & ((settings.noise == 0) | np.isinf(grid.loss)))
    return np.where(useless, -math.inf, gains)


def as_expected(belief: Belief, cell: int, noise: float) -> Belief:
    """The belief after a run of ``cell`` that comes out at its mean."""
    column, shared = belief.covariance[:, cell], belief.shared[:, cell]
    variance = column[cell] + noise**2 + 1e-18
    return replace(
        belief,
        covariance=belief.covariance - np.outer(column, column) / variance,
        spread=belief.spread - np.outer(shared, shared) / variance,
        shared=belief.shared - np.outer(shared, column) / variance,
    )


def _why(grid: Grid, asked: Grid, cell: int) -> str:
    """Why a cell is asked for, in words, from where it lies among the cells that were run or asked for."""
    if asked.runs[cell]:
        return f"run {asked.runs[cell] + 1} of this cell: the noise of one hides the best"
    there = np.flatnonzero(grid.runs > 0)
    if not len(there):
        return "the first cells, where the other grids' law expects the best"
    sides = []
    for values, low, high in ((grid.lr, "lower lr", "higher lr"), (grid.B, "smaller batch", "larger batch")):
        if values[cell] < values[there].min() * (1 - 1e-6):
            sides.append(low)
        elif values[cell] > values[there].max() * (1 + 1e-6):
            sides.append(high)
    if sides:
        return f"beyond the edge: {' and '.join(sides)}"
    known = all(np.any(np.abs(np.log(values[there] / values[cell])) < 1e-6) for values in (grid.lr, grid.B))
    return "a missing neighbour of the best" if known else "a finer step around the best"
