"""The loss law ``L(T, N) = Tc / T^aT + Nc / N^aN + Linf`` (eq. 9), by robust regression on log losses.

Minimises the sum of Huber losses of log-loss residuals (Hoffmann et al. 2022, appendix D.3), not their mean: an
optimiser's tolerance is absolute, and on the mean it stops far from the minimum. The steps are those of all loss
forms (``scaling.fitting.losses.forms``), of many problems at once, so that a jackknife costs little more than one fit.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.scaling.fitting.grids.power_law import LEAST_SPAN, near
from videoscaling.scaling.fitting.losses import forms
from videoscaling.scaling.laws import LossLaw
from videoscaling.utils.errors import UserError

CONSTANTS = ("Tc", "aT", "Nc", "aN", "Linf")
DELTA = 1e-3
DELTA_PER_NOISE = forms.HUBER
# Exponents outside this range are no scaling law; the bound keeps a hopeless start from overflowing.
EXPONENTS = (0.01, 4.0)
_START_EXPONENTS = (0.1, 0.2, 0.35, 0.55, 0.9)
# Of the objective: a coarser one stops short of Chinchilla's minimum, which is known to six digits. Many problems have
# a finer one: those that stop leave.
TOLERANCE = 1e-13


@dataclass(frozen=True)
class LossFit:
    """A fitted loss law.

    Attributes:
        law: the law; held exponents stand in ``law.assumed``.
        theta: [5], (ln Tc, aT, ln Nc, aN, ln Linf) in the law's scale.
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
        return f"{len(np.atleast_1d(N))} points cannot fix {len(free)} constants"
    for name, values, exponent in (("N", N, "aN"), ("T", T, "aT")):
        distinct, needed = len(np.unique(values)), 2 + (exponent not in fixed)
        if distinct < needed:
            return f"{distinct} distinct {name} cannot fix {exponent}'s term: {needed} are needed"
        if exponent not in fixed and near(np.log(values)):
            low, high = np.min(values), np.max(values)
            return f"{name} from {low:.5g} to {high:.5g}, within a factor of {LEAST_SPAN:g}, do not tell {exponent}"
    return None


def law_from(theta: NDArray, scale: dict[str, float], fixed: dict[str, float]) -> LossLaw:
    """The law of a parameter vector [5]."""
    Tc, aT, Nc, aN, Linf = (float(v) for v in constants_of(theta))
    return LossLaw(Tc, aT, Nc, aN, Linf, dict(scale), tuple(sorted(fixed)))


def constants_of(theta: NDArray) -> NDArray[np.float64]:
    """[..., 5] theta -> [..., 5] constants in the order of CONSTANTS."""
    log = np.array([True, False, True, False, True])
    return np.where(log, np.exp(np.where(log, theta, 0.0)), theta)


def log_values(theta: NDArray, N: NDArray, T: NDArray, scale: dict[str, float]) -> NDArray[np.float64]:
    """ln L of laws [laws, 5] at points [points]: [laws, points]."""
    return _log_loss(theta, N, T, scale)[0]


def fit(
    N: ArrayLike,
    T: ArrayLike,
    loss: ArrayLike,
    noise: ArrayLike | None = None,
    delta: float | None = None,
    fixed: dict[str, float] | None = None,
    scale: dict[str, float] | None = None,
    seed: int | None = None,
) -> LossFit:
    """Fit the loss law to points.

    Args:
        N, T, loss: [points].
        noise: [points] relative standard errors; their ratios weigh the points. None weighs all alike.
        delta: where Huber's loss turns linear, in log loss; default 1.345 times the noise, or 1e-3 if unknown.
        fixed: constants to hold, e.g. ``{"aT": 0.29}``.
        scale: units of T and N in the law; 1 by default.
        seed: perturbs the starts, to test that they do not matter.

    Raises:
        UserError: these points do not identify the constants.
    """
    N, T, loss = (np.asarray(v, dtype=float) for v in (N, T, loss))
    fixed, scale = fixed or {}, scale or {"T": 1.0, "N": 1.0}
    reason = unidentified(N, T, fixed)
    if reason:
        raise UserError(f"the loss law is not identified: {reason}")
    if np.ptp(loss) == 0:
        raise UserError("all losses are equal: there is no law in them")
    if fixed.get("Linf", 0.0) >= loss.min():
        raise UserError(f"Linf {fixed['Linf']:g} is not below the lowest loss, {loss.min():.5g}")
    precision, typical = precisions(noise, len(loss))
    if delta is None:
        delta = DELTA if typical is None else DELTA_PER_NOISE * typical
    starts = _starts(N / scale["N"], T / scale["T"], loss, fixed, seed)
    thetas, objectives = descend(starts, N, T, loss, precision, delta, fixed, scale)
    theta = thetas[np.argmin(objectives)]
    predicted, derivative = _log_loss(theta[None], N, T, scale)
    low, high = EXPONENTS
    at_bound = [n for n, i in (("aT", 1), ("aN", 3)) if n not in fixed and not low * 1.01 < theta[i] < high * 0.99]
    # Half a per cent of the loss is no asymptote that data could have shown.
    if np.exp(theta[4]) < 0.005 * loss.min() or np.exp(theta[4]) > loss.min() * (1 - 1e-6):
        at_bound.append("Linf")
    return LossFit(
        law_from(theta, scale, fixed),
        theta,
        float(objectives.min()),
        delta,
        predicted[0] - np.log(loss),
        derivative[0],
        tuple(at_bound),
    )


def precisions(noise: ArrayLike | None, points: int) -> tuple[NDArray, float | None]:
    """Weights of residuals (typical noise / noise) and the typical noise; ones and None where noise is unknown."""
    if noise is None:
        return np.ones(points), None
    noise = np.asarray(noise, dtype=float)
    if not np.all(np.isfinite(noise)) or np.any(noise <= 0):
        return np.ones(points), None
    typical = float(1 / np.sqrt(np.mean(noise**-2)))
    return typical / noise, typical


def descend(
    theta: NDArray,
    N: NDArray,
    T: NDArray,
    loss: NDArray,
    precision: NDArray,
    delta: float,
    fixed: dict[str, float],
    scale: dict[str, float],
    weight: NDArray | None = None,
    steps: int = 400,
    ceiling: float = np.inf,
) -> tuple[NDArray, NDArray]:
    """``forms.descend`` of the additive form, without a prior, from [problems, 5] starts at once.

    Args:
        N, T: [points].
        loss, weight: [points] or [problems, points]; a weight multiplies a point's Huber loss (0 leaves it out).
        ceiling: Linf is at most this, and never above the lowest loss.

    Returns:
        theta [problems, 5] and objectives [problems], sums of Huber losses.
    """
    free = np.array([name not in fixed for name in forms.CONSTANTS["additive"]])
    sd = delta / forms.HUBER
    found, cost = forms.descend(
        "additive", _of_form(theta, np.log), _logs(N, T, scale), np.log(loss), precision, sd=sd, weight=weight,
        steps=steps, prior=(np.zeros(5), np.zeros(5)), free=free, exponents=EXPONENTS, ceiling=ceiling,
        tolerance=TOLERANCE if len(theta) <= forms.FEW else TOLERANCE / 100,
    )  # fmt: skip
    return _of_form(found, np.exp), cost * sd**2


def _of_form(theta: NDArray, to: np.ufunc) -> NDArray[np.float64]:
    """[..., 5] theta in the order of ``forms`` and back, ``to`` (log or exp) applied to exponents."""
    moved = theta[..., [2, 3, 0, 1, 4]]
    moved[..., [1, 3]] = to(moved[..., [1, 3]])
    return moved


def _logs(N: NDArray, T: NDArray, scale: dict[str, float]) -> tuple[NDArray, NDArray, NDArray]:
    return np.log(N / scale["N"]), np.log(T / scale["T"]), np.zeros(len(N))


def _log_loss(theta: NDArray, N: NDArray, T: NDArray, scale: dict[str, float]) -> tuple[NDArray, NDArray]:
    """ln L [problems, points] and its derivative in theta [problems, points, 5]."""
    value, J = forms.evaluate("additive", _of_form(theta, np.log), *_logs(N, T, scale))
    derivative = J[..., [2, 3, 0, 1, 4]]
    derivative[..., [1, 3]] /= theta[..., None, [1, 3]]
    return value, derivative


def _starts(n: NDArray, t: NDArray, loss: NDArray, fixed: dict[str, float], seed: int | None) -> NDArray:
    """[starts, 5]: for each pair of exponents the relative least squares solution for the rest, kept positive."""
    random = np.random.default_rng(seed) if seed is not None else None
    starts = []
    for aT in [fixed["aT"]] if "aT" in fixed else _START_EXPONENTS:
        for aN in [fixed["aN"]] if "aN" in fixed else _START_EXPONENTS:
            if random is not None:
                aT = fixed.get("aT", aT * random.uniform(0.7, 1.4))
                aN = fixed.get("aN", aN * random.uniform(0.7, 1.4))
            X = np.stack([t**-aT, n**-aN, np.ones_like(t)], axis=1)
            Tc, Nc, Linf = np.linalg.lstsq(X / loss[:, None], np.ones_like(loss), rcond=None)[0]
            # A term that comes out negative starts as one per cent of the loss.
            floor = 0.01 * loss.mean()
            Tc, Nc = (max(c * f.mean(), floor) / f.mean() for c, f in ((Tc, t**-aT), (Nc, n**-aN)))
            Linf = min(max(Linf, floor), 0.99 * loss.min())
            values = dict(zip(CONSTANTS, (Tc, aT, Nc, aN, Linf))) | fixed
            starts.append([np.log(values[c]) if c in ("Tc", "Nc", "Linf") else values[c] for c in CONSTANTS])
    return np.array(starts)
