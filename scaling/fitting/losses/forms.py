"""Loss forms f(N, T) at the best batch and rate, and one fitter for all of them.

    additive     Nc / N^aN + Tc / T^aT + Linf                                   (eq. 9)
    joint        (Nc / N^aN + Tc / T^aT)^k + Linf                               (Farseer, arXiv 2506.10972, in spirit)
    floorless    (Nc / N^aN + Tc / T^aT)^k                                      (Kaplan et al. 2020)
    product      (1 + Nc / N^aN) (1 + Tc / T^aT) Linf
    three_term   Nc / N^aN + Bc / B^aB + Sc / steps^aS + Linf, steps = T / B    (arXiv 2607.01487)

The additive form is wrong on most public data: on Farseer's largest models it errs by 3 %, the joint form by 0.4 %.
Constants are positive, so the fitter works on their logarithms, with N, T and B relative to their geometric means:
there all constants are of order one. The minimum is that of Huber losses of log residuals (Hoffmann et al. 2022,
appendix D.3), by damped Gauss-Newton steps with analytic derivatives, for many problems at once.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.scaling.fitting.losses import priors
from videoscaling.utils.errors import UserError, plural

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
START_EXPONENTS = (0.2, 0.5, 1.0)
START_FLOORS = (0.1, 0.5, 0.8, 0.95)
# Rows that a start is refined on before the best ones are finished on all rows.
START_ROWS = 1500
# Of more problems those leave that have stopped falling, and do not wait for the slowest.
FEW = 25
# Of a descent, which its tolerance ends: along a floor that the data hardly identify 150 are too few.
STEPS = 1000
# Residuals that are computed at once: more leave the processor's cache.
CHUNK = 200_000


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
        random = np.random.default_rng(seed)
        weights = random.exponential(size=(draws, label.max() + 1))
        # What only a prior decides varies as the prior does: each refit has a centre drawn from it.
        known = sharpness > 0
        centres = np.broadcast_to(mean, (draws, len(mean))).copy()
        centres[:, known] += random.standard_normal((draws, known.sum())) / sharpness[known]
        starts = np.broadcast_to(theta, centres.shape)
        drawn, _ = descend(
            form,
            starts,
            logs,
            y,
            precision,
            sd=sd,
            weight=weights[:, label],
            steps=STEPS,
            prior=(centres, sharpness),
            tolerance=1e-6,
        )
    # ``sd`` is that of the row known best, which has precision 1: a new run is no better known than the others.
    spread = float(sd * np.sqrt(np.mean(precision**-2)))
    return FormFit(form, theta, scale, spread, np.linalg.pinv(hessian, rcond=1e-12), drawn)


# Huber's constant: 95 % efficiency under normal noise.
HUBER = 1.345


def _finish(form: str, starts: NDArray, logs: list, y: NDArray, precision: NDArray) -> tuple[NDArray, float]:
    """The best minimum from several starts, with the noise that its residuals show."""
    sd = max(0.1 * float(np.std(y)), 1e-7)
    theta, cost = descend(form, starts, logs, y, precision, sd=sd, steps=60)
    theta = theta[np.argsort(cost)[:4]]
    for _ in range(8):
        residual, _ = _weighted(form, theta[0], logs, y, precision)
        freedom = max(len(y) - len(CONSTANTS[form]), 1)
        scatter = 1.4826 * float(np.median(np.abs(residual))) * np.sqrt(len(y) / freedom)
        new = max(scatter, 1e-7)
        theta, cost = descend(form, theta, logs, y, precision, sd=new, steps=STEPS)
        theta = theta[np.argsort(cost)]
        if abs(np.log(new / sd)) < 0.01:
            break
        sd = new
    return theta[0], new


def _weighted(form: str, theta: NDArray, logs: list, y: NDArray, precision: NDArray) -> tuple[NDArray, NDArray]:
    value, J = evaluate(form, theta, *logs)
    return (value - y) * precision, J * precision[:, None]


def descend(
    form: str,
    theta: NDArray,
    logs: tuple | list,
    y: NDArray,
    precision: NDArray,
    *,
    sd: float,
    weight: NDArray | None = None,
    steps: int = 100,
    prior: tuple[NDArray, NDArray] | None = None,
    free: NDArray | None = None,
    exponents: tuple[float, float] | None = None,
    ceiling: float = np.inf,
    tolerance: float = 1e-9,
) -> tuple[NDArray, NDArray]:
    """Minimise Huber's loss in units of ``sd`` plus the prior from [problems, constants] starts at once.

    Args:
        logs: [rows] each; y: ln loss, [rows] or [problems, rows].
        precision: [rows] multiplies residuals; weight: [rows] or [problems, rows] multiplies a row's Huber loss.
        prior: mean, [constants] or [problems, constants], and precision, as of ``priors.prior_of(CONSTANTS[form])``.
        free: [constants] which are fitted; the others stay as they start.
        exponents: the smallest and largest that there may be.
        ceiling: Linf is at most this, and never above the lowest loss.
        tolerance: relative gain below which a step counts as none; four of them end the descent.

    Returns:
        theta [problems, constants] and objectives [problems].
    """
    per = max(CHUNK // len(logs[0]), 1)
    if len(theta) > per:
        found = []
        for part in (slice(i, i + per) for i in range(0, len(theta), per)):
            mine, own = (v if np.ndim(v) < 2 else v[part] for v in (y, weight))
            centred = prior and (prior[0] if np.ndim(prior[0]) < 2 else prior[0][part], prior[1])
            found.append(
                descend(
                    form,
                    theta[part],
                    logs,
                    mine,
                    precision,
                    sd=sd,
                    weight=own,
                    steps=steps,
                    prior=centred,
                    free=free,
                    exponents=exponents,
                    ceiling=ceiling,
                    tolerance=tolerance,
                )
            )
        return tuple(np.concatenate(v) for v in zip(*found))
    theta = theta.copy()
    mean, sharpness = priors.prior_of(CONSTANTS[form]) if prior is None else prior
    mean = np.broadcast_to(mean, theta.shape)
    every = len(theta), len(logs[0])
    y, weight = np.broadcast_to(y, every), np.broadcast_to(1.0 if weight is None else weight, every)
    free = np.ones(len(sharpness), dtype=bool) if free is None else free
    floor = floor_of(form)
    bounded = [at for at, name in enumerate(CONSTANTS[form]) if name in priors.EXPONENTS and exponents and free[at]]
    lowest = np.min(y, axis=-1)
    highest = np.minimum(lowest, np.log(ceiling))
    found, costs, left = theta, np.empty(len(theta)), np.arange(len(theta))
    floor_free = floor is not None and bool(free[floor])
    if floor_free:
        theta[:, floor] = np.minimum(theta[:, floor], highest)

    def objective(theta: NDArray) -> tuple[NDArray, ...]:
        value, J = evaluate(form, theta, *logs)
        residual = (value - y) * (precision / sd)
        size = np.abs(residual)
        huber = np.where(size <= HUBER, residual**2 / 2, HUBER * (size - HUBER / 2))
        away, slope = priors.prior_at(theta, (mean, sharpness), floor, lowest)
        total = np.sum(weight * huber, axis=-1) + np.sum(away**2, axis=-1) / 2
        return np.where(np.isfinite(total), total, np.inf), residual, J, away, slope

    damping = np.full(len(theta), 1e-3)
    cost, residual, J, away, slope = objective(theta)
    calm = np.zeros(len(theta), dtype=int)
    for _ in range(steps):
        irls = weight * np.minimum(1.0, HUBER / np.maximum(np.abs(residual), 1e-300))
        own = J if free.all() else J[..., free]
        Jw = (own * (irls * (precision / sd) ** 2)[..., None]).swapaxes(1, 2)
        hessian = Jw @ own + slope[:, free, None] ** 2 * np.eye(free.sum())
        gradient = (Jw @ (residual / (precision / sd))[..., None])[..., 0] + (away * slope)[:, free]
        diagonal = np.einsum("pii->pi", hessian)
        ridge = damping[:, None] * (diagonal + 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300)
        step = np.linalg.solve(hessian + ridge[..., None] * np.eye(free.sum()), gradient[..., None])[..., 0]
        trial = theta.copy()
        trial[:, free] -= np.clip(step, -1.5, 1.5)
        if bounded:
            trial[:, bounded] = np.clip(trial[:, bounded], *np.log(exponents))
        if floor_free:
            trial[:, floor] = np.clip(trial[:, floor], highest - 14, highest)
        new_cost, *new = objective(trial)
        better = new_cost < cost
        calm = np.where(cost - np.where(better, new_cost, cost) <= tolerance * cost, calm + 1, 0)
        theta[better], cost[better] = trial[better], new_cost[better]
        for old, found_now in zip((residual, J, away, slope), new):
            old[better] = found_now[better]
        damping = np.clip(np.where(better, damping / 5, damping * 4), 1e-12, 1e10)
        if np.all(calm >= 4):
            break
        if len(left) > FEW and np.mean(calm >= 4) > 0.1:
            found[left], costs[left] = theta, cost
            state = (left, theta, cost, residual, J, away, slope, damping, y, weight, lowest, highest, mean, calm)
            left, theta, cost, residual, J, away, slope, damping, y, weight, lowest, highest, mean, calm = (
                values[calm < 4] for values in state
            )
    found[left], costs[left] = theta, cost
    return found, costs


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
