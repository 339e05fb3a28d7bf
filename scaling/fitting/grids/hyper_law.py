"""B_opt and lr_opt through grids' optima; exponents that these do not identify are the prior's, or refused."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.estimates import t_quantile
from videoscaling.scaling.fitting import plausibility
from videoscaling.scaling.fitting.grids import power_law
from videoscaling.scaling.fitting.grids.fit_points import Points
from videoscaling.scaling.fitting.grids.power_law import CONSTANTS
from videoscaling.scaling.fitting.options import Options
from videoscaling.scaling.fitting.unsupported import Checks
from videoscaling.scaling.laws import PowerLaw
from videoscaling.utils.errors import plural

# With a prior at hand, an exponent whose 95 % interval is wider than +- this is the prior's to give.
LOOSE = 0.5
# One standard deviation of an assumed exponent. Public laws for other data and models differ by about as much.
ASSUMED = 0.15
PARTS = {"B": "batch", "lr": "lr"}


@dataclass(frozen=True)
class HyperLaw:
    """A law of "B" or "lr", and what its error is made of.

    Attributes:
        law: the law.
        beta: [3], (ln coefficient, T exponent, N exponent).
        replicates: [clusters, 3], beta with each cluster deleted.
        extra: [3, 3], the covariance that scatter between grids and exponents assumed from the prior add.
        spare: points less fitted constants.
    """

    law: PowerLaw
    beta: NDArray[np.float64]
    replicates: NDArray[np.float64]
    extra: NDArray[np.float64]
    spare: int


def hyper_law(points: Points, symbol: str, options: Options, scale: dict[str, float], checks: Checks) -> HyperLaw:
    """The law of "B" or "lr".

    Raises:
        UnsupportedFit: without a prior, optima that do not identify the exponents or leave nothing to check them.
    """
    inside = points.inside(symbol)
    prior = getattr(options.prior, PARTS[symbol]) if options.prior is not None else None
    if not inside.any():
        why = "every grid is best at one clip, the smallest batch there is"
        checks.refuse(f"{symbol}_opt: {why}", "without --method grids one surface gives the largest batch", False)
    N, T, value = points.N[inside], points.T[inside], getattr(points, symbol)[inside]
    variance = getattr(points, f"variance_{symbol}")
    variance = None if variance is None else variance[inside]
    fixed, assumed = options.held(symbol), []
    while True:
        reason = power_law.unidentified(N, T, fixed)
        free = [exponent for exponent in ("T", "N") if exponent not in fixed]
        if reason is None:
            power = power_law.fit_power(N, T, value, variance, fixed, scale)
            width = dict(zip(CONSTANTS, t_quantile(power.spare) * np.sqrt(np.diag(power.covariance))))
            loose = [exponent for exponent in free if not width[exponent] <= LOOSE]
            if prior is None or not loose:
                break
            reason, hold = "too few optima to fix it", max(loose, key=lambda e: np.nan_to_num(width[e], nan=math.inf))
        elif prior is None:
            checks.refuse(
                f"{symbol}_opt: {reason} ({fix_advice(points, N, T, options.fixed)}, or give --prior)", "", False
            )
        else:
            hold = min(free, key=lambda e: np.ptp(np.log(getattr(points, e))))
        fixed[hold] = getattr(prior, hold)
        assumed.append(hold)
        checks.warn(f"{symbol}'s exponent in {hold} assumed from {options.prior.name}: {fixed[hold]:g} ({reason})")
    if not power.spare and prior is None:
        advice = fix_advice(points, N, T, options.fixed)
        checks.refuse(
            f"{symbol}_opt: {plural(len(N), 'optimum', 'optima')} for {plural(len(N), 'constant')} leave nothing to "
            f"check the fit by ({advice}, or give --prior)"
        )
    if loose:
        checks.warn(f"{symbol}'s exponent in {' and '.join(loose)} is known to no better than +-{LOOSE}")
    plausibility.check_power(points, symbol, power, checks)
    own = np.zeros(len(N)) if variance is None else variance
    extra = between_grids(points, power.pull, own, power.scatter, power.spare)
    for name in assumed:  # how the constants would move if it were wrong
        moved = -power.pull @ np.log(getattr(points, name)[inside] / scale[name])
        moved[CONSTANTS.index(name)] = 1.0
        extra = extra + ASSUMED**2 * np.outer(moved, moved)
    return HyperLaw(power.law, power.beta, _replicates(points, symbol, power), extra, power.spare)


def fix_advice(points: Points, N: NDArray, T: NDArray, fixed: dict[str, float]) -> str:
    """Which exponents to hold, in the form of options, which these optima do not identify."""
    axes = points.optima[0].axes if points.optima else ("lr", "B")
    unknown = [name for name, values in (("T", T), ("N", N)) if power_law.near(np.log(values))] or ["N"]
    names = [f"{symbol}.{name}" for symbol in ("B", "lr") if symbol in axes for name in unknown]
    options = [f"--fix {name}=0" for name in names if name not in fixed]
    return f"hold them with {' '.join(options)}" if options else "run more sizes and tokens"


def _replicates(points: Points, symbol: str, power: power_law.PowerFit) -> NDArray[np.float64]:
    """The law's beta with each cluster deleted, [clusters, 3]."""
    inside = points.inside(symbol)
    logs, present = points.replicates[symbol][:, inside], points.present[:, inside]
    if present.all():
        return power.beta + (logs - np.log(getattr(points, symbol)[inside])) @ power.pull.T
    fixed = {name: float(power.beta[CONSTANTS.index(name)]) for name in power.law.assumed}
    replicates = np.tile(power.beta, (len(present), 1))
    for k, kept in enumerate(present):
        N, T = points.N[inside][kept], points.T[inside][kept]
        if power_law.unidentified(N, T, fixed) is None:
            # Only rows go missing, and all rows weigh alike.
            replicates[k] = power_law.fit_power(N, T, np.exp(logs[k, kept]), None, fixed, power.law.scale).beta
    return replicates


def between_grids(points: Points, pull: NDArray, own: NDArray, scatter: NDArray, spare: int) -> NDArray[np.float64]:
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
