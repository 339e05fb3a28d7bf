"""Loss forms f(N, T) at the best batch and rate.

    additive     Nc / N^aN + Tc / T^aT + Linf                                   (eq. 9)
    joint        (Nc / N^aN + Tc / T^aT)^k + Linf                               (Farseer, arXiv 2506.10972, in spirit)
    floorless    (Nc / N^aN + Tc / T^aT)^k                                      (Kaplan et al. 2020)
    product      (1 + Nc / N^aN) (1 + Tc / T^aT) Linf
    three_term   Nc / N^aN + Bc / B^aB + Sc / steps^aS + Linf, steps = T / B    (arXiv 2607.01487)

The additive form is wrong on most public data: on Farseer's largest models it errs by 3 %, the joint form by 0.4 %.
Constants are positive, so the fitter works on their logarithms, with N, T and B relative to their geometric means:
there all constants are of order one (``form_fit.py``).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.scaling.fitting.losses import priors

CONSTANTS = {
    "additive": ("Nc", "aN", "Tc", "aT", "Linf"),
    "joint": ("Nc", "aN", "Tc", "aT", "Linf", "k"),
    "floorless": ("Nc", "aN", "Tc", "aT", "k"),
    "product": ("Nc", "aN", "Tc", "aT", "Linf"),
    "three_term": ("Nc", "aN", "Bc", "aB", "Sc", "aS", "Linf"),
}
FORMULAS = {
    "additive": "Nc / N^aN + Tc / T^aT + Linf",
    "joint": "(Nc / N^aN + Tc / T^aT)^k + Linf",
    "floorless": "(Nc / N^aN + Tc / T^aT)^k",
    "product": "(1 + Nc / N^aN) (1 + Tc / T^aT) Linf",
    "three_term": "Nc / N^aN + Bc / B^aB + Sc / (T / B)^aS + Linf",
}
# Averaged by held-out error. The product form lost on every public table, the three-term one needs the batch.
AUTO = ("joint", "floorless", "additive")


@dataclass(frozen=True)
class Scale:
    """Geometric means that N, T and B are divided by."""

    N: float
    T: float
    B: float

    @staticmethod
    def of(N: ArrayLike, T: ArrayLike, B: ArrayLike) -> "Scale":
        """The scale of a table; B is 1 where it is unknown."""
        middle = [float(np.exp(np.mean(np.log(v)))) for v in (N, T, B)]
        return Scale(*(round_to_two_digits(v) if np.isfinite(v) else 1.0 for v in middle))

    def logs(self, N: ArrayLike, T: ArrayLike, B: ArrayLike) -> tuple[NDArray, NDArray, NDArray]:
        """ln of N, T and B relative to the scale, broadcast to one shape; an unknown B counts as the scale's."""
        n, t, b = (np.log(np.asarray(v, dtype=float) / s) for v, s in ((N, self.N), (T, self.T), (B, self.B)))
        return np.broadcast_arrays(n, t, np.where(np.isnan(b), 0.0, b))


def floor_of(form: str) -> int | None:
    """Where ln Linf stands in a form's constants; None where it has none."""
    return CONSTANTS[form].index("Linf") if "Linf" in CONSTANTS[form] else None


def round_to_two_digits(value: float) -> float:
    """``value`` with two digits: a scale is a unit, not a measurement."""
    return float(f"{value:.1e}")


def evaluate(form: str, theta: NDArray, n: NDArray, t: NDArray, b: NDArray) -> tuple[NDArray, NDArray]:
    """ln f [..., rows] and its derivative in theta [..., rows, constants].

    Args:
        theta: [..., constants], the logarithms of CONSTANTS[form].
        n, t, b: [rows] logs of N, T, B relative to a scale.
    """
    logs = {name: theta[..., at, None] for at, name in enumerate(CONSTANTS[form])}
    power = {name: np.exp(logs[name]) for name in priors.EXPONENTS if name in logs}
    floor = np.exp(logs["Linf"]) if "Linf" in logs else 0.0

    def term(coefficient: str, exponent: str, x: NDArray) -> tuple[NDArray, NDArray]:
        value = np.exp(np.minimum(np.maximum(logs[coefficient] - power[exponent] * x, -200), 200))
        return value, -value * power[exponent] * x

    if form == "three_term":
        terms = (term("Nc", "aN", n), term("Bc", "aB", b), term("Sc", "aS", t - b))
        total = sum(value for value, _ in terms) + floor
        parts = [part for pair in terms for part in pair] + [floor]
    else:
        from_N, by_aN = term("Nc", "aN", n)
        from_T, by_aT = term("Tc", "aT", t)
        if form == "product":
            total = np.ones_like(from_N)
            parts = [from_N / (1 + from_N), by_aN / (1 + from_N), from_T / (1 + from_T), by_aT / (1 + from_T), 1.0]
            value = logs["Linf"] + np.log1p(from_N) + np.log1p(from_T)
            return value, _stack(parts, total)
        if form == "additive":
            total, parts = from_N + from_T + floor, [from_N, by_aN, from_T, by_aT, floor]
        else:
            k, inner = np.exp(logs["k"]), from_N + from_T
            log_inner = np.log(inner)
            # Within the range of numbers: draws of a wide posterior have k in the hundreds.
            power_term = np.exp(np.clip(k * log_inner, -500, 500))
            slope = k * power_term / inner
            total = power_term + floor
            parts = [slope * from_N, slope * by_aN, slope * from_T, slope * by_aT]
            parts += [floor] * ("Linf" in logs) + [k * power_term * log_inner]
    return np.log(total), _stack(parts, total)


def _stack(parts: list, total: NDArray) -> NDArray:
    # Each part in one piece: written as columns of one array, and multiplied so, they take twice as long.
    stacked = np.empty((len(parts), *total.shape))
    for row, part in zip(stacked, parts):
        np.divide(part, total, out=row)
    return stacked.transpose(*range(1, stacked.ndim), 0)


@dataclass(frozen=True)
class FormFit:
    """A fitted form.

    Attributes:
        form: its name in CONSTANTS.
        theta: [constants] logarithms.
        scale: what N, T and B are divided by.
        noise: sd of the residuals of ln loss, the rms over rows where these have standard errors of their own.
        covariance: [constants, constants] of theta, for independent rows.
        draws: [draws, constants] from a bootstrap over clusters, or None.
    """

    form: str
    theta: NDArray[np.float64]
    scale: Scale
    noise: float
    covariance: NDArray[np.float64]
    draws: NDArray[np.float64] | None = None

    @property
    def constants(self) -> dict[str, float]:
        """The form's constants in the units of ``scale``."""
        return dict(zip(CONSTANTS[self.form], np.exp(self.theta).tolist()))

    def __call__(self, N: ArrayLike, T: ArrayLike, B: ArrayLike = np.nan) -> NDArray[np.float64]:
        """Loss at N parameters, T tokens and, for three_term, B tokens (nan: the best batch)."""
        n, t, b = self._logs(N, T, B)
        return np.exp(evaluate(self.form, self.theta, n.ravel(), t.ravel(), b.ravel())[0]).reshape(n.shape)

    @property
    def errors(self) -> NDArray[np.float64]:
        """sd of theta [constants], from the draws where there are any."""
        return np.sqrt(np.diag(self.covariance)) if self.draws is None else self.draws.std(axis=0)

    def interval(self, N: ArrayLike, T: ArrayLike, B: ArrayLike = np.nan) -> NDArray[np.float64]:
        """sd of ln f at each row, [rows], from the draws where there are any."""
        logs = self._logs(N, T, B)
        if self.draws is not None:
            return evaluate(self.form, self.draws, *logs)[0].std(axis=0)
        _, J = evaluate(self.form, self.theta, *logs)
        return np.sqrt(np.einsum("ij,jk,ik->i", J, self.covariance, J))

    def _logs(self, N: ArrayLike, T: ArrayLike, B: ArrayLike) -> tuple[NDArray, NDArray, NDArray]:
        """``scale.logs``; an unknown B is the best one, which balances three_term's Bc / B^aB and Sc / (T / B)^aS."""
        n, t, b = self.scale.logs(N, T, B)
        if self.form != "three_term":
            return n, t, b
        _, _, Bc, ln_aB, Sc, ln_aS, _ = self.theta
        aB, aS = np.exp([ln_aB, ln_aS])
        return n, t, np.where(np.isnan(B), (ln_aB + Bc - ln_aS - Sc + aS * t) / (aB + aS), b)
