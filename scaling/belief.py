"""What is believed of a grid's losses, cell by cell: where its best cell may be, before and after some are trained.

ln loss of a cell = a quadratic in (ln lr, ln B) + what the quadratic misses, which grows with the distance from the
optimum and is smooth + the cell's own deviation. All are Gaussian, so that beliefs are linear algebra: no sampling, no
fit that fails with too few cells, and an error for every cell that was never run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.laws import Law
from videoscaling.scaling.optimum import WIDEST, features

# The quadratic misses a third of the excess loss that it describes: public surfaces are lopsided, steeper towards high
# rates. What it misses is common to cells less than a factor of four apart, but for a fifth of its variance.
MISSED = 0.35
REACH = math.log(4)
OWN = 0.2
# Of d^2 ln loss / d (ln lr)^2 and of the batch's, before any grid is known; 0.02 is half a per cent of the loss for a
# factor of two. The mixed one is half as large and negative: larger batches want larger rates.
CURVATURE = np.array([0.02, 0.02, -0.01])
# One standard deviation of an exponent of B_opt or lr_opt that a published law gives: such laws for other data and
# models differ by about as much.
EXPONENT = 0.3
# How far, in ln lr and in ln B, the optimum of a grid lies from any law (one standard deviation).
BETWEEN = 0.25
PASSES = 4  # of the quadratic and of the errors that follow from its excess


@dataclass(frozen=True)
class Grid:
    """The cells of one (N, T) that could be run, and what is known of them. Arrays [cells].

    Attributes:
        lr, B: learning rates, and batches in tokens.
        loss: mean over the cell's runs; nan where there are none, inf where they diverged.
        runs: how many, whole numbers.
        absent: cells that turned out not to be had.
    """

    N: float
    T: float
    lr: NDArray[np.float64]
    B: NDArray[np.float64]
    loss: NDArray[np.float64]
    runs: NDArray[np.int64]
    absent: NDArray[np.bool_]

    @property
    def seen(self) -> NDArray[np.int64]:
        """The cells that have a result, diverged ones included."""
        return np.flatnonzero(self.runs > 0)

    @property
    def lives(self) -> bool:
        """Whether any run did not diverge. What is believed of another grid is what was expected of it."""
        return bool(np.isfinite(self.loss[self.seen]).any())


@dataclass(frozen=True)
class Prior:
    """Where a grid's optimum is expected, and how curved its losses are, before its own cells say so.

    Attributes:
        at: [2], ln lr and ln B of the optimum; variance: [2] of them.
        curvature: [3], d^2 ln loss by (ln lr)^2, (ln B)^2 and both; deviation: [3] of them.
    """

    at: NDArray[np.float64]
    variance: NDArray[np.float64]
    curvature: NDArray[np.float64]
    deviation: NDArray[np.float64]


@dataclass(frozen=True)
class Belief:
    """Of ln loss, less that of the grid's best run: ``mean`` [cells] and ``covariance`` [cells, cells].

    ``quadratic`` [6] is in ``features`` around ``centre`` [2], with ``spread`` [6, 6], its covariance, and ``shared``
    [6, cells], that with the cells' losses.
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    quadratic: NDArray[np.float64]
    spread: NDArray[np.float64]
    shared: NDArray[np.float64]
    centre: NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """What a grid tells other grids: ``at`` [2] as in Prior with ``variance`` [2], nan where it has no minimum;
    ``curvature`` [3] and its ``variance_of_curvature`` [3]."""

    N: float
    T: float
    at: NDArray[np.float64]
    variance: NDArray[np.float64]
    curvature: NDArray[np.float64]
    variance_of_curvature: NDArray[np.float64]


def believe(grid: Grid, prior: Prior, noise: float, rough: float) -> Belief:
    """The belief after the grid's runs.

    Args:
        noise: relative standard deviation of a run's loss, from seed to seed.
        rough: the same of a cell's own deviation from a smooth surface, which a repeat would show again.
    """
    x, y = np.log(grid.lr) - prior.at[0], np.log(grid.B) - prior.at[1]
    rows, seen = features(x, y), grid.seen
    expected = np.concatenate([np.zeros(3), prior.curvature])
    hessian = np.array([[prior.curvature[0], prior.curvature[2]], [prior.curvature[2], prior.curvature[1]]])
    spread = np.zeros((6, 6))
    spread[0, 0] = 1.0  # the level is anything
    spread[1:3, 1:3] = hessian @ np.diag(prior.variance) @ hessian
    spread[3:, 3:] = np.diag(prior.deviation**2)
    near = np.exp(-((x[:, None] - x) ** 2 + (y[:, None] - y) ** 2) / (2 * REACH**2))
    value = np.log(grid.loss[seen])
    value = value - value.min(initial=math.inf, where=np.isfinite(value)) if np.isfinite(value).any() else value
    # So far above the best run, or diverged: all that is known is that the loss is at least as high.
    high = ~(value < WIDEST)
    quadratic, after = expected, spread
    for _ in range(PASSES):
        surface = rows @ quadratic
        excess = np.clip(surface - surface.min(), 0.0, WIDEST)
        target = np.where(high, np.maximum(WIDEST, surface[seen]), value)
        excess[seen] = np.where(high, WIDEST, np.maximum(np.where(high, 0.0, value), excess[seen]))
        missed = MISSED**2 * np.outer(excess, excess) * ((1 - OWN) * near + OWN * np.eye(len(x)))
        error = missed + rough**2 * np.eye(len(x))
        if not len(seen):
            break
        observed = rows[seen] @ spread @ rows[seen].T + error[np.ix_(seen, seen)]
        observed += np.diag(noise**2 / grid.runs[seen])
        pull = np.linalg.solve(observed, rows[seen] @ spread).T
        quadratic = expected + pull @ (target - rows[seen] @ expected)
        after = spread - pull @ rows[seen] @ spread
    covariance = rows @ spread @ rows.T + error
    mean, shared = rows @ expected, spread @ rows.T
    if len(seen):
        shared = shared - pull @ covariance[seen]
        whole = np.linalg.solve(observed, covariance[seen]).T
        mean = mean + whole @ (target - rows[seen] @ expected)
        covariance = covariance - whole @ covariance[seen]
    return Belief(mean, covariance, quadratic, after, shared, prior.at)


def found(grid: Grid, belief: Belief) -> Found:
    """What the grid tells the others: nothing where no run lives, and no place where its quadratic has no minimum."""
    c, spread = belief.quadratic, belief.spread
    if not grid.lives:
        nowhere = np.full(2, math.nan)
        return Found(grid.N, grid.T, nowhere, nowhere, CURVATURE.copy(), np.full(3, math.inf))
    hessian = np.array([[c[3], c[5]], [c[5], c[4]]])
    at, variance = np.full(2, math.nan), np.full(2, math.nan)
    if np.linalg.eigvalsh(hessian)[0] > 1e-2 * CURVATURE[0]:
        place = -np.linalg.solve(hessian, c[1:3])
        slope = np.array([[0, 1, 0, place[0], 0, place[1]], [0, 0, 1, 0, place[1], place[0]]])
        moved = -np.linalg.solve(hessian, slope)
        at, variance = belief.centre + place, np.diag(moved @ spread @ moved.T).copy()
    return Found(grid.N, grid.T, at, variance, c[3:].copy(), np.diag(spread)[3:].copy())


def expect(grid: Grid, others: Sequence[Found], law: Law) -> Prior:
    """The prior of a grid from the other grids, and from the exponents of a published ``law``.

    Without other grids the optimum may be anywhere among the grid's cells.
    """
    placed = [other for other in others if np.isfinite(other.at).all()]
    ends = np.log([[values.min(), values.max()] for values in (grid.lr, grid.B)])
    at, variance = ends.mean(axis=1), (np.ptp(ends, axis=1) / 2) ** 2
    if placed:
        size, tokens = np.log([[o.N, o.T] for o in placed]).mean(axis=0)
        design = np.array([[1.0, math.log(o.T) - tokens, math.log(o.N) - size] for o in placed])
        here = np.array([1.0, math.log(grid.T) - tokens, math.log(grid.N) - size])
        for axis, power in enumerate((law.lr, law.batch)):
            weight = 1 / (np.array([o.variance[axis] for o in placed]) + BETWEEN**2)
            # The level is anything, the exponents are the law's within EXPONENT.
            information = np.diag([0.0, EXPONENT**-2, EXPONENT**-2])
            precision = information + design.T @ (weight[:, None] * design)
            told = np.array([0.0, power.T, power.N])
            total = information @ told + design.T @ (weight * [o.at[axis] for o in placed])
            at[axis] = here @ np.linalg.solve(precision, total)
            variance[axis] = here @ np.linalg.solve(precision, here) + BETWEEN**2
    # Curvatures differ from grid to grid by half of what is known of them beforehand.
    own = np.abs(CURVATURE)
    weight = np.array([1 / (o.variance_of_curvature + own**2 / 4) for o in others]).reshape(-1, 3)
    total = weight.sum(axis=0) + own**-2
    values = np.array([o.curvature for o in others]).reshape(-1, 3)
    curvature = (CURVATURE / own**2 + (weight * values).sum(axis=0)) / total
    return Prior(at, variance, curvature, np.sqrt(1 / total + own**2 / 4))
