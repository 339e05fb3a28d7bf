"""One response surface through all runs: loss over (N, T, B, lr), and what is read off it.

A fit (``fit.fit_surface``) makes a ``Surface``. It gives the best rate at a batch, the batch beyond which the
loss is so much worse (the edge), the best pair under constraints, and losses with intervals.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.scaling.estimates import Estimate, Prediction, t_quantile
from videoscaling.scaling.fitting.losses import forms, priors
from videoscaling.scaling.fitting.surface import diagnostics, least_squares, noise, selection, shape
from videoscaling.scaling.fitting.surface.cells import Cells
from videoscaling.scaling.fitting.surface.shape import Inputs, Model
from videoscaling.scaling.fitting.uncertainty import DRAWS, UNTESTED, WORSE, calibration, draw, untested_warning
from videoscaling.utils.errors import UserError

# B_opt counts as seen where shapes that are open to small batches have at most this weight, and where this share of
# the grids hold it between their smallest and largest batch.
ONE_SIDED_WEIGHT = 0.05
BRACKETED = 1 / 3
HALVINGS = 50
SEARCHED = 200


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
        shapes: all shapes that were tried, fitted with free levels, heaviest first: rates and batches are averages
            over them.
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
    shapes: tuple[selection.Candidate, ...]
    members: tuple[Member, ...]
    no_form: str | None
    domain: dict[str, tuple[float, float]]
    freedom: float
    lack_of_fit: tuple[diagnostics.Test, ...]
    rival: Member | None = None

    @property
    def shape(self) -> selection.Candidate:
        """The heaviest shape."""
        return self.shapes[0]

    @cached_property
    def draws(self) -> list[tuple[selection.Candidate, NDArray[np.float64]]]:
        """Joint draws [draws, constants] of each shape in the average, as many as its weight asks for."""
        used = [candidate for candidate in self.shapes if candidate.weight > 0]
        counts = [2 * max(round(DRAWS / 2 * candidate.weight), 2) for candidate in used]
        return [(c, draw(c.solution, self.freedom, count)) for c, count in zip(used, counts)]

    def exponent(self, name: str) -> Estimate:
        """A constant by name (aB, aT, aN, bT, bN, ...), averaged over the shapes that have it."""
        found = []
        for candidate in self.shapes:
            model, solution = candidate.solution.model, candidate.solution
            if candidate.weight > 0 and name in model.names:
                if name in ("aB", "aT", "aN"):
                    value, gradient = self._average_slope(candidate, name)
                else:
                    value, gradient = solution.theta[model.place(name)], _unit(model, name)
                found.append((candidate.weight, value, gradient @ solution.covariance @ gradient))
        if not found:
            raise UserError(f"no shape of this surface has a constant {name!r}")
        weight, value, variance = np.array(found).T
        weight = weight / weight.sum()
        middle = weight @ value
        half = t_quantile(self.freedom) * np.sqrt(weight @ (variance + (value - middle) ** 2))
        return Estimate(*(np.asarray(v) for v in (middle, middle - half, middle + half)))

    def rate_exponents(self) -> dict[str, Estimate]:
        """Exponents of lr_opt in B, T and N: averages over the runs where the slope in ln B changes."""
        return {name: self.exponent(name) for name in ("aB", "aT", "aN")}

    def _average_slope(self, candidate: selection.Candidate, name: str) -> tuple[float, NDArray[np.float64]]:
        """The mean slope of ln lr_opt over the runs near the best, and its derivatives [constants].

        Where the rate bends, the slope also depends on where: without the batch's constants the derivatives gave
        intervals up to twice as wide as the draws (in B, on results/study).
        """
        model, theta = candidate.solution.model, candidate.solution.theta
        value, gradient = theta[model.place(name)], _unit(model, name)
        if not candidate.bent:
            return value, gradient
        n, t, b = self.scale.logs(self.cells.N, self.cells.T, self.cells.B)
        weight = selection.near_weight(self.cells.loss, self.cells.best)
        tanh = np.tanh((b - shape.batch_offset(model, theta, n, t)) / shape.BEND)
        mean, r = np.average(tanh, weights=weight), theta[model.place("r")]
        by_batch = None if name == "aB" else model.place(f"b{name[1]}")
        chain = -1.0 if by_batch is None else theta[by_batch]
        gradient[model.place("r")] = chain * mean
        turn = -r * chain * (1 - tanh**2) / shape.BEND
        for constant, by in (("b", 1.0), ("bT", t), ("bN", n)):
            gradient[model.place(constant)] = np.average(turn * by, weights=weight)
        if by_batch is not None:
            gradient[by_batch] += r * mean
        return value + r * chain * mean, gradient

    def unidentified(self) -> list[str]:
        """Exponents that the data leave as wide as their priors."""
        solution = self.shape.solution
        _, precision = solution.model.prior
        names = []
        for name in ("aB", "aT", "aN", "bT", "bN"):
            if name in solution.model.names and name not in solution.model.held:
                at = solution.model.place(name)
                if np.sqrt(solution.covariance[at, at]) * precision[at] > priors.LEARNED:
                    names.append(name)
        return names

    def lr_opt(self, B: ArrayLike, T: ArrayLike, N: ArrayLike) -> Estimate:
        """The best learning rate at batches of B tokens, T tokens and N parameters."""
        if not self.cells.several_rates:
            raise UserError("all runs have one learning rate: which rate is best is unknown")
        n, t, b = self.scale.logs(N, T, B)
        return self._estimate(lambda model, theta: shape.ridge(model, theta, n, t, b), self.lr_scale)

    def best_batch(self, T: ArrayLike, N: ArrayLike) -> Estimate | None:
        """B_opt in tokens, or None where the runs do not see both sides of it (``no_best_batch`` says why)."""
        if self.no_best_batch is not None:
            return None
        n, t, _ = self.scale.logs(N, T, np.nan)
        return self._estimate(lambda model, theta: shape.best_batch(model, theta, n, t), self.scale.B)

    @cached_property
    def no_best_batch(self) -> str | None:
        """Why B_opt is unknown; None where it is known."""
        if self.shape.batch == "none":
            return "all runs have one batch"
        if sum(c.weight for c in self.shapes if c.batch == "one_sided") > ONE_SIDED_WEIGHT:
            return "small batches cost nothing that these runs show: only the batch beyond which losses rise is known"
        grids = np.unique(self.cells.grid, return_index=True)[1]
        n, t, _ = self.scale.logs(self.cells.N[grids], self.cells.T[grids], np.nan)
        solution = self.shape.solution
        best = np.exp(shape.best_batch(solution.model, solution.theta, n, t)) * self.scale.B
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
        return self._estimate(lambda model, theta: self.edge_place(model, theta, n, t, np.log1p(price)), self.scale.B)

    def largest_batch(self, T: ArrayLike, N: ArrayLike, price: float) -> NDArray[np.float64]:
        """The value of ``edge`` alone: a hundred times as fast."""
        n, t, _ = self.scale.logs(N, T, np.nan)
        edge = self._average(lambda model, theta: self.edge_place(model, theta, n, t, np.log1p(price)))
        return np.exp(np.clip(edge, -80, 80)) * self.scale.B

    def stretch(self, N: ArrayLike, T: ArrayLike) -> NDArray[np.float64]:
        """What errors of each member's constants are multiplied by for runs of N and T, [members]."""
        rows = self._inputs(N, T, np.nan, self.lr_scale)
        return np.sqrt([float(self._calibration(member, rows)[0]) for member in self.members])

    def edges_by_shape(self, T: ArrayLike, N: ArrayLike, price: float = 0.01) -> dict[str, NDArray[np.float64]]:
        """The edge by every shape that was tried, for its spread."""
        n, t, _ = self.scale.logs(N, T, np.nan)
        found = {}
        for candidate in self.shapes:
            name = candidate.batch + (" bent" if candidate.bent else "")
            edge = self.edge_place(candidate.solution.model, candidate.solution.theta, n, t, np.log1p(price))
            found[name] = np.exp(edge) * self.scale.B
        return found

    def rate(self, B: ArrayLike, T: ArrayLike, N: ArrayLike) -> NDArray[np.float64]:
        """The value of ``lr_opt`` alone; where all runs have one rate, that one."""
        n, t, b = self.scale.logs(N, T, B)
        if not self.cells.several_rates:
            return np.full(n.shape, self.cells.lr[0])
        return np.exp(self._average(lambda model, theta: shape.ridge(model, theta, n, t, b))) * self.lr_scale

    def best(self, N: ArrayLike, T: ArrayLike, tolerance: float = 0.0) -> tuple[NDArray, NDArray]:
        """The best batch, at least one clip, and its best rate.

        Args:
            tolerance: take the largest batch whose loss at its best rate is at most this much (relative) above.
        """
        if tolerance:
            B = self.largest_batch(T, N, tolerance)
        else:
            # Shapes that disagree are averaged in what a batch costs, not in where it is best.
            n, t, _ = (v[..., None] for v in self.scale.logs(N, T, np.nan))
            batches = self._batches()
            prices = self._average(
                lambda model, theta: shape.price(model, theta, n, t, np.log(batches / self.scale.B))
            )
            B = batches[np.argmin(prices, axis=-1)]
        return B, self.rate(B, T, N)

    def best_batch_at(self, N: NDArray, T: NDArray, lr: NDArray) -> NDArray[np.float64]:
        """The batch of the lowest loss at given rates [rows]."""
        batches = self._batches()
        rows = self._inputs(
            *(np.repeat(v, SEARCHED) for v in (N, T)), np.tile(batches, len(N)), np.repeat(lr, SEARCHED)
        )
        cost = self._average(lambda model, theta: shape.evaluate(model, theta, rows).excess)
        return batches[np.argmin(cost.reshape(len(N), SEARCHED), axis=1)]

    def _batches(self) -> NDArray[np.float64]:
        """Batches to search, from one clip (or the smallest that was run) to the largest that was run."""
        low, high = self.domain["B"]
        return np.geomspace(min(self.cells.n_ctx or low, high), high, SEARCHED)

    def _average(self, read: Callable[[Model, NDArray], NDArray]) -> NDArray[np.float64]:
        """The weighted mean of what the shapes say."""
        used = [candidate for candidate in self.shapes if candidate.weight > 0]
        return sum(c.weight * np.asarray(read(c.solution.model, c.solution.theta)) for c in used)

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
            # More seeds average a run's own noise, not what the surface misses far from the optimum.
            seed, sd = noise.sd_of(phi, rows.n, rows.t, rows.l - rows.b, mean.excess)
            run = (sd**2 - seed**2 + seed**2 / seeds) * solution.outliers
            means.append(mean.value)
            own.append(law)
            new.append(law + grid + run)
        middle = weights @ np.array(means)
        between = weights @ (np.array(means) - middle) ** 2
        t = t_quantile(self.freedom)
        half, wide = (t * np.sqrt(weights @ np.array(v) + between) for v in (own, new))
        ends = [np.exp(v) for v in (middle, middle - half, middle + half, middle - wide, middle + wide)]
        return Prediction(*ends)

    def regret(self, N: ArrayLike, T: ArrayLike, B: ArrayLike, lr: ArrayLike) -> Estimate:
        """What a batch and a rate cost [rows]: the loss over that of the best pair (of at least one clip), less 1."""
        rows = self._inputs(N, T, B, lr)

        def excess(model: Model, theta: NDArray) -> NDArray:
            if theta.ndim > 1:
                return np.stack([excess(model, one) for one in theta.reshape(-1, theta.shape[-1])])
            best = shape.price(model, theta, rows.n, rows.t, self.floor(model, theta, rows.n, rows.t))
            return np.maximum(shape.evaluate(model, theta, rows).excess - best, 0)

        ratio = self._estimate(excess, 1.0)
        return Estimate(*(v - 1 for v in (ratio.value, ratio.low, ratio.high)))

    def warnings(self) -> list[str]:
        """What a reader of the laws must know, a line each."""
        lines = diagnostics.warnings(self.lack_of_fit)
        if self.rival and self.members[0].window_error > WORSE * self.rival.window_error:
            lines.append(
                f"the {self.members[0].form} form errs by {self.members[0].window_error:.2%} where larger sizes and "
                f"token counts are predicted from smaller ones, the joint form by {self.rival.window_error:.2%}"
            )
        by = [by for by in ("N", "T") if self.members and not any(step.by == by for step in self.members[0].steps)]
        if by:
            lines.append(untested_warning(" or ".join(by)))
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
        ``UNTESTED`` where there were none.
        """
        factor = np.ones(len(rows))
        beyond_any = np.zeros(len(rows), dtype=bool)
        for by, place in (("N", rows.n), ("T", rows.t)):
            ratio = [float(np.mean(step.error**2 / step.sd**2)) for step in member.steps if step.by == by]
            seen = calibration(ratio) if ratio else UNTESTED
            beyond = place > np.log(self.domain[by][1] / getattr(self.scale, by)) + 1e-9
            factor = np.where(beyond, np.where(beyond_any, np.maximum(factor, seen), seen), factor)
            beyond_any |= beyond
        return factor

    def _inputs(self, N: ArrayLike, T: ArrayLike, B: ArrayLike, lr: ArrayLike) -> Inputs:
        N, T, B, lr = np.broadcast_arrays(*(np.atleast_1d(np.asarray(v, dtype=float)) for v in (N, T, B, lr)))
        n, t, b = self.scale.logs(N, T, B)
        return Inputs(n, t, np.log(lr / self.lr_scale), b, np.zeros(len(n), dtype=np.int64))

    def _estimate(self, read: Callable[[Model, NDArray], NDArray], unit: float) -> Estimate:
        """exp of what ``read`` gives times ``unit``: its mean over shapes, and the central 95 % over their draws."""
        value = self._average(read)
        drawn = [
            np.broadcast_to(
                read(candidate.solution.model, draws.reshape(len(draws), *(1,) * value.ndim, -1)),
                (len(draws), *value.shape),
            )
            for candidate, draws in self.draws
        ]
        low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975], axis=0)
        return Estimate(*(np.exp(np.clip(v, -80, 80)) * unit for v in (value, low, high)))

    def floor(self, model: Model, theta: NDArray, n: NDArray, t: NDArray) -> NDArray:
        """ln of a shape's best batch, at least one clip (or the smallest batch that was run)."""
        least = np.log((self.cells.n_ctx or self.cells.B.min()) / self.scale.B)
        best = shape.best_batch(model, theta, n, t)
        return np.broadcast_to(least, n.shape) if best is None else np.maximum(best, least)

    def edge_place(self, model: Model, theta: NDArray, n: NDArray, t: NDArray, price: float) -> NDArray:
        """ln of a shape's batch, relative to the scale, that costs ``price`` in ln loss; theta [..., constants]."""
        low = np.zeros(np.broadcast_shapes(theta[..., 0].shape, n.shape)) + self.floor(model, theta, n, t)
        target = shape.price(model, theta, n, t, low) + price
        high = low + 25.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            beyond = shape.price(model, theta, n, t, middle) > target
            low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
        return (low + high) / 2


def _unit(model: Model, name: str) -> NDArray[np.float64]:
    """The derivatives [constants] of one constant."""
    return (np.array(model.names) == name).astype(float)
