"""The surface's fit at a given model: generalised least squares with priors, alternating with the noise model."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.fitting.losses import forms
from videoscaling.scaling.fitting.losses.form_fit import fit_form
from videoscaling.scaling.fitting.surface import noise, shape
from videoscaling.scaling.fitting.surface.cells import Cells
from videoscaling.scaling.fitting.surface.shape import Inputs, Model

# A run with fewer degrees of freedom than this around its surface has a residual too many; Student's t weights with
# these degrees keep 5 % outliers from moving the surface.
STUDENT = 6.0
# Of an outlier's variance. Without a bound, few cells with many constants end with sd near 0 and one huge outlier.
MAX_INFLATION = 30.0
# Mean of weight times squared residual of normal errors: with it the noise's sd is theirs, without it 13 % too small.
NORMAL = 0.812
# Fits are alternated with estimates of the noise until no constant of the noise moves by more than this.
SETTLED = 0.01
ROUNDS, UNDAMPED = 16, 6
# Of the cost plus one: a step that promises to lower it by less than half of this is not taken. On ScaleBench below
# 4.3e8 predictions from five starts then agree within 1e-5, 0.2 % of their sd; at 1e-5 they were 0.1 % apart.
CONVERGED = 1e-7
ROUGH = 1e-4  # the same between two estimates of the noise


@dataclass(frozen=True)
class Problem:
    """Rows ready to be fitted: logs relative to a scale, the target, who errs together.

    Attributes:
        y: [rows] ln loss; of a censored row the least that it can be.
        censored: [rows] whether the row only says "at least y".
    """

    inputs: Inputs
    y: NDArray[np.float64]
    censored: NDArray[np.bool_]
    rows: noise.Rows


@dataclass(frozen=True)
class Solution:
    """A fitted theta with its noise model.

    Attributes:
        theta: [constants]; covariance: [constants, constants] (0 for held ones).
        phi: the noise model's constants.
        inflation: [rows] of the noise's variance, by which outliers are weighed down.
        mean: the surface at the rows.
        cost: half the weighted sum of squares, with the prior's.
        robust: what weights that fall with the residuals add to the noise's part of the covariance, a factor.
    """

    model: Model
    theta: NDArray[np.float64]
    covariance: NDArray[np.float64]
    phi: NDArray[np.float64]
    structure: noise.Structure
    inflation: NDArray[np.float64]
    mean: shape.Mean
    cost: float
    robust: float = 1.0

    @property
    def outliers(self) -> float:
        """What outliers multiply the noise's variance by, the mean over rows; 1 where no row is weighed down."""
        return float(np.mean(self.inflation)) / NORMAL


def problem_of(cells: Cells, inputs: Inputs) -> Problem:
    """The fit's problem, where each grid has a finite loss.

    A diverged run counts as no better than the best run of its grid at its batch, or at any batch.
    More would be too much: at the median loss of the grid, rates just above the best one came out 16 % low.
    """
    finite = np.isfinite(cells.loss)
    y = np.log(np.where(finite, cells.loss, 1.0))
    for row in np.flatnonzero(~finite):
        others = (inputs.grid == inputs.grid[row]) & finite
        same_batch = others & (cells.B[row] == cells.B)
        y[row] = np.min(y[same_batch if same_batch.any() else others])
    time, size = (np.unique(v, return_inverse=True)[1] for v in (cells.tokens, cells.N))
    h = inputs.l - inputs.b
    return Problem(
        inputs,
        y,
        ~finite,
        noise.Rows(
            n=inputs.n, t=inputs.t, h=h, grid=inputs.grid, size=size, run=cells.run, stream=cells.stream, time=time
        ),
    )


def subset(problem: Problem, chosen: NDArray[np.bool_]) -> Problem:
    """The problem of the chosen rows."""
    rows = noise.Rows(**{name: getattr(problem.rows, name)[chosen] for name in noise.Rows.__dataclass_fields__})
    return Problem(problem.inputs.rows(chosen), problem.y[chosen], problem.censored[chosen], rows)


def model_of(problem: Problem, base: Model, form: str) -> Model:
    """``base`` with a loss form, whose floor's prior is relative to the lowest of the problem's losses."""
    return replace(base, form=form, grids=0, lowest=float(problem.y[~problem.censored].min()))


def effects_of(model: Model) -> tuple[str, ...]:
    """The random effects of a model: levels that are free have no scatter."""
    names = () if model.form == shape.LEVELS else ("ln_level", "ln_size")
    return (*names, "ln_x", *(() if model.batch == "none" else ("ln_z",)))


def solve(
    problem: Problem,
    model: Model,
    theta: NDArray,
    phi: NDArray | None = None,
    rounds: int = ROUNDS,
    inflation: NDArray | None = None,
) -> Solution:
    """Fit a model with its noise from the best of the starts; with no ``rounds``, at the noise that is given.

    Args:
        phi, inflation: where the noise and the outliers' variances start: of another shape's fit they save rounds.
    """
    phi = noise.START.copy() if phi is None else phi
    structure = noise.structure_of(problem.rows, ~problem.censored, effects_of(model))
    inflation = np.ones(len(problem.y)) if inflation is None else inflation
    if theta.ndim > 1:
        found = [descend(problem, structure, model, start, phi, inflation) for start in theta]
        theta = min(found, key=lambda each: each[2])[0]
    moved, pace = np.zeros_like(phi), 1.0
    for number in range(rounds):
        start = theta
        theta, mean, _ = descend(problem, structure, model, theta, phi, inflation, converged=ROUGH)
        at = noise.Sensitivity(mean.excess, mean.by_x, mean.by_z, inflation)
        before, prior = phi, model.prior_at(theta)[1][model.free] ** 2
        phi = noise.estimate(structure, phi, at, mean.jacobian[:, model.free], problem.y - mean.value, prior)
        # Fit and noise can swing around each other for ever: on the study an ellipse's ln_z by 0.29 each round.
        # Earlier halving led fits with six cells a grid to absurd constants.
        if number >= UNDAMPED:
            pace = pace / 2 if moved @ (phi - before) < 0 else min(1.5 * pace, 1.0)
        moved = phi - before
        phi, theta = before + pace * moved, start + pace * (theta - start)
        inflation = inflation ** (1 - pace) * _inflation(problem, structure, mean, phi) ** pace
        if np.max(np.abs(moved)) < SETTLED:
            break
    theta, mean, cost = descend(problem, structure, model, theta, phi, inflation)
    robust = _robust_factor(problem, structure, mean, phi)
    covariance = covariance_of(structure, model, theta, mean=mean, phi=phi, inflation=inflation * robust)
    return Solution(
        model=model,
        theta=theta,
        covariance=covariance,
        phi=phi,
        structure=structure,
        inflation=inflation,
        mean=mean,
        cost=cost,
        robust=robust,
    )


# A step too far runs out of numbers, and is taken back.
@np.errstate(over="ignore", invalid="ignore")
def descend(
    problem: Problem,
    structure: noise.Structure,
    model: Model,
    theta: NDArray,
    phi: NDArray,
    inflation: NDArray,
    converged: float = CONVERGED,
    steps: int = 40,
) -> tuple[NDArray, shape.Mean, float]:
    """Levenberg-Marquardt steps at fixed noise."""
    free = model.free
    mean = shape.evaluate(model, theta, problem.inputs)
    V = noise.Whitener(structure, phi, noise.Sensitivity(mean.excess, mean.by_x, mean.by_z, inflation))
    bound = np.flatnonzero(problem.censored)
    rows = problem.rows
    bound_sd = noise.sd_of(phi, rows.n[bound], rows.t[bound], rows.h[bound], mean.excess[bound])[1]
    # Columns of free levels never change, so that they are whitened once.
    levels = mean.levels.shape[1]
    varying = free[levels:] - levels
    white_levels = V.whiten(mean.levels.astype(float))
    seen_levels = V.explained(white_levels)
    total = levels + 1 + len(varying)
    products = np.zeros((total, total))
    products[:levels, :levels] = white_levels.T @ white_levels - seen_levels.T @ seen_levels

    def equations(mean: shape.Mean, theta: NDArray) -> tuple[float, NDArray, NDArray]:
        """Cost, gradient and Hessian."""
        residual = mean.value - problem.y
        white = V.whiten(np.column_stack([residual, mean.columns[:, varying]]))
        seen = V.explained(white)
        squares = products.copy()
        squares[:levels, levels:] = white_levels.T @ white - seen_levels.T @ seen
        squares[levels:, :levels] = squares[:levels, levels:].T
        squares[levels:, levels:] = white.T @ white - seen.T @ seen
        short = bound[residual[bound] < 0]
        if len(short):
            columns = [mean.levels[short], residual[short, None], mean.columns[np.ix_(short, varying)]]
            scaled = np.hstack(columns) / bound_sd[residual[bound] < 0, None]
            squares += scaled.T @ scaled
        away, slope = (values[free] for values in model.prior_at(theta))
        hessian = np.delete(np.delete(squares, levels, 0), levels, 1)
        hessian[np.diag_indices_from(hessian)] += slope**2
        gradient = np.delete(squares[levels], levels) + away * slope
        return float(0.5 * squares[levels, levels] + 0.5 * away @ away), gradient, hessian

    cost, gradient, hessian = equations(mean, theta)
    damping, curvature = 1e-3, np.zeros_like(hessian)
    for _ in range(steps):
        diagonal = np.diag(hessian)
        ridge = damping * (diagonal + 1e-10 * diagonal.max())
        step = np.linalg.solve(hessian + curvature + np.diag(ridge), gradient)
        if gradient @ step < 0:
            curvature[:] = 0.0
            step = np.linalg.solve(hessian + np.diag(ridge), gradient)
        if gradient @ step < converged * (1 + cost) and damping < 1:
            break
        trial = theta.copy()
        trial[free] -= np.clip(step, -1.0, 1.0)
        new = shape.evaluate(model, trial, problem.inputs)
        found = equations(new, trial)
        if np.isfinite(found[0]) and found[0] < cost:
            moved, turned = (trial - theta)[free], found[1] - gradient
            curvature = _secant(curvature, moved, turned, turned - found[2] @ moved)
            theta, mean = trial, new
            cost, gradient, hessian = found
            damping = max(damping / 6, 1e-9)
        else:
            damping *= 6
            if damping > 1e8:
                break
    return theta, mean, cost


def _secant(S: NDArray, moved: NDArray, turned: NDArray, missing: NDArray) -> NDArray:
    """What the Hessian lacks without second derivatives, updated from a step (Dennis, Gay and Welsch's NL2SOL).

    Args:
        S: the last estimate. moved: the step. turned: by how much it changed the gradient.
        missing: ``turned`` less what the Gauss-Newton Hessian explains.
    """
    along = float(turned @ moved)
    if along <= 0:
        return S
    known = S @ moved
    size = min(1.0, abs(float(moved @ missing)) / max(abs(float(moved @ known)), 1e-300))
    left = missing - size * known
    outer = np.outer(left, turned) / along
    return size * S + outer + outer.T - float(moved @ left) / along**2 * np.outer(turned, turned)


def _residuals(
    problem: Problem, structure: noise.Structure, mean: shape.Mean, phi: NDArray
) -> tuple[NDArray, NDArray]:
    """White residuals less what a row's grid, size and run have in common, and the rows that they belong to.

    So a run is compared with its grid: where a whole grid lies off the surface, the surface is wrong and not the runs.
    """
    V = noise.Whitener(structure, phi, noise.Sensitivity(mean.excess, mean.by_x, mean.by_z, np.ones(len(problem.y))))
    r = V.whiten(problem.y - mean.value)
    return r - V.Z @ np.linalg.solve(V.Z.T @ V.Z + np.diag(V.effect_precision), V.Z.T @ r), V.order


def _inflation(problem: Problem, structure: noise.Structure, mean: shape.Mean, phi: NDArray) -> NDArray:
    """One over Student's weights, which are at most 1; NORMAL where a row is not weighed down."""
    r, order = _residuals(problem, structure, mean, phi)
    inflation = np.full(len(problem.y), NORMAL)
    inflation[order] = NORMAL * np.clip((STUDENT + r**2) / (STUDENT + 1), 1.0, MAX_INFLATION)
    return inflation


def _robust_factor(problem: Problem, structure: noise.Structure, mean: shape.Mean, phi: NDArray) -> float:
    """What the noise's part of the constants' variance is more than the weights say (Huber 1981, section 7.6).

    Weights depend on the residuals, so that a row counts less than its weight. Normal errors give 1.3: intervals
    without it are 13 % too narrow.
    """
    r = np.abs(_residuals(problem, structure, mean, phi)[0])
    weight = 1 / np.clip((STUDENT + r**2) / (STUDENT + 1), 1.0, MAX_INFLATION)
    inside = (weight < 1) & (weight > 1 / MAX_INFLATION)
    slope = np.where(inside, (STUDENT + 1) * (STUDENT - r**2) / (STUDENT + r**2) ** 2, weight)
    scale = np.sum((weight * r) ** 2) / np.sum(weight * r**2)
    return max(float(scale * weight.mean() / max(slope.mean(), 0.3) ** 2), 1.0)


def log_evidence(problem: Problem, solution: Solution) -> float:
    """The restricted log likelihood of the linearised model, priors included."""
    mean, model = solution.mean, solution.model
    at = noise.Sensitivity(mean.excess, mean.by_x, mean.by_z, solution.inflation)
    away, slope = (values[model.free] for values in model.prior_at(solution.theta))
    J, prior = mean.jacobian[:, model.free], slope**2
    value = noise.likelihood(solution.structure, solution.phi, at, J, problem.y - mean.value, prior)[0]
    value += 0.5 * float(np.sum(np.log(prior[prior > 0])) - np.sum(away**2))
    # What weighing outliers down costs under Student's distribution: nothing is gained by calling a row one.
    weight = np.minimum(NORMAL / solution.inflation, 1.0)
    return value + STUDENT / 2 * float(np.sum(np.log(weight) - weight + 1))


def covariance_of(
    structure: noise.Structure, model: Model, theta: NDArray, *, mean: shape.Mean, phi: NDArray, inflation: NDArray
) -> NDArray:
    """Covariance of theta [constants, constants]: 0 for held constants."""
    V = noise.Whitener(structure, phi, noise.Sensitivity(mean.excess, mean.by_x, mean.by_z, inflation))
    J = V.whiten(mean.jacobian[:, model.free])
    seen = V.explained(J)
    information = J.T @ J - seen.T @ seen + np.diag(model.prior_at(theta)[1][model.free] ** 2)
    whole = np.zeros((len(model.names),) * 2)
    whole[np.ix_(model.free, model.free)] = np.linalg.pinv(information, rcond=1e-13, hermitian=True)
    return whole


def starts_of(problem: Problem, model: Model) -> NDArray:
    """Two starts [2, constants]: the linear fit, and the priors with the batch in the middle.

    With few cells a grid the linear fit, which knows no priors, can start in a valley of absurd constants.
    """
    linear = start_of(problem, model)
    plain, levels = model.prior[0].copy(), len(model.level_names)
    plain[:levels] = linear[:levels]
    near = ~problem.censored
    rows = problem.inputs
    aB, aT, aN = (plain[model.place(name)] for name in ("aB", "aT", "aN"))
    lowest = np.full(rows.grid.max() + 1, np.inf)
    np.minimum.at(lowest, rows.grid[near], problem.y[near])
    weight = np.where(near, 1 / (1 + ((problem.y - lowest[rows.grid]) / 0.01) ** 2), 0.0)
    plain[model.place("a")] = np.average(rows.l - aB * rows.b - aT * rows.t - aN * rows.n, weights=weight)
    for name, value in model.held.items():
        if name in model.names:
            plain[model.place(name)] = value
    return np.stack([linear, plain])


def start_of(problem: Problem, model: Model) -> NDArray:
    """theta from one linear least squares fit of a quadratic with free levels per grid, near each grid's best cell."""
    rows, used = problem.inputs, ~problem.censored
    excess = np.full(rows.grid.max() + 1, np.inf)
    np.minimum.at(excess, rows.grid[used], problem.y[used])
    above = problem.y - excess[rows.grid]
    weight = np.where(used, 1 / np.sqrt(0.005**2 + (0.3 * above) ** 2), 0.0)
    l, b, t, n = rows.l, rows.b, rows.t, rows.n  # noqa: E741
    columns = [l * l / 2, l * b, l * t, l * n, l]
    if model.batch != "none":
        columns += [b * b / 2, b * t, b * n, b]
    X = np.stack(columns, axis=1)
    # Free levels: within-grid deviations from weighted means.
    total = np.bincount(rows.grid, weight**2)

    def within(v: NDArray) -> NDArray:
        return v - (np.bincount(rows.grid, weight**2 * v) / np.maximum(total, 1e-300))[rows.grid]

    X = np.stack([within(v) for v in X.T], axis=1) * weight[:, None]
    y = within(problem.y) * weight
    ridge = 1e-3 * np.sqrt(np.sum(weight**2)) * 0.01
    size = np.linalg.norm(X, axis=0) + 1e-300
    found = (
        np.linalg.lstsq(np.vstack([X / size, ridge * np.eye(len(size))]), np.append(y, np.zeros(len(size))))[0] / size
    )
    theta = model.prior[0].copy()
    values: dict[str, float] = {}
    k = found[0]
    if k > 1e-4:
        values |= {
            "ln_k": np.log(k),
            "aB": -found[1] / k,
            "aT": -found[2] / k,
            "aN": -found[3] / k,
            "a": -found[4] / k,
        }
    else:
        best = above[used] == 0
        values["a"] = float(np.mean(l[used][best]))
        k = 0.03
    if model.batch != "none":
        aB, a, aT, aN = (values.get(name, theta[model.place(name)]) for name in ("aB", "a", "aT", "aN"))
        m = found[5] - k * aB**2
        if m > 1e-4:
            # Derivative of the quadratic in b, less the rate's share, is m (b - offset).
            slopes = [-(found[6 + i] - k * aB * v) / m for i, v in enumerate((aT, aN, a))]
            values |= {"bT": slopes[0], "bN": slopes[1], "b": slopes[2]}
            if abs(slopes[0]) > 1.5 or abs(slopes[1]) > 1.5 or abs(slopes[2]) > 4:
                values |= {"bT": 0.4, "bN": 0.0, "b": float(np.average(b[used], weights=weight[used] ** 2))}
        else:
            m = 0.01
            values |= {"bT": 0.4, "bN": 0.0, "b": float(np.quantile(b[used], 0.7))}
        m = min(max(m, 0.003), 0.3)
        values |= {"ln_m": np.log(m), "ln_c": np.log(2 * m), "ln_d": np.log(2 * m)}
    lowest = excess  # ln of each grid's best loss
    if model.form == shape.LEVELS:
        theta[: model.grids] = np.where(np.isfinite(lowest), lowest, np.mean(lowest[np.isfinite(lowest)]))
    else:
        theta[: len(model.level_names)] = _form_start(model.form, rows, lowest)
    for name, value in values.items():
        if name in model.names and name not in model.held:
            theta[model.place(name)] = value
    for name, value in model.held.items():
        if name in model.names:
            theta[model.place(name)] = value
    return theta


def _form_start(form: str, rows: Inputs, lowest: NDArray) -> NDArray:
    """A form fitted to the best losses of the grids."""
    _, first = np.unique(rows.grid, return_index=True)
    known = np.isfinite(lowest[rows.grid[first]])
    at = first[known]
    n, t, b = (np.exp(v[at]) for v in (rows.n, rows.t, rows.b))
    scale = forms.Scale(1.0, 1.0, 1.0)
    return fit_form(form, n, t, np.exp(lowest[rows.grid[at]]), b, scale=scale).theta
