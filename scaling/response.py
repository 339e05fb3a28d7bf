"""What a law says of runs, whatever it consists of: one interface for plans, N_opt, predictions and reports.

``law.response`` is a ``Response``. Power laws of batch and rate with a loss law (the paper's constants, ``fit.py
--method grids``) or averaged loss forms answer by ``PowerLaws``, a surface by ``surface.response.SurfaceResponse``.

    law.response.losses(N, T)                     L at the best batch and rate; losses.tokens_for(N, loss), ...
    law.response.batch(N, T, n_ctx, 0.001)        the batch that a plan takes, in whole clips
    law.response.rate(N, T, B)                    the best rate at a batch: value, low, high
    law.response.penalty(N, T, B)                 what that batch costs: a factor on the loss
    law.response.predict(N, T, B, lr)             losses of runs, with intervals
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.scaling.estimates import Estimate, Prediction, t_quantile
from videoscaling.scaling.laws import LossLaw
from videoscaling.scaling.losses import Losses, as_losses

if TYPE_CHECKING:
    from videoscaling.scaling.laws import Law

# Rounding to whole clips moves a batch by less than this, in ln; along one batch a rate is for no other.
SAME_BATCH = 0.1
# Beyond this factor from the best batch the law's quadratic is far from where it was measured.
MAX_BATCH_RATIO = 4.0
# Rows whose draws are evaluated at once.
DRAW_ROWS = 4096
NARROWS_NOTHING = "the law's points are single runs: their noise is not known apart, so more seeds narrow nothing"


class Response(Protocol):
    """What a law says of runs of N parameters on T tokens. N, T, B and lr are numbers or arrays that broadcast.

    Attributes:
        takes_tolerance: whether the batch follows from a tolerance of the loss.
        reads_pairs: whether losses are predicted at any B and lr, and not at the best ones alone.
        domain: (smallest, largest) fitted value of what a loss depends on, by name; None where that is unknown.
    """

    takes_tolerance: bool
    reads_pairs: bool

    @property
    def domain(self) -> dict[str, list[float] | None]: ...

    @property
    def losses(self) -> Losses:
        """L(N, T) at the best batch and rate; UserError with the reason where the law has none."""

    @property
    def no_losses(self) -> str | None:
        """Why L(N, T) is unknown; None where it is known."""

    @property
    def no_best_batch(self) -> str | None:
        """Why B_opt is unknown; None where it is known."""

    def best_batch(self, N: ArrayLike, T: ArrayLike) -> Estimate | None:
        """B_opt in tokens, or None (``no_best_batch`` says why)."""

    def wanted_batch(self, N: ArrayLike, T: ArrayLike, tolerance: float) -> NDArray[np.float64] | None:
        """The batch in tokens that a plan wants, before it is rounded to clips; None where it is unknown.

        It is B_opt of a power law. A surface gives the largest batch whose loss at its best rate is at most
        ``tolerance`` (relative) above the best.
        """

    def batch(self, N: ArrayLike, T: ArrayLike, n_ctx: int, tolerance: float) -> NDArray[np.float64] | None:
        """``wanted_batch`` in whole clips of n_ctx tokens, at least one."""

    def rate(self, N: ArrayLike, T: ArrayLike, B: ArrayLike) -> Estimate | None:
        """The best rate at batches of B tokens (nan: unknown), or None where it is unknown."""

    def penalty(self, N: ArrayLike, T: ArrayLike, B: ArrayLike) -> NDArray[np.float64]:
        """What a batch costs at its best rate: its loss over ``losses(N, T)``."""

    def loss(self, N: ArrayLike, T: ArrayLike, B: ArrayLike) -> Estimate:
        """The loss at batches of B tokens (nan: unknown, taken for the best) and their best rate, with the law's own
        interval."""

    def predict(
        self, N: ArrayLike, T: ArrayLike, B: ArrayLike = np.nan, lr: ArrayLike = np.nan, seeds: int = 1
    ) -> Prediction:
        """Losses of runs [rows]; low and high hold the mean of ``seeds`` new ones. nan: the best batch, or rate."""

    def regret(self, N: ArrayLike, T: ArrayLike, B: ArrayLike, lr: ArrayLike) -> Estimate | None:
        """What runs lose [rows] by their batch and rate: the loss over the best pair's, less 1. None: unknown."""

    def notes(self, seeds: int) -> list[str]:
        """What a reader of ``predict``'s intervals must know, a line each."""

    def batch_warnings(self, N: float, T: float, B: float | None, n_ctx: int) -> list[str]:
        """What a plan with batch B takes beyond what was measured, or what it lacks."""

    def unknown_intervals(self) -> list[str]:
        """Why a plan's numbers have no intervals; empty where they have."""


@dataclass(frozen=True)
class PowerLaws:
    """The response of power laws of batch and rate, with a loss law or averaged forms; each may be unknown."""

    law: "Law"
    takes_tolerance = False
    reads_pairs = False

    @property
    def domain(self) -> dict[str, list[float] | None]:
        """(smallest, largest) N and T."""
        return {name: self.law.domain.get(name) for name in ("N", "T")}

    @cached_property
    def losses(self) -> Losses:
        """The loss law, with its joint draws."""
        self.law.require("loss")
        found, drawn = as_losses(self.law.loss), self.law.drawn("loss")
        if found.predict is not None:
            return found
        draws = None if drawn is None else as_losses(drawn).forms[0].theta
        return Losses((replace(found.forms[0], draws=draws),), found.scale, self._predict)

    @property
    def no_losses(self) -> str | None:
        """Why the law has no loss."""
        return self.law.reason("loss") if self.law.loss is None else None

    @property
    def no_best_batch(self) -> str | None:
        """Why the law has no B_opt."""
        return self.law.reason("batch") if self.law.batch is None else None

    def best_batch(self, N: ArrayLike, T: ArrayLike) -> Estimate | None:
        """B_opt by its power law."""
        if self.law.batch is None:
            return None
        return Estimate.of(self.law.batch(N, T), self._draws("batch", N, T))

    def wanted_batch(self, N: ArrayLike, T: ArrayLike, tolerance: float = 0.0) -> NDArray[np.float64] | None:
        """B_opt, or the one batch along which the law was fitted."""
        if self.law.batch is not None:
            return self.law.batch(N, T)
        return None if (fixed := self._along("B")) is None else np.full(np.broadcast(N, T).shape, fixed)

    def batch(self, N: ArrayLike, T: ArrayLike, n_ctx: int, tolerance: float = 0.0) -> NDArray[np.float64] | None:
        """The nearest whole number of clips to ``wanted_batch``."""
        wanted = self.wanted_batch(N, T)
        return None if wanted is None else np.maximum(np.round(wanted / n_ctx), 1) * n_ctx

    def rate(self, N: ArrayLike, T: ArrayLike, B: ArrayLike) -> Estimate | None:
        """lr_opt, moved with the batch along the ridge; along one batch there is none for another."""
        law, fixed = self.law, self._along("B")
        if law.lr is None:
            return None if (rate := self._along("lr")) is None else Estimate.of(rate)
        drawn = self._draws("lr", N, T)
        if law.batch is None:
            if np.any(np.isnan(B)) or (fixed is not None and np.any(np.abs(np.log(B / fixed)) > SAME_BATCH)):
                return None
            return Estimate.of(law.lr(N, T), drawn)
        value = law.lr(N, T) * np.exp(self._slope * self._off(law.batch(N, T), B))
        batches = self._draws("batch", N, T)
        if drawn is None or batches is None:
            return Estimate.of(value)
        # The rate follows the batch that is used, along the ridge through each draw's own optimum.
        return Estimate.of(value, drawn * np.exp(self._slope * self._off(batches, B)))

    def penalty(self, N: ArrayLike, T: ArrayLike, B: ArrayLike) -> NDArray[np.float64]:
        """By the curvature, at the rate that follows the batch."""
        if self.law.batch is None or self.law.curvature is None:
            return np.ones(np.broadcast(N, T, B).shape)
        off = self._off(self.law.batch(N, T), B)
        return 1 + self.law.curvature(self._slope * off, off)

    def loss(self, N: ArrayLike, T: ArrayLike, B: ArrayLike) -> Estimate:
        """The loss law's, times the penalty."""
        found, penalty = self._own(N, T), self.penalty(N, T, B)
        return Estimate(found.value * penalty, found.low * penalty, found.high * penalty)

    def _own(self, N: ArrayLike, T: ArrayLike) -> Estimate:
        """L(N, T) with the quantiles of its draws, or the interval that averaged forms give."""
        if self.losses.predict != self._predict:
            found, shape = self.losses.predict(N, T, 1), np.broadcast(N, T).shape
            return Estimate(*(v.reshape(shape) for v in (found.mean, found.mean_low, found.mean_high)))
        found = Estimate.of(self.losses(N, T), self._draws("loss", N, T))
        return Estimate(found.value, np.minimum(found.low, found.value), np.maximum(found.high, found.value))

    def predict(
        self, N: ArrayLike, T: ArrayLike, B: ArrayLike = np.nan, lr: ArrayLike = np.nan, seeds: int = 1
    ) -> Prediction:
        """Losses at the best batch and rate: B and lr are not read."""
        return self.losses.predict(N, T, seeds)

    def _predict(self, N: ArrayLike, T: ArrayLike, seeds: int) -> Prediction:
        """The quantiles of the draws, and with the scatter of points around the law and the noise of new runs."""
        N, T = np.broadcast_arrays(*(np.atleast_1d(np.asarray(v, dtype=float)) for v in (N, T)))
        parts = [self._own(N[i : i + DRAW_ROWS], T[i : i + DRAW_ROWS]) for i in range(0, len(N), DRAW_ROWS)]
        value, *ends = (np.concatenate([getattr(part, name) for part in parts]) for name in ("value", "low", "high"))
        new, scatter = np.full((2, len(N)), np.nan), self.law.fit.get("scatter")
        if scatter is not None and not np.isnan(ends).any():
            variance = scatter["points"] ** 2 + (scatter["run"] or 0.0) ** 2 / seeds
            wide = np.hypot(np.log(ends / value), t_quantile(scatter["freedom"]) * np.sqrt(variance))
            new = value * np.exp(np.array([[-1.0], [1.0]]) * wide)
        return Prediction(value, *ends, *new)

    def regret(self, N: ArrayLike, T: ArrayLike, B: ArrayLike, lr: ArrayLike) -> Estimate | None:
        """Unknown: the law's loss is that of the best batch and rate."""
        return None

    def notes(self, seeds: int) -> list[str]:
        """Which intervals are unknown, and why."""
        if self._averages_forms:
            return [NARROWS_NOTHING] if seeds > 1 else []
        scatter, name = self.law.fit.get("scatter"), f"law {self.law.name!r}"
        if self.law.drawn("loss") is None:
            return [f"{name} has no draws: its intervals are unknown"]
        if scatter is None:
            return [f"{name} does not say how runs scatter around it: fit it again for low and high"]
        if scatter["run"] is None and seeds > 1:
            return [NARROWS_NOTHING]
        return []

    def batch_warnings(self, N: float, T: float, B: float | None, n_ctx: int) -> list[str]:
        """Batches far from the best one, or below one clip."""
        if self.law.batch is None:
            return []
        best, warnings = float(self.law.batch(N, T)), []
        if abs(float(self._off(best, B))) > math.log(MAX_BATCH_RATIO):
            warnings.append(
                f"the batch is {B / best:.2g} times the law's: rate and loss are extrapolated along the ridge"
            )
        if best < 0.5 * n_ctx:
            warnings.append(f"the law's batch, {best:.3g} tokens, is less than half a clip: one clip is used")
        return warnings

    def unknown_intervals(self) -> list[str]:
        """The parts without draws."""
        if self._averages_forms:
            return []
        if self.law.draws is None:
            return [f"no intervals: the law's draws are unknown ({self.law.reason('draws')})"]
        parts = [part for part in ("batch", "lr", "loss") if getattr(self.law, part)]
        undrawn = [part for part in parts if self.law.drawn(part) is None]
        return [f"no intervals that need draws of {', '.join(undrawn)}: the law has none of them"] if undrawn else []

    def _draws(self, part: str, N: ArrayLike, T: ArrayLike) -> NDArray[np.float64] | None:
        """What the draws of a part say, [draws, ...]; None without any."""
        drawn = self.law.drawn(part)
        if drawn is None:
            return None
        return np.moveaxis(drawn(*(np.asarray(v, dtype=float)[..., None] for v in np.broadcast_arrays(N, T))), -1, 0)

    def _along(self, name: str) -> float | None:
        """The one "B" or "lr" that all the law's runs had, where it was fitted along it."""
        return (self.law.fit.get("along") or {}).get(name)

    @property
    def _averages_forms(self) -> bool:
        """Whether the loss has intervals of its own."""
        return self.law.loss is not None and not isinstance(self.law.loss, LossLaw)

    @property
    def _slope(self) -> float:
        return self.law.lr_given_batch.slope if self.law.lr_given_batch else 0.0

    def _off(self, best: ArrayLike, B: ArrayLike) -> NDArray[np.float64]:
        """ln of a batch over the one that the law's rate is for.

        Rates and losses at the floor of one clip were measured at one clip, and not at the smaller batch they wanted.
        """
        return np.log(np.divide(B, np.maximum(best, self.law.fit.get("floor") or 0)))
