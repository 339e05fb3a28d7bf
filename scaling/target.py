"""A given amount of compute, spent on the cells that narrow one prediction most.

Two targets. The pair: the rate and the batch predicted for some (N, T), whose errors cost loss by the curvature. And
N_opt at a budget, by the loss law (delta method). Either is a function of how well each grid knows its optimum, and a
run's effect on that follows from the belief of its grid, before the run is made.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling import loss_law
from videoscaling.scaling.belief import BETWEEN, EXPONENT, Belief, Grid
from videoscaling.scaling.extend import as_expected
from videoscaling.scaling.planning import allocation
from videoscaling.scaling.points import Untrusted
from videoscaling.scaling.proposals import Asked

# A grid's optimum may scatter about the loss law by this much (relative) at least, however well it is known itself.
LEAST_SCATTER = 1e-4
# Runs that a budget is spent on at once: after so many, their results choose better than what was believed before.
MOST_RUNS = 200


@dataclass(frozen=True)
class Known:
    """A grid, what is believed of it, and ``price`` [cells], the FLOPs of a run of each cell."""

    grid: Grid
    belief: Belief
    price: NDArray[np.float64]


@dataclass(frozen=True)
class Target:
    """What is to be narrowed.

    Attributes:
        name: in words.
        error: the target's variance [...] from the grids' variances of (ln lr, ln B, ln loss), [..., grids, 3]; nan of
            a grid that tells nothing.
        unit: turns a variance into what is printed, and how that is called.
    """

    name: str
    error: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    unit: tuple[Callable[[float], float], str]


def knowledge(belief: Belief, spread: NDArray[np.float64]) -> NDArray[np.float64]:
    """Variances [..., 3] of ln lr and ln B of a grid's optimum and of its ln loss, for ``spread`` [..., 6, 6].

    nan where the quadratic has no minimum.
    """
    c = belief.quadratic
    hessian = np.array([[c[3], c[5]], [c[5], c[4]]])
    if np.linalg.eigvalsh(hessian)[0] <= 0:
        return np.full((*spread.shape[:-2], 3), math.nan)
    x, y = -np.linalg.solve(hessian, c[1:3])
    rows = np.empty((3, 6))
    rows[:2] = -np.linalg.solve(hessian, np.array([[0, 1, 0, x, 0, y], [0, 0, 1, 0, y, x]]))
    rows[2] = 1, x, y, x * x / 2, y * y / 2, x * y
    return np.einsum("ki,...ij,kj->...k", rows, spread, rows)


def _knowledge(known: Known, belief: Belief, spread: NDArray[np.float64]) -> NDArray[np.float64]:
    """``knowledge`` of a grid, nan where none of its runs lives: its minimum is what was expected of it."""
    told = knowledge(belief, spread)
    return told if known.grid.lives else np.full_like(told, math.nan)


def pair(N: float, T: float, grids: Sequence[Known]) -> Target:
    """The rate and the batch at (N, T): the loss that their errors are expected to cost, relative.

    Raises:
        Untrusted: fewer than two grids have a minimum.
    """
    if sum(np.isfinite(_knowledge(known, known.belief, known.belief.spread)).all() for known in grids) < 2:
        raise Untrusted("fewer than two grids have a minimum: nothing to predict a rate and a batch from")
    design = np.array([[1.0, math.log(known.grid.T / T), math.log(known.grid.N / N)] for known in grids])
    information = np.diag([0.0, EXPONENT**-2, EXPONENT**-2])
    bend = np.median([known.belief.quadratic[3:5] for known in grids if known.grid.lives], axis=0) / 2

    def error(variances: NDArray[np.float64]) -> NDArray[np.float64]:
        weight = np.nan_to_num(1 / (variances[..., :2] + BETWEEN**2), nan=0.0)
        precision = information + np.einsum("gi,...ga,gj->...aij", design, weight, design)
        # The target lies at the origin of the design: its variance is that of the level.
        return (np.linalg.inv(precision)[..., 0, 0] * bend).sum(axis=-1)

    return Target(f"rate and batch at N {N:.4g}, T {T:.4g}", error, (lambda v: v, "expected excess loss, relative"))


def best_size(C: float, cost: allocation.Cost, grids: Sequence[Known]) -> Target:
    """N_opt at C FLOPs by the loss law through the grids' minima.

    Raises:
        Untrusted: they do not tell the law.
    """
    N, T = (np.array([getattr(known.grid, name) for known in grids]) for name in ("N", "T"))
    variances = np.array([_knowledge(known, known.belief, known.belief.spread) for known in grids])
    there = np.isfinite(variances).all(axis=1)
    reason = loss_law.unidentified(N[there], T[there], {}) if there.any() else "no grid has a minimum"
    if reason or there.sum() <= len(loss_law.CONSTANTS):
        told = reason or f"{there.sum()} grids with a minimum for {len(loss_law.CONSTANTS)} constants"
        raise Untrusted(f"N_opt cannot be narrowed before the loss law is told: {told}")
    loss = np.array([_lowest(known) for known in grids])
    scale = {"N": float(np.exp(np.log(N).mean())), "T": float(np.exp(np.log(T).mean()))}
    noise = np.sqrt(variances[there, 2])
    fitted = loss_law.fit(N[there], T[there], loss[there], noise, scale=scale)
    spare = there.sum() - len(loss_law.CONSTANTS)
    between = max(np.sum(fitted.residuals**2) / spare - np.mean(noise**2), LEAST_SCATTER**2)

    def size(theta: NDArray) -> float:
        return math.log(float(allocation.minimise(loss_law.constants_of(theta), scale, C, cost)))

    steps = 1e-4 * np.eye(len(fitted.theta))
    slope = np.array([(size(fitted.theta + step) - size(fitted.theta - step)) / 2e-4 for step in steps])
    derivative = np.zeros((len(grids), len(slope)))
    derivative[there] = fitted.derivative

    def error(variances: NDArray[np.float64]) -> NDArray[np.float64]:
        weight = np.where(there, np.nan_to_num(1 / (variances[..., 2] + between), nan=0.0), 0.0)
        precision = np.einsum("gi,...g,gj->...ij", derivative, weight, derivative)
        return np.einsum("i,...ij,j->...", slope, np.linalg.inv(precision), slope)

    return Target(f"N_opt at {C:.4g} FLOPs", error, (lambda v: math.exp(1.96 * math.sqrt(v)), "95 % interval, factor"))


def _lowest(known: Known) -> float:
    """The loss at the minimum of a grid's quadratic."""
    c, best = known.belief.quadratic, np.nanmin(known.grid.loss)
    hessian = np.array([[c[3], c[5]], [c[5], c[4]]])
    if not np.isfinite(best) or np.linalg.eigvalsh(hessian)[0] <= 0:
        return math.nan
    return float(best * math.exp(c[0] - c[1:3] @ np.linalg.solve(hessian, c[1:3]) / 2))


def spend(
    grids: Sequence[Known], target: Target, flops: float, noise: float
) -> tuple[list[Asked], list[float], list[float]]:
    """The runs to pay for with ``flops``, each the one that narrows the target most per FLOP after the ones before.

    ``MOST_RUNS`` of them at most.

    Returns:
        The runs, each one's cost in FLOPs, and the target's variance before the first and after each.
    """
    spreads = np.array([_knowledge(known, known.belief, known.belief.spread) for known in grids])
    beliefs, variances = [known.belief for known in grids], [float(target.error(spreads))]
    asked: list[Asked] = []
    paid: list[float] = []
    narrowed = [_narrowed(g, known, beliefs[g], spreads, target, noise) for g, known in enumerate(grids)]
    while len(asked) < MOST_RUNS:
        left = flops - sum(paid)
        value = [
            np.where(known.price <= left, (variances[-1] - after) / known.price, -math.inf)
            for known, after in zip(grids, narrowed)
        ]
        g = int(np.argmax([of_cells.max() for of_cells in value]))
        known, cell = grids[g], int(np.argmax(value[g]))
        if not value[g][cell] > 1e-6 * variances[-1] / flops:
            break
        beliefs[g] = as_expected(beliefs[g], cell, noise)
        spreads[g] = _knowledge(grids[g], beliefs[g], beliefs[g].spread)
        variances.append(float(target.error(spreads)))
        paid.append(float(known.price[cell]))
        grid = known.grid
        why = "narrows the target most per FLOP"
        asked.append(Asked(grid.N, grid.T, float(grid.lr[cell]), float(grid.B[cell]), why))
        narrowed = [_narrowed(k, other, beliefs[k], spreads, target, noise) for k, other in enumerate(grids)]
    return asked, paid, variances


def _narrowed(
    number: int, known: Known, belief: Belief, spreads: NDArray, target: Target, noise: float
) -> NDArray[np.float64]:
    """The target's variance after one more run of each cell of a grid, [cells]; inf for those not to be had."""
    variance = np.diag(belief.covariance) + noise**2 + 1e-18
    outer = belief.shared.T[:, :, None] * belief.shared.T[:, None, :] / variance[:, None, None]
    after = np.tile(spreads, (len(variance), 1, 1))
    after[:, number] = _knowledge(known, belief, belief.spread - outer)
    useless = known.grid.absent | np.isinf(known.grid.loss)
    return np.where(useless, math.inf, target.error(after))
