"""The surface's mean: ln L = ln f(N, T) + what a rate and a batch cost, with analytic derivatives.

    x = ln lr - (a + aB ln B + aT ln T + aN ln N)         the rate, from the best one at this batch
    z = ln B - (b + bT ln T + bN ln N)                    the batch, from its critical (or best) value
    S(q, s) = s (sqrt(1 + 2 q / s) - 1)                   a quadratic that grows linearly far away
    valley:   ln L = ln f + S(k x^2 e^(g tanh(x/2)) / 2, s) + w [c ln(1 + e^(z/w)) + d ln(1 + e^(-z/w))] - its minimum
    ellipse:  ln L = ln f + S((k x^2 e^(g tanh(x/2)) + m z^2 e^(h tanh(z/2))) / 2, s)

With d = 0 the valley is open to small batches: there is a critical batch, and no best one. Logarithms of lr, B, T, N
are relative to a scale, and positive constants enter by their logarithms.

Two refinements, both needed by public grids: ln lr_opt is concave in ln B (r: its slope falls from aB + r at small
batches to aB - r at large ones), and k changes with T, N and B (kT, kN, kB). On ScaleBench's sizes below 4e8 they take
the residuals near the best from 0.36 to 0.22 %.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from videoscaling.scaling.fitting.losses import forms, priors

LEVELS = "levels"  # in place of a form: a free level for each grid
# Within how many e-foldings of B from the critical batch the rate's slope and its curvature change.
BEND = 2.0
BATCH_SHAPES = ("one_sided", "two_sided", "ellipse")
RATE = ("a", "aB", "aT", "aN", "ln_k", "g", "ln_s", "kT", "kN")
BATCH = {
    "none": (),
    "one_sided": ("b", "bT", "bN", "r", "kB", "ln_c", "ln_w"),
    "two_sided": ("b", "bT", "bN", "r", "kB", "ln_c", "ln_w", "ln_d"),
    "ellipse": ("b", "bT", "bN", "r", "kB", "ln_m", "h"),
}
# [mean, sd] of the constants' priors. They matter where cells are few: six cells a grid without them cost 1 % of the
# loss on Step Law's grids, 0.2 % with them. A factor of 2 in the rate costs 0.4 to 0.5 % on public grids: k is 0.02.
PRIORS = {
    "aB": (0.5, 0.3),
    "aT": (0.0, 0.5),
    "aN": (-0.3, 0.5),
    "ln_k": (np.log(0.03), 1.0),
    "g": (0.0, 0.5),
    "ln_s": (np.log(0.05), 1.0),
    "b": (0.0, 2.5),
    "bT": (0.5, 0.5),
    "bN": (0.0, 0.5),
    "ln_c": (np.log(0.05), 1.0),
    "ln_w": (0.0, 0.5),
    "ln_d": (np.log(0.02), 1.0),
    "ln_m": (np.log(0.015), 1.0),
    "h": (0.0, 0.5),
    "kT": (0.0, 0.1),
    "kN": (0.0, 0.1),
    "kB": (0.0, 0.2),
    "r": (0.0, 0.1),
}


@dataclass(frozen=True)
class Inputs:
    """Logs of N, T, lr, B relative to a scale, and the number of each row's grid; all [rows]."""

    n: NDArray[np.float64]
    t: NDArray[np.float64]
    l: NDArray[np.float64]  # noqa: E741
    b: NDArray[np.float64]
    grid: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.n)

    def rows(self, chosen: NDArray) -> "Inputs":
        """The chosen rows."""
        return Inputs(self.n[chosen], self.t[chosen], self.l[chosen], self.b[chosen], self.grid[chosen])


@dataclass(frozen=True)
class Mean:
    """The surface at rows.

    Attributes:
        value: [rows] ln L.
        columns: [rows, constants] its derivatives in all constants but free levels.
        excess: [rows] what rate and batch cost, in ln L.
        by_x, by_z: [rows] d ln L / d x and d z: how far a shift of a grid's optimum moves each row.
        levels: [rows, levels] its derivatives in free levels, 1 in a level's own rows; no columns for a form.
    """

    value: NDArray[np.float64]
    columns: NDArray[np.float64]
    excess: NDArray[np.float64]
    by_x: NDArray[np.float64]
    by_z: NDArray[np.float64]
    levels: NDArray[np.bool_]

    @cached_property
    def jacobian(self) -> NDArray[np.float64]:
        """[rows, constants] derivatives in all constants."""
        return np.hstack([self.levels, self.columns])


@dataclass(frozen=True)
class Model:
    """Which surface: the loss form (or LEVELS), the shape in the batch, and what is held.

    Attributes:
        form: of forms.CONSTANTS, or LEVELS.
        batch: of BATCH; "none" where all runs share one batch.
        grids: levels, where form is LEVELS.
        held: constants that are not fitted, by name.
        lowest: ln of the lowest loss, which the prior of a form's floor is relative to.
    """

    form: str
    batch: str
    grids: int = 0
    held: dict[str, float] = field(default_factory=dict)
    lowest: float = 0.0

    @cached_property
    def level_names(self) -> tuple[str, ...]:
        """Names of the constants of the level."""
        if self.form == LEVELS:
            return tuple(f"level{i}" for i in range(self.grids))
        return tuple(f"f.{name}" for name in forms.CONSTANTS[self.form])

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all constants, in theta's order."""
        return self.level_names + RATE + BATCH[self.batch]

    def place(self, name: str) -> int:
        """Where a constant stands in theta."""
        return self.names.index(name)

    @cached_property
    def free(self) -> NDArray[np.int64]:
        """Places of the constants that are fitted."""
        return np.array([i for i, name in enumerate(self.names) if name not in self.held])

    @cached_property
    def prior(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and precision (1 / sd) of theta; of the floor in the coordinates of ``priors.prior_at``."""
        level = np.zeros((2, self.grids)) if self.form == LEVELS else priors.prior_of(forms.CONSTANTS[self.form])
        pairs = [PRIORS.get(name, (0.0, np.inf)) for name in self.names[len(self.level_names) :]]
        own = [mean for mean, _ in pairs], [1 / sd for _, sd in pairs]
        return np.append(level[0], own[0]), np.append(level[1], own[1])

    def prior_at(self, theta: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """How many sd each constant is from its prior, with the derivatives in theta."""
        floor = self.place("f.Linf") if "f.Linf" in self.names else None
        return priors.prior_at(theta, self.prior, floor, self.lowest)


def rate_offset(model: Model, theta: NDArray, n: NDArray, t: NDArray, b: NDArray) -> NDArray:
    """ln lr_opt relative to the scale at batches b; theta [..., constants] broadcasts against the rows."""
    at = len(model.level_names)
    a, aB, aT, aN = (theta[..., at + i] for i in range(4))
    return a + aB * b + aT * t + aN * n


def batch_offset(model: Model, theta: NDArray, n: NDArray, t: NDArray) -> NDArray:
    """ln of the critical batch (valley) or of the best one (ellipse), relative to the scale."""
    at = len(model.level_names) + len(RATE)
    b0, bT, bN = (theta[..., at + i] for i in range(3))
    return b0 + bT * t + bN * n


def evaluate(model: Model, theta: NDArray, rows: Inputs) -> Mean:
    """The surface and its derivatives at rows, for one theta [constants]."""
    count = len(model.level_names)
    levels = rows.grid[:, None] == np.arange(model.grids)
    if model.form == LEVELS:
        level, by_form = theta[rows.grid], np.zeros((len(rows), 0))
    else:
        level, by_form = forms.evaluate(model.form, theta[:count], rows.n, rows.t, rows.b)
    line = rows.l - rate_offset(model, theta, rows.n, rows.t, rows.b)
    ln_k, g, ln_s, kT, kN = theta[count + 4 : count + 9]
    s, place = np.exp(ln_s), count + len(RATE)
    x, ln_k_row = line, ln_k + kT * rows.t + kN * rows.n
    if model.batch != "none":
        z = rows.b - batch_offset(model, theta, rows.n, rows.t)
        r, kB = theta[place + 3 : place + 5]
        tanh = np.tanh(z / BEND)
        # ln lr_opt is concave in ln B: its slope falls from aB + r to aB - r.
        x = line + r * BEND * _log_cosh(z / BEND)
        ln_k_row = ln_k_row + kB * BEND * tanh
    q_rate, q_x, q_g = _skewed(x, np.exp(ln_k_row), g)
    q = q_rate
    if model.batch == "ellipse":
        ln_m, h = theta[place + 5 : place + 7]
        p, p_z, p_h = _skewed(z, np.exp(ln_m), h)
        q = q + p
    root = np.sqrt(1 + 2 * q / s)
    distance = s * (root - 1)
    by_x, by_k = q_x / root, q_rate / root
    columns = [-by_x, -by_x * rows.b, -by_x * rows.t, -by_x * rows.n, by_k, q_g / root, distance - q / root]
    columns += [by_k * rows.t, by_k * rows.n]
    valley = by_z = np.zeros(len(rows))
    if model.batch != "none":
        if model.batch == "ellipse":
            by_z, own = p_z / root, [p / root, p_h / root]
        else:
            valley, by_z, own = _valley(z, theta[place + 5 :], model.batch == "two_sided")
        by_z = by_z + by_x * r * tanh + by_k * kB * (1 - tanh**2)
        bend = [by_x * BEND * _log_cosh(z / BEND), by_k * BEND * tanh]
        columns += [-by_z, -by_z * rows.t, -by_z * rows.n, *bend, *own]
    excess = distance + valley
    return Mean(level + excess, np.column_stack([by_form, *columns]), excess, by_x, by_z, levels)


def _log_cosh(x: NDArray) -> NDArray:
    return np.logaddexp(x, -x) - np.log(2)


def _skewed(x: NDArray, k: NDArray | float, g: float) -> tuple[NDArray, NDArray, NDArray]:
    """k x^2 e^(g tanh(x/2)) / 2 with its derivatives in x and g (that in ln k is itself)."""
    tanh = np.tanh(x / 2)
    stretch = np.exp(g * tanh)
    q = k * x * x * stretch / 2
    return q, k * x * stretch + q * g * (1 - tanh**2) / 2, q * tanh


def _valley(z: NDArray, constants: NDArray, two_sided: bool) -> tuple[NDArray, NDArray, list[NDArray]]:
    """The price of a batch, its derivative in z, and in (ln c, ln w[, ln d])."""
    c, w, d, up, down = _valley_terms(z, constants, two_sided)
    value = w * (c * up + d * down)
    slope = c * expit(z / w) - d * expit(-z / w)
    own = [w * c * up, value - z * slope]
    if two_sided:
        own.append(w * d * down)
    return value, slope, own


def _valley_price(z: NDArray, constants: NDArray, two_sided: bool) -> NDArray:
    """``_valley`` without its derivatives, which are half of its time or more."""
    c, w, d, up, down = _valley_terms(z, constants, two_sided)
    return w * (c * up + d * down)


def _valley_terms(z: NDArray, constants: NDArray, two_sided: bool) -> tuple[NDArray, ...]:
    """c, w, d and ln(1 + e^(z/w)) and ln(1 + e^(-z/w)) above those of the best batch; d is 0 where it is one-sided."""
    c, w = np.exp(constants[:2])
    u = z / w
    up = np.logaddexp(0, u)  # without overflow
    if not two_sided:
        return c, w, np.zeros_like(c), up, np.zeros_like(c)
    d = np.exp(constants[2])
    return c, w, d, up - np.log1p(d / c), np.logaddexp(0, -u) - np.log1p(c / d)


def ridge(model: Model, theta: NDArray, n: NDArray, t: NDArray, b: NDArray) -> NDArray:
    """ln of the best rate at batches b, relative to the scale: the line of ``rate_offset``, bent where r is not 0."""
    line = rate_offset(model, theta, n, t, b)
    if model.batch == "none":
        return line
    r = theta[..., len(model.level_names) + len(RATE) + 3]
    return line - r * BEND * _log_cosh((b - batch_offset(model, theta, n, t)) / BEND)


def price(model: Model, theta: NDArray, n: NDArray, t: NDArray, b: NDArray) -> NDArray:
    """What a batch costs at its best rate, in ln L, from the best batch's (or, one-sided, from very small ones')."""
    if model.batch == "none":
        return np.zeros(np.broadcast_shapes(n.shape, b.shape))
    z = b - batch_offset(model, theta, n, t)
    at = len(model.level_names) + len(RATE) + 5
    own = np.moveaxis(theta, -1, 0)[at:]
    if model.batch == "ellipse":
        s = np.exp(theta[..., len(model.level_names) + 6])
        return s * (np.sqrt(1 + 2 * _skewed(z, np.exp(own[0]), own[1])[0] / s) - 1)
    return _valley_price(z, own, model.batch == "two_sided")


def best_batch(model: Model, theta: NDArray, n: NDArray, t: NDArray) -> NDArray | None:
    """ln B_opt relative to the scale, or None where the shape has no best batch."""
    if model.batch in ("none", "one_sided"):
        return None
    offset = batch_offset(model, theta, n, t)
    if model.batch == "ellipse":
        return offset
    at = len(model.level_names) + len(RATE) + 5
    return offset + np.exp(theta[..., at + 1]) * (theta[..., at + 2] - theta[..., at])
