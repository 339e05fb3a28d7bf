"""How much a run would narrow a prediction: the posterior of a surface, linearised, updated before the run is made.

Near the fit ln loss is linear in the surface's constants and in the random effects of grids, sizes and shared
samples. All are Gaussian, so a run with Jacobian A and noise R takes P A' (A P A' + R)^-1 A P off the covariance P,
whatever its loss will be. That is the covariance of a refit with the run added, at the same constants.
"""

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from videoscaling.scaling.fitting.losses import forms
from videoscaling.scaling.fitting.surface import least_squares, noise, shape
from videoscaling.scaling.fitting.surface.cells import Cells
from videoscaling.scaling.fitting.surface.noise import LIKENESS
from videoscaling.scaling.fitting.surface.shape import Inputs
from videoscaling.scaling.fitting.surface.surface import Surface
from videoscaling.scaling.fitting.surface.surface_law import EDGE
from videoscaling.scaling.fitting.unsupported import UnsupportedFit
from videoscaling.scaling.planning.allocation import SIZES, Cost

# The batch that a plan takes is the largest whose loss is at most this much above the best; the edge that is narrowed
# is where the loss is EDGE above it.
TOLERANCE = 1e-3
STEP = 1e-4  # of ln N and of constants, for numerical derivatives


def solution_of(surface: Surface) -> least_squares.Solution:
    """The fit whose covariance counts: the heaviest loss form, or the heaviest shape with free levels."""
    return surface.members[0].solution if surface.members else surface.shape.solution


@dataclass(frozen=True)
class Target:
    """Predictions at one N and T that runs shall narrow.

    Attributes:
        B, lr: the pair that would be planned there.
        names: of "loss", "lr", "batch edge" and "N_opt", those that the runs can identify.
        gradient: [names, constants], of ln of each.
        curvature: d^2 ln loss / d (ln lr)^2 at the best rate: what an error of the rate costs.
    """

    N: float
    T: float
    B: float
    lr: float
    names: tuple[str, ...]
    gradient: NDArray[np.float64]
    curvature: float


def target_at(surface: Surface, N: float, T: float) -> Target:
    """Loss, rate and the batch's 1 % edge at the pair that a plan would take for N parameters and T tokens."""
    solution = solution_of(surface)
    model, theta = solution.model, solution.theta
    has_rates, has_batches = (np.ptp(np.log(v)) > 1e-9 for v in (surface.cells.lr, surface.cells.B))
    n, t, _ = surface.scale.logs(N, T, np.nan)
    B = float(surface.best(N, T, tolerance=TOLERANCE).B.value) if has_batches else float(surface.cells.B[0])
    b = np.log(B / surface.scale.B)
    best = float(shape.ridge(model, theta, n, t, b)) if has_rates else np.log(surface.cells.lr[0] / surface.lr_scale)
    found: dict[str, NDArray] = {}
    at_best = _row(surface, n, t, best, b)
    if surface.members:
        found["loss"] = at_best.jacobian[0]
    if has_rates:
        steps = STEP * np.eye(len(theta))
        found["lr"] = (shape.ridge(model, theta + steps, n, t, b) - shape.ridge(model, theta - steps, n, t, b)) / (
            2 * STEP
        )
    if has_batches:
        found["batch edge"] = _edge_gradient(surface, N, T)
    off = [float(_row(surface, n, t, best + x, b).value[0]) for x in (-0.1, 0.1)]
    curvature = (sum(off) - 2 * float(at_best.value[0])) / 0.1**2
    lr = float(np.exp(best) * surface.lr_scale)
    return Target(N, T, B, lr, tuple(found), np.array(list(found.values())), curvature)


def target_of_budget(surface: Surface, C: float, cost: Cost) -> Target:
    """``target_at`` the size that has the lowest loss at C FLOPs, and N_opt itself.

    Raises:
        UnsupportedFit: no loss form identifies N_opt, or it lies beyond any model.
    """
    if not surface.members:
        raise UnsupportedFit(f"N_opt at {C:.4g} FLOPs is unknown: {surface.no_form}")
    solution = solution_of(surface)
    count = len(solution.model.level_names)

    def level(ln_N: NDArray) -> tuple[NDArray, NDArray]:
        N = np.exp(ln_N)
        n, t, b = surface.scale.logs(N, C / cost(N), np.nan)
        return forms.evaluate(solution.model.form, solution.theta[:count], n, t, b)

    grid = np.linspace(*np.log(SIZES), 4000)
    at = int(np.argmin(level(grid)[0]))
    if at in (0, len(grid) - 1):
        raise UnsupportedFit(f"the loss form has no best size at {C:.4g} FLOPs")
    # A step as wide as the grid's: the ladder's widths make the cost smooth in steps no smaller.
    around = grid[at] + np.array([-0.1, 0.0, 0.1])
    value, jacobian = level(around)
    bend = value[0] - 2 * value[1] + value[2]
    ln_N = grid[at] if bend <= 0 else around[1] - 0.05 * (value[2] - value[0]) / bend
    N = float(np.exp(ln_N))
    found = target_at(surface, N, C / float(cost(np.array(N))))
    gradient = np.zeros(found.gradient.shape[1])
    gradient[:count] = -0.05 * (jacobian[2] - jacobian[0]) / max(bend, 1e-12)
    return Target(
        found.N, found.T, found.B, found.lr, (*found.names, "N_opt"), np.vstack([found.gradient, gradient]),
        found.curvature,
    )  # fmt: skip


def _row(surface: Surface, n: NDArray, t: NDArray, l: float, b: float) -> shape.Mean:  # noqa: E741
    solution = solution_of(surface)
    grid = np.zeros(1, dtype=np.int64)
    return shape.evaluate(solution.model, solution.theta, Inputs(*(np.ravel(v) for v in (n, t, l, b)), grid))


def _edge_gradient(surface: Surface, N: float, T: float) -> NDArray[np.float64]:
    """Of ln of the batch at which the loss is EDGE above the best: price(edge) - price(best) stays EDGE."""
    solution = solution_of(surface)
    model, theta = solution.model, solution.theta
    n, t, _ = surface.scale.logs(N, T, np.nan)
    rows = []
    for B in (surface.edge(T, N, EDGE).value, surface.best(N, T).B.value):
        b = np.log(float(B) / surface.scale.B)
        rows.append(_row(surface, n, t, float(shape.ridge(model, theta, n, t, b)), b))
    return -(rows[0].jacobian[0] - rows[1].jacobian[0]) / max(float(rows[0].by_z[0]), 1e-9)


class Posterior:
    """Covariance of a surface's constants and random effects, and what each run of ``future`` would take off it.

    Args:
        future: rows of runs that could be made (their losses are ignored), several milestones to a run.
    """

    def __init__(self, surface: Surface, future: Cells) -> None:
        self._surface, self._solution = surface, solution_of(surface)
        model, phi = self._solution.model, self._solution.phi
        inflation = self._solution.inflation * self._solution.robust
        self._inflation = float(np.mean(inflation))
        seen = surface.cells.rows(np.isfinite(surface.cells.loss))
        known = inflation[np.isfinite(surface.cells.loss)]
        self._effects: dict[Hashable, tuple[int, float]] = {}
        self._free = model.free
        parts = [self._design(seen, known), self._design(future, np.full(len(future), self._inflation))]
        count = len(self._free) + len(self._effects)
        seen_design, self._A = (self._dense(*part[:2], count) for part in parts)
        precision = np.concatenate(
            [model.prior_at(self._solution.theta)[1][self._free] ** 2, [1 / v for _, v in self._effects.values()]]
        )
        information = np.diag(precision)
        for rows, R in _blocks(seen, parts[0][2], phi):
            information += np.einsum("kmi,kmj->ij", seen_design[rows], np.linalg.solve(R, seen_design[rows]))
        self.covariance = np.linalg.pinv(information, rcond=1e-13, hermitian=True)
        self._runs = _blocks(future, parts[1][2], phi)

    def variances(self, target: Target) -> NDArray[np.float64]:
        """Of ln of the target's quantities, [names]."""
        G = self._gradient(target)
        return np.einsum("qi,ij,qj->q", G, self.covariance, G)

    def falls(self, target: Target) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """How far each run would lower the variances, if it ended at each of its milestones.

        Returns:
            For each group of runs that have as many milestones: rows of ``future`` [runs, milestones], by rising T,
            and falls [runs, milestones, names].
        """
        PG = self.covariance @ self._gradient(target).T
        found = []
        for rows, R in self._runs:
            A = self._A[rows]
            S = A @ self.covariance @ A.transpose(0, 2, 1) + R
            white = np.linalg.solve(np.linalg.cholesky(S), A @ PG)
            found.append((rows, np.cumsum(white**2, axis=1)))
        return found

    def add(self, rows: NDArray[np.int64]) -> None:
        """Take up one run: its rows of ``future`` [milestones]."""
        for group, R in self._runs:
            here = np.flatnonzero((group[:, : len(rows)] == rows).all(axis=1)) if group.shape[1] >= len(rows) else []
            if len(here):
                A, R = self._A[rows], R[here[0], : len(rows), : len(rows)]
                AP = A @ self.covariance
                self.covariance -= AP.T @ np.linalg.solve(AP @ A.T + R, AP)
                return
        raise ValueError("no run of these rows")

    def _gradient(self, target: Target) -> NDArray[np.float64]:
        G = np.zeros((len(target.names), len(self.covariance)))
        G[:, : len(self._free)] = target.gradient[:, self._free]
        return G

    def _design(self, cells: Cells, inflation: NDArray) -> tuple[NDArray, list, NDArray]:
        """Jacobian [rows, free], the effects' (row, place, value), and each row's sd."""
        surface, solution = self._surface, self._solution
        model, phi = solution.model, solution.phi
        n, t, b = surface.scale.logs(cells.N, cells.T, cells.B)
        inputs = Inputs(n, t, np.log(cells.lr / surface.lr_scale), b, self._levels(cells))
        mean = shape.evaluate(model, solution.theta, inputs)
        sd = noise.sd_of(phi, n, t, inputs.l - b, mean.excess)[1] * np.sqrt(inflation)
        scatter = dict(zip(noise.NAMES, np.exp(2 * phi)))
        rho, q = expit(phi[noise.NAMES.index("rho")]), expit(phi[noise.NAMES.index("rho_stream")])
        columns = {"ln_level": np.ones(len(n)), "ln_size": np.ones(len(n)), "ln_x": mean.by_x, "ln_z": mean.by_z}
        entries = []
        for row in range(len(cells)):
            N, T, stream = float(cells.N[row]), float(cells.T[row]), int(cells.stream[row])
            mine = [
                (name, (name, N) if name == "ln_size" else (name, N, T), scatter[name], columns[name][row])
                for name in least_squares.effects_of(model)
            ]
            if stream >= 0:
                mine.append(("", ("stream", stream), LIKENESS * q * rho, sd[row]))
                mine.append(("", ("stream", stream, T), LIKENESS * q * (1 - rho), sd[row]))
            for _, key, variance, value in mine:
                place, _ = self._effects.setdefault(key, (len(self._effects), variance))
                entries.append((row, len(self._free) + place, value))
        return mean.jacobian[:, self._free], entries, sd

    def _levels(self, cells: Cells) -> NDArray[np.int64]:
        """The number of each row's grid among the surface's; 0 for another, which only a loss form can describe."""
        seen = self._surface.cells
        known = dict(zip(zip(seen.N, seen.T), seen.grid))
        found = [known.get(at) for at in zip(cells.N, cells.T)]
        if not self._surface.members and None in found:
            raise ValueError("without a loss form only grids that have runs can be extended")
        return np.array([0 if number is None else number for number in found], dtype=np.int64)

    @staticmethod
    def _dense(jacobian: NDArray, entries: list, count: int) -> NDArray[np.float64]:
        design = np.zeros((len(jacobian), count))
        design[:, : jacobian.shape[1]] = jacobian
        for row, place, value in entries:
            design[row, place] = value
        return design


def _blocks(cells: Cells, sd: NDArray, phi: NDArray) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Runs by their number of milestones: rows [runs, milestones], by rising T, and the noise's covariance of each.

    What runs on the same samples share is an effect of its own (``Posterior``), and not in it.
    """
    rho, q = (expit(phi[noise.NAMES.index(name)]) for name in ("rho", "rho_stream"))
    order = np.lexsort([cells.T, cells.run])
    starts = np.flatnonzero(np.diff(cells.run[order], prepend=-1))
    runs = np.split(order, starts[1:]) if len(order) else []
    found = []
    for length in sorted({len(run) for run in runs}):
        rows = np.array([run for run in runs if len(run) == length])
        share = np.where(cells.stream[rows] >= 0, q, 0.0)[:, :1, None]
        T = cells.T[rows]
        among = LIKENESS * (1 - share) * (rho + (1 - rho) * (T[:, :, None] == T[:, None, :]))
        among = np.where(np.eye(length, dtype=bool), 1 - LIKENESS * share, among)
        found.append((rows, sd[rows][:, :, None] * sd[rows][:, None, :] * among))
    return found
