"""The two stages of a fit, which hold, refuse or warn of exponents that the data do not identify."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.estimates import t_quantile
from videoscaling.scaling.fitting import plausibility
from videoscaling.scaling.fitting.grids import jackknife, loss_law, power_law
from videoscaling.scaling.fitting.grids.fit_points import Points
from videoscaling.scaling.fitting.options import Options
from videoscaling.scaling.fitting.unsupported import UnsupportedFit
from videoscaling.scaling.laws import PowerLaw
from videoscaling.utils.errors import UserError

# With a prior at hand, an exponent whose 95 % interval is wider than +- this is the prior's to give.
LOOSE = 0.5
# One standard deviation of an assumed exponent: absolute in the hyper-parameter laws, relative in the loss law. Public
# laws for other data and models differ by about as much.
ASSUMED_POWER = 0.15
ASSUMED_LOSS = 0.3
# Residual scatter over delta beyond which Huber's fit behaves like a median, and clusters a bootstrap needs.
MEDIAN_LIKE = 2.0
BOOTSTRAP_CLUSTERS = 30
JACKKNIFE = "delete-one-run jackknife, t quantiles"


class LossStage(NamedTuple):
    """The fitted loss law, and what its error is made of.

    Attributes:
        fitted: the fit.
        values: [clusters, points], ln of the law's value at each point with each cluster deleted.
        misfit: [points, points], covariance of these values from scatter beyond the points' own noise.
        method: of the intervals, as text.
        assumed: exponents taken from the prior, which are uncertain themselves.
        bootstrap: [draws, 5], theta of resampled clusters, or None; ``values`` and ``misfit`` are zero then.
    """

    fitted: loss_law.LossFit
    values: NDArray[np.float64]
    misfit: NDArray[np.float64]
    method: str
    assumed: tuple[str, ...] = ()
    bootstrap: NDArray[np.float64] | None = None


def hyper_law(
    points: Points, name: str, symbol: str, options: Options, scale: dict[str, float], warnings: list[str]
) -> tuple[power_law.PowerFit, NDArray]:
    """The fit, and the covariance [3, 3] that scatter between grids and exponents assumed from the prior add.

    Raises:
        UnsupportedFit: without a prior, optima that do not identify the exponents or leave nothing to check them.
    """
    inside = points.inside(symbol)
    N, T, value = points.N[inside], points.T[inside], getattr(points, symbol)[inside]
    variance = getattr(points, f"variance_{symbol}")
    variance = None if variance is None else variance[inside]
    fixed = {key.partition(".")[2]: v for key, v in options.fixed.items() if key.partition(".")[0] == symbol}
    prior = getattr(options.prior, name) if options.prior is not None else None
    assumed: list[str] = []
    if not inside.any():
        return _bounded_law(points, symbol, prior, options, scale, warnings)
    while True:
        free = [exponent for exponent in ("T", "N") if exponent not in fixed]
        reason = power_law.unidentified(N, T, fixed)
        if reason is None:
            power = power_law.fit_power(N, T, value, variance, fixed, scale)
            width = t_quantile(power.spare) * np.sqrt(np.diag(power.covariance))
            loose = [e for e in free if not width[power_law.CONSTANTS.index(e)] <= LOOSE]
            if not power.spare and prior is None:
                reason = f"{symbol}_opt: {len(N)} optima for {len(N)} constants leave nothing to check the fit by"
                if not options.force:
                    raise UnsupportedFit(f"{reason} ({fix_advice(points, N, T, options.fixed)}, or give --prior)")
                warnings.append(f"{reason}: intervals know of the cells' noise alone")
            if not loose or prior is None:
                if loose:
                    warnings.append(
                        f"{symbol}'s exponent in {' and '.join(loose)} is known to no better than +-{LOOSE}"
                    )
                plausibility.check_power(points, symbol, power, options.force, warnings)
                own = np.zeros(len(N)) if variance is None else variance
                between = between_grids(points, power.pull, own, power.scatter, power.spare)
                return power, between + _assumption(points, power, assumed, scale, inside)
            hold = max(loose, key=lambda e: np.nan_to_num(width[power_law.CONSTANTS.index(e)], nan=math.inf))
            reason = "too few optima to fix it"
        elif prior is None:
            advice = fix_advice(points, N, T, options.fixed)
            raise UnsupportedFit(f"{symbol}_opt: {reason} ({advice}, or give --prior)", forcible=False)
        else:
            hold = min(free, key=lambda e: np.ptp(np.log(getattr(points, e))))
        fixed[hold] = getattr(prior, hold)
        assumed.append(hold)
        warnings.append(f"{symbol}'s exponent in {hold} assumed from {options.prior.name}: {fixed[hold]:g} ({reason})")


def fix_advice(points: Points, N: NDArray, T: NDArray, fixed: dict[str, float]) -> str:
    """Which exponents to hold, in the form of options, which these optima do not identify."""
    axes = points.optima[0].axes if points.optima else ("lr", "B")
    unknown = [name for name, values in (("T", T), ("N", N)) if power_law.near(np.log(values))] or ["N"]
    names = [f"{symbol}.{name}" for symbol in ("B", "lr") if symbol in axes for name in unknown]
    options = [f"--fix {name}=0" for name in names if name not in fixed]
    return f"hold them with {' '.join(options)}" if options else "run more sizes and tokens"


def _bounded_law(
    points: Points, symbol: str, prior: PowerLaw | None, options: Options, scale: dict[str, float], warnings: list[str]
) -> tuple[power_law.PowerFit, NDArray]:
    """The largest law of the prior's exponents that no grid contradicts: all of them want batches below one clip."""
    if prior is None:
        raise UnsupportedFit(
            f"{symbol}_opt: every grid is best at one clip, the smallest batch there is (give --prior)", forcible=False
        )
    fixed = {"T": prior.T, "N": prior.N}
    floored = points.usable & ~points.interior
    N, T, value = points.N[floored], points.T[floored], getattr(points, symbol)[floored]
    here = [np.argmin(value / ((T / scale["T"]) ** prior.T * (N / scale["N"]) ** prior.N))]
    power = power_law.fit_power(N[here], T[here], value[here], None, fixed, scale)
    warnings.append(
        f"{symbol}'s law is an upper bound: exponents assumed from {options.prior.name}, and no grid's best batch is "
        "above one clip"
    )
    return power, np.zeros((3, 3))


def hyper_replicates(points: Points, symbol: str, power: power_law.PowerFit) -> NDArray:
    """The law's beta with each cluster deleted, [clusters, 3]."""
    inside = points.inside(symbol)
    if not inside.any():
        return np.tile(power.beta, (len(points.present), 1))
    logs, present = points.replicates[symbol][:, inside], points.present[:, inside]
    if present.all():
        return power.beta + (logs - np.log(getattr(points, symbol)[inside])) @ power.pull.T
    fixed = {name: float(power.beta[power_law.CONSTANTS.index(name)]) for name in power.law.assumed}
    replicates = np.tile(power.beta, (len(present), 1))
    for k, kept in enumerate(present):
        N, T = points.N[inside][kept], points.T[inside][kept]
        if power_law.unidentified(N, T, fixed) is None:
            # Only rows go missing, and all rows weigh alike.
            replicates[k] = power_law.fit_power(N, T, np.exp(logs[k, kept]), None, fixed, power.law.scale).beta
    return replicates


def _assumption(
    points: Points, power: power_law.PowerFit, assumed: list[str], scale: dict[str, float], inside: NDArray
) -> NDArray:
    """How the constants would move if the assumed exponents were wrong by ASSUMED_POWER: a covariance [3, 3]."""
    covariance = np.zeros((3, 3))
    for name in assumed:
        moved = -power.pull @ np.log(getattr(points, name)[inside] / scale[name])
        moved[power_law.CONSTANTS.index(name)] = 1.0
        covariance += ASSUMED_POWER**2 * np.outer(moved, moved)
    return covariance


def loss_stage(points: Points, options: Options, scale: dict[str, float], warnings: list[str]) -> LossStage:
    """The loss law with its errors; holds the prior's exponents that the data do not identify.

    Raises:
        UnsupportedFit: they do not, and there is no prior.
    """
    held = {key.partition(".")[2]: v for key, v in options.fixed.items() if key.startswith("loss.")}
    prior = options.prior.loss if options.prior is not None else None
    exponents = {} if prior is None else {"aT": prior.aT, "aN": prior.aN}
    reason = loss_law.unidentified(points.N, points.T, held)
    if reason is None and len(points.N) < 7 - len(held):
        reason = f"{len(points.N)} optima for {5 - len(held)} constants leave nothing to check the fit by"
    if reason is None or (prior is None and options.force):
        fitted, thetas = _fit_loss(points, options, held, scale)
        # Loose is what scatters as much as what is noisy: the jackknife sees the cells' noise alone.
        spread = jackknife.Spread(jackknife.deviations(thetas), _misfit(points, fitted, held), len(thetas) - 1)
        width = spread.half_width()
        loose = False
        if fitted.at_bound:
            reason = f"{' and '.join(fitted.at_bound)} ran to its bound"
        elif reason is None and not all(width[i] <= LOOSE * abs(fitted.theta[i]) for i in (1, 3)):
            loose, reason = True, "the exponents' intervals are wider than half their values"
        if reason is None or (prior is None and (loose or options.force)):
            if reason:
                warnings.append(f"loss law: {reason}")
            return _spread(points, fitted, thetas, held, scale)
    if prior is None and len(points.N) < 5 - len(held) and not points.optima:
        raise UserError(f"loss law: {reason}")
    if prior is None:
        forcible = loss_law.unidentified(points.N, points.T, held) is None
        raise UnsupportedFit(f"loss law: {reason}", forcible, "more sizes and tokens, or --prior, help")
    taken = {name: value for name, value in exponents.items() if name not in held}
    held = held | taken
    if len(held) == len(loss_law.CONSTANTS):
        raise UnsupportedFit(
            f"loss law: {reason}, and with the prior's exponents nothing is left to fit", forcible=False
        )
    named = ", ".join(f"{name} {value:g}" for name, value in sorted(taken.items()))
    warnings.append(
        f"loss law: {named} assumed from {options.prior.name} ({reason})" if taken else f"loss law: {reason}"
    )
    reason = loss_law.unidentified(points.N, points.T, held)
    if reason:
        raise UnsupportedFit(f"loss law: {reason}, even with the exponents assumed", forcible=False)
    fitted, thetas = _fit_loss(points, options, held, scale)
    if fitted.at_bound:
        warnings.append(f"loss law: {' and '.join(fitted.at_bound)} ran to its bound")
    return _jackknifed(points, fitted, thetas, held, scale, tuple(sorted(taken)))


def _spread(
    points: Points, fitted: loss_law.LossFit, thetas: NDArray, held: dict[str, float], scale: dict[str, float]
) -> LossStage:
    """The fit's errors by jackknife, or by bootstrap where that fails.

    With delta far below the scatter, Huber's fit is nearly a median, of which the jackknife is no consistent estimate
    (on the Chinchilla points it misses the bootstrap's intervals by a third). The cluster bootstrap then needs enough
    clusters, and they must be rows: a run deleted from a grid leaves the points where they are.
    """
    scatter = 1.4826 * float(np.median(np.abs(fitted.residuals)))
    clusters = len(points.present)
    if points.optima or scatter < MEDIAN_LIKE * fitted.delta or clusters < BOOTSTRAP_CLUSTERS:
        return _jackknifed(points, fitted, thetas, held, scale)
    random = np.random.default_rng(0)
    counts = random.multinomial(clusters, np.full(clusters, 1 / clusters), size=jackknife.DRAWS)
    # Rows belong to one cluster each: a row's weight is how often its cluster was drawn.
    weight = counts @ (~points.present).astype(float)
    precision, _ = loss_law.precisions(points.noise, len(points.N))
    start = np.repeat(fitted.theta[None], len(weight), axis=0)
    drawn, _ = loss_law.descend(
        start, points.N, points.T, points.loss, precision, fitted.delta, held, scale, weight, ceiling=_ceiling(points)
    )
    nothing = np.zeros((clusters, len(points.N))), np.zeros((len(points.N),) * 2)
    return LossStage(fitted, *nothing, "cluster bootstrap", bootstrap=drawn)


def _jackknifed(
    points: Points,
    fitted: loss_law.LossFit,
    thetas: NDArray,
    held: dict[str, float],
    scale: dict[str, float],
    assumed: tuple[str, ...] = (),
) -> LossStage:
    values = loss_law.log_values(thetas, points.N, points.T, scale)
    misfit = fitted.derivative @ _misfit(points, fitted, held) @ fitted.derivative.T
    method = f"{JACKKNIFE}, loss law refitted to each draw" + ("; assumed exponents drawn" if assumed else "")
    if points.clips is not None:
        method += f"; {points.clips.shape[1]} validation clips resampled"
    return LossStage(fitted, values, misfit, method, assumed)


def loss_draws(points: Points, stage: LossStage, moved: NDArray, scale: dict[str, float]) -> NDArray[np.float64]:
    """Draws of theta [draws, 5]: laws refitted to points whose losses are moved by their errors.

    The law's values at the points are known well and err evenly even where its constants are not and do not. Errors
    drawn in theta itself gave, where they were wide, exponents below zero, Linf above the losses, and bands of the
    loss that did not hold the law's own prediction.

    Args:
        moved: [draws, points], errors of ln of the law's values at the points. To these come, each drawn on its own,
            the exponents assumed (a wrong one is made up for by the other constants wherever there are data), and the
            validation clips, another draw of which would move all losses together.
    """
    if stage.bootstrap is not None:
        return stage.bootstrap
    fitted, clips = stage.fitted, points.clips
    start = np.repeat(fitted.theta[None], len(moved), axis=0)
    random = np.random.default_rng(1)
    half = random.standard_normal((len(moved) // 2, len(stage.assumed)))
    for name, factor in zip(stage.assumed, (1 + ASSUMED_LOSS) ** np.concatenate([half, -half]).T):
        start[:, loss_law.CONSTANTS.index(name)] *= factor
    start[:, [1, 3]] = np.clip(start[:, [1, 3]], *loss_law.EXPONENTS)
    if clips is not None:
        count = clips.shape[1]
        weight = np.random.default_rng(2).multinomial(count, np.full(count, 1 / count), size=len(moved)) / count
        moved = moved + np.log1p(weight @ clips.T)
    precision, _ = loss_law.precisions(points.noise, len(points.N))
    held = dict.fromkeys(fitted.law.assumed, math.nan)
    thetas, _ = loss_law.descend(
        start, points.N, points.T, points.loss * np.exp(moved), precision, fitted.delta, held, scale, steps=100,
        ceiling=_ceiling(points),
    )  # fmt: skip
    return thetas


def _ceiling(points: Points) -> float:
    """What Linf cannot exceed: the lowest loss, less what writing a draw with six digits may add."""
    return float(points.loss.min()) * (1 - 1e-5)


def _fit_loss(
    points: Points, options: Options, held: dict[str, float], scale: dict[str, float]
) -> tuple[loss_law.LossFit, NDArray]:
    fitted = loss_law.fit(points.N, points.T, points.loss, points.noise, options.delta, held, scale)
    precision, _ = loss_law.precisions(points.noise, len(points.N))
    start = np.repeat(fitted.theta[None], len(points.present), axis=0)
    replicates, weight = np.exp(points.replicates["loss"]), points.present.astype(float)
    thetas, _ = loss_law.descend(
        start, points.N, points.T, replicates, precision, fitted.delta, held, scale, weight, steps=100
    )
    return fitted, thetas


def _misfit(points: Points, fitted: loss_law.LossFit, held: dict[str, float]) -> NDArray:
    """Covariance [5, 5] of theta from the grids' scatter around the law (method of moments), and from the noise of
    samples that all cells of some grids share, which their scatter does not show."""
    free = [i for i, name in enumerate(loss_law.CONSTANTS) if name not in held]
    spare = len(points.N) - len(free)
    if spare <= 0:
        return np.zeros((5, 5))
    own = np.zeros(len(points.N)) if points.noise is None else points.noise**2
    weight = np.ones(len(own)) if points.noise is None else 1 / own
    ratio = np.sum(weight * fitted.residuals**2) / spare
    excess = (ratio - 1) * len(own) / weight.sum()
    scatter = ratio / weight if points.noise is None or ratio < 1 else own + excess
    pull = np.zeros((5, len(own)))
    J = fitted.derivative[:, free] * np.sqrt(weight)[:, None]
    pull[free] = np.linalg.pinv(J, rcond=1e-12) * np.sqrt(weight)
    common = np.zeros((5, 1)) if points.streams is None else pull @ points.streams
    return between_grids(points, pull, own, scatter, spare) + common @ common.T


def between_grids(points: Points, pull: NDArray, own: NDArray, scatter: NDArray, spare: int) -> NDArray:
    """Covariance from grids that scatter around a law, which deleting single runs does not show.

    The jackknife's freedom is that of many runs. The scatter of a few grids is known from their spare ones alone: it
    is widened to the t quantile of those, even where it looks by luck like the cells' noise or less (2 x 2 grids
    covered 0.87-0.92 without that).

    Args:
        pull: [constants, points], d constant / d ln value.
        own: [points], variance that the jackknife shows already.
        scatter: [points], variance around the law.
        spare: points less constants.
    """
    if not points.optima or not spare:
        return np.zeros((len(pull), len(pull)))
    few = t_quantile(spare) / t_quantile(len(points.present) - 1)
    return (pull * np.maximum(few**2 * scatter - own, 0.0)) @ pull.T
