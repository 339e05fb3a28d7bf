"""How far a loss can be trusted: scatter between runs, error of the validation clips, and differences they resolve."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

from videoscaling.scaling.estimates import LEVEL, Span
from videoscaling.scaling.fitting.grids.clip_losses import clip_losses
from videoscaling.scaling.fitting.grids.fit_points import grid_optima
from videoscaling.scaling.runs import RunTable

# Of a grid's cells, those within this fraction of the best: what a choice is made among.
NEAR = 0.05


class SeedNoise(TypedDict):
    """Relative standard deviations of one size's losses from seed to seed, of EMA and raw weights."""

    N: float
    freedom: int
    ema: Span
    raw: Span


def deviation_interval(squares: float, freedom: int) -> Span:
    """Standard deviation from a sum of squares with its 95 % chi-square interval."""
    tail = (1 - LEVEL) / 2
    low, high = (math.sqrt(squares / float(chdtri(freedom, p))) for p in (tail, 1 - tail))
    return {"value": math.sqrt(squares / freedom), "low": low, "high": high}


def between_seeds(table: RunTable) -> list[SeedNoise]:
    """Noise of each N that has repeats of one (N, T, lr, B).

    Milestones of one run share its noise: squares are averaged over T, and the degrees of freedom are of one T.
    """
    rows = []
    for N in np.unique(table.N):
        grids = [grid for size, _, grid in table.grids() if size == N]
        spare = [sum(len(cell) - 1 for cell in _cells(table, grid)) for grid in grids]
        freedom = max(spare)
        if not freedom:
            continue
        row: SeedNoise = {"N": float(N), "freedom": freedom}
        for name, losses in (("ema", table.loss), ("raw", table.raw_loss)):
            squares = sum(_squares(np.log(losses[cell])) for grid in grids for cell in _cells(table, grid))
            row[name] = deviation_interval(squares * freedom / sum(spare), freedom)
        rows.append(row)
    return rows


def of_validation(table: RunTable) -> list[dict[str, float]]:
    """The validation clips' error, by (N, T): of one loss, and of the difference between two runs, which share clips.

    Returns:
        {"N", "T", "one", "paired"}: standard errors relative to the loss; the pairs are of the grid's best run with
        each other within ``NEAR`` of it (the median). Empty without samples.
    """
    relative = clip_losses(table)
    if relative is None:
        return []
    rows = []
    for N, T, grid in table.grids():
        grid = grid[np.isfinite(table.loss[grid])]
        if len(grid) < 2:
            continue
        order = grid[np.argsort(table.loss[grid], kind="stable")]
        near = [row for row in order[1:] if table.loss[row] <= (1 + NEAR) * table.loss[order[0]]]
        if near:
            clips = math.sqrt(relative.shape[1])
            paired = [float((relative[row] - relative[order[0]]).std(ddof=1)) / clips for row in near]
            one = float(relative[order[0]].std(ddof=1)) / clips
            rows.append({"N": N, "T": T, "one": one, "paired": float(np.median(paired))})
    return rows


def steps_in_size(table: RunTable) -> list[dict[str, float]]:
    """What more parameters buy at equal T: {"T", "N", "to", "change"}, relative, between the grids' optima."""
    optima = {(o.T, o.N): o.loss for o in grid_optima(table)}
    rows = []
    for T in sorted({T for T, _ in optima}):
        sizes = sorted(N for at, N in optima if at == T and math.isfinite(optima[at, N]))
        rows += [
            {"T": T, "N": N, "to": larger, "change": optima[T, larger] / optima[T, N] - 1}
            for N, larger in pairwise(sizes)
        ]
    return rows


def _cells(table: RunTable, grid: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The runs of each (lr, B) of a grid that ended with a loss, where there are several."""
    grid = grid[np.isfinite(table.loss[grid])]
    key = np.stack([np.log(table.lr[grid]).round(6), np.log(table.B[grid]).round(6)], axis=1)
    _, number = np.unique(key, axis=0, return_inverse=True)
    for cell in np.unique(number):
        runs = grid[number.ravel() == cell]
        if len(runs) > 1:
            yield runs


def _squares(values: NDArray[np.float64]) -> float:
    return float(np.sum((values - values.mean()) ** 2))
