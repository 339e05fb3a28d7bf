"""How much a run would narrow a prediction: the posterior of a surface, linearised, updated before the run is made.

Near the fit ln loss is linear in the surface's constants and in the random effects of grids, sizes and shared
samples. All are Gaussian, so a run with Jacobian A and noise R takes P A' (A P A' + R)^-1 A P off the covariance P,
whatever its loss will be. That is the covariance of a refit with the run added, at the same constants.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from videoscaling.scaling.fitting.surface import least_squares, noise, shape
from videoscaling.scaling.fitting.surface.cells import Cells
from videoscaling.scaling.fitting.surface.noise import LIKENESS
from videoscaling.scaling.fitting.surface.shape import Inputs
from videoscaling.scaling.fitting.surface.surface import Surface
from videoscaling.scaling.fitting.unsupported import UnsupportedFit
from videoscaling.scaling.laws import EDGE, TOLERANCE
from videoscaling.scaling.losses import Form, Losses
from videoscaling.scaling.planning.allocation import SIZES, Cost, optimum

STEP = 1e-4  # of constants, for numerical derivatives

# Runs that a budget is spent on at once: after so many, a refit chooses better than what was expected before.
MAX_RUNS = 24
# Where the budget and all places at the best run's rate would lower ln of the variances by less than this, nothing is
# worth a run.
MIN_GAIN = 2e-3


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
    has_rates, has_batches = surface.cells.several_rates, surface.cells.several_batches
    n, t, _ = surface.scale.logs(N, T, np.nan)
    B = float(surface.largest_batch(T, N, TOLERANCE)) if has_batches else float(surface.cells.B[0])
    b = np.log(B / surface.scale.B)
    best = float(shape.ridge(model, theta, n, t, b)) if has_rates else np.log(surface.cells.lr[0] / surface.lr_scale)
    off = best + np.array([0.0, -0.1, 0.1])
    around = Inputs(np.full(3, n), np.full(3, t), off, np.full(3, b), np.zeros(3, dtype=np.int64))
    at = shape.evaluate(model, theta, around)
    gradients = {}
    if surface.members:
        gradients["loss"] = at.jacobian[0]
    if has_rates:
        gradients["lr"] = _slope(theta, lambda theta: shape.ridge(model, theta, n, t, b))
    if has_batches:
        gradients["batch edge"] = _slope(theta, lambda theta: surface.edge_place(model, theta, n, t, np.log1p(EDGE)))
    curvature = float(at.value[1] + at.value[2] - 2 * at.value[0]) / 0.1**2
    lr = float(np.exp(best) * surface.lr_scale)
    return Target(
        N=N, T=T, B=B, lr=lr, names=tuple(gradients), gradient=np.array(list(gradients.values())), curvature=curvature
    )


def target_of_budget(surface: Surface, C: float, cost: Cost) -> Target:
    """``target_at`` the size that has the lowest loss at C FLOPs, and N_opt itself.

    Raises:
        UnsupportedFit: no loss form identifies N_opt, or it lies beyond any model.
    """
    if not surface.members:
        raise UnsupportedFit(f"N_opt at {C:.4g} FLOPs is unknown: {surface.no_form}")
    solution = solution_of(surface)
    form, count = solution.model.form, len(solution.model.level_names)

    def size(theta: NDArray) -> NDArray:
        losses = Losses((Form(form, 1.0, theta[..., :count]),), surface.scale)
        return optimum(losses, C, cost)

    N = float(size(solution.theta))
    if not SIZES[0] * 1.01 < N < SIZES[1] / 1.01:
        raise UnsupportedFit(f"the loss form has no best size at {C:.4g} FLOPs")
    found = target_at(surface, N, C / float(cost(np.array(N))))
    gradient = np.vstack([found.gradient, _slope(solution.theta, lambda theta: np.log(size(theta)))])
    return replace(found, names=(*found.names, "N_opt"), gradient=gradient)


def _slope(theta: NDArray, read: Callable[[NDArray], NDArray]) -> NDArray[np.float64]:
    """The derivative [constants] of what is read off theta [..., constants], by central differences."""
    steps = STEP * np.eye(len(theta))
    return (read(theta + steps) - read(theta - steps)) / (2 * STEP)


class Posterior:
    """Covariance of a surface's constants and random effects, and what each run of ``future`` would take off it.

    Args:
        future: rows of runs that could be made (their losses are ignored), several milestones to a run.
    """

    def __init__(self, surface: Surface, future: Cells) -> None:
        solution = solution_of(surface)
        finite, inflation = np.isfinite(surface.cells.loss), solution.inflation * solution.robust
        seen, count = surface.cells.rows(finite), int(finite.sum())
        both = {
            name: np.append(getattr(seen, name), getattr(future, name)) for name in ("N", "T", "B", "lr", "stream")
        }
        inflation = np.append(inflation[finite], np.full(len(future), inflation.mean()))
        design, variance, sd = _design(surface, Cells.of_arrays(**both, loss=1.0), inflation)
        self._free = solution.model.free
        prior = solution.model.prior_at(solution.theta)[1][self._free] ** 2
        information = np.diag(np.append(prior, 1 / variance))
        for rows, R in _blocks(seen, sd[:count], solution.phi):
            information += np.einsum("kmi,kmj->ij", design[rows], np.linalg.solve(R, design[rows]))
        self.covariance = np.linalg.pinv(information, rcond=1e-13, hermitian=True)
        self._A, self._runs = design[count:], _blocks(future, sd[count:], solution.phi)

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


def _design(surface: Surface, cells: Cells, inflation: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Derivatives of ln loss [rows, free constants + effects], the effects' variances, and each row's sd."""
    solution, scale = solution_of(surface), surface.scale
    model, phi = solution.model, solution.phi
    known = dict(zip(zip(surface.cells.N, surface.cells.T), surface.cells.grid))
    if not surface.members and not known.keys() >= set(zip(cells.N, cells.T)):
        raise ValueError("without a loss form only grids that have runs can be extended")
    # A loss form has no levels: the number of another grid is not read.
    levels = np.array([known.get(at, 0) for at in zip(cells.N, cells.T)], dtype=np.int64)
    n, t, b = scale.logs(cells.N, cells.T, cells.B)
    inputs = Inputs(n, t, np.log(cells.lr / surface.lr_scale), b, levels)
    mean = shape.evaluate(model, solution.theta, inputs)
    sd = noise.sd_of(phi, n, t, inputs.l - b, mean.excess)[1] * np.sqrt(inflation)
    scatter, one = dict(zip(noise.NAMES, np.exp(2 * phi))), np.ones(len(n))
    rho, q = (expit(phi[noise.NAMES.index(name)]) for name in ("rho", "rho_stream"))
    size = np.unique(cells.N, return_inverse=True)[1]
    of_grids = {"ln_level": (cells.grid, one), "ln_x": (cells.grid, mean.by_x), "ln_z": (cells.grid, mean.by_z)}
    effects = [
        (*(of_grids | {"ln_size": (size, one)})[name], scatter[name]) for name in least_squares.effects_of(model)
    ]
    moment = np.unique(np.stack([cells.stream, cells.T]), axis=1, return_inverse=True)[1].ravel()
    shared = np.where(cells.stream >= 0, sd, 0.0)
    effects += [(cells.stream, shared, LIKENESS * q * rho), (moment, shared, LIKENESS * q * (1 - rho))]
    columns, variances = [mean.jacobian[:, model.free]], []
    for label, value, variance in effects:
        labels = np.unique(label[value != 0])
        columns.append(np.where(label[:, None] == labels, value[:, None], 0.0))
        variances.append(np.full(len(labels), variance))
    return np.hstack(columns), np.concatenate(variances), sd


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


@dataclass(frozen=True)
class Purchase:
    """One run to pay for.

    Attributes:
        rows: of the runs that could be made, [milestones] by rising T; the run ends with the last.
        flops: what it costs.
        variances: of ln of the target's quantities after it and those before it, [names].
    """

    rows: NDArray[np.int64]
    flops: float
    variances: NDArray[np.float64]


def spend(
    posterior: Posterior,
    target: Target,
    future: Cells,
    flops: NDArray[np.float64],
    *,
    budget: float,
    tolerance: float | None = None,
    most: int = MAX_RUNS,
) -> list[Purchase]:
    """The runs to pay for, each the one that lowers the sum of ln of the target's variances most per FLOP.

    The sum of logarithms has no unit: halving the interval of the loss counts as much as halving that of the rate.
    Each run also pays for its place, budget / most: per FLOP alone, nearly all places went to the cheapest runs.
    Each run is taken once, up to the milestone that is worth most; earlier milestones come free.

    Args:
        posterior: of ``future``; it is left as it is after the runs.
        flops: [rows] of ``future``: the cost of a run that ends at the row's T.
        budget: FLOPs to spend at most.
        tolerance: end where the rate's error is expected to cost no more than this (relative loss).
    """
    variances, found = posterior.variances(target), []
    taken = np.zeros(len(future), dtype=bool)
    left = budget
    while len(found) < most and not (tolerance is not None and rate_cost(target, variances) <= tolerance):
        best, value, after = None, MIN_GAIN / budget, variances
        for rows, falls in posterior.falls(target):
            remaining = np.maximum(variances - falls, 1e-12 * variances)
            gain = -np.sum(np.log(remaining / np.maximum(variances, 1e-300)), axis=-1)
            possible = (flops[rows] <= left) & ~taken[rows[:, :1]]
            rate = np.where(possible, gain / (flops[rows] + budget / most), 0.0)
            run, milestone = np.unravel_index(int(np.argmax(rate)), rate.shape)
            if rate[run, milestone] > value:
                best, value, after = rows[run, : milestone + 1], rate[run, milestone], remaining[run, milestone]
        if best is None:
            break
        posterior.add(best)
        taken[np.isin(future.run, future.run[best[0]])] = True
        variances, left = after, left - float(flops[best[-1]])
        found.append(Purchase(best, float(flops[best[-1]]), variances))
    return found


def rate_cost(target: Target, variances: NDArray[np.float64]) -> float:
    """What the rate's error is expected to cost at the target, in ln loss; 0 where no rate is predicted."""
    if "lr" not in target.names:
        return 0.0
    return max(target.curvature, 0.0) / 2 * float(variances[target.names.index("lr")])
