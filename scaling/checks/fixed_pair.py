"""The paper's central claim on one's own runs: a fixed, suboptimal (lr, batch) bends the law.

Two loss laws are fitted to the same grids: one to the losses at each grid's own optimum, one to the losses at one
fixed pair, both read off the grids' fitted surfaces. What differs is the pair alone, so the two share their noise and
the jackknife is of their difference.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.estimates import Span, t_quantile
from videoscaling.scaling.fitting.grids import fit, jackknife, loss_law
from videoscaling.scaling.fitting.grids.fit_points import Points, at_nominal, grid_optima, points_of_grids
from videoscaling.scaling.fitting.grids.hyper_law import between_grids
from videoscaling.scaling.fitting.grids.optimum import Optimum, features, quadratic
from videoscaling.scaling.fitting.losses.forms import Scale
from videoscaling.scaling.fitting.options import Options
from videoscaling.scaling.fitting.table_kind import swept
from videoscaling.scaling.fitting.unsupported import Checks, UnsupportedFit
from videoscaling.scaling.losses import Form, Losses
from videoscaling.scaling.planning import allocation
from videoscaling.scaling.runs import RunTable
from videoscaling.utils.errors import UserError

# A pair may lie this factor outside the swept rates and batches: about one step of a grid.
MARGIN = 2.0
# Step of a numerical derivative in ln loss.
NUDGE = 1e-6
# Huber's delta in log loss, which no residual reaches: least squares, all points alike. Losses at a fixed pair follow
# no law exactly: with delta and weights by the noise, the exponent's bend was 0.124 to 0.158 with its seed.
DELTA = 1.0
# Times the tokens: a slope says nothing of what lies further off.
MOST_TOKENS = 10.0


class Interval(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """What the fixed pair does to N_opt.

    Attributes:
        lr, B: the fixed pair.
        C: FLOPs at which the sizes are compared.
        N_opt, N_fixed: sizes that the two laws ask for.
        exponent, exponent_fixed: of N_opt in C, over the decade below C.
        exponent_difference: exponent_fixed - exponent.
        ratio: N_fixed / N_opt.
        inference_ratio: FLOPs to sample a clip with N_fixed over those with N_opt.
        excess: the pair's mean relative loss over the grids' optima.
        warnings: as text.
    """

    lr: float
    B: float
    C: float
    N_opt: float
    N_fixed: float
    exponent: float
    exponent_fixed: float
    exponent_difference: Interval
    ratio: Interval
    inference_ratio: Interval
    excess: float
    warnings: tuple[str, ...]

    @property
    def biased(self) -> bool:
        """Whether the ratio's interval excludes 1."""
        return not self.ratio.low <= 1 <= self.ratio.high

    def to_dict(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        shown = {name: v._asdict() if isinstance(v, Interval) else v for name, v in values.items()}
        return shown | {"biased": self.biased, "warnings": list(self.warnings)}

    def text(self) -> str:
        """As text, for readers."""
        verdict = "bends the law" if self.biased else "does not detectably bend the law"
        bend, ratio, served = self.exponent_difference, self.ratio, self.inference_ratio
        lines = [
            f"fixed pair lr {self.lr:.3g}, B {self.B:.4g}: loss {self.excess:+.3%} over the optima; it {verdict}",
            f"N_opt exponent    {self.exponent:.4f} with optimal, {self.exponent_fixed:.4f} with fixed: "
            f"{bend.value:+.4f} [{bend.low:+.4f}, {bend.high:+.4f}]",
            f"N_opt({self.C:.3g})   {self.N_opt:.4g} with optimal, {self.N_fixed:.4g} with fixed: "
            f"{ratio.value:.3g} times [{ratio.low:.3g}, {ratio.high:.3g}]",
            f"inference FLOPs   of a clip by the fixed pair's size: {served.value:.3g} times [{served.low:.3g}, "
            f"{served.high:.3g}]",
        ]
        return "\n".join(lines + [f"warning: {text}" for text in self.warnings])


def compare(
    table: RunTable,
    cost: allocation.Cost,
    pair: tuple[float, float] | None = None,
    C: float | None = None,
) -> Comparison:
    """Fit the loss law with optimal and with fixed hyper-parameters.

    Args:
        table: grids over (lr, B); held-out rows are left out.
        cost: training FLOPs per token as a function of N.
        pair: the fixed (lr, B); by default the optimum of the smallest grid, which is what tuning once, on the
            cheapest runs, would give.
        C: budget to compare at; by default ten times the largest swept.

    Raises:
        UnsupportedFit: too few interior grids for a loss law, or losses that do not identify its constants.
        UserError: a pair far outside the grids, or a budget for no model.
    """
    table = table.rows(~table.heldout)
    if not np.isfinite(table.loss).any():
        raise UserError(f"{table.source}: nothing to compare: every row is held out or diverged")
    if len(swept(table)) == 1:
        raise UnsupportedFit(
            "a fixed pair is compared on grids over both lr and B, and these vary one of them", forcible=False
        )
    # What a fit refuses or warns of is no ground to compare on either.
    fitted = fit.fit(table, "loss", Options(delta=DELTA), cost, {})
    points, warnings, table = fitted.points, list(fitted.warnings), at_nominal(table)
    if not points.optima:
        raise UnsupportedFit(
            "a fixed pair is compared on grids over lr and B, and these have one cell each", forcible=False
        )
    scale = {name: float(np.exp(np.log(getattr(points, name)).mean())) for name in ("T", "N")}
    lr, B = pair or _of_smallest(points.optima)
    _refuse_far(table, lr, B)
    outside = [o for o in points.optima if not _covered(table, o, lr, B)]
    if outside:
        warnings.append(f"the pair lies outside {len(outside)} of {len(points.optima)} grids: extrapolated there")
    asked, C = C, C or 10 * float(np.max(points.T * cost(points.N)))
    fixed, fixed_replicates, alone = _losses_at(table, points.optima, lr, B, len(points.present))
    if alone.any():
        warnings.append(
            f"{alone.sum()} of {len(alone)} grids' surfaces rest on a single run: the intervals leave its noise out"
        )
    if np.any(fixed <= 0):
        raise UserError(f"the surfaces say nothing at lr {lr:.3g}, B {B:.4g}: too far from the grids")
    optimal = _sizes(points, points.loss, np.exp(points.replicates["loss"]), scale, C, cost)
    bent = _sizes(points, fixed, fixed_replicates, scale, C, cost)
    (size, exponent), (size_fixed, exponent_fixed) = (
        (float(np.exp(v[0][0])), float(v[0][1])) for v in (optimal, bent)
    )
    low, high = allocation.SIZES
    if not all(1.01 * low < found < 0.99 * high for found in (size, size_fixed)):
        reason = f"at {C:.3g} FLOPs the laws want {size:.3g} and {size_fixed:.3g} parameters: beyond any size"
        raise UserError(reason) if asked else UnsupportedFit(reason)
    # [2]: of ln N_opt, and of its exponent.
    middle, replicates = bent[0] - optimal[0], bent[1] - optimal[1]
    # Grids whose best cells scatter pay for one pair each its own price, and chance can sort these by size: of tables
    # without any bend, but optima that scatter by 0.15, half had one by the jackknife of the runs alone.
    prices = np.log(fixed_replicates) - points.replicates["loss"]
    own = np.sum(jackknife.deviations(prices) ** 2, axis=0)
    scatter, spare = _scatter(points, np.log(fixed / points.loss))
    if not spare:
        warnings.append(
            "too few grids to see how the pair's price scatters between them: the intervals leave that out"
        )
    extra = between_grids(points, bent[2], own, np.full(len(own), scatter), spare)
    error = np.sqrt(np.sum(jackknife.deviations(replicates) ** 2, axis=0) + np.diag(extra))
    width = t_quantile(len(replicates) - 1) * error
    spans = np.stack([middle, middle - width, middle + width])
    ratio, difference = np.exp(spans[:, 0]), spans[:, 1]
    served = cost(size * ratio) / cost(np.array(size))
    return Comparison(
        lr=lr,
        B=B,
        C=C,
        N_opt=size,
        N_fixed=size_fixed,
        exponent=exponent,
        exponent_fixed=exponent_fixed,
        exponent_difference=Interval(*difference.tolist()),
        ratio=Interval(*ratio.tolist()),
        inference_ratio=Interval(*served.tolist()),
        excess=float(np.mean(fixed / points.loss - 1)),
        warnings=tuple(warnings),
    )


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
    """What one pair costs at each size and token count, read off the grids' surfaces alone: no law enters.

    Args:
        table: grids over (lr, B), held-out ones too.
        pair: the fixed (lr, B); by default as in ``compare``.

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


def _scatter(points: Points, prices: NDArray) -> tuple[float, int]:
    """(variance of the prices of one pair around what the laws would make of them, spare points).

    Under power laws of the best rate and batch, and one curvature, a pair's price is a quadratic in ln N and ln T.
    """
    x, y = np.log(points.N / np.median(points.N)), np.log(points.T / np.median(points.T))
    X = features(np.stack([x, y], axis=1))
    solution, _, rank, _ = np.linalg.lstsq(X, prices, rcond=1e-9)
    spare = len(prices) - int(rank)
    return float(np.sum((prices - X @ solution) ** 2)) / spare if spare else 0.0, spare


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


def _sizes(
    points: Points, loss: NDArray, replicates: NDArray, scale: dict[str, float], C: float, cost: allocation.Cost
) -> tuple[NDArray, NDArray, NDArray]:
    """What a loss law through ``loss`` says of sizes: ln N_opt(C), and its exponent over the decade below C.

    Returns:
        These [2], with each cluster deleted [clusters, 2], and their derivative in ln loss [2, points].
    """
    fitted = loss_law.fit(points.N, points.T, loss, None, DELTA, scale=scale)
    if fitted.at_bound:
        raise UnsupportedFit(f"loss law at the fixed pair: {' and '.join(fitted.at_bound)} ran to its bound")
    moved = loss * np.exp(NUDGE * np.eye(len(loss)))
    losses = np.concatenate([replicates, moved])
    start = np.repeat(fitted.theta[None], len(losses), axis=0)
    thetas, _ = loss_law.descend(
        theta=start,
        N=points.N,
        T=points.T,
        loss=losses,
        noise=None,
        delta=fitted.delta,
        fixed={},
        scale=scale,
        steps=100,
    )
    laws = Losses(
        (Form("additive", 1.0, np.concatenate([fitted.theta[None], thetas])),), Scale(scale["N"], scale["T"], 1.0)
    )
    _, exponents = allocation.power_law_of_minima(laws, (C / 10, C), cost)
    found = np.stack([np.log(allocation.optimum(laws, C, cost)), exponents], axis=1)
    pull = (found[1 + len(replicates) :] - found[0]).T / NUDGE
    return found[0], found[1 : 1 + len(replicates)], pull
