"""Joint draws, weights of averaged shapes and forms, and the calibration of extrapolation."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

from videoscaling.scaling.fitting.surface import least_squares

DRAWS = 400
# Forms with less weight than this are dropped.
LEAST_WEIGHT = 0.02
# The evidence within the fitted range counts this much next to the expanding window: residuals of neighbouring points
# are alike, so their number overstates it.
EVIDENCE = 0.25
# Extrapolation is never trusted to be better than this share of the claimed variance.
LEAST_CALIBRATION = 0.5
# What the claimed variance is multiplied by where no larger size or token count could be predicted from smaller ones.
# An earlier quickstart's sweep had three of each: its planned run, 4.3 times the longest T, ended 4 claimed sd below.
UNTESTED = 9.0
# A forced form that errs this much more than another one, when larger sizes are predicted from smaller ones, warns.
WORSE = 1.25


def weights_of(errors: NDArray, steps: int, evidence: NDArray) -> NDArray[np.float64]:
    """Weights [forms]: one over a form's held-out error to the power of its steps, times tempered evidence.

    Args:
        errors: [forms] rms errors of the same ``steps`` predictions; not read where there are none.
        evidence: [forms] ln of the evidence within the fitted range.
    """
    score = EVIDENCE * evidence - (steps * np.log(errors) if steps else 0.0)
    weight = np.exp(score - score.max())
    weight = np.where(weight / weight.sum() < LEAST_WEIGHT, 0.0, weight)
    return weight / weight.sum()


def shared_errors(windows: Sequence[Mapping[Hashable, float]]) -> tuple[NDArray[np.float64], int]:
    """rms error of each form over the windows that all forms have, [forms], and how many these are.

    A form with more constants can be fitted to fewer windows, and one window more or less is worth a factor of one
    over the error, 30 to 300, in ``weights_of``.

    Args:
        windows: of each form, the mean squared error of its windows.
    """
    shared = [window for window in windows[0] if all(window in of_form for of_form in windows)]
    squares = [[of_form[window] for window in shared] for of_form in windows]
    return np.sqrt(np.mean(squares, axis=1)) if shared else np.full(len(windows), np.nan), len(shared)


def calibration(ratios: list[float]) -> float:
    """What claimed variances are multiplied by, from squared errors over claimed variances of earlier predictions.

    Two more, just as large as claimed, stand in for what is known without any.
    """
    return max((sum(ratios) + 2) / (len(ratios) + 2), LEAST_CALIBRATION)


def untested_warning(what: str) -> str:
    """The line that says why intervals beyond the runs are wider than the fit claims; ``what`` is N, T or both."""
    return (
        f"no prediction of a larger {what} could be tested on these runs: beyond them intervals of losses are "
        f"{np.sqrt(UNTESTED):g} times as wide as the fit claims"
    )


def draw(solution: least_squares.Solution, freedom: float, count: int = DRAWS, seed: int = 0) -> NDArray[np.float64]:
    """Draws of theta [count, constants], multivariate t, in pairs around the estimate; of a floor in its prior's u."""
    random = np.random.default_rng(seed)
    roots, vectors = np.linalg.eigh(solution.covariance)
    # The symmetric root: rounding a covariance turns its eigenvectors, and hardly moves this.
    root = (vectors * np.sqrt(np.maximum(roots, 0))) @ vectors.T
    normal = random.standard_normal((count // 2, len(roots))) @ root.T
    stretch = np.sqrt(freedom / random.chisquare(freedom, count // 2))[:, None]
    drawn = np.concatenate([normal, -normal]) * np.concatenate([stretch, stretch])
    theta, model = solution.theta + drawn, solution.model
    if "f.Linf" in model.names:
        # No floor above the lowest loss: its logarithm is far from normal where the data give only a bound.
        at = model.place("f.Linf")
        away, slope = model.prior_at(solution.theta)
        theta[:, at] = model.lowest + log_ndtr(away[at] + slope[at] * drawn[:, at])
    return theta
