"""How losses scatter around a surface: covariance of the rows, and its constants by restricted likelihood (REML).

    sd_i^2   = sd(N, T, lr / B)^2 + (kappa excess_i)^2      noise, and a surface that is less true far from the optimum
    within a run, milestones correlate by rho; runs on the same samples by rho_stream
    scatter between grids: tau_level of ln f, tau_x of ln lr_opt, tau_z of the batch; between sizes: tau_size of ln f

kappa makes a soft window: no cell is dropped, and the likelihood's ln sd keeps distant cells from being made free.
The covariance is V = V0 + Z G Z': V0 in blocks of rows that share a run or its samples, Z the grids' and sizes' random
effects. All work is with V0's blocks and the mixed model equations, so thousands of rows cost little.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.linalg.lapack import dtrtri
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

# constant -> (prior mean, which is the start, and prior sd). sd_T, sd_N, sd_H: exponents of the noise in T, N, lr / B.
# The scatters between grids have priors away from 0: with few grids the likelihood is often highest at 0, and
# intervals are then too narrow.
CONSTANTS = {
    "ln_sd": (np.log(0.005), 3.0),
    "sd_T": (0.0, 0.3),
    "sd_N": (0.0, 0.3),
    "sd_H": (0.0, 0.3),
    "ln_kappa": (np.log(0.15), 0.7),
    "rho": (1.5, 1.0),
    "rho_stream": (-1.0, 1.0),
    "ln_level": (np.log(0.002), 1.0),
    "ln_x": (np.log(0.05), 0.7),
    "ln_z": (np.log(0.1), 0.7),
    "ln_size": (np.log(0.002), 0.7),
}
NAMES = tuple(CONSTANTS)
START = np.array([mean for mean, _ in CONSTANTS.values()])
PRIOR_PRECISION = np.array([sd**-2 for _, sd in CONSTANTS.values()])
MAX_STEP = 1.0
# Added to scaled equations: constants that no row knows are not singular.
SINGULAR = 1e-10
# Correlation of two rows that share run and time: copies of one result are not singular.
LIKENESS = 0.99
# Of the likelihood, between two fits of the surface: more would be spent on a surface that moves again.
STEPS = 4
# A step that promises to raise the likelihood by less is taken unseen, and is the last.
SMALL_GAIN = 0.01


@dataclass(frozen=True)
class Rows:
    """What the covariance depends on; arrays [rows].

    Attributes:
        n, t, h: logs of N, T and lr / B relative to a scale.
        grid, size, run, stream, time: numbers of what rows share; stream -1 where it is unknown.
    """

    n: NDArray[np.float64]
    t: NDArray[np.float64]
    h: NDArray[np.float64]
    grid: NDArray[np.int64]
    size: NDArray[np.int64]
    run: NDArray[np.int64]
    stream: NDArray[np.int64]
    time: NDArray[np.int64]


@dataclass(frozen=True)
class Blocks:
    """Sets of m rows each that share a run or samples.

    Attributes:
        rows: [sets, m]. time, run, stream: [sets, m, m] masks of who shares what; no ``stream`` where no samples are
            shared.
    """

    rows: NDArray[np.int64]
    time: NDArray[np.bool_]
    run: NDArray[np.bool_]
    stream: NDArray[np.bool_] | None


@dataclass(frozen=True)
class Structure:
    """Who errs with whom: ``blocks`` by size, rows that stand ``alone``, and names of the random effects in use."""

    rows: Rows
    blocks: tuple[Blocks, ...]
    alone: NDArray[np.int64]
    effects: tuple[str, ...]


@dataclass(frozen=True)
class Sensitivity:
    """At the current surface: [rows] excess, d ln L / dx, d ln L / dz, and the outliers' inflation of the variance."""

    excess: NDArray[np.float64]
    by_x: NDArray[np.float64]
    by_z: NDArray[np.float64]
    inflation: NDArray[np.float64]


def structure_of(rows: Rows, kept: NDArray[np.bool_], effects: tuple[str, ...]) -> Structure:
    """The structure of the ``kept`` rows."""
    chosen = np.flatnonzero(kept)
    count, links = len(chosen), []
    for label in (rows.run, rows.stream):
        value = label[chosen]
        known = np.flatnonzero(value >= 0)
        _, first, inverse = np.unique(value[known], return_index=True, return_inverse=True)
        links.append((known, known[first][inverse]))
    i, j = (np.concatenate(ends) for ends in zip(*links))
    _, part = connected_components(coo_array((np.ones(len(i)), (i, j)), shape=(count, count)), directed=False)
    order = np.argsort(part, kind="stable")
    parts = np.split(chosen[order], np.flatnonzero(np.diff(part[order])) + 1)
    blocks = []
    for size in np.unique([len(each) for each in parts if len(each) > 1]):
        members = np.stack([each for each in parts if len(each) == size])
        run, known, time = (
            label[members][:, :, None] == label[members][:, None] for label in (rows.run, rows.stream, rows.time)
        )
        stream = known & (rows.stream[members] >= 0)[:, None] | run
        blocks.append(Blocks(members, time, run, None if np.all(stream == run) else stream))
    alone = np.array([each[0] for each in parts if len(each) == 1], dtype=np.int64)
    return Structure(rows, tuple(blocks), alone, effects)


def sd_of(phi: NDArray, n: NDArray, t: NDArray, h: NDArray, excess: NDArray) -> tuple[NDArray, NDArray]:
    """A run's sd [rows] in ln L from noise alone, and with the surface's own error far from the optimum."""
    noise = np.exp(phi[0] + phi[1] * t + phi[2] * n + phi[3] * h)
    return noise, np.sqrt(noise**2 + np.exp(2 * phi[4]) * excess**2)


class Whitener:
    """V at one phi: rows in units in which V0 is 1, and the random effects' columns."""

    def __init__(self, structure: Structure, phi: NDArray, at: Sensitivity) -> None:
        self.structure, self.phi = structure, phi
        rows = structure.rows
        noise, total = sd_of(phi, rows.n, rows.t, rows.h, at.excess)
        inflated = np.sqrt(at.inflation)
        self.share, self.sd = (noise / total) ** 2, total * inflated
        # [sets, m, m]: correlations of V0's blocks, their Cholesky roots, and the roots' inverses.
        self.among = [self._among(blocks) for blocks in structure.blocks]
        self.covariances = [self._covariance(*pair) for pair in zip(structure.blocks, self.among)]
        self.roots = [np.linalg.cholesky(covariance) for covariance in self.covariances]
        self.inverse_roots = [_triangular_inverse(root) for root in self.roots]
        self.order = np.concatenate([structure.alone, *(blocks.rows.ravel() for blocks in structure.blocks)])
        self.log_det = 2 * np.log(self.sd[structure.alone]).sum()
        self.log_det += 2 * sum(np.log(np.diagonal(root, axis1=1, axis2=2)).sum() for root in self.roots)
        columns, self.kinds = [], []
        for name in structure.effects:
            label = rows.size if name == "ln_size" else rows.grid
            effect = {"ln_x": at.by_x, "ln_z": at.by_z}.get(name, np.ones(len(rows.n)))
            groups = np.unique(label[self.order])
            columns.append((label[:, None] == groups) * effect[:, None])
            self.kinds += [NAMES.index(name)] * len(groups)
        self.kinds = np.array(self.kinds, dtype=np.int64)
        self.Z = self.whiten(np.hstack(columns)) if columns else np.zeros((len(self.order), 0))
        self.effect_precision = np.exp(-2 * phi[self.kinds])
        root = np.linalg.cholesky(self.Z.T @ self.Z + np.diag(self.effect_precision))
        self._inverse_root = dtrtri(root, lower=1)[0] if len(root) else root

    def _among(self, blocks: Blocks) -> tuple[NDArray, NDArray]:
        """Correlations [sets, m, m] by time, and by run and samples."""
        rho, q = expit(self.phi[5]), expit(self.phi[6])
        among = blocks.run if blocks.stream is None else (1 - q) * blocks.run + q * blocks.stream
        return rho + (1 - rho) * blocks.time, among

    def _covariance(self, blocks: Blocks, correlations: tuple[NDArray, NDArray]) -> NDArray:
        in_time, among = correlations
        sd = self.sd[blocks.rows]
        shared = LIKENESS * in_time * among
        place = np.arange(shared.shape[1])
        shared[:, place, place] = 1.0
        return sd[:, :, None] * sd[:, None] * shared

    def whiten(self, values: NDArray) -> NDArray:
        """Rows [rows, ...] in units of V0, in the order of ``order``."""
        table = values[:, None] if values.ndim == 1 else values
        alone = self.structure.alone
        parts = [table[alone] / self.sd[alone, None]]
        for inverse_root, blocks in zip(self.inverse_roots, self.structure.blocks):
            parts.append((inverse_root @ table[blocks.rows]).reshape(blocks.rows.size, table.shape[1]))
        return np.concatenate(parts).reshape(len(self.order), *values.shape[1:])

    def explained(self, white: NDArray) -> NDArray:
        """White columns as seen by the random effects: V^-1 is A'A - (explained A)' (explained A)."""
        return self._inverse_root @ (self.Z.T @ white)

    def correlations(self, blocks: Blocks, known: tuple[NDArray, NDArray]) -> list[tuple[int, NDArray]]:
        """d V0 / d phi [sets, m, m] of the two correlations, with the constants' numbers."""
        rho, q = expit(self.phi[5]), expit(self.phi[6])
        in_time, among = known
        sd = self.sd[blocks.rows]
        outer = LIKENESS * sd[:, :, None] * sd[:, None]
        found = [(5, outer * among * (1.0 - blocks.time) * rho * (1 - rho))]
        if blocks.stream is not None:
            found.append((6, outer * in_time * (blocks.stream ^ blocks.run) * q * (1 - q)))
        return found

    def slopes(self, at: NDArray) -> NDArray:
        """d ln sd / d phi of the first five constants, [5, ...] at rows [...]."""
        share, rows = self.share[at], self.structure.rows
        return np.stack([share, share * rows.t[at], share * rows.n[at], share * rows.h[at], 1 - share])


def _triangular_inverse(roots: NDArray) -> NDArray:
    """Inverses of lower triangles [sets, m, m]: of large ones six times as fast as by ``np.linalg.inv``."""
    if roots.shape[1] < 8:
        return np.linalg.inv(roots)
    return np.stack([dtrtri(root.T)[0].T for root in roots])


def likelihood(
    structure: Structure, phi: NDArray, at: Sensitivity, jacobian: NDArray, residual: NDArray, prior: NDArray
) -> tuple[float, NDArray, NDArray]:
    """Restricted log likelihood with the priors, its gradient and its average information in phi.

    Args:
        jacobian, residual: [rows, constants] and [rows], of the linearised mean.
        prior: [constants] precision (1 / variance) of the mean's constants.
    """
    V = Whitener(structure, phi, at)
    count, size, alone = jacobian.shape[1], len(NAMES), len(structure.alone)
    W = np.hstack([V.whiten(jacobian), V.Z])
    r = V.whiten(residual)
    C = W.T @ W + np.diag(np.concatenate([prior, V.effect_precision]))
    # Column scaling: constants far from 1 would spoil the determinant's digits.
    unit = 1 / np.sqrt(np.maximum(np.diag(C), 1e-14 * np.diag(C).max()))
    root = np.linalg.cholesky(C * unit[:, None] * unit + SINGULAR * np.eye(len(C)))
    inverse_root = solve_triangular(root, np.diag(unit), lower=True)
    C_inverse = inverse_root.T @ inverse_root
    solution = C_inverse @ (W.T @ r)
    left = r - W @ solution
    effects = solution[count:]
    value = -0.5 * (
        V.log_det - 2 * np.log(unit).sum() + 2 * np.log(np.diag(root)).sum() - np.log(V.effect_precision).sum()
    )
    value -= 0.5 * float(r @ left)
    gradient, columns = np.zeros(size), np.zeros((len(r), size))
    leverage = np.sum((W[:alone] @ inverse_root.T) ** 2, axis=1)
    # d V0 = 2 diag(u) V0 for rows that stand alone.
    u = V.slopes(structure.alone)
    columns[:alone, :5] = 2 * (u * left[:alone]).T
    gradient[:5] = u @ (left[:alone] ** 2 - 1 + leverage)
    start = alone
    for root, inverse, V0, blocks, among in zip(V.roots, V.inverse_roots, V.covariances, structure.blocks, V.among):
        end, size = start + blocks.rows.size, blocks.rows.shape
        forward, back = np.swapaxes(root, 1, 2), np.swapaxes(inverse, 1, 2)
        # In the rows' own units: what the linearised mean and the effects explain [sets, m, m].
        seen = back @ (W[start:end] @ inverse_root.T).reshape(*size, -1)
        seen = seen @ np.swapaxes(seen, 1, 2)
        w = left[start:end].reshape(*size, 1)
        p, q = (back @ w)[..., 0], (root @ w)[..., 0]
        # d V0 = diag(u) V0 + V0 diag(u), and V0 is root root'.
        u = V.slopes(blocks.rows)
        leverage = np.sum(seen * V0, axis=2)
        gradient[:5] += np.sum(u * (p * q - 1 + leverage), axis=(1, 2))
        u = np.moveaxis(u, 0, -1)
        moved = inverse @ (u * q[..., None]) + forward @ (u * p[..., None])
        columns[start:end, :5] = moved.reshape(-1, 5)
        weight = p[:, :, None] * p[:, None] + seen - back @ inverse
        for number, dV in V.correlations(blocks, among):
            columns[start:end, number] = (inverse @ (dV @ p[..., None])).ravel()
            gradient[number] += 0.5 * float(np.sum(weight * dV))
        start = end
    for number in np.unique(V.kinds):
        mine = V.kinds == number
        tau2 = np.exp(2 * phi[number])
        variance = np.diag(C_inverse)[count:][mine]
        gradient[number] = float((np.sum(effects[mine] ** 2) + variance.sum()) / tau2 - mine.sum())
        columns[:, number] = 2 * V.Z[:, mine] @ effects[mine]
    crossed = inverse_root @ (W.T @ columns)
    information = 0.5 * (columns.T @ columns - crossed.T @ crossed)
    away = phi - START
    value -= 0.5 * float(np.sum(PRIOR_PRECISION * away**2))
    return value, gradient - PRIOR_PRECISION * away, information + np.diag(PRIOR_PRECISION)


def estimate(
    structure: Structure,
    phi: NDArray,
    at: Sensitivity,
    jacobian: NDArray,
    residual: NDArray,
    prior: NDArray,
    steps: int = STEPS,
) -> NDArray:
    """The covariance's constants that maximise the restricted likelihood, from ``phi``."""
    given = (at, jacobian, residual, prior)
    value, gradient, information = likelihood(structure, phi, *given)
    damping = 1e-2
    for _ in range(steps):
        step = np.linalg.solve(information + damping * np.diag(np.diag(information)), gradient)
        trial = phi + np.clip(step, -MAX_STEP, MAX_STEP)
        if gradient @ step < 2 * SMALL_GAIN:
            return trial
        try:
            found = likelihood(structure, trial, *given)
        except np.linalg.LinAlgError:
            found = (-np.inf, gradient, information)
        if found[0] > value:
            phi, (value, gradient, information) = trial, found
            damping = max(damping / 5, 1e-6)
        else:
            damping *= 8
            if damping > 1e6:
                break
    return phi
