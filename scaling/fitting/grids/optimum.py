"""The best (lr, batch) of one grid, with its covariance and a verdict on how far to trust it.

A quadratic in (ln lr, ln B), or in the one of them that the grid varies, is fitted to the cells within a window of
the best one. Its minimum, not the smallest cell, is the optimum and its loss: the smallest of many noisy cells is low
by luck (winner's curse).
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.fitting.grids import edges
from videoscaling.scaling.fitting.grids.edges import BOTH
from videoscaling.utils.errors import plural

# Constants of the quadratic by the number of axes, and the different cells that a window opens to hold.
COEFFICIENTS = {1: 3, 2: 6}
CELLS_WANTED = {1: 5, 2: 9}
# The published grids' curvature makes 2 % about a factor of four in lr or B: wide enough for 10-40 cells of a dense
# grid, narrow enough that a quadratic describes them.
WINDOW = 0.02
# A coarse grid's window opens no further than this: beyond it the loss is no quadratic.
WIDEST = 0.15
# Of the cells' scatter: a narrower window around the luckiest cell chooses by luck. Of 9 x 9 grids whose cells scatter
# by half of a 2 % window, half had no interior optimum, and the others' losses were a standard error low.
NOISE_WIDTHS = 6.0
# A quadratic that lies this far (relative) below the best loss at a cell that was run does not describe the cells: its
# minimum is no loss of theirs. Public grids within the window: never below; all their cells: 15 to 25 %.
MISFIT = 0.02


def _unknown() -> NDArray[np.float64]:
    return np.full((2, 2), math.nan)


@dataclass(frozen=True)
class Optimum:
    """The optimum of one grid.

    Attributes:
        N, T: the grid's parameters and (nominal) tokens.
        lr, B: the quadratic's minimum; the best cell's, by the mean of its runs, where there is none inside the grid.
        loss, loss_se: the quadratic's value there and its standard error from the cells' scatter.
        used: row numbers of the cells inside the window.
        cells: finite cells, and diverged: censored ones.
        axes: which of "lr" and "B" the grid varies; the other one is what was run.
        window: relative width of the window used.
        verdict: "interior", "floor", "edge", "saddle", "misfit", "too few points" or "flat". Only an interior optimum
            enters all laws. A misfit's quadratic lies far below every cell: they span more than it can follow. At the
            floor the best batch is the smallest there can be, one clip: the rate and the loss are the best ones all
            the same, and the batch is only known to want to be smaller.
        sides: for an edge, where to go: "lower lr", "higher lr", "smaller batch", "larger batch".
        covariance: [2, 2] of (ln lr, ln B); nan where there is no minimum.
        hessian: [2, 2] of the loss in (ln lr, ln B); 0 along what the grid does not vary.
        scatter: standard deviation of the cells around the quadratic; nan without spare points.
    """

    N: float
    T: float
    lr: float
    B: float
    loss: float
    used: NDArray[np.int64]
    cells: int
    diverged: int
    axes: tuple[str, ...] = BOTH
    window: float = math.nan
    verdict: str = "too few points"
    sides: tuple[str, ...] = ()
    loss_se: float = math.nan
    covariance: NDArray[np.float64] = field(default_factory=_unknown)
    hessian: NDArray[np.float64] = field(default_factory=_unknown)
    scatter: float = math.nan
    spare: int = 0

    @property
    def interior(self) -> bool:
        return self.verdict == "interior"

    @property
    def usable(self) -> bool:
        """Whether its rate and loss are the best ones: interior, or at the floor."""
        return self.verdict in ("interior", "floor")

    def moved(self, by: NDArray) -> tuple[float, float]:
        """(lr, B) at ``by`` [axes], in ln from the optimum."""
        factor = dict(zip(self.axes, np.exp(by)))
        return float(self.lr * factor.get("lr", 1.0)), float(self.B * factor.get("B", 1.0))

    def describe(self) -> str:
        """One line of text."""
        at = f"lr {self.lr:.3g}, B {self.B:.4g}, loss {self.loss:.5g}"
        where = f" ({' and '.join(self.sides)})" if self.sides else ""
        if self.verdict == "misfit":
            where = " (its quadratic lies far below every cell: they span more than it follows)"
        if not self.cells:
            where, at = "", f"{plural(self.diverged, 'cell')}, all diverged"
        return f"N {self.N:.4g}, T {self.T:.4g}: {self.verdict}{where}, {at}"


@dataclass(frozen=True)
class Quadratic:
    """A quadratic through losses at places [cells, axes], in one or two axes.

    Attributes:
        coefficients: [3] or [6], of the columns of ``features``.
        unscaled: their covariance over the variance of one loss.
        scatter: standard deviation of the losses around it; nan without spare points.
        spare: points less coefficients.
    """

    coefficients: NDArray[np.float64]
    unscaled: NDArray[np.float64]
    scatter: float
    spare: int

    def __call__(self, places: NDArray) -> NDArray[np.float64]:
        return features(places) @ self.coefficients

    @property
    def hessian(self) -> NDArray[np.float64]:
        """[axes, axes]."""
        if len(self.coefficients) == COEFFICIENTS[1]:
            return self.coefficients[2:, None]
        xx, yy, xy = self.coefficients[3:]
        return np.array([[xx, xy], [xy, yy]])

    def minimum(self) -> NDArray[np.float64] | None:
        """[axes], or None where the quadratic has none."""
        hessian = self.hessian
        if np.linalg.eigvalsh(hessian)[0] <= 1e-9 * max(abs(hessian).max(), 1e-300):
            return None
        return -np.linalg.solve(hessian, self.coefficients[1 : 1 + len(hessian)])

    def error(self, at: NDArray) -> float:
        """Standard error of the value at a place."""
        row = features(at)
        return math.sqrt(row @ self.unscaled @ row) * self.scatter

    def sensitivity(self, at: NDArray) -> NDArray[np.float64]:
        """[axes, axes], covariance of the place of the minimum, which is ``at``, over the variance of one loss."""
        if len(at) == 1:
            gradient = np.array([[0, 1, at[0]]])
        else:
            x, y = at
            gradient = np.array([[0, 1, 0, x, 0, y], [0, 0, 1, 0, y, x]])
        slope = -np.linalg.solve(self.hessian, gradient)
        return slope @ self.unscaled @ slope.T

    def covariance(self, at: NDArray) -> NDArray[np.float64]:
        """[axes, axes], of the place of the minimum, which is ``at``."""
        return self.sensitivity(at) * self.scatter**2

    def along(self, y: float) -> "Quadratic":
        """The quadratic of two axes, in the first one where the second is ``y``."""
        to_line = np.array([[1, 0, y, 0, y * y / 2, 0], [0, 1, 0, 0, 0, y], [0, 0, 0, 1, 0, 0]])
        return replace(self, coefficients=to_line @ self.coefficients, unscaled=to_line @ self.unscaled @ to_line.T)


def features(places: NDArray) -> NDArray[np.float64]:
    """Columns 1, x, x^2/2, or 1, x, y, x^2/2, y^2/2, xy, of places [..., axes]: [..., coefficients]."""
    columns = [np.ones_like(places[..., :1]), places, places**2 / 2]
    if places.shape[-1] == 2:
        columns.append(places[..., :1] * places[..., 1:])
    return np.concatenate(columns, axis=-1)


def quadratic(places: NDArray, loss: NDArray, noise: NDArray | None = None) -> Quadratic | None:
    """The quadratic through losses at places [cells, axes]; None where they do not identify one.

    Args:
        noise: [cells] standard errors; their ratios are the weights, their size comes from the scatter around the
            quadratic, because errors that all cells share (the validation clips) do not scatter.
    """
    count = COEFFICIENTS[places.shape[1]]
    if len(loss) < count or any(len(np.unique(column)) < 3 for column in places.T.round(9)):
        return None
    root = np.ones(len(loss))
    if noise is not None and np.all(np.isfinite(noise)) and np.all(noise > 0):
        root = np.sqrt(np.mean(noise**2)) / noise
    X, target = features(places) * root[:, None], loss * root
    scale = np.abs(X).max(axis=0)
    solution, _, rank, _ = np.linalg.lstsq(X / scale, target, rcond=1e-10)
    if rank < count:
        return None
    coefficients, spare = solution / scale, len(loss) - count
    unscaled = np.linalg.inv((X / scale).T @ (X / scale)) / np.outer(scale, scale)
    scatter = math.sqrt(np.sum((target - X @ coefficients) ** 2) / spare) if spare else math.nan
    return Quadratic(coefficients, unscaled, scatter, spare)


def find(
    N: float,
    T: float,
    lr: NDArray[np.float64],
    B: NDArray[np.float64],
    loss: NDArray[np.float64],
    noise: NDArray[np.float64] | None = None,
    window: float | None = WINDOW,
    floor: float = 0.0,
    axes: tuple[str, ...] = BOTH,
) -> Optimum:
    """The optimum of one grid.

    Args:
        N, T: what the cells share.
        lr, B, loss: [cells]; the loss of a diverged cell is inf: it marks where the grid ends, and is never fitted.
        noise: [cells] standard errors of the losses, as of ``quadratic``.
        window: cells within this fraction of the best loss are fitted; None fits all.
        floor: the smallest batch there can be, in tokens: one clip.
        axes: which of "lr" and "B" the cells vary.

    Returns:
        The optimum. A grid without any finite loss has too few points, and its loss is inf.
    """
    finite = np.flatnonzero(np.isfinite(loss))
    if not len(finite):
        middle = float(np.sort(B)[len(B) // 2])
        return Optimum(
            N=N,
            T=T,
            lr=float(lr.min()),
            B=middle,
            loss=math.inf,
            used=finite,
            cells=0,
            diverged=len(lr),
            axes=axes,
            sides=("lower lr",),
        )
    mean = cell_means(lr, B, loss)
    best = finite[np.argmin(mean[finite])]
    places = np.log(np.stack([lr / lr[best], B / B[best]], axis=1))
    chosen = [BOTH.index(axis) for axis in axes]
    z = places[:, chosen]
    used, width, fit = _fitted(z, loss, noise, finite, window)
    found = Optimum(
        N=N,
        T=T,
        lr=float(lr[best]),
        B=float(B[best]),
        loss=float(mean[best]),
        used=used,
        cells=len(finite),
        diverged=len(loss) - len(finite),
        axes=axes,
        window=width,
    )
    border = edges.sides_of(np.zeros(2), places, axes)
    smallest = B.min() <= floor
    if fit is None:
        known = border and not (border == ("smaller batch",) and smallest)
        return replace(found, verdict="edge", sides=border) if known else found
    hessian = np.zeros((2, 2))
    hessian[np.ix_(chosen, chosen)] = fit.hessian
    found = replace(found, hessian=hessian, scatter=fit.scatter, spare=fit.spare)
    at, place = fit.minimum(), np.zeros(2)
    inside, lost, sides = False, (), border
    if at is not None:
        place[chosen] = at
        inside = edges.inside(at, z)
        lost = edges.beyond_cliff(place, places, finite)
        if inside:
            sides = _beyond_noise(border, places, mean, finite, best, fit.scatter)
        elif not border:
            sides = edges.sides_of(place, places, axes)
    misfit = fit(z[used]).min() < (1 - MISFIT) * mean[best]
    if sides == ("smaller batch",) and smallest and axes == BOTH and not misfit and "smaller batch" not in lost:
        return _at_floor(found, fit, places, finite)
    if sides := tuple(dict.fromkeys((*sides, *lost))):
        return replace(found, verdict="edge", sides=sides)
    if at is None or misfit:
        return replace(found, verdict="saddle" if at is None else "misfit")
    covariance = _unknown()
    covariance[np.ix_(chosen, chosen)] = own = fit.covariance(at)
    lr_opt, B_opt = found.moved(at)
    found = replace(found, lr=lr_opt, B=B_opt, loss=float(fit(at)), loss_se=fit.error(at), covariance=covariance)
    if not fit.spare:
        return found
    flat = np.ptp(loss[used]) == 0 or np.any(np.sqrt(np.diag(own)) > np.ptp(z, axis=0) / 2)
    return replace(found, verdict="flat" if flat else "interior")


def cell_means(lr: NDArray, B: NDArray, loss: NDArray) -> NDArray[np.float64]:
    """Each run's loss as the mean of its cell's runs that did not diverge: the luckiest of four would stand for it."""
    _, cell = np.unique(np.log(np.stack([lr, B], axis=1)).round(6), axis=0, return_inverse=True)
    cell, finite = cell.ravel(), np.isfinite(loss)
    runs = np.bincount(cell[finite], minlength=cell.max() + 1)
    total = np.bincount(cell[finite], loss[finite], minlength=cell.max() + 1)
    return np.where(finite, (total / np.maximum(runs, 1))[cell], math.inf)


def _at_floor(found: Optimum, fit: Quadratic, places: NDArray, finite: NDArray) -> Optimum:
    """The best rate along the smallest batch, or an edge where no rate is best inside the grid."""
    lowest = places[:, 1].min()
    line = fit.along(lowest)
    at = line.minimum()
    if at is None:
        return replace(found, verdict="edge", sides=("smaller batch",))
    place = np.array([at[0], lowest])
    lost = edges.beyond_cliff(place, places, finite)
    if lost or not edges.inside(at, places[:, :1]) or not fit.spare:
        sides = ("smaller batch", *edges.sides_of(place, places, ("lr",)), *lost)
        return replace(found, verdict="edge", sides=tuple(dict.fromkeys(sides)))
    covariance = np.array([[line.covariance(at)[0, 0], 0.0], [0.0, math.nan]])
    lr, B = found.moved(place)
    return replace(
        found,
        lr=lr,
        B=B,
        loss=float(line(at)),
        loss_se=line.error(at),
        covariance=covariance,
        verdict="floor",
        sides=("smaller batch",),
    )


def _window(z: NDArray, loss: NDArray, finite: NDArray, window: float | None) -> tuple[NDArray[np.int64], float]:
    """(rows within the window, its width): it opens until it holds ``CELLS_WANTED``."""
    excess = loss[finite] / loss[finite].min() - 1
    if window is None:
        return finite, float(excess.max())
    # Different ones: runs of one cell again and again would keep the window shut.
    _, cell = np.unique(z[finite].round(6), axis=0, return_inverse=True)
    best = np.full(cell.max() + 1, math.inf)
    np.minimum.at(best, cell.ravel(), excess)
    wanted = min(CELLS_WANTED[z.shape[1]], len(best))
    width = max(window, min(float(np.sort(best)[wanted - 1]), WIDEST))
    return finite[excess <= width], width


def _fitted(
    z: NDArray, loss: NDArray, noise: NDArray | None, finite: NDArray, window: float | None
) -> tuple[NDArray, float, Quadratic | None]:
    """(cells within the window, its width, the quadratic through them).

    Where the cells scatter by much of the window, it opens, and cells enter by the surface instead of by their losses:
    at its rim the losses would choose those that are low by luck.
    """

    def through(rows: NDArray) -> Quadratic | None:
        return quadratic(z[rows], loss[rows], None if noise is None else noise[rows])

    used, width = _window(z, loss, finite, window)
    fit, first, lowest = through(used), width, loss[finite].min()
    while window is not None and fit is not None and fit.spare:
        wanted = min(NOISE_WIDTHS * fit.scatter / lowest, WIDEST)
        if wanted <= width:
            break
        used, width = _window(z, loss, finite, wanted)
        fit = through(used)
    if width > first:
        surface = fit(z)
        near = surface[finite] <= surface[used].min() + width * lowest
        used = finite[near & (loss[finite] <= (1 + WIDEST) * lowest)]
        fit = through(used)
    return used, width, fit


def _beyond_noise(
    sides: tuple[str, ...], places: NDArray, loss: NDArray, finite: NDArray, best: int, scatter: float
) -> tuple[str, ...]:
    """The sides whose best cell beats the cells inside by two standard deviations of a difference or more."""
    margin = 2 * math.sqrt(2) * scatter if math.isfinite(scatter) else 0.0
    kept = []
    for side in sides:
        values = places[:, BOTH.index(edges.SIDES[side])]
        within = finite[values[finite] != values[best]]
        if loss[within].min() - loss[best] > margin:
            kept.append(side)
    return tuple(kept)


def refit(optimum: Optimum, lr: NDArray, B: NDArray, loss: NDArray, noise: NDArray) -> tuple[float, float, float]:
    """(lr, B, loss) at the minimum of a quadratic through other cells of the same grid: for the jackknife.

    Where they leave no minimum, the best of them stands in, so that a fragile optimum shows a large error.
    """
    z = np.log(np.stack([lr / optimum.lr, B / optimum.B], axis=1))[:, [BOTH.index(axis) for axis in optimum.axes]]
    fit = quadratic(z, loss, noise)
    if fit is not None and optimum.verdict == "floor":
        line = fit.along(0.0)
        at = line.minimum()
        if at is not None and edges.inside(at, z[:, :1]):
            return (*optimum.moved(np.append(at, 0.0)), float(line(at)))
    if fit is not None:
        at = fit.minimum()
        if at is not None and edges.inside(at, z):
            return (*optimum.moved(at), float(fit(at)))
    mean = cell_means(lr, B, loss)
    best = int(np.argmin(mean))
    return float(lr[best]), float(B[best]), float(mean[best])
