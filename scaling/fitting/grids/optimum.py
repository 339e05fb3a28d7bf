"""The best (lr, batch) of one grid, with its covariance and a verdict on how far to trust it.

A quadratic in (ln lr, ln B) is fitted to the cells within a window of the best one. Its minimum, not the smallest
cell, is the optimum and its loss: the smallest of many noisy cells is low by luck (winner's curse).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.fitting.grids import edges
from videoscaling.scaling.runs import RunTable

COEFFICIENTS = 6
# The published grids' curvature makes 2 % about a factor of four in lr or B: wide enough for 10-40 cells of a dense
# grid, narrow enough that a quadratic describes them.
WINDOW = 0.02
# A coarse grid has few cells so near its best one: the window then opens until it holds this many, but not beyond
# WIDEST, where the loss is no quadratic.
CELLS_WANTED = 9
WIDEST = 0.15
# Of the cells' scatter: a narrower window around the luckiest cell chooses by luck. Of 9 x 9 grids whose cells scatter
# by half of a 2 % window, half had no interior optimum, and the others' losses were a standard error low.
NOISE_WIDTHS = 6.0
# A quadratic that lies this far (relative) below the best loss at a cell that was run does not describe the cells: its
# minimum is no loss of theirs. Public grids within the window: never below; all their cells: 15 to 25 %.
MISFIT = 0.02


@dataclass(frozen=True)
class Optimum:
    """The optimum of one grid.

    Attributes:
        N, T: the grid's parameters and (nominal) tokens.
        lr, B: the quadratic's minimum; the best cell's, by the mean of its runs, where there is none inside the grid.
        loss, loss_se: the quadratic's value there and its standard error from the cells' scatter.
        covariance: [2, 2] of (ln lr, ln B); nan where there is no minimum.
        verdict: "interior", "floor", "edge", "saddle", "misfit", "too few points" or "flat". Only an interior optimum
            enters all laws. A misfit's quadratic lies far below every cell: they span more than it can follow. At the
            floor the best batch is the smallest there can be, one clip: the rate and the loss are the best ones all
            the same, and the batch is only known to want to be smaller.
        sides: for an edge, where to go: "lower lr", "higher lr", "smaller batch", "larger batch".
        run_next: (lr, B) of the cells that would decide an edge, or a grid of too few; never below the floor.
        hessian: [2, 2] of the loss in (ln lr, ln B).
        scatter: standard deviation of the cells around the quadratic; nan without spare points.
        window: relative width of the window used.
        used: row numbers of the cells inside the window.
        cells: finite cells, and diverged: censored ones.
        axes: which of "lr" and "B" the grid varies; with one of them (``lines``) the other is what was run.
    """

    N: float
    T: float
    lr: float
    B: float
    loss: float
    loss_se: float
    covariance: NDArray[np.float64]
    verdict: str
    sides: tuple[str, ...]
    run_next: tuple[tuple[float, float], ...]
    hessian: NDArray[np.float64]
    scatter: float
    spare: int
    window: float
    used: NDArray[np.int64]
    cells: int
    diverged: int
    axes: tuple[str, ...] = ("lr", "B")

    @property
    def interior(self) -> bool:
        return self.verdict == "interior"

    @property
    def usable(self) -> bool:
        """Whether its rate and loss are the best ones: interior, or at the floor."""
        return self.verdict in ("interior", "floor")

    def describe(self) -> str:
        """One line of text."""
        at = f"lr {self.lr:.3g}, B {self.B:.4g}, loss {self.loss:.5g}"
        where = f" ({' and '.join(self.sides)})" if self.sides else ""
        if self.verdict == "misfit":
            where = " (its quadratic lies far below every cell: a narrower --window)"
        if not self.cells:
            where, at = "", f"all {self.diverged} cells diverged"
        return f"N {self.N:.4g}, T {self.T:.4g}: {self.verdict}{where}, {at}"


def features(x: NDArray, y: NDArray) -> NDArray[np.float64]:
    """Columns 1, x, y, x^2/2, y^2/2, xy: [..., 6]."""
    return np.stack([np.ones_like(x), x, y, x * x / 2, y * y / 2, x * y], axis=-1)


def find(
    N: float,
    T: float,
    lr: NDArray[np.float64],
    B: NDArray[np.float64],
    loss: NDArray[np.float64],
    noise: NDArray[np.float64] | None = None,
    window: float | None = WINDOW,
    floor: float = 0.0,
) -> Optimum:
    """The optimum of one grid.

    Args:
        N, T: what the cells share.
        lr, B, loss: [cells]; the loss of a diverged cell is inf: it marks where the grid ends, and is never fitted.
        noise: [cells] standard errors of the losses; their ratios are the weights, their size comes from the scatter
            around the quadratic, because errors that all cells share (the validation clips) do not scatter.
        window: cells within this fraction of the best loss are fitted; None fits all.
        floor: the smallest batch there can be, in tokens: one clip.

    Returns:
        The optimum. A grid without any finite loss has too few points: its loss is inf, and lower rates come next.
    """
    finite = np.flatnonzero(np.isfinite(loss))
    if len(finite) == 0:
        return nothing_finite(N, T, lr, B, floor)
    mean = cell_means(lr, B, loss)
    best = finite[np.argmin(mean[finite])]
    x, y = np.log(lr / lr[best]), np.log(B / B[best])
    used, width, fit = _fitted(x, y, loss, noise, finite, window)
    result = {
        "N": N, "T": T, "lr": float(lr[best]), "B": float(B[best]), "loss": float(mean[best]), "loss_se": math.nan,
        "covariance": np.full((2, 2), math.nan), "hessian": np.full((2, 2), math.nan), "scatter": math.nan,
        "spare": 0, "window": width, "used": used, "cells": len(finite), "diverged": len(loss) - len(finite),
        "sides": (), "run_next": (),
    }  # fmt: skip
    if fit is None:
        sides = _border(x, y, best)
        if sides == ("smaller batch",) and B.min() <= floor:
            sides = ()
        return _edge_or(result, "too few points", sides, x, y, floor, finite)
    coefficients, unscaled, scatter, spare = fit
    hessian = np.array([[coefficients[3], coefficients[5]], [coefficients[5], coefficients[4]]])
    result |= {"hessian": hessian, "scatter": scatter, "spare": spare}
    convex = np.linalg.eigvalsh(hessian)[0] > 1e-9 * max(abs(hessian).max(), 1e-300)
    at = -np.linalg.solve(hessian, coefficients[1:3]) if convex else np.zeros(2)
    inside = convex and edges.inside(at, x, y)
    lost = edges.beyond_cliff(at, x, y, finite) if convex else None
    sides = _border(x, y, best)
    if sides and inside:
        sides = sides_beyond_noise(sides, x, y, mean, finite, best, scatter)
    if convex and not inside and not sides:
        sides = edges.sides_of(at, x, y)
    misfit = (features(x[used], y[used]) @ coefficients).min() < (1 - MISFIT) * mean[best]
    if sides == ("smaller batch",) and B.min() <= floor and not misfit and lost != "smaller batch":
        return _at_floor(result, coefficients, unscaled, x, y, floor, finite)
    if lost:
        sides = tuple(dict.fromkeys((*sides, lost)))
    if sides:
        return _edge_or(result, "edge", sides, x, y, floor, finite)
    if not convex:
        return Optimum(**result, verdict="saddle")
    if misfit:
        return Optimum(**result, verdict="misfit")
    row = features(at[0], at[1])
    slope = -np.linalg.solve(hessian, _gradient_rows(at))
    covariance = unscaled * scatter**2 if spare else np.full((COEFFICIENTS, COEFFICIENTS), math.nan)
    result |= {
        "lr": float(lr[best] * math.exp(at[0])),
        "B": float(B[best] * math.exp(at[1])),
        "loss": float(row @ coefficients),
        "loss_se": float(math.sqrt(row @ covariance @ row)) if spare else math.nan,
        "covariance": slope @ covariance @ slope.T,
    }
    if spare == 0:
        # The cells to add are counted from the best one.
        between = edges.between(x, y, lr[best], B[best], floor)
        return Optimum(**(result | {"run_next": between}), verdict="too few points")
    spread = np.array([np.ptp(x), np.ptp(y)])
    flat = np.ptp(loss[used]) == 0 or bool(np.any(np.sqrt(np.diag(result["covariance"])) > spread / 2))
    return Optimum(**result, verdict="flat" if flat else "interior")


def cell_means(lr: NDArray, B: NDArray, loss: NDArray) -> NDArray[np.float64]:
    """Each run's loss as the mean of its cell's runs that did not diverge: the luckiest of four would stand for it."""
    _, cell = np.unique(np.log(np.stack([lr, B], axis=1)).round(6), axis=0, return_inverse=True)
    cell, finite = cell.ravel(), np.isfinite(loss)
    runs = np.bincount(cell[finite], minlength=cell.max() + 1)
    total = np.bincount(cell[finite], loss[finite], minlength=cell.max() + 1)
    return np.where(finite, (total / np.maximum(runs, 1))[cell], math.inf)


def nothing_finite(N: float, T: float, lr: NDArray, B: NDArray, floor: float) -> Optimum:
    """The verdict on a grid whose cells all diverged."""
    rate, batch = float(lr.min()), float(np.sort(B)[len(B) // 2])
    none = np.empty(0, dtype=np.int64)
    lower = edges.beyond(("lower lr",), np.log(lr / rate), np.log(B / batch), rate, batch, floor, none)
    unknown = np.full((2, 2), math.nan)
    return Optimum(
        N=N, T=T, lr=rate, B=batch, loss=math.inf, loss_se=math.nan, covariance=unknown, verdict="too few points",
        sides=("lower lr",), run_next=lower, hessian=unknown, scatter=math.nan, spare=0, window=math.nan,
        used=none, cells=0, diverged=len(lr),
    )  # fmt: skip


def _at_floor(
    result: dict, coefficients: NDArray, unscaled: NDArray, x: NDArray, y: NDArray, floor: float, finite: NDArray
) -> Optimum:
    """The best rate along the smallest batch, or an edge where no rate is best inside the grid."""
    lowest = y.min()
    slope, curvature = coefficients[1] + coefficients[5] * lowest, coefficients[3]
    at = np.array([-slope / curvature if curvature > 0 else math.inf, lowest])
    lost = edges.beyond_cliff(at, x, y, finite) if curvature > 0 else None
    if not x.min() < at[0] < x.max() or not result["spare"] or lost:
        sides = edges.sides_of(at, x, np.array([-1.0, 1.0]) + lowest) if curvature > 0 else ()
        sides = tuple(dict.fromkeys((*sides, lost))) if lost else sides
        asked = edges.beyond(sides, x, y, result["lr"], result["B"], floor, finite)
        # No side to go to: rates between those there are.
        asked = asked or edges.between(x, y, result["lr"], result["B"], floor)
        return Optimum(**(result | {"sides": ("smaller batch", *sides), "run_next": asked}), verdict="edge")
    row, covariance = features(*at), unscaled * result["scatter"] ** 2
    pull = np.zeros(COEFFICIENTS)  # derivative of the best ln lr in the coefficients
    pull[[1, 5, 3]] = -1 / curvature, -lowest / curvature, slope / curvature**2
    return Optimum(
        **result
        | {
            "sides": ("smaller batch",),
            "lr": float(result["lr"] * math.exp(at[0])),
            "B": float(result["B"] * math.exp(lowest)),
            "loss": float(row @ coefficients),
            "loss_se": float(math.sqrt(row @ covariance @ row)),
            "covariance": np.array([[pull @ covariance @ pull, 0.0], [0.0, math.nan]]),
        },
        verdict="floor",
    )


def _window(
    x: NDArray, y: NDArray, loss: NDArray, finite: NDArray, window: float | None
) -> tuple[NDArray[np.int64], float]:
    excess = loss[finite] / loss[finite].min() - 1
    if window is None:
        return finite, float(excess.max())
    # Different ones: runs of one cell again and again would keep the window shut.
    _, cell = np.unique(np.stack([x[finite], y[finite]], axis=1).round(6), axis=0, return_inverse=True)
    best = np.full(cell.max() + 1, math.inf)
    np.minimum.at(best, cell.ravel(), excess)
    if np.sum(best <= window) < CELLS_WANTED:
        window = max(window, min(float(np.sort(best)[min(CELLS_WANTED, len(best)) - 1]), WIDEST))
    return finite[excess <= window], window


def _fitted(
    x: NDArray, y: NDArray, loss: NDArray, noise: NDArray | None, finite: NDArray, window: float | None
) -> tuple[NDArray, float, tuple | None]:
    """(cells within the window, its width, the quadratic through them).

    Where the cells scatter by much of the window, it opens, and cells enter by the surface instead of by their losses:
    at its rim the losses would choose those that are low by luck.
    """

    def through(rows: NDArray) -> tuple | None:
        return quadratic(x[rows], y[rows], loss[rows], row_weights(noise, rows))

    used, width = _window(x, y, loss, finite, window)
    fit, asked, lowest = through(used), width, loss[finite].min()
    while window is not None and fit is not None and fit[3]:
        wanted = min(NOISE_WIDTHS * fit[2] / lowest, WIDEST)
        if wanted <= width:
            break
        used, width = _window(x, y, loss, finite, wanted)
        fit = through(used)
    if width > asked:
        surface = features(x, y) @ fit[0]
        near = surface[finite] <= surface[used].min() + width * lowest
        used = finite[near & (loss[finite] <= (1 + WIDEST) * lowest)]
        fit = through(used)
    return used, width, fit


def row_weights(noise: NDArray | None, used: NDArray) -> NDArray[np.float64]:
    if noise is None or not np.all(np.isfinite(noise[used])) or np.any(noise[used] <= 0):
        return np.ones(len(used))
    return np.mean(noise[used] ** 2) / noise[used] ** 2


def quadratic(x: NDArray, y: NDArray, loss: NDArray, weight: NDArray) -> tuple | None:
    """(coefficients [6], their covariance over the error variance, scatter, spare points); None if not identified."""
    if len(x) < COEFFICIENTS or len(np.unique(x.round(9))) < 3 or len(np.unique(y.round(9))) < 3:
        return None
    X = features(x, y) * np.sqrt(weight)[:, None]
    target = loss * np.sqrt(weight)
    scale = np.abs(X).max(axis=0)
    solution, _, rank, _ = np.linalg.lstsq(X / scale, target, rcond=1e-10)
    if rank < COEFFICIENTS:
        return None
    coefficients = solution / scale
    unscaled = np.linalg.inv((X / scale).T @ (X / scale)) / np.outer(scale, scale)
    spare = len(x) - COEFFICIENTS
    scatter = math.sqrt(np.sum((target - X @ coefficients) ** 2) / spare) if spare else math.nan
    return coefficients, unscaled, scatter, spare


def _gradient_rows(at: NDArray) -> NDArray:
    """[2, 6]: derivative of the quadratic's gradient at ``at`` with respect to its coefficients."""
    x, y = at
    return np.array([[0, 1, 0, x, 0, y], [0, 0, 1, 0, y, x]])


def _border(x: NDArray, y: NDArray, best: int) -> tuple[str, ...]:
    """The sides the best cell lies on. Diverged cells belong to the grid: a best cell next to them is no edge."""
    return edges.sides_of(np.array([x[best], y[best]]), x, y)


def sides_beyond_noise(
    sides: tuple[str, ...], x: NDArray, y: NDArray, loss: NDArray, finite: NDArray, best: int, scatter: float
) -> tuple[str, ...]:
    """Drop the sides whose best cell beats the cells inside by less than two standard deviations of a difference."""
    kept = []
    for side in sides:
        values = x if side.endswith("lr") else y
        within = [i for i in finite if values[i] != values[best]]
        margin = 2 * math.sqrt(2) * scatter if math.isfinite(scatter) else 0.0
        if loss[within].min() - loss[best] > margin:
            kept.append(side)
    return tuple(kept)


def _edge_or(
    result: dict, otherwise: str, sides: tuple[str, ...], x: NDArray, y: NDArray, floor: float, finite: NDArray
) -> Optimum:
    """An edge with the cells to run next, or ``otherwise`` where the best cell lies on no side."""
    at = result["lr"], result["B"]
    if not sides:
        return Optimum(**(result | {"run_next": edges.between(x, y, *at, floor)}), verdict=otherwise)
    return Optimum(
        **(result | {"sides": sides, "run_next": edges.beyond(sides, x, y, *at, floor, finite)}), verdict="edge"
    )


def next_cells(optima: Iterable[Optimum]) -> list[str]:
    """For people: the cells to run next, one line for all the grids of a size that ask for the same."""
    asked: dict[tuple, list[Optimum]] = {}
    for o in optima:
        if o.run_next:
            asked.setdefault((o.N, o.run_next), []).append(o)
    return [
        f"to decide it, run at N {N:.4g}, T {' and '.join(f'{o.T:.4g}' for o in grids)}: "
        + ", ".join(f"(lr {lr:.3g}, B {B:.0f})" for lr, B in cells)
        for (N, cells), grids in asked.items()
    ]


def refit(optimum: Optimum, lr: NDArray, B: NDArray, loss: NDArray, noise: NDArray) -> tuple[float, float, float]:
    """(lr, B, loss) at the minimum of a quadratic through other cells of the same grid: for the jackknife.

    Where they leave no minimum, the best of them stands in, so that a fragile optimum shows a large error.
    """
    x, y = np.log(lr / optimum.lr), np.log(B / optimum.B)
    fit = quadratic(x, y, loss, row_weights(noise, np.arange(len(loss))))
    if fit is not None:
        c = fit[0]
        if optimum.verdict == "floor" and c[3] > 0 and x.min() < (at_x := -c[1] / c[3]) < x.max():
            return optimum.lr * math.exp(at_x), optimum.B, float(features(at_x, np.float64(0)) @ c)
        hessian = np.array([[c[3], c[5]], [c[5], c[4]]])
        if np.linalg.eigvalsh(hessian)[0] > 1e-9 * abs(hessian).max():
            at = -np.linalg.solve(hessian, c[1:3])
            if edges.inside(at, x, y):
                value = float(features(at[0], at[1]) @ c)
                return optimum.lr * math.exp(at[0]), optimum.B * math.exp(at[1]), value
    mean = cell_means(lr, B, loss)
    best = int(np.argmin(mean))
    return float(lr[best]), float(B[best]), float(mean[best])


def surface_at(table: RunTable, rows: NDArray[np.int64], lr: float, B: float) -> float:
    """The quadratic through ``rows`` of a run table, at (lr, B); nan where they do not fix one."""
    x, y = np.log(table.lr[rows] / lr), np.log(table.B[rows] / B)
    loss = table.loss[rows]
    fit = quadratic(x, y, loss, row_weights(table.loss_se[rows], np.arange(len(rows))))
    return math.nan if fit is None else float(fit[0][0])
