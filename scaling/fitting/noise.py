"""What losses scatter by around a surface: covariance of the rows, and its constants by restricted likelihood.

    sd_i^2   = sd(N, T, lr / B)^2 + (kappa excess_i)^2      noise, and a surface that is less true far from the optimum
    within a run, milestones correlate by rho; runs on the same samples by rho_stream
    per grid: tau_level^2 of the level, tau_x^2 of ln lr_opt, tau_z^2 of the batch

kappa makes a soft window: no cell is dropped, and the likelihood's ln sd keeps distant cells from being made free.
Rows fall into blocks that share no run, grid or stream, so a table of thousands of rows costs little.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

# constant -> (start, prior mean, prior sd). sd_T, sd_N, sd_H: exponents of the noise in T, N and lr / B. The scatters
# between grids have priors away from 0: with few grids the likelihood is often highest at 0, and intervals too narrow.
CONSTANTS = {
    "ln_sd": (np.log(0.005), np.log(0.005), 3.0),
    "sd_T": (0.0, 0.0, 0.3),
    "sd_N": (0.0, 0.0, 0.3),
    "sd_H": (0.0, 0.0, 0.3),
    "ln_kappa": (np.log(0.15), np.log(0.15), 0.7),
    "rho": (1.5, 1.5, 1.0),
    "rho_stream": (-1.0, -1.0, 1.0),
    "ln_level": (np.log(0.002), np.log(0.002), 1.0),
    "ln_x": (np.log(0.05), np.log(0.05), 0.7),
    "ln_z": (np.log(0.1), np.log(0.1), 0.7),
}
NAMES = tuple(CONSTANTS)
PRIOR_MEAN = np.array([mean for _, mean, _ in CONSTANTS.values()])
PRIOR_PRECISION = np.array([sd**-2 for *_, sd in CONSTANTS.values()])
MAX_STEP = 1.0


@dataclass(frozen=True)
class Rows:
    """What the covariance depends on; arrays [rows].

    Attributes:
        n, t, h: logs of N, T and lr / B relative to a scale.
        grid, run, stream, time: numbers of what rows share; stream -1 where it is unknown.
    """

    n: NDArray[np.float64]
    t: NDArray[np.float64]
    h: NDArray[np.float64]
    grid: NDArray[np.int64]
    run: NDArray[np.int64]
    stream: NDArray[np.int64]
    time: NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """Rows that share nothing with the others, with who shares what: [m, m] masks, None where only a row itself."""

    rows: NDArray[np.int64]
    grid: NDArray[np.bool_]
    time: NDArray[np.bool_] | None
    run: NDArray[np.bool_] | None
    stream: NDArray[np.bool_] | None


def blocks_of(rows: Rows, kept: NDArray[np.bool_]) -> list[Block]:
    """The blocks of the ``kept`` rows."""
    chosen = np.flatnonzero(kept)
    count, links = len(chosen), []
    for label in (rows.grid, rows.run, rows.stream):
        value = label[chosen]
        known = np.flatnonzero(value >= 0)
        _, first, inverse = np.unique(value[known], return_index=True, return_inverse=True)
        links.append((known, known[first][inverse]))
    i, j = (np.concatenate(ends) for ends in zip(*links))
    _, part = connected_components(coo_array((np.ones(len(i)), (i, j)), shape=(count, count)), directed=False)
    order = np.argsort(part, kind="stable")
    ends = np.flatnonzero(np.diff(part[order])) + 1
    found = []
    for members in np.split(chosen[order], ends):
        run, stream = rows.run[members], rows.stream[members]
        several = len(np.unique(run)) < len(run)
        shared = len(np.unique(stream[stream >= 0])) < len(np.unique(run[stream >= 0]))
        same_run = run[:, None] == run
        found.append(
            Block(
                members,
                rows.grid[members][:, None] == rows.grid[members],
                rows.time[members][:, None] == rows.time[members] if several or shared else None,
                same_run if several or shared else None,
                ((stream[:, None] == stream) & (stream >= 0)) | same_run if shared else None,
            )
        )
    return found


def sd_of(phi: NDArray, n: NDArray, t: NDArray, h: NDArray, excess: NDArray) -> tuple[NDArray, NDArray]:
    """A run's sd [rows] in ln L from noise alone, and with the surface's own error far from the optimum."""
    noise = np.exp(phi[0] + phi[1] * t + phi[2] * n + phi[3] * h)
    return noise, np.sqrt(noise**2 + np.exp(2 * phi[4]) * excess**2)


def covariance(
    phi: NDArray,
    block: Block,
    rows: Rows,
    effects: tuple[NDArray, NDArray, NDArray],
    inflation: NDArray,
    derivatives: bool = False,
) -> tuple[NDArray, list[tuple[int, NDArray]]]:
    """Covariance [m, m] of a block and, where asked for, its derivatives by number of constant.

    Args:
        effects: excess, d ln L / dx and d ln L / dz, [rows].
        inflation: [rows] of the noise's variance, above 1 for outliers.
    """
    at = block.rows
    excess, by_x, by_z = (v[at] for v in effects)
    n, t, h = rows.n[at], rows.t[at], rows.h[at]
    noise, total = sd_of(phi, n, t, h, excess)
    inflated = np.sqrt(inflation[at])
    total = total * inflated
    share = (noise * inflated / total) ** 2
    outer = total[:, None] * total
    parts: list[tuple[int, NDArray]] = []
    if block.run is None:
        V = np.diag(total**2)
    else:
        rho, q = expit(phi[5]), expit(phi[6])
        in_time = rho + (1 - rho) * block.time
        among = block.run if block.stream is None else (1 - q) * block.run + q * block.stream
        V = outer * in_time * among
        if derivatives:
            parts.append((5, outer * among * (1.0 - block.time) * rho * (1 - rho)))
            if block.stream is not None:
                parts.append((6, outer * in_time * (block.stream ^ block.run) * q * (1 - q)))
    if derivatives:
        for number, u in ((0, share), (1, share * t), (2, share * n), (3, share * h), (4, 1 - share)):
            parts.append((number, V * (u[:, None] + u)))
    for number, effect in ((7, None), (8, by_x), (9, by_z)):
        if number == 9 and not by_z.any():
            continue
        shared = np.exp(2 * phi[number]) * block.grid
        part = shared if effect is None else shared * effect[:, None] * effect
        V = V + part
        if derivatives:
            parts.append((number, 2 * part))
    return V, parts


def roots_of(
    phi: NDArray, blocks: list[Block], rows: Rows, effects: tuple[NDArray, NDArray, NDArray], inflation: NDArray
) -> list[NDArray]:
    """Lower Cholesky factors of the blocks' covariances."""
    return [cholesky(covariance(phi, block, rows, effects, inflation)[0], lower=True) for block in blocks]


def whiten(roots: list[NDArray], blocks: list[Block], values: NDArray) -> NDArray:
    """Rows [rows, ...] in units in which they are independent with variance 1, block by block."""
    return np.concatenate(
        [solve_triangular(root, values[block.rows], lower=True) for root, block in zip(roots, blocks)]
    )


def log_likelihood(
    phi: NDArray,
    blocks: list[Block],
    rows: Rows,
    effects: tuple[NDArray, NDArray, NDArray],
    inflation: NDArray,
    jacobian: NDArray,
    residual: NDArray,
    prior: NDArray,
) -> tuple[float, NDArray, NDArray]:
    """Restricted log likelihood with the priors, its gradient and its average information in phi.

    Args:
        jacobian, residual: [rows, constants] and [rows], of the linearised mean.
        prior: [constants, constants] precision of the mean's constants.
    """
    count, size = jacobian.shape[1], len(NAMES)
    information, right = prior.copy(), np.zeros(count)
    solved, half_log = [], 0.0
    for block in blocks:
        V, parts = covariance(phi, block, rows, effects, inflation, derivatives=True)
        root = cholesky(V, lower=True)
        half_log += np.log(np.diag(root)).sum()
        inverse_root = solve_triangular(root, np.eye(len(V)), lower=True)
        inverse = inverse_root.T @ inverse_root
        J, r = jacobian[block.rows], residual[block.rows]
        VJ = inverse @ J
        information += J.T @ VJ
        right += VJ.T @ r
        solved.append((parts, inverse, VJ, J, r))
    covariance_of_mean = np.linalg.pinv(information, rcond=1e-13, hermitian=True)
    shift = covariance_of_mean @ right
    value = -half_log - 0.5 * np.linalg.slogdet(information + 1e-12 * np.eye(count))[1]
    gradient, average = np.zeros(size), np.zeros((size, size))
    work, crossed = [], []
    for parts, inverse, VJ, J, r in solved:
        weighted = inverse @ (r - J @ shift)
        value -= 0.5 * float(r @ weighted)
        columns = np.zeros((len(r), size))
        for number, dV in parts:
            moved = dV @ weighted
            columns[:, number] += moved
            trace = np.sum(inverse * dV) - np.sum(covariance_of_mean * (VJ.T @ dV @ VJ))
            gradient[number] += 0.5 * (weighted @ moved - trace)
        work.append(columns.T @ inverse @ columns)
        crossed.append(VJ.T @ columns)
    cross = sum(crossed)
    average = 0.5 * (sum(work) - cross.T @ covariance_of_mean @ cross)
    away = phi - PRIOR_MEAN
    value -= 0.5 * float(np.sum(PRIOR_PRECISION * away**2))
    return value, gradient - PRIOR_PRECISION * away, average + np.diag(PRIOR_PRECISION)


def estimate(
    phi: NDArray,
    blocks: list[Block],
    rows: Rows,
    effects: tuple[NDArray, NDArray, NDArray],
    inflation: NDArray,
    jacobian: NDArray,
    residual: NDArray,
    prior: NDArray,
    steps: int = 8,
) -> NDArray:
    """The covariance's constants that maximise the restricted likelihood, from ``phi``."""
    given = (blocks, rows, effects, inflation, jacobian, residual, prior)
    value, gradient, information = log_likelihood(phi, *given)
    damping = 1e-2
    for _ in range(steps):
        diagonal = np.diag(information)
        step = np.linalg.solve(information + damping * np.diag(diagonal), gradient)
        trial = phi + np.clip(step, -MAX_STEP, MAX_STEP)
        try:
            found = log_likelihood(trial, *given)
        except np.linalg.LinAlgError:
            found = (-np.inf, gradient, information)
        if found[0] > value:
            gain, phi, (value, gradient, information) = found[0] - value, trial, found
            damping = max(damping / 5, 1e-6)
            if gain < 1e-2:
                break
        else:
            damping *= 8
            if damping > 1e6:
                break
    return phi
