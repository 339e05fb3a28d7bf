"""Simulated sweeps with planted laws, for tools/benchmarks/surface.py: how far fits miss, how often intervals hold."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.fitting.losses.average import fit_losses
from videoscaling.scaling.fitting.surface.cells import Cells
from videoscaling.scaling.fitting.surface.fit import fit_surface
from videoscaling.scaling.fitting.surface.surface import Surface

NOISE, CORRELATION = 0.007, 0.9
# The planted laws: exponents of lr_opt and of B_opt (or of the critical batch) in T and N, and the ridge's slope in B.
RATE_T, RATE_N, BATCH_T, BATCH_N, SLOPE = 0.10, -0.30, 0.55, -0.20, 0.49
# At these T and N the best pair is these lr and B.
REFERENCE = {"T": 1.2e6, "N": 2e5, "lr": 2.2e-3, "B": 300.0}
TRUE = {"aB": SLOPE, "aT": RATE_T - SLOPE * BATCH_T, "aN": RATE_N - SLOPE * BATCH_N, "bT": BATCH_T, "bN": BATCH_N}
RIGHT = {"elliptic": "ellipse", "one_sided": "one_sided"}  # truth -> the shape that is right for it
CASE = tuple[str, list[tuple[str, float, str]]]


def excess(kind: str, x: NDArray, z: NDArray) -> NDArray[np.float64]:
    """What a rate and a batch cost; x is from the best rate at this batch, z from the best or critical batch.

    ``kinked`` and ``elliptic`` are no shapes of the fitted model: an asymmetric quadratic with another skew, a corner.
    """
    rate = 0.03 * x**2 * (1 + 0.25 * np.tanh(x))
    if kind == "elliptic":
        return rate + 0.012 * z**2 * (1 + 0.2 * np.tanh(z))
    if kind == "one_sided":
        return rate + 0.08 * np.logaddexp(0, z - 2.0)
    if kind == "kinked":
        return rate + 0.05 * np.maximum(z - 1.5, 0)
    raise ValueError(kind)


def sweep(cells: Cells, kind: str, tau: float, seed: int) -> Cells:
    """The cells with losses of the planted laws: noise that milestones of a run share, optima that scatter by tau."""
    random = np.random.default_rng([seed, 7])
    t, n = np.log(cells.T / REFERENCE["T"]), np.log(cells.N / REFERENCE["N"])
    grids = int(cells.grid.max()) + 1
    moved_rate, moved_batch = (tau * random.standard_normal(grids)[cells.grid] for _ in range(2))
    z = np.log(cells.B / REFERENCE["B"]) - BATCH_T * t - BATCH_N * n - moved_batch
    x = np.log(cells.lr / REFERENCE["lr"]) - RATE_T * t - RATE_N * n - SLOPE * (z + moved_batch) - moved_rate
    run = random.standard_normal(int(cells.run.max()) + 1)[cells.run]
    own = random.standard_normal(len(cells))
    error = NOISE * (np.sqrt(CORRELATION) * run + np.sqrt(1 - CORRELATION) * own)
    level = 0.55 * np.exp(-0.15 * n) + 0.4 * np.exp(-0.25 * t) + 0.1
    loss = level * np.exp(excess(kind, x, z) + error)
    return replace(cells, loss=loss, stream=np.full(len(cells), -1))


def few_runs(cells: Cells, per_grid: int, seed: int) -> Cells:
    """``per_grid`` random runs of each size."""
    random = np.random.default_rng([seed, 11])
    kept = [random.choice(np.unique(cells.run[cells.N == N]), per_grid, replace=False) for N in np.unique(cells.N)]
    return cells.rows(np.isin(cells.run, np.concatenate(kept)))


def _exponents(surface: Surface) -> dict[str, tuple[float, float]]:
    """(value, half-width) of each exponent; of B_opt or of the 1 % edge in T and N."""
    found = {name: (float(e.value), float(e.high - e.value)) for name, e in surface.rate_exponents().items()}
    for name in ("bT", "bN"):
        estimate = surface.exponent(name)
        found[name] = float(estimate.value), float(estimate.high - estimate.value)
    return found


def exponents(cells: Cells, sweeps: int) -> Iterator[CASE]:
    """Bias, coverage and width of the exponents under each truth, scatter and number of cells."""
    for few in (False, True):
        for (kind, right), choose in product(RIGHT.items(), (False, True)):
            batch = "auto" if choose else right
            for tau in (0.0, 0.05, 0.15):
                # Every shape is fitted and compared where the tool chooses: fewer sweeps.
                count = sweeps if batch != "auto" else max(sweeps // 5, 1)
                found: dict[str, list[tuple[float, float]]] = {name: [] for name in TRUE}
                for seed in range(count):
                    simulated = sweep(few_runs(cells, 6, seed) if few else cells, kind, tau, seed)
                    bent = False if batch != "auto" else None
                    surface = fit_surface(simulated, form="levels", batch=batch, bent=bent)
                    for name, value in _exponents(surface).items():
                        found[name].append(value)
                case = f"{kind} truth, {batch}, tau {tau:g}, {'6 runs a size' if few else 'all cells'}, {count} sweeps"
                yield case, [row for name in TRUE for row in _summary(name, found[name], tau)]


def _summary(name: str, found: list[tuple[float, float]], tau: float) -> list[tuple[str, float, str]]:
    value, half = np.array(found).T
    error = value - TRUE[name]
    limit = "0.03" if name.startswith("a") else "0.05"
    covers = "0.85 or more" if tau > 0.1 else "0.90 to 0.98"
    return [
        (f"{name} median error", float(np.median(error)), f"within {limit}"),
        (f"{name} coverage", float(np.mean(np.abs(error) <= half)), covers),
        (f"{name} median half-width / 1.96 sd", float(np.median(half) / (1.96 * value.std())), "<= 1.3"),
    ]


def wrong_forms(sweeps: int) -> Iterator[CASE]:
    """Predictions of the next larger size where form or shape is wrong, or 5 % of the losses are outliers."""
    cases = {
        "joint truth, additive forced": ("joint", "additive", 0.0),
        "additive truth, joint": ("additive", "joint", 0.0),
        "joint truth, auto": ("joint", "auto", 0.0),
        "additive truth, auto": ("additive", "auto", 0.0),
        "additive truth, auto, 5 % outliers": ("additive", "auto", 0.05),
    }
    for case, (truth, form, outliers) in cases.items():
        scores = [_table_score(truth, form, outliers, seed) for seed in range(sweeps)]
        yield f"{case}, {sweeps} tables", _scores(np.array(scores))
    count = max(sweeps // 10, 1)
    for kind in ("kinked", "one_sided", "elliptic"):
        scores = [_surface_score(kind, seed) for seed in range(count)]
        yield f"{kind} surface, shape and form chosen, {count} sweeps", _scores(np.array(scores))


def _scores(scores: NDArray) -> list[tuple[str, float, str]]:
    """From [tables, 4]: coverage, half-width, squared error, interval score."""
    coverage, half, square, score = scores.mean(axis=0)
    error = float(np.sqrt(square))
    return [
        ("coverage", float(coverage), ">= 0.85"),
        ("half-width / rms error", float(half / error), "<= 2 (1.96 is exact)"),
        ("rms error, %", 100 * error, ""),
        ("interval score, %", 100 * float(score), ""),
    ]


def _interval_score(error: NDArray, half: NDArray) -> float:
    """Gneiting and Raftery's score of 95 % intervals: width, and 2 / 0.05 times how far the truth lies outside."""
    return float(np.mean(2 * half + 40 * np.maximum(np.abs(error) - half, 0)))


def truth(form: str, N: NDArray, T: NDArray) -> NDArray[np.float64]:
    """Losses of a planted form, near Chinchilla's and Farseer's."""
    if form == "additive":
        return 480 / N**0.35 + 2100 / T**0.37 + 1.8
    return ((N / 5e6) ** -0.6 + (T / 3e8) ** -0.65) ** 0.45 * 4 + 1.2


def _table_score(form: str, fitted: str, outliers: float, seed: int) -> tuple[float, float, float, float]:
    random = np.random.default_rng([seed, 3])
    N = np.repeat(np.geomspace(5e7, 3e9, 8), 10)
    T = N * np.tile(np.geomspace(5, 500, 10), 8)
    loss = truth(form, N, T) * np.exp(0.003 * random.standard_normal(len(N)))
    wrong = random.random(len(N)) < outliers
    loss = np.where(wrong, loss * np.exp(0.03 * np.abs(random.standard_normal(len(N)))), loss)
    kept = N < 2e9
    law = fit_losses(N[kept], T[kept], loss[kept], form=fitted)
    largest, noise = ~kept, np.exp(0.003 * random.standard_normal(int((~kept).sum())))
    measured = truth(form, N[largest], T[largest]) * noise
    return _score(law.predict(N[largest], T[largest]), measured)


def _surface_score(kind: str, seed: int) -> tuple[float, float, float, float]:
    random = np.random.default_rng([seed, 5])
    sizes, tokens = np.array([6.5e4, 1.3e5, 2.9e5, 5.9e5, 1.2e6]), np.array([4e5, 8e5, 1.6e6, 3.3e6])
    N, T, B, factor = (
        v.ravel()
        for v in np.meshgrid(sizes, tokens, 80.0 * 2 ** np.arange(6), np.exp([-1.4, -0.7, 0, 0.7, 1.4]), indexing="ij")
    )
    lr = 2.2e-3 * (B / 300) ** 0.49 * (N / 2e5) ** -0.2 * factor
    run = np.unique(np.stack([N, B, lr], axis=1), axis=0, return_inverse=True)[1].ravel()
    kept = random.random(int(run.max()) + 1)[run] < 0.5
    cells = sweep(Cells.of_arrays(N, T, B, lr, np.ones(len(N)), run=run, n_ctx=80.0), kind, 0.05, seed)
    smaller = sizes[-1] > cells.N
    surface = fit_surface(cells.rows(smaller & kept))
    held = cells.rows(~smaller)
    near = held.rows(held.loss <= 1.02 * held.best)
    return _score(surface.predict(near.N, near.T, near.B, near.lr), near.loss)


def _score(predicted, measured: NDArray) -> tuple[float, float, float, float]:
    error, half = np.log(measured / predicted.mean), np.log(predicted.high / predicted.low) / 2
    return (
        float(np.mean(np.abs(error) <= half)),
        float(np.mean(half)),
        float(np.mean(error**2)),
        _interval_score(error, half),
    )
