"""Hyper-parameter laws: ``B_opt`` and ``lr_opt`` as power laws of N and T (eq. 5 and 6), by regression in logs.

Each optimum weighs 1 / (its own variance + the variance between grids), the latter by restricted maximum likelihood:
a grid can be sharper than the law is true.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.scaling.laws import PowerLaw
from videoscaling.utils.errors import UserError, plural

CONSTANTS = ("coefficient", "T", "N")
# Two columns of the regression closer to collinear than this (correlation of ln T and ln N) cannot be separated.
COLLINEAR = 0.98
# Sizes or tokens within this factor fix no exponent: over it B moves by a factor of 1.4 at the largest published one,
# and optima scatter by as much from grid to grid.
LEAST_SPAN = 1.5


@dataclass(frozen=True)
class PowerFit:
    """A fitted power law.

    Attributes:
        law: the law; exponents given as fixed stand in ``law.assumed``.
        beta: [3], (ln coefficient, T exponent, N exponent).
        covariance: [3, 3] of beta, zero for fixed ones; nan without spare points.
        X, y: [points, free constants] and [points], the regression: ln values less what fixed exponents explain.
        weights: [points] used.
        between: variance between grids, in ln^2.
        spare: points less fitted constants.
        scatter: [points], variance of ln value around the law, as the residuals have it; nan without spare points.
        pull: [3, points], d beta / d (ln value of a point).
    """

    law: PowerLaw
    beta: NDArray[np.float64]
    covariance: NDArray[np.float64]
    X: NDArray[np.float64]
    y: NDArray[np.float64]
    weights: NDArray[np.float64]
    between: float
    spare: int
    scatter: NDArray[np.float64]
    pull: NDArray[np.float64]


def near(log_values: ArrayLike) -> bool:
    """Whether values (their ln) lie too near each other to identify an exponent."""
    return bool(np.ptp(log_values) < math.log(LEAST_SPAN) - 1e-9)


def unidentified(N: ArrayLike, T: ArrayLike, fixed: dict[str, float]) -> str | None:
    """Why the free exponents are not identified by these (N, T), as text; None if they can."""
    logs = {"T": np.log(T), "N": np.log(N)}
    free = [name for name in ("T", "N") if name not in fixed]
    for name in free:
        if np.ptp(logs[name]) < 1e-6:
            return f"all optima share one {name}, so its exponent is unknown"
        if near(logs[name]):
            low, high = np.exp([np.min(logs[name]), np.max(logs[name])])
            return (
                f"the optima's {name} lie within a factor of {LEAST_SPAN:g}, {low:.5g} to {high:.5g}, so its exponent "
                "is unknown"
            )
    if len(free) == 2 and abs(np.corrcoef(logs["T"], logs["N"])[0, 1]) > COLLINEAR:
        return "ln N and ln T are collinear in these optima, so their exponents are not identified"
    if len(logs["T"]) < len(free) + 1:
        return f"{plural(len(logs['T']), 'optimum', 'optima')} cannot fix {plural(len(free) + 1, 'constant')}"
    return None


def fit_power(
    N: ArrayLike,
    T: ArrayLike,
    value: ArrayLike,
    variance: ArrayLike | None = None,
    fixed: dict[str, float] | None = None,
    scale: dict[str, float] | None = None,
) -> PowerFit:
    """Fit ``value = coefficient * T^T * N^N``.

    Args:
        N, T, value: [points], all positive.
        variance: [points] of ln value; None is plain least squares.
        fixed: exponents to hold, e.g. ``{"N": 0.0}``.
        scale: units of T and N in the law; 1 by default.

    Raises:
        UserError: these points do not identify the exponents.
    """
    fixed, scale = fixed or {}, scale or {"T": 1.0, "N": 1.0}
    reason = unidentified(N, T, fixed)
    if reason:
        raise UserError(reason)
    logs = {name: np.log(np.divide(values, scale[name])) for name, values in (("T", T), ("N", N))}
    columns = {"coefficient": np.ones(len(logs["T"]))} | logs
    rows = [at for at, name in enumerate(CONSTANTS) if name not in fixed]
    X = np.stack([columns[CONSTANTS[at]] for at in rows], axis=1)
    y = np.log(value) - sum(exponent * columns[name] for name, exponent in fixed.items())
    spare, between, weights = len(y) - len(rows), 0.0, np.ones_like(y)
    if variance is not None:
        variance = np.asarray(variance, dtype=float)
        between = between_variance(X, y, variance) if spare else 0.0
        weights = 1 / (variance + between)
    inverse = np.linalg.inv(X.T @ (weights[:, None] * X))
    pull, covariance = np.zeros((3, len(y))), np.zeros((3, 3))
    pull[rows] = inverse @ X.T * weights
    beta = pull @ y + [fixed.get(name, 0.0) for name in CONSTANTS]
    # Knapp and Hartung: the scatter of the points around the law, not its nominal weights, sets the error.
    inflation = np.sum(weights * (y - X @ beta[rows]) ** 2) / spare if spare else math.nan
    covariance[np.ix_(rows, rows)] = inverse * inflation
    law = PowerLaw(math.exp(beta[0]), float(beta[1]), float(beta[2]), dict(scale), tuple(sorted(fixed)))
    return PowerFit(
        law=law,
        beta=beta,
        covariance=covariance,
        X=X,
        y=y,
        weights=weights,
        between=between,
        spare=spare,
        scatter=inflation / weights,
        pull=pull,
    )


def between_variance(X: NDArray, y: NDArray, variance: NDArray) -> float:
    """The between-point variance that maximises the restricted likelihood, 0 or more."""

    def negative(log_tau2: float) -> float:
        w = 1 / (variance + math.exp(log_tau2))
        A = X.T @ (w[:, None] * X)
        residual = y - X @ np.linalg.solve(A, X.T @ (w * y))
        return 0.5 * (-np.log(w).sum() + np.linalg.slogdet(A)[1] + np.sum(w * residual**2))

    from scipy.optimize import minimize_scalar  # not at the top: a third of a second, which --help would wait for

    low, high = math.log(variance.min() * 1e-4 + 1e-14), math.log(variance.max() + np.var(y) + 1e-12)
    if high <= low:
        return 0.0
    grid = np.linspace(low, high, 40)
    best = grid[np.argmin([negative(g) for g in grid])]
    step = grid[1] - grid[0]
    found = minimize_scalar(negative, bounds=(max(best - step, low), min(best + step, high)), method="bounded")
    return math.exp(found.x) if found.fun < negative(low) else 0.0
