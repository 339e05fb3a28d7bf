"""The loss law ``L(T, N) = Tc / T^aT + Nc / N^aN + Linf`` (eq. 9), by robust regression on log losses.

Minimises the sum of Huber losses of log-loss residuals (Hoffmann et al. 2022, appendix D.3), not their mean: an
optimiser's tolerance is absolute, and on the mean it stops far from the minimum. It is the additive one of
``fitting.losses.forms``, without priors; theta holds the logarithms of its constants.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.scaling.fitting.grids.power_law import LEAST_SPAN, near
from videoscaling.scaling.fitting.losses import descent, forms
from videoscaling.scaling.fitting.losses.descent import FEW, HUBER, Problems
from videoscaling.scaling.laws import LossLaw
from videoscaling.scaling.runs import SAME_SIZE, SAME_TOKENS, common_values
from videoscaling.utils.errors import UserError, plural

CONSTANTS = forms.CONSTANTS["additive"]
AT = {name: at for at, name in enumerate(CONSTANTS)}
DELTA = 1e-3
# Exponents outside this range are no scaling law; the bound keeps a far start from overflowing.
EXPONENTS = (0.01, 4.0)
_START_EXPONENTS = (0.1, 0.2, 0.35, 0.55, 0.9)
# Of the objective: a coarser one stops short of Chinchilla's minimum, which is known to six digits. Many problems have
# a finer one: those that stop leave.
TOLERANCE = 1e-13


@dataclass(frozen=True)
class LossFit:
    """A fitted loss law.

    Attributes:
        law: the law; held constants stand in ``law.assumed``.
        theta: [5], logarithms of CONSTANTS in the law's scale.
        objective: sum of Huber losses at the minimum.
        delta: Huber's delta, in log loss.
        residuals: [points], ln predicted - ln measured.
        derivative: [points, 5], d ln L / d theta.
        at_bound: names of constants at the edge of what is allowed.
    """

    law: LossLaw
    theta: NDArray[np.float64]
    objective: float
    delta: float
    residuals: NDArray[np.float64]
    derivative: NDArray[np.float64]
    at_bound: tuple[str, ...]


def unidentified(N: ArrayLike, T: ArrayLike, fixed: dict[str, float]) -> str | None:
    """Why the constants are not identified by these (N, T), as text; None if they can."""
    free = [name for name in CONSTANTS if name not in fixed]
    if len(np.atleast_1d(N)) < len(free):
        return f"{plural(len(np.atleast_1d(N)), 'point')} cannot fix {plural(len(free), 'constant')}"
    for name, values, exponent, same in (("N", N, "aN", SAME_SIZE), ("T", T, "aT", SAME_TOKENS)):
        distinct, needed = len(np.unique(common_values(np.atleast_1d(values), same))), 2 + (exponent not in fixed)
        if distinct < needed:
            return f"{distinct} distinct {name} cannot fix {exponent}'s term: {needed} are needed"
        if exponent not in fixed and near(np.log(values)):
            low, high = np.min(values), np.max(values)
            return (
                f"{name} from {low:.5g} to {high:.5g}, within a factor of {LEAST_SPAN:g}, do not identify {exponent}"
            )
    return None


def fit(
    N: ArrayLike,
    T: ArrayLike,
    loss: ArrayLike,
    noise: ArrayLike | None = None,
    delta: float | None = None,
    fixed: dict[str, float] | None = None,
    scale: dict[str, float] | None = None,
) -> LossFit:
    """Fit the loss law to points.

    Args:
        N, T, loss: [points].
        noise: [points] relative standard errors; their ratios weigh the points. None weighs all alike.
        delta: where Huber's loss turns linear, in log loss; default 1.345 times the noise, or 1e-3 if unknown.
        fixed: constants to hold, e.g. ``{"aT": 0.29}``.
        scale: units of T and N in the law; 1 by default.

    Raises:
        UserError: these points do not identify the constants.
    """
    N, T, loss = (np.asarray(v, dtype=float) for v in (N, T, loss))
    fixed, scale = fixed or {}, scale or {"T": 1.0, "N": 1.0}
    if reason := unidentified(N, T, fixed):
        raise UserError(f"the loss law is not identified: {reason}")
    if np.ptp(loss) == 0:
        raise UserError("all losses are equal: there is no law in them")
    if fixed.get("Linf", 0.0) >= loss.min():
        raise UserError(f"Linf {fixed['Linf']:g} is not below the lowest loss, {loss.min():.5g}")
    typical = _typical(noise)
    delta = delta or (DELTA if typical is None else HUBER * typical)
    starts = _starts(N / scale["N"], T / scale["T"], loss, fixed)
    thetas, objectives = descend(theta=starts, N=N, T=T, loss=loss, noise=noise, delta=delta, fixed=fixed, scale=scale)
    theta = thetas[np.argmin(objectives)]
    log_loss, derivative = forms.evaluate("additive", theta, *logs(N, T, scale))
    values = dict(zip(CONSTANTS, np.exp(theta).tolist()))
    low, high = EXPONENTS
    at_bound = [n for n in ("aT", "aN") if n not in fixed and not low * 1.01 < values[n] < high * 0.99]
    # Half a per cent of the loss is no asymptote that data could have shown.
    if not 0.005 * loss.min() <= values["Linf"] <= loss.min() * (1 - 1e-6):
        at_bound.append("Linf")
    law = LossLaw(**values, scale=dict(scale), assumed=tuple(sorted(fixed)))
    return LossFit(
        law=law,
        theta=theta,
        objective=float(objectives.min()),
        delta=delta,
        residuals=log_loss - np.log(loss),
        derivative=derivative,
        at_bound=tuple(at_bound),
    )


def logs(N: NDArray, T: NDArray, scale: dict[str, float]) -> tuple[NDArray, NDArray, NDArray]:
    """What ``forms.evaluate`` reads of points; the batch enters no additive law."""
    return np.log(N / scale["N"]), np.log(T / scale["T"]), np.zeros(len(N))


def descend(
    theta: NDArray,
    N: NDArray,
    T: NDArray,
    loss: NDArray,
    noise: NDArray | None,
    delta: float,
    fixed: dict[str, float],
    scale: dict[str, float],
    weight: NDArray | None = None,
    steps: int = 400,
    ceiling: float = np.inf,
) -> tuple[NDArray, NDArray]:
    """``descent.descend`` of the additive form, without a prior, from [problems, 5] starts at once.

    Args:
        N, T, noise: [points].
        loss, weight: [points] or [problems, points]; a weight multiplies a point's Huber loss (0 leaves it out).
        fixed: names of constants that stay as they start.
        ceiling: Linf is at most this, and never above the lowest loss.

    Returns:
        theta [problems, 5] and objectives [problems], sums of Huber losses.
    """
    typical, sd = _typical(noise), delta / HUBER
    problems = Problems(
        "additive",
        logs(N, T, scale),
        np.log(loss),
        np.ones(len(N)) if typical is None else typical / noise,
        sd,
        weight=1.0 if weight is None else weight,
        prior=(np.zeros(5), np.zeros(5)),
        free=np.array([name not in fixed for name in CONSTANTS]),
        exponents=EXPONENTS,
        ceiling=ceiling,
    )
    tolerance = TOLERANCE if len(theta) <= FEW else TOLERANCE / 100
    found, cost = descent.descend(problems, theta, steps=steps, tolerance=tolerance)
    return found, cost * sd**2


def _typical(noise: ArrayLike | None) -> float | None:
    """The typical one of standard errors [points], over which each weighs; None where they are unknown."""
    if noise is None or not np.all(np.isfinite(noise)) or np.any(np.asarray(noise) <= 0):
        return None
    return float(1 / np.sqrt(np.mean(np.asarray(noise, dtype=float) ** -2)))


def _starts(n: NDArray, t: NDArray, loss: NDArray, fixed: dict[str, float]) -> NDArray[np.float64]:
    """[starts, 5]: for each pair of exponents the relative least squares solution for the rest, kept positive."""
    starts = []
    for aT in [fixed["aT"]] if "aT" in fixed else _START_EXPONENTS:
        for aN in [fixed["aN"]] if "aN" in fixed else _START_EXPONENTS:
            X = np.stack([t**-aT, n**-aN, np.ones_like(t)], axis=1)
            Tc, Nc, Linf = np.linalg.lstsq(X / loss[:, None], np.ones_like(loss), rcond=None)[0]
            # A term that comes out negative starts as one per cent of the loss.
            floor = 0.01 * loss.mean()
            Tc, Nc = (max(c * f.mean(), floor) / f.mean() for c, f in ((Tc, t**-aT), (Nc, n**-aN)))
            Linf = min(max(Linf, floor), 0.99 * loss.min())
            values = {"Tc": Tc, "aT": aT, "Nc": Nc, "aN": aN, "Linf": Linf} | fixed
            starts.append(np.log([values[name] for name in CONSTANTS]))
    return np.array(starts)
