"""Grids with one batch and several rates, or one rate and several batches: the best value along that line.

A parabola in ln of the value that varies takes the place of the quadratic in both (``optimum``).
"""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.fitting.grids import edges
from videoscaling.scaling.fitting.grids.optimum import (
    MISFIT,
    NOISE_WIDTHS,
    WIDEST,
    WINDOW,
    Optimum,
    cell_means,
    nothing_finite,
    row_weights,
    sides_beyond_noise,
)
from videoscaling.scaling.runs import RunTable

BOTH = ("lr", "B")
# A window opens until it holds this many different cells: a parabola has three constants, its scatter needs more.
CELLS_WANTED = 5


def swept(table: RunTable) -> tuple[str, ...]:
    """Which of lr and B vary inside the grids of a run table; both where neither does, or where they are unknown."""
    if not np.isfinite([table.lr, table.B]).all():
        return BOTH
    varies = dict.fromkeys(BOTH, False)
    for _, _, rows in table.grids():
        for name in BOTH:
            varies[name] |= bool(np.ptp(np.log(getattr(table, name)[rows])) > 1e-6)
    return tuple(name for name in BOTH if varies[name]) or BOTH


def parabola(v: NDArray, loss: NDArray, weight: NDArray) -> tuple[NDArray, NDArray, float, int] | None:
    """``c0 + c1 v + c2 v^2 / 2`` through points: (c [3], covariance over the error variance [3, 3], scatter, dof).

    None where fewer than three different ``v`` leave it open.
    """
    if len(np.unique(v.round(9))) < 3:
        return None
    root = np.sqrt(weight)
    X = np.stack([np.ones_like(v), v, v * v / 2], axis=1) * root[:, None]
    inverse = np.linalg.pinv(X)
    c, dof = inverse @ (loss * root), len(v) - 3
    scatter = math.sqrt(np.sum((loss * root - X @ c) ** 2) / dof) if dof else math.nan
    return c, inverse @ inverse.T, scatter, dof


def find(
    N: float,
    T: float,
    lr: NDArray[np.float64],
    B: NDArray[np.float64],
    loss: NDArray[np.float64],
    *,
    axis: str,
    noise: NDArray[np.float64] | None = None,
    window: float | None = WINDOW,
    floor: float = 0.0,
) -> Optimum:
    """The optimum along the one of "lr" and "B" that varies; arguments and answer as of ``optimum.find``."""
    finite = np.flatnonzero(np.isfinite(loss))
    if not len(finite):
        return replace(nothing_finite(N, T, lr, B, floor), axes=(axis,))
    mean = cell_means(lr, B, loss)
    best = finite[np.argmin(mean[finite])]
    x, y = np.log(lr / lr[best]), np.log(B / B[best])
    v, at_axis = (x, 0) if axis == "lr" else (y, 1)
    unknown = np.full((2, 2), math.nan)
    used, width, fit = _fitted(v, loss, noise, finite, window)
    found = Optimum(
        N=N, T=T, lr=float(lr[best]), B=float(B[best]), loss=float(mean[best]), loss_se=math.nan, covariance=unknown,
        verdict="too few points", sides=(), run_next=(), hessian=np.zeros((2, 2)), scatter=math.nan, spare=0,
        window=width, used=used, cells=len(finite), diverged=len(loss) - len(finite), axes=(axis,),
    )  # fmt: skip

    def own(sides: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(side for side in sides if side.endswith("lr" if axis == "lr" else "batch"))

    def edge(sides: tuple[str, ...]) -> Optimum:
        asked = edges.beyond(sides, x, y, found.lr, found.B, floor, finite)
        return replace(found, verdict="edge", sides=sides, run_next=asked)

    on_border = own(edges.sides_of(np.zeros(2), x, y))
    if fit is None:
        return edge(on_border) if on_border else found
    c, unscaled, scatter, dof = fit
    found = replace(found, scatter=scatter, spare=dof)
    place = np.zeros(2)
    place[at_axis] = -c[1] / c[2] if c[2] > 0 else 0.0
    outside = own(edges.sides_of(place, x, y)) if c[2] > 0 else ()
    if on_border and c[2] > 0 and not outside:
        on_border = sides_beyond_noise(on_border, x, y, mean, finite, best, scatter)
    if sides := on_border or outside:
        return edge(sides)
    if c[2] <= 1e-12 * abs(c[0]):
        return replace(found, verdict="saddle")
    if (fitted := c[0] + c[1] * v[used] + c[2] * v[used] ** 2 / 2).min() < (1 - MISFIT) * mean[best]:
        return replace(found, verdict="misfit")
    if not dof:
        return replace(found, run_next=_halfway(x, y, found, axis, floor))
    at = place[at_axis]
    row, pull = np.array([1.0, at, at * at / 2]), np.array([0.0, -1 / c[2], c[1] / c[2] ** 2])
    variance = float(pull @ unscaled @ pull) * scatter**2
    covariance, hessian = unknown.copy(), np.zeros((2, 2))
    covariance[at_axis, at_axis], hessian[at_axis, at_axis] = variance, c[2]
    flat = np.ptp(fitted) == 0 or math.sqrt(variance) > np.ptp(v) / 2
    return replace(
        found,
        lr=found.lr * math.exp(place[0]),
        B=found.B * math.exp(place[1]),
        loss=float(row @ c),
        loss_se=float(math.sqrt(row @ unscaled @ row)) * scatter,
        covariance=covariance,
        hessian=hessian,
        verdict="flat" if flat else "interior",
    )


def refit(optimum: Optimum, lr: NDArray, B: NDArray, loss: NDArray, noise: NDArray) -> tuple[float, float, float]:
    """(lr, B, loss) at the minimum through other cells of the same line, as ``optimum.refit``."""
    (axis,) = optimum.axes
    value, values = (optimum.lr, lr) if axis == "lr" else (optimum.B, B)
    v = np.log(values / value)
    fit = parabola(v, loss, row_weights(noise, np.arange(len(loss))))
    if fit is not None and fit[0][2] > 0 and v.min() < (at := -fit[0][1] / fit[0][2]) < v.max():
        c, moved = fit[0], value * math.exp(at)
        least = float(c[0] + c[1] * at + c[2] * at * at / 2)
        return (moved, optimum.B, least) if axis == "lr" else (optimum.lr, moved, least)
    mean = cell_means(lr, B, loss)
    best = int(np.argmin(mean))
    return float(lr[best]), float(B[best]), float(mean[best])


def _fitted(
    v: NDArray, loss: NDArray, noise: NDArray | None, finite: NDArray[np.int64], window: float | None
) -> tuple[NDArray[np.int64], float, tuple | None]:
    """(cells within the window, its width, the parabola through them). The window opens as in ``optimum``."""
    excess = loss[finite] / loss[finite].min() - 1
    if window is None:
        return finite, float(excess.max()), parabola(v[finite], loss[finite], row_weights(noise, finite))
    _, cell = np.unique(v[finite].round(6), return_inverse=True)
    best = np.full(cell.max() + 1, math.inf)
    np.minimum.at(best, cell.ravel(), excess)
    width = max(window, min(float(np.sort(best)[min(CELLS_WANTED, len(best)) - 1]), WIDEST))
    while True:
        used = finite[excess <= width]
        fit = parabola(v[used], loss[used], row_weights(noise, used))
        if fit is None or not fit[3]:
            return used, width, fit
        wanted = min(NOISE_WIDTHS * fit[2] / loss[finite].min(), WIDEST)
        if wanted <= width:
            return used, width, fit
        width = wanted


def _halfway(x: NDArray, y: NDArray, optimum: Optimum, axis: str, floor: float) -> edges.Cells:
    """Cells half a step from the best one along the axis."""
    asked = edges.between(x, y, optimum.lr, optimum.B, floor)
    index = 1 if axis == "lr" else 0
    return tuple(cell for cell in asked if math.isclose(cell[index], (optimum.lr, optimum.B)[index]))
