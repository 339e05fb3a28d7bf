"""N_opt(C), three ways: from isoFLOP parabolas, as a power law through optima, and by minimising the loss law."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scaling.laws import LossLaw, SizeLaw
from utils.errors import UserError

# Of the best loss. On the 15 public isoFLOP sets the exponents come out within .026 of the published at 3 %, .031 at
# 5 %: the curves are lopsided, and a wider window feels it.
WINDOW = 0.03
# Training FLOPs per token of models with N parameters (array in, array out): C_token with the ladder's widths.
Cost = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def c_token(n_ctx: int, width: Callable[[float], float]) -> Cost:
    """The paper's cost, ``3/4 * N * (7 + n_ctx / width(N))``."""
    return lambda N: 0.75 * N * (7 + n_ctx / np.vectorize(width, otypes=[float])(N))


def proportional(flops_per_parameter: float = 6.0) -> Cost:
    """The language models' cost, 6 FLOPs per parameter and token, where nothing more is known."""
    return lambda N: flops_per_parameter * np.asarray(N, dtype=float)


def minimise(constants: NDArray, scale: dict[str, float], C: ArrayLike, cost: Cost) -> NDArray[np.float64]:
    """The N that minimises the loss law at C FLOPs.

    Args:
        constants: [..., 5], (Tc, aT, Nc, aN, Linf) in ``scale``; a batch of laws is solved at once.
        C: FLOPs, broadcast against the batch.

    Returns:
        N_opt [...]. Where T = C / cost(N), the loss has one minimum in N: bisection on its slope in ln N.
    """
    constants = np.asarray(constants, dtype=float)
    Tc, aT, Nc, aN = (constants[..., i] for i in range(4))
    C = np.broadcast_to(np.asarray(C, dtype=float), np.broadcast_shapes(Tc.shape, np.shape(C)))
    # Costs are smooth: tabulated once, since bisection for every draw would ask for them millions of times.
    grid = np.linspace(np.log(1e2), np.log(1e15), 1500)
    log_cost = np.log(cost(np.exp(grid)))
    slope = np.gradient(log_cost, grid)
    low, high = np.full(C.shape, grid[0]), np.full(C.shape, grid[-1])
    for _ in range(60):
        middle = (low + high) / 2
        T = C / np.exp(np.interp(middle, grid, log_cost)) / scale["T"]
        rising = np.log(aT * Tc * np.interp(middle, grid, slope)) - aT * np.log(T)
        falling = np.log(aN * Nc) - aN * (middle - np.log(scale["N"]))
        low, high = np.where(rising > falling, low, middle), np.where(rising > falling, middle, high)
    return np.exp((low + high) / 2)


def optimum(loss: LossLaw, C: ArrayLike, cost: Cost) -> NDArray[np.float64]:
    """N_opt of one loss law at C FLOPs (array)."""
    return minimise(np.array([loss.Tc, loss.aT, loss.Nc, loss.aN, loss.Linf]), loss.scale, C, cost)


def within(loss: LossLaw, C: float, cost: Cost, tolerance: float) -> tuple[float, float]:
    """The smallest and the largest N whose loss at C FLOPs is within ``tolerance`` (relative) of the best."""
    best = float(optimum(loss, C, cost))
    N = best * np.exp(np.linspace(-7, 7, 4001))
    good = loss(N, C / cost(N)) <= loss(best, C / cost(np.array(best))) * (1 + tolerance)
    return float(N[good][0]), float(N[good][-1])


def size_law(C: ArrayLike, N_opt: ArrayLike, variance: ArrayLike | None = None) -> SizeLaw:
    """The power law through optima: least squares in logs, weighted by 1 / ``variance`` of ln N_opt."""
    x, y = np.log(C), np.log(N_opt)
    w = np.ones_like(y) if variance is None else 1 / np.asarray(variance, dtype=float)
    if np.ptp(x) < 1e-9:
        raise UserError("the optima share one budget: N_opt's exponent is unknown")
    x0, y0 = np.average(x, weights=w), np.average(y, weights=w)
    exponent = np.sum(w * (x - x0) * (y - y0)) / np.sum(w * (x - x0) ** 2)
    return SizeLaw(float(np.exp(y0 - exponent * x0)), float(exponent))


def predicted(loss: LossLaw, C: tuple[float, float], cost: Cost) -> SizeLaw:
    """The power law through the loss law's minima over budgets ``C`` (lowest, highest)."""
    budgets = np.geomspace(*C, 9)
    return size_law(budgets, optimum(loss, budgets, cost))


@dataclass(frozen=True)
class Parabola:
    """The optimum of one isoFLOP curve; ``variance`` is of ln N_opt, nan without spare points."""

    C: float
    N_opt: float
    loss: float
    variance: float
    interior: bool


def parabola(C: float, N: NDArray, loss: NDArray, window: float = WINDOW) -> Parabola:
    """ln loss as a parabola in ln N on the points of one budget within ``window`` (relative) of the best.

    Raises:
        UserError: fewer than three points in the window.
    """
    # A window that leaves a parabola nothing to fit opens to the nearest points.
    keep = (loss <= loss.min() * (1 + window)) | (np.argsort(np.argsort(loss)) < 3)
    if keep.sum() < 3:
        raise UserError(f"budget {C:.3g} has {keep.sum()} sizes: a parabola needs three")
    centre = np.log(N[np.argmin(loss)])
    x, y = np.log(N[keep]) - centre, np.log(loss[keep])
    X = np.stack([np.ones_like(x), x, x**2], axis=1)
    c, *_ = np.linalg.lstsq(X, y, rcond=None)
    if c[2] <= 0:
        return Parabola(C, float(np.exp(centre)), float(loss.min()), np.nan, False)
    at = -c[1] / (2 * c[2])
    spare = len(x) - 3
    variance = np.nan
    if spare:
        slope = np.array([0, -1 / (2 * c[2]), c[1] / (2 * c[2] ** 2)])
        variance = float(slope @ np.linalg.inv(X.T @ X) @ slope * np.sum((y - X @ c) ** 2) / spare)
    inside = bool(np.log(N).min() - centre < at < np.log(N).max() - centre)
    value = float(np.exp(c[0] + c[1] * at + c[2] * at**2))
    return Parabola(C, float(np.exp(centre + at)), value, variance, inside)


def isoflop(points: Iterable[tuple[float, NDArray, NDArray]], window: float = WINDOW) -> list[Parabola]:
    """One parabola per (C, N, loss); budgets with fewer than three sizes are left out."""
    return [parabola(C, N, loss, window) for C, N, loss in points if len(np.unique(N)) >= 3]
