"""What a law said of sizes it never saw, against a local grid of runs around what it said."""

import math
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.scaling.estimates import Estimate, Span, interval, t_quantile
from videoscaling.scaling.fitting.grids import edges
from videoscaling.scaling.fitting.grids.fit_points import at_nominal
from videoscaling.scaling.fitting.grids.optimum import Optimum, features, find, quadratic
from videoscaling.scaling.laws import Law
from videoscaling.scaling.runs import RunTable
from videoscaling.utils.errors import UserError

DRAWS = 2000
GRID = 61  # points along each axis, on which a drawn surface's minimum is sought


def relative_error(measured: ArrayLike, predicted: ArrayLike) -> NDArray[np.float64]:
    """``measured / predicted - 1``: the relative error of a prediction, above 0 where the loss is higher than that."""
    return np.divide(measured, predicted) - 1


class Pair(TypedDict):
    """A rate and a batch in tokens."""

    lr: float
    B: float


class LossError(TypedDict):
    """A loss as predicted and as measured, with intervals where there are any, and their ``relative_error``."""

    predicted: float | Span
    measured: float | Span
    error: float


class HeldOutGrid(TypedDict):
    """A held-out grid against a law.

    ``best`` is the surface's minimum, or the best cell where it has none inside; ``steps`` how many of the grid's
    steps the law's pair lies from it; ``regret`` the surface at the law's pair over its minimum within the grid, less
    1, None where the cells fix no surface. ``loss`` compares the grid's optimum with the law at its best pair,
    and a best cell that is no optimum with the law at that cell's pair, where the law reads pairs.
    """

    N: float
    T: float
    cells: int
    verdict: str
    law: Pair
    best: Pair
    steps: Pair
    regret: Span | None
    loss: LossError


class Minimum(NamedTuple):
    """Regret of the law's pair, and standard error with degrees of freedom of a surface's minimum."""

    regret: Span
    loss_se: float
    freedom: int


def check(table: RunTable, law: Law, noise: float | None = None, freedom: int = 0) -> list[HeldOutGrid]:
    """One entry for each held-out (N, T) of the run table.

    Args:
        table: held-out rows are read, the others are not; of a grid's, those that ``paired`` keeps.
        law: fitted without them.
        noise: relative standard deviation of a run's loss from repeats, with ``freedom`` degrees of it; joined with
            the grid's own scatter.

    Raises:
        UserError: nothing was held out.
    """
    law.require_pair()
    table = table.rows(table.heldout)
    if not np.any(np.isfinite(table.loss)):
        raise UserError("no result of a held-out size")
    table = paired(at_nominal(table))
    return [_entry(table.rows(rows), law, N, T, noise, freedom) for N, T, rows in table.grids()]


def paired(table: RunTable) -> RunTable:
    """The table with, of each held-out grid, the runs on samples that every cell saw; all where there are none such.

    A few cells' repeats on other samples are better or worse than the rest by these samples' luck: they show
    the noise, not which cell is best.
    """
    kept = [_shared(table, rows) if table.heldout[rows].all() else rows for *_, rows in table.grids()]
    return table.rows(np.concatenate(kept)) if kept else table


def _shared(table: RunTable, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    cell = np.log(np.stack([table.lr[rows], table.B[rows]], axis=1)).round(6)
    streams, cells = table.stream[rows], len(np.unique(cell, axis=0))
    common = [stream for stream in np.unique(streams) if len(np.unique(cell[streams == stream], axis=0)) == cells]
    return rows[np.isin(streams, common)] if common else rows


def _entry(grid: RunTable, law: Law, N: float, T: float, noise: float | None, freedom: int) -> HeldOutGrid:
    clip = float(grid.n_ctx.max())
    lr, B = law.best_pair(N, T)
    predicted = law.response.loss(N, T, B)
    if clip:  # what can be trained
        lr, B = law.best_pair(N, T, n_ctx=int(clip))
    optimum = find(N=N, T=T, lr=grid.lr, B=grid.B, loss=grid.loss, noise=grid.loss_se, window=None, floor=clip)
    if law.response.reads_pairs and not optimum.usable:  # a cell, which is not the best pair: predicted as it was run
        own = law.response.predict(N, T, optimum.B, optimum.lr)
        predicted = Estimate(own.mean[0], own.mean_low[0], own.mean_high[0])
    x, y = np.log(grid.lr / lr), np.log(grid.B / B)
    steps = [edges.step(np.unique(axis.round(6))) for axis in (x, y)]
    surface = _surface(grid, optimum, x, y, noise, freedom)
    half = math.nan if surface is None else t_quantile(surface.freedom) * surface.loss_se
    measured = {"value": optimum.loss, "low": optimum.loss - half, "high": optimum.loss + half}
    return {
        "N": N,
        "T": T,
        "cells": optimum.cells,
        "verdict": optimum.verdict,
        "law": {"lr": lr, "B": B},
        "best": {"lr": optimum.lr, "B": optimum.B},
        "steps": {"lr": math.log(lr / optimum.lr) / steps[0], "B": math.log(B / optimum.B) / steps[1]},
        "regret": surface and surface.regret,
        "loss": {
            "predicted": predicted.as_json(),
            "measured": measured if math.isfinite(half) else optimum.loss,
            "error": float(relative_error(optimum.loss, predicted.value)),
        },
    }


def _surface(
    grid: RunTable, optimum: Optimum, x: NDArray, y: NDArray, noise: float | None, freedom: int
) -> Minimum | None:
    """Regret and the minimum's standard error from the quadratic through all cells, x and y around the law's pair."""
    used = np.flatnonzero(np.isfinite(grid.loss))
    fit = quadratic(np.stack([x, y], axis=1)[used], grid.loss[used])
    if fit is None:
        return None
    coefficients, spare = fit.coefficients, fit.spare
    known = 0.0 if noise is None else (noise * optimum.loss) ** 2
    freedom = freedom if noise is not None else 0
    if not spare + freedom:
        return None
    variance = ((spare * fit.scatter**2 if spare else 0.0) + freedom * known) / (spare + freedom)
    random = np.random.default_rng(0)
    root = np.linalg.cholesky(fit.unscaled * variance + 1e-18 * np.eye(len(coefficients)))
    stretch = np.sqrt((spare + freedom) / random.chisquare(spare + freedom, DRAWS))[:, None]
    draws = coefficients + random.standard_normal((DRAWS, len(coefficients))) @ root.T * stretch
    # The cells' own box: a quadratic says nothing of what lies beyond.
    box = np.meshgrid(*(np.linspace(axis[used].min(), axis[used].max(), GRID) for axis in (x, y)))
    row = features(np.stack([axis.ravel() for axis in box], axis=1))
    here, lowest = np.append(draws[:, 0], coefficients[0]), (row @ np.vstack([draws, coefficients]).T).min(axis=0)
    # The law's pair may be better than any point of the raster.
    regret = np.maximum(here / lowest - 1, 0.0)
    low, high = interval(regret[:-1])
    return Minimum({"value": float(regret[-1]), "low": low, "high": high}, float(lowest[:-1].std()), spare + freedom)
