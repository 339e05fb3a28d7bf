"""One response surface through all runs: loss over (N, T, B, lr), and what is read off it.

``fit_surface`` chooses the shape in the batch and the loss form by held-out error, and estimates all constants with the
noise. The fitted ``Surface`` gives the best rate at a batch, the batch beyond which the loss is so much worse (the
edge), the best pair under constraints, and losses with intervals.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scaling.fitting import diagnostics, forms, least_squares, noise, selection, shape
from scaling.fitting.estimates import WORSE, Estimate, Prediction, calibration, weights_of
from scaling.fitting.shape import Inputs, Model
from scaling.fitting.table import Cells
from scaling.jackknife import t_quantile
from utils.errors import UserError

FORMS = ("joint", "additive", "product")
DRAWS = 400
# An exponent whose posterior is not this much narrower than its prior is the prior's, not the data's.
LEARNED = 0.7
# B_opt counts as seen where a valley open to small batches errs at least this much more on held-out cells, and where
# this share of the grids hold it between their smallest and largest batch.
TWO_SIDED_GAIN = 1.03
BRACKETED = 1 / 3
HALVINGS = 50


@dataclass(frozen=True)
class Pair:
    """A batch in tokens and a rate, each an Estimate, with what the pair costs over the best, in ln loss."""

    B: Estimate
    lr: Estimate
    cost: NDArray[np.float64]


@dataclass(frozen=True)
class Member:
    """One fitted form, with its weight in averages and the errors that it made on larger sizes and token counts."""

    form: str
    weight: float
    solution: least_squares.Solution
    steps: tuple[selection.Step, ...]

    @property
    def window_error(self) -> float:
        """rms error of predicting larger sizes and token counts from the smaller ones, in ln L."""
        return selection.window_error(list(self.steps))


@dataclass(frozen=True)
class Surface:
    """A fitted surface.

    Attributes:
        scale, lr_scale: what N, T, B and lr are divided by.
        shape: the chosen shape, fitted with free levels: what rates and batches are read off.
        alternatives: the other shapes, best first.
        members: loss forms with weights, best first; empty where the data fix no form.
        no_form: why there are no members, or None.
        domain: (smallest, largest) N, T, B and lr of the runs.
        freedom: degrees of freedom of the t quantiles.
        lack_of_fit: tests of the residuals of the best member (or of the shape).
        rival: the joint form where another one was forced, to compare it with.
    """

    cells: Cells
    scale: forms.Scale
    lr_scale: float
    shape: selection.Candidate
    alternatives: tuple[selection.Candidate, ...]
    members: tuple[Member, ...]
    no_form: str | None
    domain: dict[str, tuple[float, float]]
    freedom: float
    lack_of_fit: tuple[diagnostics.Test, ...]
    rival: Member | None = None

    @cached_property
    def draws(self) -> NDArray[np.float64]:
        """Joint draws [DRAWS, constants] of the shape's constants (its levels included), multivariate t."""
        return draw(self.shape.solution, self.freedom)

    def exponent(self, name: str) -> Estimate:
        """A constant of the shape by name (aB, aT, aN, bT, bN, ...), with its interval."""
        solution = self.shape.solution
        at = solution.model.place(name)
        half = t_quantile(self.freedom) * np.sqrt(solution.covariance[at, at])
        value = solution.theta[at]
        return Estimate(value, value - half, value + half)

    def rate_exponents(self) -> dict[str, Estimate]:
        """Exponents of lr_opt in B, T and N: averages over the runs where the slope in ln B changes."""
        solution, model = self.shape.solution, self.shape.solution.model
        rows, theta = self._inputs(self.cells.N, self.cells.T, self.cells.B, self.lr_scale), solution.theta
        weight = selection.near_weight(self.cells.loss, self.cells.best)
        found = {}
        for name in ("aB", "aT", "aN"):
            pick = np.zeros((1, len(model.names)))
            pick[0, model.place(name)] = 1.0
            if model.batch != "none" and "r" not in model.held:
                tanh = np.tanh((rows.b - shape.batch_offset(model, theta, rows.n, rows.t)) / shape.BEND)
                chain = {"aB": -1.0, "aT": theta[model.place("bT")], "aN": theta[model.place("bN")]}[name]
                pick[0, model.place("r")] = chain * np.average(tanh, weights=weight)
            value = float(theta[model.place(name)] + theta[model.place("r")] * pick[0, model.place("r")]) if (
                model.batch != "none"
            ) else float(theta[model.place(name)])
            half = t_quantile(self.freedom) * float(np.sqrt((pick @ solution.covariance @ pick.T)[0, 0]))
            found[name] = Estimate(*(np.asarray(v) for v in (value, value - half, value + half)))
        return found

    def unidentified(self) -> list[str]:
        """Exponents that the data leave as wide as their priors."""
        solution = self.shape.solution
        _, precision = solution.model.prior
        names = []
        for name in ("aB", "aT", "aN", "bT", "bN"):
            if name in solution.model.names and name not in solution.model.held:
                at = solution.model.place(name)
                if np.sqrt(solution.covariance[at, at]) * precision[at] > LEARNED:
                    names.append(name)
        return names

    def lr_opt(self, B: ArrayLike, T: ArrayLike, N: ArrayLike) -> Estimate:
        """The best learning rate at batches of B tokens, T tokens and N parameters."""
        if np.ptp(np.log(self.cells.lr)) == 0:
            raise UserError("all runs have one learning rate: which rate is best is unknown")
        n, t, b = self.scale.logs(N, T, B)
        return self._estimate(lambda theta: shape.ridge(self.shape.solution.model, theta, n, t, b), self.lr_scale)

    def best_batch(self, T: ArrayLike, N: ArrayLike) -> Estimate | None:
        """B_opt in tokens, or None where the runs do not see both sides of it (``no_best_batch`` says why)."""
        if self.no_best_batch is not None:
            return None
        n, t, _ = self.scale.logs(N, T, np.nan)
        return self._estimate(lambda theta: shape.best_batch(self.shape.solution.model, theta, n, t), self.scale.B)

    @cached_property
    def no_best_batch(self) -> str | None:
        """Why B_opt is unknown; None where it is known."""
        model, theta = self.shape.solution.model, self.shape.solution.theta
        if model.batch == "none":
            return "all runs have one batch"
        one_sided = [c.error for c in (self.shape, *self.alternatives) if c.batch == "one_sided"]
        if model.batch == "one_sided" or (one_sided and not min(one_sided) > TWO_SIDED_GAIN * self.shape.error):
            return "small batches cost nothing that these runs show: only the batch beyond which losses rise is known"
        grids = np.unique(self.cells.grid, return_index=True)[1]
        n, t, _ = self.scale.logs(self.cells.N[grids], self.cells.T[grids], np.nan)
        best = np.exp(shape.best_batch(model, theta, n, t)) * self.scale.B
        low, high = (np.full(len(grids), v) for v in (np.inf, 0.0))
        np.minimum.at(low, self.cells.grid, self.cells.B)
        np.maximum.at(high, self.cells.grid, self.cells.B)
        inside = np.mean((best > low) & (best < high))
        if inside < BRACKETED:
            return f"only {inside:.0%} of the grids have batches on both sides of it"
        return None

    def edge(self, T: ArrayLike, N: ArrayLike, price: float = 0.01) -> Estimate:
        """The batch in tokens beyond which the loss at the best rate is ``price`` (relative) above the best."""
        if self.shape.batch == "none":
            raise UserError("all runs have one batch: what a batch costs is unknown")
        n, t, _ = self.scale.logs(N, T, np.nan)
        model = self.shape.solution.model
        return self._estimate(lambda theta: self._edge(model, theta, n, t, np.log1p(price)), self.scale.B)

    def edges_by_shape(self, T: ArrayLike, N: ArrayLike, price: float = 0.01) -> dict[str, NDArray[np.float64]]:
        """The edge by every shape that was tried, for its spread."""
        n, t, _ = self.scale.logs(N, T, np.nan)
        found = {}
        for candidate in (self.shape, *self.alternatives):
            model, theta = candidate.solution.model, candidate.solution.theta
            name = candidate.batch + (" bent" if candidate.bent else "")
            found[name] = np.exp(self._edge(model, theta, n, t, np.log1p(price))) * self.scale.B
        return found

    def best(
        self, N: ArrayLike, T: ArrayLike, *, B: ArrayLike | None = None, lr: ArrayLike | None = None,
        tolerance: float = 0.0,
    ) -> Pair:  # fmt: skip
        """The best batch and rate, a batch being at least one clip.

        Args:
            B: the batch where it is given. lr: the rate where it is given.
            tolerance: take the largest batch whose loss at its best rate is at most this much (relative) above the best.
        """
        if B is not None and lr is not None:
            raise UserError("with both B and lr given there is nothing to choose")
        n, t, _ = self.scale.logs(N, T, np.nan)
        model, theta = self.shape.solution.model, self.shape.solution.theta
        floor = self._floor(theta, n, t)
        lowest = shape.price(model, theta, n, t, floor)
        if lr is not None:
            return self._best_at_rate(n, t, np.broadcast_to(lr, n.shape), lowest)
        if B is not None:
            batch = np.broadcast_to(np.asarray(B, dtype=float), n.shape)
            cost = shape.price(model, theta, n, t, np.log(batch / self.scale.B)) - lowest
            return Pair(Estimate(batch, batch, batch), self.lr_opt(batch, T, N), cost)
        if tolerance:
            chosen = self.edge(T, N, tolerance)
            cost = np.full(n.shape, np.log1p(tolerance))
        else:
            chosen = self._estimate(lambda theta: self._floor(theta, n, t), self.scale.B)
            cost = np.zeros(n.shape)
        return Pair(chosen, self.lr_opt(chosen.value, T, N), cost)

    def predict(self, N: ArrayLike, T: ArrayLike, B: ArrayLike, lr: ArrayLike, seeds: int = 1) -> Prediction:
        """Losses of runs; ``low`` and ``high`` are those of the mean of ``seeds`` new runs.

        Raises:
            UserError: no loss form was fitted.
        """
        if not self.members:
            raise UserError(f"this surface predicts no losses: {self.no_form}")
        rows = self._inputs(N, T, B, lr)
        weights = np.array([member.weight for member in self.members])
        means, own, new = [], [], []
        for member in self.members:
            solution, phi = member.solution, member.solution.phi
            mean = shape.evaluate(solution.model, solution.theta, rows)
            law = np.einsum("ij,jk,ik->i", mean.jacobian, solution.covariance, mean.jacobian)
            scatter = dict(zip(noise.NAMES, np.exp(2 * phi)))
            factor = self._calibration(member, rows)
            law = law * factor
            grid = factor * (scatter["ln_level"] + scatter["ln_size"])
            grid = grid + scatter["ln_x"] * mean.by_x**2 + scatter["ln_z"] * mean.by_z**2
            _, sd = noise.sd_of(phi, rows.n, rows.t, rows.l - rows.b, mean.excess)
            run = sd**2 * float(np.mean(solution.inflation))
            means.append(mean.value)
            own.append(law)
            new.append(law + grid + run / seeds)
        middle = weights @ np.array(means)
        between = weights @ (np.array(means) - middle) ** 2
        t = t_quantile(self.freedom)
        half, wide = (t * np.sqrt(weights @ np.array(v) + between) for v in (own, new))
        ends = [np.exp(v) for v in (middle, middle - half, middle + half, middle - wide, middle + wide)]
        return Prediction(*ends)

    def warnings(self) -> list[str]:
        """What a reader of the laws must know, a line each."""
        lines = diagnostics.warnings(self.lack_of_fit)
        if self.rival and self.members[0].window_error > WORSE * self.rival.window_error:
            lines.append(
                f"the {self.members[0].form} form errs by {self.members[0].window_error:.2%} where larger sizes and "
                f"token counts are predicted from smaller ones, the joint form by {self.rival.window_error:.2%}"
            )
        names = self.unidentified()
        if names:
            lines.append(f"the data do not identify {', '.join(names)}: their intervals are mostly the priors'")
        if self.no_best_batch:
            lines.append(f"B_opt is unknown: {self.no_best_batch}")
        return lines

    def _calibration(self, member: Member, rows: Inputs) -> NDArray[np.float64]:
        """What the variance between grids is multiplied by beyond the largest N or T, [rows].

        It is the squared errors that were made when larger sizes (or token counts) were predicted from the smaller
        ones, over the variance that the fit claimed, with a prior of two such errors that are just as claimed.
        """
        factor = np.ones(len(rows))
        beyond_any = np.zeros(len(rows), dtype=bool)
        for by, place in (("N", rows.n), ("T", rows.t)):
            ratio = [float(np.mean(step.error**2 / step.sd**2)) for step in member.steps if step.by == by]
            seen = calibration(ratio)
            beyond = place > np.log(self.domain[by][1] / getattr(self.scale, by)) + 1e-9
            factor = np.where(beyond, np.where(beyond_any, np.maximum(factor, seen), seen), factor)
            beyond_any |= beyond
        return factor

    def _inputs(self, N: ArrayLike, T: ArrayLike, B: ArrayLike, lr: ArrayLike) -> Inputs:
        N, T, B, lr = np.broadcast_arrays(*(np.atleast_1d(np.asarray(v, dtype=float)) for v in (N, T, B, lr)))
        n, t, b = self.scale.logs(N, T, B)
        return Inputs(n, t, np.log(lr / self.lr_scale), b, np.zeros(len(n), dtype=np.int64))

    def _estimate(self, read, unit: float) -> Estimate:
        """exp of ``read(theta)`` times ``unit``, with the central 95 % of its values over the draws."""
        value = np.asarray(read(self.shape.solution.theta))
        drawn = read(self.draws.reshape(len(self.draws), *(1,) * value.ndim, -1))
        drawn = np.broadcast_to(drawn, (len(self.draws), *value.shape))
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        return Estimate(*(np.exp(np.clip(v, -80, 80)) * unit for v in (value, low, high)))

    def _floor(self, theta: NDArray, n: NDArray, t: NDArray) -> NDArray:
        """ln of the best batch that there can be: B_opt, at least one clip (or the smallest batch that was run)."""
        least = np.log((self.cells.n_ctx or self.cells.B.min()) / self.scale.B)
        best = shape.best_batch(self.shape.solution.model, theta, n, t) if self.no_best_batch is None else None
        return np.broadcast_to(least, n.shape) if best is None else np.maximum(best, least)

    def _edge(self, model: Model, theta: NDArray, n: NDArray, t: NDArray, price: float) -> NDArray:
        least = np.log((self.cells.n_ctx or self.cells.B.min()) / self.scale.B)
        best = shape.best_batch(model, theta, n, t)
        low = np.zeros(np.broadcast_shapes(theta[..., 0].shape, n.shape)) + least
        low = low if best is None else np.maximum(best, low)
        target = shape.price(model, theta, n, t, low) + price
        high = low + 25.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            beyond = shape.price(model, theta, n, t, middle) > target
            low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
        return (low + high) / 2

    def _best_at_rate(self, n: NDArray, t: NDArray, lr: NDArray, lowest: NDArray) -> Pair:
        """The best batch at a given rate, by search over batches from one clip to the largest that was run."""
        model, theta = self.shape.solution.model, self.shape.solution.theta
        least = np.log((self.cells.n_ctx or self.cells.B.min()) / self.scale.B)
        batches = np.linspace(least, np.log(self.cells.B.max() / self.scale.B), 400)

        def read(theta: NDArray) -> NDArray:
            flat = np.array([self._excess(model, theta, n, t, lr, b) for b in batches])
            return batches[np.argmin(flat, axis=0)]

        value = read(theta)
        drawn = np.array([read(theta) for theta in self.draws[::8]])
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        B = Estimate(*(np.exp(v) * self.scale.B for v in (value, low, high)))
        cost = np.min([self._excess(model, theta, n, t, lr, b) for b in batches], axis=0) - lowest
        return Pair(B, Estimate(lr, lr, lr), cost)

    def _excess(self, model: Model, theta: NDArray, n: NDArray, t: NDArray, lr: NDArray, b: float) -> NDArray:
        size = n.size
        rows = Inputs(
            n.ravel(), t.ravel(), np.log(np.ravel(lr) / self.lr_scale), np.full(size, b), np.zeros(size, dtype=np.int64)
        )
        return shape.evaluate(model, theta, rows).excess.reshape(n.shape)


def draw(solution: least_squares.Solution, freedom: float, count: int = DRAWS, seed: int = 0) -> NDArray[np.float64]:
    """Draws of theta [count, constants], multivariate t, in pairs around the estimate."""
    random = np.random.default_rng(seed)
    roots, vectors = np.linalg.eigh(solution.covariance)
    root = vectors * np.sqrt(np.maximum(roots, 0))
    normal = random.standard_normal((count // 2, len(roots))) @ root.T
    stretch = np.sqrt(freedom / random.chisquare(freedom, count // 2))[:, None]
    return solution.theta + np.concatenate([normal, -normal]) * np.concatenate([stretch, stretch])


def fit_surface(
    cells: Cells, form: str = "auto", batch: str = "auto", bent: bool | None = None, draws_seed: int = 0
) -> Surface:
    """Fit the surface.

    Args:
        form: of FORMS, "levels" for none, or "auto": averaged by expanding-window error.
        batch: of shape.BATCH_SHAPES, or "auto".
        bent: whether the rate's slope in ln B may change with B; None: where held-out cells say so.

    Raises:
        UserError: fewer runs than constants.
    """
    cells = cells.rows(_useful(cells))
    if len(cells) < 6:
        raise UserError(f"{len(cells)} usable runs: a surface needs at least six")
    scale = forms.Scale.of(cells.N, cells.T, cells.B)
    lr_scale = forms.round_to_two_digits(float(np.exp(np.mean(np.log(cells.lr)))))
    n, t, b = scale.logs(cells.N, cells.T, cells.B)
    problem = least_squares.problem_of(cells, Inputs(n, t, np.log(cells.lr / lr_scale), b, cells.grid))
    batches = shape.BATCH_SHAPES if batch == "auto" else (batch,)
    if np.ptp(np.log(cells.B)) < 1e-9:
        batches = ("none",)
    held = {} if np.ptp(np.log(cells.lr)) > 1e-9 else dict.fromkeys(("a", "aB", "aT", "aN", "g", "kT", "kN"), 0.0)
    if held:
        held |= {"ln_k": -40.0, "ln_s": 0.0, "r": 0.0, "kB": 0.0}
    chosen, *others = selection.shapes(cells, problem, batches, held, bent)
    names = FORMS if form == "auto" else () if form == shape.LEVELS else (form,)
    no_form = "free levels were asked for" if form == shape.LEVELS else _no_form(cells)
    members = () if no_form else _members(cells, problem, chosen, names)
    forced = members and form not in ("auto", "joint")
    rival = _members(cells, problem, chosen, ("joint",))[0] if forced else None
    domain = {name: (float(v.min()), float(v.max())) for name, v in zip("NTB", (cells.N, cells.T, cells.B))}
    domain["lr"] = (float(cells.lr.min()), float(cells.lr.max()))
    freedom = max(len(np.unique(cells.grid)) - 4.0, 3.0)
    tested = members[0].solution if members else chosen.solution
    tests = diagnostics.lack_of_fit(problem, tested)
    return Surface(
        cells, scale, lr_scale, chosen, tuple(others), members, no_form, domain, freedom, tests, rival
    )


def _useful(cells: Cells) -> NDArray[np.bool_]:
    """Rows of grids in which some run has a finite loss: where all diverged, nothing says how high the loss would be."""
    return np.isfinite(cells.best)


def _no_form(cells: Cells) -> str | None:
    """Why no loss form can be fitted; None if one can."""
    grids, sizes, times = (len(np.unique(v)) for v in (cells.grid, cells.N, cells.T))
    if sizes < 3 or times < 3:
        return f"{sizes} sizes and {times} token counts fix no loss form: three of each are needed"
    if grids < 6:
        return f"{grids} grids fix no loss form: six are needed"
    return None


def _members(
    cells: Cells, problem: least_squares.Problem, chosen: selection.Candidate, names: tuple[str, ...]
) -> tuple[Member, ...]:
    """The forms with their weights: expanding-window error to the power of its steps, and tempered evidence."""
    found, evidence = [], []
    base = chosen.solution
    for name in names:
        model = replace(base.model, form=name, grids=0)
        theta = least_squares.start_of(problem, model)
        theta[len(model.level_names) :] = base.theta[base.model.grids :]
        solution = least_squares.solve(problem, model, theta, base.phi, rounds=4)
        steps = selection.expanding_window(cells, problem, solution)
        found.append(Member(name, 1.0, solution, tuple(steps)))
        evidence.append(least_squares.log_evidence(problem, solution))
    errors = np.array([member.window_error for member in found])
    weight = weights_of(errors, np.array([len(member.steps) for member in found]), np.array(evidence))
    order = np.argsort(-weight)
    return tuple(replace(found[i], weight=float(weight[i])) for i in order if weight[i] > 0)
