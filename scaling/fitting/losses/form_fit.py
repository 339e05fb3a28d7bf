"""The fit of one loss form to losses: starts from many places, Huber's loss, and a bootstrap.

The minimum is that of Huber losses of log residuals (Hoffmann et al. 2022, appendix D.3).
"""

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.scaling.fitting.losses import priors
from videoscaling.scaling.fitting.losses.descent import HUBER, Problems, descend
from videoscaling.scaling.fitting.losses.forms import CONSTANTS, FormFit, Scale, evaluate, floor_of
from videoscaling.utils.errors import UserError, plural

START_EXPONENTS = (0.2, 0.5, 1.0)
START_FLOORS = (0.1, 0.5, 0.8, 0.95)
START_ROWS = 1500  # that a start is refined on before the best ones are finished on all rows
# Of a descent, which its tolerance ends: along a floor that the data hardly identify 150 are too few.
STEPS = 1000


def fit_form(
    form: str,
    N: ArrayLike,
    T: ArrayLike,
    loss: ArrayLike,
    B: ArrayLike = np.nan,
    *,
    noise: ArrayLike | None = None,
    cluster: ArrayLike | None = None,
    draws: int = 0,
    scale: Scale | None = None,
    start: NDArray | None = None,
    seed: int = 0,
) -> FormFit:
    """Fit one form to losses at their best batch and rate.

    Args:
        N, T, loss, B: [rows]; B is read by three_term only.
        noise: [rows] relative standard errors of the losses, whose ratios weigh the rows; None weighs all alike.
        cluster: [rows] label of what errs together (a run); rows are drawn by cluster. None: each row on its own.
        draws: bootstrap refits for intervals.
        scale: units of N, T, B; their geometric means by default.
        start: [constants] theta of a fit to much the same rows, in ``scale``; None starts from many places.

    Raises:
        UserError: fewer rows than constants, or losses that are all equal.
    """
    N, T, loss = (np.asarray(v, dtype=float) for v in (N, T, loss))
    B = np.broadcast_to(np.asarray(B, dtype=float), N.shape)
    if len(N) < len(CONSTANTS[form]):
        raise UserError(
            f"{plural(len(N), 'point')} cannot fix the {len(CONSTANTS[form])} constants of the {form} form"
        )
    if np.ptp(loss) == 0:
        raise UserError("all losses are equal: there is no law in them")
    scale = scale or Scale.of(N, T, B)
    logs, y = scale.logs(N, T, B), np.log(loss)
    precision = np.ones(len(y)) if noise is None else np.min(noise) / np.asarray(noise, dtype=float)
    random = np.random.default_rng(seed)
    some = np.sort(random.permutation(len(y))[:START_ROWS])
    starts = _starts(form, loss[some]) if start is None else start[None]
    theta, sd = _finish(form, starts, [v[some] for v in logs], y[some], precision[some])
    if len(some) < len(y):
        theta, sd = _finish(form, theta[None], logs, y, precision)
    delta = HUBER * sd
    residual, J = _weighted(form, theta, logs, y, precision)
    irls = np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300))
    mean, sharpness = priors.prior_of(CONSTANTS[form])
    _, slope = priors.prior_at(theta, (mean, sharpness), floor_of(form), y.min())
    hessian = (J * irls[:, None]).T @ J / sd**2 + np.diag(slope**2)
    drawn = None
    if draws:
        label = np.arange(len(y)) if cluster is None else np.unique(cluster, return_inverse=True)[1]
        drawn = _bootstrap(Problems(form, logs, y, precision, sd), theta, label, draws, seed)
    # ``sd`` is that of the row known best, which has precision 1: a new run is no better known than the others.
    spread = float(sd * np.sqrt(np.mean(precision**-2)))
    return FormFit(form, theta, scale, spread, np.linalg.pinv(hessian, rcond=1e-12), drawn)


def _bootstrap(problem: Problems, theta: NDArray, label: NDArray, draws: int, seed: int) -> NDArray:
    """Refits [draws, constants] from theta, with exponential weights by ``label`` [rows].

    What only a prior decides varies as the prior does: each refit has a centre drawn from it."""
    random = np.random.default_rng(seed)
    weights = random.exponential(size=(draws, label.max() + 1))
    mean, sharpness = priors.prior_of(CONSTANTS[problem.form])
    known = sharpness > 0
    centres = np.broadcast_to(mean, (draws, len(mean))).copy()
    centres[:, known] += random.standard_normal((draws, known.sum())) / sharpness[known]
    resampled = replace(problem, weight=weights[:, label], prior=(centres, sharpness))
    return descend(resampled, np.broadcast_to(theta, centres.shape), steps=STEPS, tolerance=1e-6)[0]


def _finish(form: str, starts: NDArray, logs: list, y: NDArray, precision: NDArray) -> tuple[NDArray, float]:
    """The best minimum from several starts, with the noise that its residuals show."""
    sd = max(0.1 * float(np.std(y)), 1e-7)
    theta, cost = descend(Problems(form, logs, y, precision, sd), starts, steps=60)
    theta = theta[np.argsort(cost)[:4]]
    for _ in range(8):
        residual, _ = _weighted(form, theta[0], logs, y, precision)
        freedom = max(len(y) - len(CONSTANTS[form]), 1)
        scatter = 1.4826 * float(np.median(np.abs(residual))) * np.sqrt(len(y) / freedom)
        new = max(scatter, 1e-7)
        theta, cost = descend(Problems(form, logs, y, precision, new), theta, steps=STEPS)
        theta = theta[np.argsort(cost)]
        if abs(np.log(new / sd)) < 0.01:
            break
        sd = new
    return theta[0], new


def _weighted(form: str, theta: NDArray, logs: list, y: NDArray, precision: NDArray) -> tuple[NDArray, NDArray]:
    value, J = evaluate(form, theta, *logs)
    return (value - y) * precision, J * precision[:, None]


def _starts(form: str, loss: NDArray) -> NDArray:
    """[starts, constants]: each floor with each exponent, the rest of the loss split evenly between the terms."""
    starts, low, middle = [], float(loss.min()), float(np.median(loss))
    for share in START_FLOORS if floor_of(form) is not None else (0.0,):
        floor, rest = share * low, middle - share * low
        for exponent in START_EXPONENTS:
            values = dict.fromkeys(priors.EXPONENTS, exponent) | {"Linf": floor, "k": 1.0}
            count = 3 if form == "three_term" else 2
            part = np.sqrt(middle / floor) - 1 if form == "product" else rest / count
            starts.append([np.log(values.get(name, part)) for name in CONSTANTS[form]])
            if form in ("joint", "floorless"):
                # An outer power far from 1 has its own valley: inner terms to the 1 / k, exponents divided by k.
                for k in (0.4, 2.5):
                    near = dict.fromkeys(("Nc", "Tc"), rest ** (1 / k) / 2) | dict.fromkeys(("aN", "aT"), exponent / k)
                    starts.append([np.log((values | near | {"k": k})[name]) for name in CONSTANTS[form]])
    return np.array(starts)
