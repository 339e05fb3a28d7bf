"""Other forms of the loss law, to be compared with the paper's on held-out points.

``additive``   Tc / T^aT + Nc / N^aN + Linf: the paper's and Chinchilla's, fitted by ``scaling.loss_law``
``joint``      (A / N^a + B / T^b)^k + Linf: one more constant, which lets N and T trade
``three_term`` A / N^a + B / batch^b + C / steps^g + Linf (arXiv 2607.01487): T = batch * steps, split by what it buys
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from videoscaling.scaling import loss_law
from videoscaling.utils.errors import UserError

FORMS = ("additive", "joint", "three_term")
CONSTANTS = {"additive": 5, "joint": 6, "three_term": 7}

# A fitted form: (N, T, B) arrays in, loss out.
Form = Callable[[NDArray, NDArray, NDArray], NDArray]


@dataclass(frozen=True)
class _Logs:
    """Inputs relative to their geometric means, in logs: there the constants are of order one."""

    N: float
    T: float
    B: float

    def __call__(self, N: NDArray, T: NDArray, B: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        return np.log(N) - self.N, np.log(T) - self.T, np.log(B) - self.B


def fit(form: str, N: NDArray, T: NDArray, B: NDArray, loss: NDArray, noise: NDArray | None = None) -> Form:
    """Fit one form to points.

    Args:
        N, T, B, loss: [points]; B is only read by ``three_term``.
        noise: [points] relative standard errors, or None.

    Raises:
        UserError: fewer points than constants, or not enough distinct values.
    """
    if len(N) < CONSTANTS[form]:
        raise UserError(f"{len(N)} points cannot fix the {CONSTANTS[form]} constants of the {form} form")
    if form == "additive":
        law = loss_law.fit(N, T, loss, noise, scale={"T": _middle(T), "N": _middle(N)}).law
        return lambda N, T, B: law(N, T)
    logs = _Logs(*(float(np.log(v).mean()) for v in (N, T, B)))
    precision, typical = loss_law.precisions(noise, len(N))
    delta = loss_law.DELTA if typical is None else loss_law.DELTA_PER_NOISE * typical
    value = _joint if form == "joint" else _three_term
    inputs, target = logs(N, T, B), np.log(loss)

    def residual(theta: NDArray) -> NDArray:
        return (np.log(value(theta, *inputs)) - target) * precision

    best = None
    for start in _starts(form, loss):
        # soft_l1 with this scale is Huber's loss but for a rounded corner. A step too far runs out of numbers, and is
        # taken back.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            found = least_squares(residual, start, loss="soft_l1", f_scale=delta, x_scale="jac", max_nfev=400)
        if best is None or found.cost < best.cost:
            best = found
    theta = best.x
    return lambda N, T, B: value(theta, *logs(N, T, B))


def _middle(values: NDArray) -> float:
    return float(np.exp(np.log(values).mean()))


def _joint(theta: NDArray, n: NDArray, t: NDArray, b: NDArray) -> NDArray:
    """theta: ln A, a, ln B, b, ln k, ln Linf."""
    A, a, B, at, k, floor = theta
    return (np.exp(A - a * n) + np.exp(B - at * t)) ** np.exp(k) + np.exp(floor)


def _three_term(theta: NDArray, n: NDArray, t: NDArray, b: NDArray) -> NDArray:
    """theta: ln A, a, ln B, b, ln C, g, ln Linf; ln steps = ln T - ln B."""
    A, a, B, ab, S, g, floor = theta
    return np.exp(A - a * n) + np.exp(B - ab * b) + np.exp(S - g * (t - b)) + np.exp(floor)


def _starts(form: str, loss: NDArray) -> list[NDArray]:
    low = loss.min()
    starts = []
    for share in (0.3, 0.7, 0.9):
        for exponent in (0.2, 0.5):
            part = np.log(max(np.mean(loss) - share * low, 1e-3 * low) / 2)
            if form == "joint":
                starts.append(np.array([part, exponent, part, exponent, 0.0, np.log(share * low)]))
            else:
                third = part + np.log(2 / 3)
                starts.append(np.array([third, exponent, third, exponent, third, exponent, np.log(share * low)]))
    return starts
