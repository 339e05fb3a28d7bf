"""N_opt(C), three ways: the best size of each budget as it is, isoFLOP parabolas, and by minimising the loss law."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.scaling.estimates import Estimate
from videoscaling.scaling.jackknife import t_quantile
from videoscaling.scaling.laws import ESTIMATORS, Law, LossLaw, SizeLaw
from videoscaling.scaling.losses import Losses, as_losses
from videoscaling.utils.errors import UserError

# Of the best loss. On the 15 public isoFLOP sets the exponents come out within .026 of the published at 3 %, .031 at
# 5 %: the curves are lopsided, and a wider window feels it.
WINDOW = 0.03
SIZES = (1e2, 1e15)  # N is sought between these
# Training FLOPs per token of models with N parameters (array in, array out): C_token with the ladder's widths.
Cost = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def c_token(n_ctx: int, width: Callable[[float], float]) -> Cost:
    """The paper's cost, ``3/4 * N * (7 + n_ctx / width(N))``."""
    return lambda N: 0.75 * N * (7 + n_ctx / np.vectorize(width, otypes=[float])(N))


def proportional(flops_per_parameter: float = 6.0) -> Cost:
    """The language models' cost, 6 FLOPs per parameter and token, where nothing more is known."""
    return lambda N: flops_per_parameter * np.asarray(N, dtype=float)


def cost_of(law: Law, width: Callable[[float], float]) -> Cost:
    """The cost that the law's own budgets were counted by: C_token at its clips, or so many FLOPs per N and T."""
    if law.n_ctx:
        return c_token(law.n_ctx, width)
    return proportional(law.fit.get("flops_per_parameter_token") or 6.0)


def optimum(loss: LossLaw | Losses, C: ArrayLike, cost: Cost) -> NDArray[np.float64]:
    """The N that minimises the loss at C FLOPs.

    Args:
        loss: one law, or a batch of laws, which is solved at once.
        C: FLOPs, broadcast against the batch.

    Returns:
        N_opt [...]. Where T = C / cost(N), the loss has one minimum in N: bisection on its slope in ln N.
    """
    losses = as_losses(loss)
    C = np.broadcast_to(np.asarray(C, dtype=float), np.broadcast_shapes(losses.batch, np.shape(C)))
    # Costs are smooth: tabulated once, since bisection for every draw would ask for them millions of times.
    grid = np.linspace(*np.log(SIZES), 1500)
    log_cost = np.log(cost(np.exp(grid)))
    slope = np.gradient(log_cost, grid)
    low, high = np.full(C.shape, grid[0]), np.full(C.shape, grid[-1])
    for _ in range(60):
        middle = (low + high) / 2
        by_N, by_T = losses.slopes(np.exp(middle), C / np.exp(np.interp(middle, grid, log_cost)))
        rising = by_N - by_T * np.interp(middle, grid, slope) > 0
        low, high = np.where(rising, low, middle), np.where(rising, middle, high)
    return np.exp((low + high) / 2)


def minimise(constants: NDArray, scale: dict[str, float], C: ArrayLike, cost: Cost) -> NDArray[np.float64]:
    """``optimum`` of additive laws with constants [..., 5], (Tc, aT, Nc, aN, Linf) in ``scale``."""
    return optimum(Losses.additive(constants, scale), C, cost)


def within(loss: LossLaw | Losses, C: float, cost: Cost, tolerance: float) -> tuple[float, float]:
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


def exponent_interval(C: ArrayLike, N_opt: ArrayLike) -> tuple[float, float]:
    """95 % interval of ``size_law``'s exponent from the optima's scatter around it; at least three of them."""
    x, y = np.log(C), np.log(N_opt)
    law, spare = size_law(C, N_opt), len(x) - 2
    left = y - np.log(law(C))
    half = t_quantile(spare) * np.sqrt(np.sum(left**2) / spare / np.sum((x - x.mean()) ** 2))
    return law.exponent - float(half), law.exponent + float(half)


def predicted(loss: LossLaw | Losses, C: tuple[float, float], cost: Cost) -> SizeLaw:
    """The power law through the loss law's minima over budgets ``C`` (lowest, highest)."""
    log_coefficient, exponent = power_law_of_minima(as_losses(loss), C, cost)
    return SizeLaw(float(np.exp(log_coefficient)), float(exponent))


def power_law_of_minima(
    losses: Losses, C: tuple[float, float], cost: Cost
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``predicted`` for one law or a batch [...] of laws: ln coefficient [...] and exponent [...]."""
    x = np.log(np.geomspace(*C, 9))
    forms = tuple(replace(form, theta=form.theta[..., None, :]) for form in losses.forms)
    y = np.log(optimum(replace(losses, forms=forms), np.exp(x), cost))
    exponent = (y * (x - x.mean())).sum(axis=-1) / np.sum((x - x.mean()) ** 2)
    return y.mean(axis=-1) - exponent * x.mean(), exponent


def power_of_minima(
    constants: NDArray, scale: dict[str, float], C: tuple[float, float], cost: Cost
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``power_law_of_minima`` of additive laws with constants [..., 5]."""
    return power_law_of_minima(Losses.additive(constants, scale), C, cost)


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


def budgets(N: NDArray, C: NDArray, loss: NDArray, flops: NDArray) -> Iterator[tuple[float, NDArray, NDArray]]:
    """(budget, sizes, losses) of the budgets that three sizes or more share.

    Args:
        N, C, loss: [points], C the FLOPs of each.
        flops: [points], budgets by name: where three of them have three sizes each they are taken as they are; else
            losses are interpolated along each size in C, at 12 budgets from the least to the most that three share.
    """
    shared = [budget for budget in np.unique(flops) if len(np.unique(N[flops == budget])) >= 3]
    if len(shared) >= 3:
        yield from ((float(b), N[flops == b], loss[flops == b]) for b in shared)
        return
    curves = []
    for size in np.unique(N):
        rows = np.flatnonzero(size == N)
        order = rows[np.argsort(C[rows])]
        if len(order) > 1:
            curves.append((size, np.log(C[order]), np.log(loss[order])))

    def at(log_C: float) -> list[tuple[float, float]]:
        return [(size, np.interp(log_C, c, y)) for size, c, y in curves if c[0] <= log_C <= c[-1]]

    common = [end for _, c, _ in curves for end in (c[0], c[-1]) if len(at(end)) >= 3]
    for log_C in np.unique(np.linspace(min(common), max(common), 12)) if common else ():
        if len(spanning := at(log_C)) >= 3:
            sizes, losses = np.array(spanning).T
            yield float(np.exp(log_C)), sizes, np.exp(losses)


def estimate(
    points: Iterable[tuple[float, NDArray, NDArray]],
) -> tuple[dict[str, SizeLaw | None], dict[str, str]]:
    """N_opt(C) from points alone: ``direct`` through each budget's best size as it is, ``measured`` by parabolas.

    Both leave out budgets whose best size is the smallest or the largest they have: theirs lies beyond.

    Returns:
        the laws by name, None where the points tell none, and for each of those the reason.
    """
    curves, found, reasons = list(points), {}, {}
    parabolas = [(o.C, o.N_opt) for o in isoflop(curves) if o.interior]
    best = [(C, N[np.argmin(loss)], N) for C, N, loss in curves]
    sizes = {"direct": [(C, size) for C, size, N in best if N.min() < size < N.max()], "measured": parabolas}
    for name, optima in sizes.items():
        found[name], reason = _through(optima)
        if reason is not None:
            reasons[name] = f"{len(curves)} budgets are shared by three sizes; {reason}"
    return found, reasons


def _through(optima: list[tuple[float, float]]) -> tuple[SizeLaw | None, str | None]:
    """(the power law through (C, N_opt), or None and why)."""
    if len(optima) < 3:
        return None, f"{len(optima)} of them have a best size inside their range, and a power law needs three"
    C, N = np.array(optima).T
    # Budgets that span less than a decade would give the optima's own wobble for an exponent.
    if C.max() < 10 * C.min():
        return None, f"those with a best size inside span a factor of {C.max() / C.min():.2g}, less than a decade"
    law = size_law(C, N)
    if law.exponent <= 0:
        return None, f"through them N_opt falls with C (exponent {law.exponent:.2g})"
    return law, None


def estimates(law: Law, C: float, cost: Cost) -> dict[str, Estimate]:
    """N_opt at C FLOPs by each estimator that the law has, with its 95 % interval where that is known.

    ``minimised`` is the minimum of the law's loss; the others are power laws. The minimum and the power law through
    the minima follow from draws of the loss, and their intervals hold what each averaged form says alone.
    """
    losses, found = None, {}
    if law.response.no_losses is None:
        losses = law.response.losses
        best = float(optimum(losses, C, cost))
        near = best, C / float(cost(np.array(best)))
    for name in ESTIMATORS[::-1]:
        sizes = (law.allocation or {}).get(name)
        if sizes is None:
            continue
        found[name] = Estimate.of(sizes(C))
        if name == "predicted" and losses is not None and law.domain.get("C") is not None:
            # The power law is fitted again for each draw, over the budgets of the fit, and moves with it. Only the
            # ratio to the law's own is taken: it holds as well where the law's costs were not quite these.
            span = (law.domain["C"][0], 10 * law.domain["C"][1])

            def by_minima(losses: Losses, span: tuple[float, float] = span) -> NDArray:
                log_N, exponent = power_law_of_minima(losses, span, cost)
                return np.exp(log_N + exponent * np.log(C))

            moved = losses.estimate(by_minima, *near)
            low, high = (found[name].value * end / moved.value for end in (moved.low, moved.high))
            found[name] = Estimate(found[name].value, low, high)
        elif (span := size_interval(law, name, C)) is not None:
            found[name] = Estimate(found[name].value, *(np.array(end) for end in span))
    if losses is not None:
        found["minimised"] = losses.estimate(lambda losses: optimum(losses, C, cost), *near)
    return found


def size_interval(law: Law, estimator: str, C: float) -> tuple[float, float] | None:
    """95 % interval of an estimator's N_opt at C FLOPs by the errors of its regression; None where it has none."""
    errors = (law.fit.get("size_errors") or {}).get(estimator)
    sizes = (law.allocation or {}).get(estimator)
    if errors is None or sizes is None:
        return None
    half = errors["quantile"] * np.hypot(errors["sd"], errors["sd_exponent"] * (np.log(C) - errors["log_C"]))
    low, high = np.exp(np.log(sizes(C)) + np.array([-half, half]))
    return float(low), float(high)


def side_by_side(law: Law, C: float, cost: Cost) -> list[str]:
    """A table for people: each estimator's law, its N_opt at C and at 10 C FLOPs with intervals, and the default's."""
    reference, budgets = law.allocation["default"], (C, 10 * C)
    found = [estimates(law, at, cost) for at in budgets]
    names = [name for name in (*ESTIMATORS, "minimised") if name in found[0]]
    wide = 36 if any(np.isfinite(one.low) for at in found for one in at.values()) else 14
    head = f"{'N_opt':<12}{'coefficient':>12}{'exponent':>10}" + "".join(f"{f'at {at:.3g}':>{wide}}" for at in budgets)
    lines = [head + (f"   against {reference}" if len(names) > 1 else "")]
    for name in names:
        power = law.allocation.get(name)
        row = f"{name:<12}" + (f"{power.coefficient:>12.4g}{power.exponent:>10.4f}" if power else " " * 22)
        for at in found:
            size = at[name]
            ends = f" [{size.low:.4g}, {size.high:.4g}]" if np.isfinite(size.low) else ""
            row += f"{f'{size.value:.4g}{ends}':>{wide}}"
        apart = [f"{at[name].value / at[reference].value - 1:+.1%}" for at in found]
        lines.append(row if name == reference else f"{row}   {', '.join(apart)}")
    return lines
