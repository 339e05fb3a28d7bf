"""N_opt(C) of a law: the minimum of its loss, the power law through such minima, and power laws of isoFLOP budgets."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.scaling.estimates import Estimate
from videoscaling.scaling.laws import ESTIMATORS, Law, LossLaw, SizeLaw
from videoscaling.scaling.losses import Losses, as_losses
from videoscaling.utils.text_tables import table

SIZES = (1e2, 1e15)  # N is sought between these
# Training FLOPs per token of models with N parameters (array in, array out): C_token with the ladder's widths.
Cost = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def c_token(n_ctx: int, width: Callable[[NDArray], NDArray]) -> Cost:
    """The paper's cost, ``3/4 * N * (7 + n_ctx / width(N))``."""
    return lambda N: 0.75 * N * (7 + n_ctx / width(N))


def proportional(flops_per_parameter: float = 6.0) -> Cost:
    """The language models' cost, 6 FLOPs per parameter and token, where nothing more is known."""
    return lambda N: flops_per_parameter * np.asarray(N, dtype=float)


def cost_of(law: Law, width: Callable[[NDArray], NDArray]) -> Cost:
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


def within(loss: LossLaw | Losses, C: float, cost: Cost, tolerance: float) -> tuple[float | None, float | None]:
    """The smallest and the largest N whose loss at C FLOPs is within ``tolerance`` (relative) of the best.

    None for an end that is none of ``SIZES``: all sizes up to there are that good.
    """
    best = optimum(loss, C, cost)
    most = loss(best, C / cost(best)) * (1 + tolerance)

    def good(log_N: NDArray[np.float64]) -> NDArray[np.bool_]:
        N = np.exp(log_N)
        return loss(N, C / cost(N)) <= most

    inside, outside = np.full(2, np.log(best)), np.log(SIZES)
    unbounded = good(outside)
    for _ in range(50):
        middle = (inside + outside) / 2
        inside, outside = np.where(good(middle), [middle, outside], [inside, middle])
    low, high = (None if free else float(end) for free, end in zip(unbounded, np.exp(inside)))
    return low, high


def range_text(low: float | None, high: float | None, text: Callable[[float], str]) -> tuple[str, str]:
    """The ends of ``within`` for readers."""
    return (
        f"below {text(SIZES[0])}" if low is None else text(low),
        f"above {text(SIZES[1])}" if high is None else text(high),
    )


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


def budgets_of(law: Law) -> tuple[float, float]:
    """FLOPs over which the power law through its minima is fitted: those of its runs, to ten times the largest."""
    return law.domain["C"][0], 10 * law.domain["C"][1]


def exponent(law: Law, cost: Cost) -> Estimate | None:
    """That of the power law through the loss law's minima, with its 95 % interval; None where there is none."""
    sizes = (law.allocation or {}).get("predicted")
    if sizes is None or law.response.no_losses is not None or law.domain.get("C") is None:
        return None
    losses, span = law.response.losses, budgets_of(law)
    best = float(optimum(losses, span[1], cost))
    near = best, span[1] / float(cost(np.array(best)))
    drawn = losses.estimate(lambda losses: power_law_of_minima(losses, span, cost)[1], *near)
    off = sizes.exponent - drawn.value  # 0 but where the law's costs were not quite these
    return Estimate(drawn.value + off, drawn.low + off, drawn.high + off)


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
            def by_minima(losses: Losses) -> NDArray:
                log_N, exponent = power_law_of_minima(losses, budgets_of(law), cost)
                return np.exp(log_N + exponent * np.log(C))

            moved = _without_search_ends(losses.estimate(by_minima, *near))
            low, high = (found[name].value * end / moved.value for end in (moved.low, moved.high))
            found[name] = Estimate(found[name].value, low, high)
        elif (span := size_interval(law, name, C)) is not None:
            found[name] = Estimate(found[name].value, *(np.array(end) for end in span))
    if losses is not None:
        found["minimised"] = minimised(losses, C, cost)
    return found


def minimised(losses: Losses, C: float, cost: Cost) -> Estimate:
    """The size of the lowest loss at C FLOPs, with its 95 % interval."""
    best = float(optimum(losses, C, cost))
    near = best, C / float(cost(np.array(best)))
    return _without_search_ends(losses.estimate(lambda losses: optimum(losses, C, cost), *near))


def _without_search_ends(sizes: Estimate) -> Estimate:
    """``sizes`` without a bound where it is an end of the search, which is no size."""
    low = np.where(sizes.low < 1.01 * SIZES[0], 0.0, sizes.low)
    return Estimate(sizes.value, low, np.where(sizes.high > SIZES[1] / 1.01, np.inf, sizes.high))


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
    """A text table: each estimator's law, its N_opt at C and at 10 C FLOPs with intervals, and the default's."""
    reference, found = law.allocation["default"], {at: estimates(law, at, cost) for at in (C, 10 * C)}
    names = [name for name in (*ESTIMATORS, "minimised") if name in found[C]]
    rows: list[dict[str, object]] = []
    for name in names:
        constants = {key: getattr(law.allocation.get(name), key, "") for key in ("coefficient", "exponent")}
        if name == "predicted" and (power := exponent(law, cost)) is not None:
            constants["exponent"] = power.as_json()
        rows.append({"N_opt": name, **constants})
        rows[-1] |= {f"at {at:.3g}": sizes[name].as_json() for at, sizes in found.items()}
        if len(names) > 1:
            apart = [f"{sizes[name].value / sizes[reference].value - 1:+.1%}" for sizes in found.values()]
            rows[-1][f"against {reference}"] = "" if name == reference else ", ".join(apart)
    return table(rows)
