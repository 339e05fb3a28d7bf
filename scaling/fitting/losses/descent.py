"""Fits of loss forms from many starts at once: damped Gauss-Newton steps (Levenberg-Marquardt) on Huber's loss."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.fitting.losses import forms, priors

HUBER = 1.345  # Huber's constant: 95 % efficiency under normal noise
# Of more problems those leave that have stopped falling, and do not wait for the slowest.
FEW = 25
# Residuals that are computed at once: more leave the processor's cache.
CHUNK = 200_000
CALM = 4  # steps without a gain that end a descent
LONGEST_STEP = 1.5  # of a constant's logarithm
DEEPEST_FLOOR = 14.0  # below the lowest loss, in ln Linf


@dataclass(frozen=True)
class Problems:
    """Fits of one form to the same rows, which may differ in losses, weights and prior.

    Attributes:
        form: its name in ``forms.CONSTANTS``.
        logs: ln N, T and B relative to a scale, each [rows].
        y: ln loss, [rows] or [problems, rows].
        precision: [rows], by which residuals are multiplied.
        sd: the residuals' unit, in which Huber's loss turns from squares to distances.
        weight: [rows] or [problems, rows], by which a row's loss is multiplied.
        prior: mean, [constants] or [problems, constants], and precision, as of ``priors.prior_of``.
        free: [constants] which are fitted; the others stay as they start.
        exponents: the smallest and largest that there may be.
        ceiling: Linf is at most this, and never above the lowest loss.
    """

    form: str
    logs: tuple[NDArray, ...] | list[NDArray]
    y: NDArray
    precision: NDArray
    sd: float
    weight: NDArray | float = 1.0
    prior: tuple[NDArray, NDArray] | None = None
    free: NDArray | None = None
    exponents: tuple[float, float] | None = None
    ceiling: float = np.inf

    def spread(self, count: int) -> "Problems":
        """With an entry for each of ``count`` problems, and the defaults filled in."""
        names, rows = forms.CONSTANTS[self.form], len(self.logs[0])
        mean, sharpness = priors.prior_of(names) if self.prior is None else self.prior
        return replace(
            self,
            y=np.broadcast_to(self.y, (count, rows)),
            weight=np.broadcast_to(self.weight, (count, rows)),
            prior=(np.broadcast_to(mean, (count, len(names))), sharpness),
            free=np.ones(len(names), dtype=bool) if self.free is None else self.free,
        )

    def part(self, chosen: slice | NDArray) -> "Problems":
        """Some of spread problems."""
        mean, sharpness = self.prior
        return replace(self, y=self.y[chosen], weight=self.weight[chosen], prior=(mean[chosen], sharpness))

    def bounded(self, theta: NDArray) -> NDArray:
        """theta [problems, constants], in place, with free exponents and a free floor within their bounds."""
        names = forms.CONSTANTS[self.form]
        if self.exponents:
            at = [i for i, name in enumerate(names) if name in priors.EXPONENTS and self.free[i]]
            theta[:, at] = np.clip(theta[:, at], *np.log(self.exponents))
        floor = forms.floor_of(self.form)
        if floor is not None and self.free[floor]:
            highest = np.minimum(self.y.min(axis=-1), np.log(self.ceiling))
            theta[:, floor] = np.clip(theta[:, floor], highest - DEEPEST_FLOOR, highest)
        return theta


@dataclass
class Points:
    """Where problems stand.

    Attributes:
        theta: [problems, constants] logarithms; cost: [problems], infinite where numbers ran out.
        residual: [problems, rows] in units of their sd; jacobian: [problems, rows, constants] of ln f in theta.
        away, pull: [problems, constants] distance from the prior in its sd, and the derivative of that.
    """

    theta: NDArray
    cost: NDArray
    residual: NDArray
    jacobian: NDArray
    away: NDArray
    pull: NDArray

    @classmethod
    def at(cls, problems: Problems, theta: NDArray) -> "Points":
        """Spread problems at theta."""
        value, jacobian = forms.evaluate(problems.form, theta, *problems.logs)
        residual = (value - problems.y) * (problems.precision / problems.sd)
        size = np.abs(residual)
        huber = np.where(size <= HUBER, residual**2 / 2, HUBER * (size - HUBER / 2))
        lowest = problems.y.min(axis=-1)
        away, pull = priors.prior_at(theta, problems.prior, forms.floor_of(problems.form), lowest)
        cost = np.sum(problems.weight * huber, axis=-1) + np.sum(away**2, axis=-1) / 2
        return cls(theta, np.where(np.isfinite(cost), cost, np.inf), residual, jacobian, away, pull)

    def part(self, chosen: NDArray) -> "Points":
        return Points(*(values[chosen] for values in vars(self).values()))

    def replace(self, chosen: NDArray, other: "Points") -> None:
        """Take the chosen problems' values from ``other``."""
        for name, values in vars(self).items():
            values[chosen] = getattr(other, name)[chosen]

    def step(self, problems: Problems, damping: NDArray) -> NDArray:
        """The damped Gauss-Newton step of the free constants, [problems, free], to subtract from theta.

        Huber's loss is a weighted sum of squares here (iteratively reweighted least squares).
        """
        free, scale = problems.free, problems.precision / problems.sd
        weight = problems.weight * np.minimum(1.0, HUBER / np.maximum(np.abs(self.residual), 1e-300))
        own = self.jacobian if free.all() else self.jacobian[..., free]
        weighted = (own * (weight * scale**2)[..., None]).swapaxes(1, 2)
        hessian = weighted @ own + self.pull[:, free, None] ** 2 * np.eye(free.sum())
        gradient = (weighted @ (self.residual / scale)[..., None])[..., 0] + (self.away * self.pull)[:, free]
        diagonal = np.einsum("pii->pi", hessian)
        ridge = damping[:, None] * (diagonal + 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300)
        step = np.linalg.solve(hessian + ridge[..., None] * np.eye(free.sum()), gradient[..., None])[..., 0]
        return np.clip(step, -LONGEST_STEP, LONGEST_STEP)


def descend(
    problems: Problems, theta: NDArray, *, steps: int = 100, tolerance: float = 1e-9
) -> tuple[NDArray, NDArray]:
    """Minimise Huber's loss plus the prior from theta [problems, constants].

    Args:
        tolerance: relative gain below which a step counts as none; ``CALM`` of them end a problem's descent.

    Returns:
        theta [problems, constants] and costs [problems].
    """
    problems = problems.spread(len(theta))
    at_once = max(CHUNK // len(problems.logs[0]), 1)
    parts = [slice(i, i + at_once) for i in range(0, len(theta), at_once)]
    found = [_descend(problems.part(part), theta[part].copy(), steps, tolerance) for part in parts]
    thetas, costs = (np.concatenate(values) for values in zip(*found))
    return thetas, costs


def _descend(problems: Problems, theta: NDArray, steps: int, tolerance: float) -> tuple[NDArray, NDArray]:
    found, costs, left = theta.copy(), np.empty(len(theta)), np.arange(len(theta))
    points = Points.at(problems, problems.bounded(theta))
    damping, calm = np.full(len(theta), 1e-3), np.zeros(len(theta), dtype=int)
    for _ in range(steps):
        trial = points.theta.copy()
        trial[:, problems.free] -= points.step(problems, damping)
        new = Points.at(problems, problems.bounded(trial))
        better = new.cost < points.cost
        gain = points.cost - np.where(better, new.cost, points.cost)
        calm = np.where(gain <= tolerance * points.cost, calm + 1, 0)
        points.replace(better, new)
        damping = np.clip(np.where(better, damping / 5, damping * 4), 1e-12, 1e10)
        if np.all(calm >= CALM):
            break
        if len(left) > FEW and np.mean(calm >= CALM) > 0.1:
            found[left], costs[left] = points.theta, points.cost
            going = calm < CALM
            problems, points = problems.part(going), points.part(going)
            left, damping, calm = left[going], damping[going], calm[going]
    found[left], costs[left] = points.theta, points.cost
    return found, costs
