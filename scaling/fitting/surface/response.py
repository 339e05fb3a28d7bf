"""What a surface says of runs: ``scaling.response.Response`` by ``scaling.fitting.surface.surface.Surface``."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.scaling.estimates import Estimate, Prediction
from videoscaling.scaling.fitting.surface.surface import Surface
from videoscaling.scaling.fitting.uncertainty import DRAWS, draw
from videoscaling.scaling.losses import Form, Losses
from videoscaling.utils.errors import UserError

SEARCHED_ROWS = 2000  # rows whose best batch is sought at once
SAME = 1e-3  # a batch this near (relative) the end of the range is inside


@dataclass(frozen=True)
class SurfaceResponse:
    """The response of one surface through all runs."""

    surface: Surface
    takes_tolerance = True
    reads_pairs = True

    @property
    def domain(self) -> dict[str, list[float] | None]:
        """(smallest, largest) N, T, B and lr."""
        return {name: list(span) for name, span in self.surface.domain.items()}

    @cached_property
    def losses(self) -> Losses:
        """The members' forms, with draws by their covariance; beyond the fitted range these are stretched."""
        surface = self.surface
        if not surface.members:
            raise UserError(f"this surface predicts no losses: {surface.no_form}")
        found = []
        for member in surface.members:
            own = slice(len(member.solution.model.level_names))
            draws = draw(member.solution, surface.freedom, DRAWS)[:, own]
            found.append(Form(member.form, member.weight, member.solution.theta[own], draws))
        return Losses(tuple(found), surface.scale, self.predict_best, surface.stretch)

    @property
    def no_losses(self) -> str | None:
        """Why no loss form was fitted."""
        return self.surface.no_form

    @property
    def no_best_batch(self) -> str | None:
        """Why the runs do not show B_opt."""
        return self.surface.no_best_batch

    def best_batch(self, N: ArrayLike, T: ArrayLike) -> Estimate | None:
        """B_opt where both sides of it are seen."""
        return self.surface.best_batch(T, N)

    def wanted_batch(self, N: ArrayLike, T: ArrayLike, tolerance: float) -> NDArray[np.float64] | None:
        """The largest batch within ``tolerance`` of the best loss; the runs' own where they have one."""
        if self.surface.shape.batch == "none":
            return np.full(np.broadcast(N, T).shape, self.surface.cells.B[0])
        return self.surface.largest_batch(T, N, tolerance)

    def batch(self, N: ArrayLike, T: ArrayLike, n_ctx: int, tolerance: float) -> NDArray[np.float64] | None:
        """The most whole clips that ``wanted_batch`` has: a larger batch costs more than the tolerance."""
        return np.maximum(np.floor(self.wanted_batch(N, T, tolerance) / n_ctx * (1 + 1e-9)), 1) * n_ctx

    def rate(self, N: ArrayLike, T: ArrayLike, B: ArrayLike) -> Estimate | None:
        """lr_opt(B, T, N); where all runs have one rate, that one."""
        cells = self.surface.cells
        if not cells.several_rates:
            return Estimate.of(np.full(np.broadcast(N, T, B).shape, cells.lr[0]))
        return self.surface.lr_opt(B, T, N)

    def penalty(self, N: ArrayLike, T: ArrayLike, B: ArrayLike) -> NDArray[np.float64]:
        """So that ``losses(N, T)`` times it is what ``predict`` gives at the batch and its best rate."""
        return self.loss(N, T, B).value / self.losses(N, T)

    def loss(self, N: ArrayLike, T: ArrayLike, B: ArrayLike) -> Estimate:
        """What ``predict`` says of runs at the batch and its best rate."""
        N, T, B = np.broadcast_arrays(*(np.asarray(v, dtype=float) for v in (N, T, B)))
        found = self.surface.predict(N.ravel(), T.ravel(), B.ravel(), self.rate(N, T, B).value.ravel())
        return Estimate(*(v.reshape(N.shape) for v in (found.mean, found.mean_low, found.mean_high)))

    def predict(
        self, N: ArrayLike, T: ArrayLike, B: ArrayLike = np.nan, lr: ArrayLike = np.nan, seeds: int = 1
    ) -> Prediction:
        """By the averaged members; B and lr are the best ones where they are nan, of the given other one if any."""
        values = np.broadcast_arrays(*(np.atleast_1d(np.asarray(v, dtype=float)) for v in (N, T, B, lr)))
        N, T, B, lr = (v.ravel() for v in values)
        return self.surface.predict(N, T, *self._filled(N, T, B, lr), seeds)

    def regret(self, N: ArrayLike, T: ArrayLike, B: ArrayLike, lr: ArrayLike) -> Estimate | None:
        """By the averaged shapes; the one of B and lr that is nan is the best one, and nan where both are."""
        values = np.broadcast_arrays(*(np.atleast_1d(np.asarray(v, dtype=float)) for v in (N, T, B, lr)))
        N, T, B, lr = (v.ravel() for v in values)
        numbers, asked = np.full((3, len(N)), np.nan), ~(np.isnan(B) & np.isnan(lr))
        if asked.any():  # hundreds of draws, which plans and curves at the best pairs do not need
            N, T, B, lr = (v[asked] for v in (N, T, B, lr))
            found = self.surface.regret(N, T, *self._filled(N, T, B, lr))
            numbers[:, asked] = found.value, found.low, found.high
        return Estimate(*numbers)

    def predict_best(self, N: ArrayLike, T: ArrayLike, seeds: int = 1) -> Prediction:
        """Losses at the best batch and rate."""
        return self.predict(N, T, seeds=seeds)

    def notes(self, seeds: int) -> list[str]:
        """Nothing is unknown."""
        return []

    def batch_warnings(self, N: float, T: float, B: float | None, n_ctx: int) -> list[str]:
        """Batches beyond those that were run."""
        low, high = self.surface.domain["B"]
        if low * (1 - SAME) <= B <= high * (1 + SAME):
            return []
        than = f"{B / high:.3g} times the largest" if high < B else f"{B / low:.3g} times the smallest"
        return [f"the batch is {than} that was run: what it costs, and its rate, are extrapolated"]

    def unknown_intervals(self) -> list[str]:
        """All numbers have intervals."""
        return []

    def _filled(self, N: NDArray, T: NDArray, B: NDArray, lr: NDArray) -> tuple[NDArray, NDArray]:
        """B and lr with the best ones where they are nan."""
        B, lr, surface = B.copy(), lr.copy(), self.surface
        lacking = np.flatnonzero(np.isnan(B))
        for start in range(0, len(lacking), SEARCHED_ROWS):
            rows = lacking[start : start + SEARCHED_ROWS]
            known = rows[~np.isnan(lr[rows])]
            B[rows] = surface.best(N[rows], T[rows])[0]
            B[known] = surface.best_batch_at(N[known], T[known], lr[known])
        rows = np.isnan(lr)
        lr[rows] = surface.rate(B[rows], T[rows], N[rows])
        return B, lr
