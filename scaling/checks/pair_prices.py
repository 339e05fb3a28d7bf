"""What one pair of rate and batch costs at each size and token count, read off the grids alone: no law enters."""

import math
from collections.abc import Iterable
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.estimates import Span, t_quantile
from videoscaling.scaling.fitting.grids import jackknife
from videoscaling.scaling.fitting.grids.fit_points import at_nominal, grid_optima, points_of_grids
from videoscaling.scaling.fitting.grids.optimum import Optimum, quadratic
from videoscaling.scaling.fitting.unsupported import Checks
from videoscaling.scaling.runs import RunTable
from videoscaling.utils.errors import UserError

# A pair may lie this factor outside the swept rates and batches: about one step of a grid.
MARGIN = 2.0
# Times the tokens: a slope says nothing of what lies further off.
MOST_TOKENS = 10.0


class Price(TypedDict):
    """What a pair costs at a grid.

    ``price`` is the loss at the pair over the optimum's, less 1. Its interval is from the runs' noise for this very
    pair, and unknown where a grid's surface rests on a single run. None where the pair lies outside the cells near the
    best, through which the surface goes. ``tokens`` is the factor of T that would make up for it, by that size's own
    slope of ln loss in ln T there; None where that says nothing (``MOST_TOKENS``).
    """

    N: float
    T: float
    price: Span | None
    tokens: float | None


def prices(table: RunTable, pair: tuple[float, float] | None = None) -> tuple[tuple[float, float], list[Price]]:
    """What one pair costs at each (N, T), by the quadratic through the grid's cells near its best.

    Args:
        table: grids over (lr, B), held-out ones too.
        pair: the fixed (lr, B); by default the optimum of the smallest grid, which is what tuning once, on the
            cheapest runs, would give.

    Returns:
        the pair, and its price at each grid with an optimum of its own.

    Raises:
        UnsupportedFit: fewer than three grids have an optimum of their own.
        UserError: a pair far outside the grids.
    """
    table = at_nominal(table)
    points = points_of_grids(table, tuple(grid_optima(table)), Checks())
    fitted = [o for o in points.optima if not table.heldout[o.used].any()]
    lr, B = pair or _of_smallest(fitted or points.optima)
    _refuse_far(table, lr, B)
    fixed, replicates, alone = _losses_at(table, points.optima, lr, B, len(points.present))
    differences = np.log(replicates) - points.replicates["loss"]
    error = np.sqrt(np.sum(jackknife.deviations(differences) ** 2, axis=0))
    rows = []
    for g, optimum in enumerate(points.optima):
        row: Price = {"N": optimum.N, "T": optimum.T, "price": None, "tokens": None}
        rows.append(row)
        if not _covered(table, optimum, lr, B):
            continue
        price = math.log(fixed[g] / points.loss[g])
        half = t_quantile(len(np.unique(table.run_id[optimum.used])) - 1) * error[g]
        # Nothing is below the optimum.
        value, low, high = (max(math.expm1(v), 0.0) for v in (price, price - half, price + half))
        row["price"] = {"value": value, "low": None if alone[g] else low, "high": None if alone[g] else high}
        slope = _slope(optimum, points.optima)
        if slope < 0 and -price / slope < math.log(MOST_TOKENS):
            row["tokens"] = math.exp(-price / slope)
    return (lr, B), rows


def _refuse_far(table: RunTable, lr: float, B: float) -> None:
    """UserError where a pair lies far outside what was swept."""
    for name, value, tried in (("lr", lr, table.lr), ("B", B, table.B)):
        if not tried.min() / MARGIN <= value <= tried.max() * MARGIN:
            raise UserError(
                f"the pair's {name}, {value:.4g}, is far outside the grids: {tried.min():.4g} to {tried.max():.4g} "
                "were swept"
            )


def _of_smallest(optima: Iterable[Optimum]) -> tuple[float, float]:
    """The (lr, B) that tuning once, on the cheapest runs, gives."""
    smallest = min(optima, key=lambda o: o.N * o.T)
    return smallest.lr, smallest.B


def _slope(optimum: Optimum, optima: Iterable[Optimum]) -> float:
    """Of ln loss in ln T at one of a size's optima, between its neighbours; nan without any."""
    T, loss = np.array(sorted((o.T, o.loss) for o in optima if o.N == optimum.N)).T
    if len(T) < 2:
        return math.nan
    return float(np.gradient(np.log(loss), np.log(T))[np.searchsorted(T, optimum.T)])


def _covered(table: RunTable, optimum: Optimum, lr: float, B: float) -> bool:
    rows = optimum.used
    return bool(table.lr[rows].min() <= lr <= table.lr[rows].max() and table.B[rows].min() <= B <= table.B[rows].max())


def _losses_at(
    table: RunTable, optima: tuple[Optimum, ...], lr: float, B: float, clusters: int
) -> tuple[NDArray, NDArray, NDArray]:
    """Each grid's surface at (lr, B): [points], and with each cluster deleted: [clusters, points].

    Third, whether a grid has a run without which there is no surface [points]: its deletion then changes nothing.
    """
    names = np.unique(table.run_id[np.concatenate([o.used for o in optima])])
    values = np.array([_loss_at(table, o.used, lr, B) for o in optima])
    replicates = np.tile(values, (clusters, 1))
    for g, optimum in enumerate(optima):
        for run in np.unique(table.run_id[optimum.used]):
            kept = optimum.used[table.run_id[optimum.used] != run]
            replicates[np.searchsorted(names, run), g] = _loss_at(table, kept, lr, B)
    known = np.isfinite(replicates) & (replicates > 0)
    return values, np.where(known, replicates, values), ~known.all(axis=0)


def _loss_at(table: RunTable, rows: NDArray[np.int64], lr: float, B: float) -> float:
    """The quadratic through ``rows`` of a run table, at (lr, B); nan where they do not fix one."""
    places = np.log(np.stack([table.lr[rows] / lr, table.B[rows] / B], axis=1))
    fit = quadratic(places, table.loss[rows], table.loss_se[rows])
    return math.nan if fit is None else float(fit.coefficients[0])
