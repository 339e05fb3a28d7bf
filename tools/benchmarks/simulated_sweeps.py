"""Simulated sweeps with planted laws: how far fits miss, how often their intervals hold.

    python -m videoscaling.tools.benchmarks.simulated_sweeps --sweeps 500 --out RAW.csv
    python -m videoscaling.tools.benchmarks.simulated_sweeps --table RAW.csv

The first command appends a row per sweep and continues where the file ends. Sweeps go through all cases in turn, so
that a run that is stopped has as many of each. The second one prints the tables of docs/statistics.md.

Cases: the study's cells, elliptic and one-sided truths, optima that scatter by tau between grids, all runs or six of
each size, the right shape or the one that the fit chooses. Then predictions of the next larger size, with the right
form, with a wrong one, and with outliers. Choices and predictions, which take seven times as long, have every fifth
seed.
"""

import argparse
import csv
import datetime
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice, product
from pathlib import Path

import numpy as np
import scipy
from numpy.typing import NDArray

from videoscaling.scaling import runs
from videoscaling.scaling.estimates import Prediction
from videoscaling.scaling.fitting.losses.average import fit_losses
from videoscaling.scaling.fitting.surface.cells import Cells
from videoscaling.scaling.fitting.surface.fit import fit_surface
from videoscaling.tools.inputs import STUDY
from videoscaling.utils.errors import Parser, UserError, run_cli
from videoscaling.utils.inputs import Input, check_paths

NOISE, CORRELATION = 0.007, 0.9
# Outliers' losses are too high by the absolute value of a normal error with this sd.
OUTLIER = 0.03
# The planted laws: exponents of lr_opt and of B_opt (or of the critical batch) in T and N, and the ridge's slope in B.
RATE_T, RATE_N, BATCH_T, BATCH_N, SLOPE = 0.10, -0.30, 0.55, -0.20, 0.49
# At these T and N the best pair is these lr and B.
REFERENCE = {"T": 1.2e6, "N": 2e5, "lr": 2.2e-3, "B": 300.0}
TRUE = {"aB": SLOPE, "aT": RATE_T - SLOPE * BATCH_T, "aN": RATE_N - SLOPE * BATCH_N, "bT": BATCH_T, "bN": BATCH_N}
RIGHT = {"elliptic": "ellipse", "one_sided": "one_sided"}  # truth -> the shape that is right for it
# Of sweeps with a shape that is chosen, and of predictions, one in this many is run.
CHOSEN_EVERY = 5
EXPONENTS = tuple(f"{name}{part}" for name in TRUE for part in ("", "_half"))
SCORES = ("coverage", "half", "square", "score")
COLUMNS = ("case", "seed", *EXPONENTS, *SCORES)
SWEEPS = Input("a CSV file that --out wrote")


def excess(kind: str, x: NDArray, z: NDArray) -> NDArray[np.float64]:
    """Loss penalty of a rate and a batch; x is from the best rate at this batch, z from the best or critical batch.

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


def sweep(cells: Cells, kind: str, tau: float, seed: int, outliers: float = 0.0) -> Cells:
    """The cells with losses of the planted laws: noise that milestones of a run share, optima that scatter by tau.

    Args:
        outliers: the share of the losses that are too high by OUTLIER.
    """
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
    wrong = np.where(random.random(len(cells)) < outliers, OUTLIER * np.abs(random.standard_normal(len(cells))), 0.0)
    loss = level * np.exp(excess(kind, x, z) + error + wrong)
    return replace(cells, loss=loss, stream=np.full(len(cells), -1))


def few_runs(cells: Cells, per_grid: int, seed: int) -> Cells:
    """``per_grid`` random runs of each size."""
    random = np.random.default_rng([seed, 11])
    kept = [random.choice(np.unique(cells.run[cells.N == N]), per_grid, replace=False) for N in np.unique(cells.N)]
    return cells.rows(np.isin(cells.run, np.concatenate(kept)))


def exponents(cells: Cells, kind: str, tau: float, few: bool, batch: str, seed: int, outliers: float = 0.0) -> dict:
    """Each exponent of a fitted sweep with its half-width; of B_opt or of the edge in T and N."""
    simulated = sweep(few_runs(cells, 6, seed) if few else cells, kind, tau, seed, outliers)
    surface = fit_surface(simulated, form="levels", batch=batch, bent=None if batch == "auto" else False)
    found = {name: surface.exponent(name) for name in TRUE}
    values = {name: float(estimate.value) for name, estimate in found.items()}
    return values | {f"{name}_half": float(estimate.high - estimate.value) for name, estimate in found.items()}


def cases(cells: Cells) -> dict[str, tuple[int, Callable[[int], dict]]]:
    """Name of a case -> (every which seed it runs, its sweep)."""
    found: dict[str, tuple[int, Callable[[int], dict]]] = {}
    for few, (kind, right), chosen, tau in product((False, True), RIGHT.items(), (False, True), (0.0, 0.05, 0.15)):
        batch = "auto" if chosen else right
        name = f"{kind} truth, {batch}, tau {tau:g}, {'6 runs a size' if few else 'all cells'}"
        every = CHOSEN_EVERY if chosen else 1
        found[name] = every, lambda seed, given=(kind, tau, few, batch): exponents(cells, *given, seed)
    for kind, right in RIGHT.items():
        name = f"{kind} truth, {right}, tau 0.05, all cells, 5 % outliers"
        found[name] = 1, lambda seed, given=(kind, 0.05, False, right): exponents(cells, *given, seed, 0.05)
    for name, given in {
        "joint truth, additive forced": ("joint", "additive", 0.0),
        "additive truth, joint forced": ("additive", "joint", 0.0),
        "joint truth, form chosen": ("joint", "auto", 0.0),
        "additive truth, form chosen": ("additive", "auto", 0.0),
        "additive truth, form chosen, 5 % outliers": ("additive", "auto", 0.05),
    }.items():
        found[name] = CHOSEN_EVERY, partial(table_scores, *given)
    for kind, outliers in (("kinked", 0.0), ("one_sided", 0.0), ("elliptic", 0.0), ("elliptic", 0.05)):
        name = f"{kind} surface, all chosen{', 5 % outliers' if outliers else ''}"
        found[name] = CHOSEN_EVERY, partial(surface_scores, kind, outliers)
    return found


def truth(form: str, N: NDArray, T: NDArray) -> NDArray[np.float64]:
    """Losses of a planted form, near Chinchilla's and Farseer's."""
    if form == "additive":
        return 480 / N**0.35 + 2100 / T**0.37 + 1.8
    return ((N / 5e6) ** -0.6 + (T / 3e8) ** -0.65) ** 0.45 * 4 + 1.2


def table_scores(form: str, fitted: str, outliers: float, seed: int) -> dict:
    """Losses of one size, predicted from a table (N, T, loss) of the smaller ones."""
    random = np.random.default_rng([seed, 3])
    N = np.repeat(np.geomspace(5e7, 3e9, 8), 10)
    T = N * np.tile(np.geomspace(5, 500, 10), 8)
    loss = truth(form, N, T) * np.exp(0.003 * random.standard_normal(len(N)))
    wrong = random.random(len(N)) < outliers
    loss = np.where(wrong, loss * np.exp(OUTLIER * np.abs(random.standard_normal(len(N)))), loss)
    kept = N < 2e9
    law = fit_losses(N[kept], T[kept], loss[kept], form=fitted)
    largest, noise = ~kept, np.exp(0.003 * random.standard_normal(int((~kept).sum())))
    measured = truth(form, N[largest], T[largest]) * noise
    return _scores(law.predict(N[largest], T[largest]), measured)


def surface_scores(kind: str, outliers: float, seed: int) -> dict:
    """Losses near the best of one size, predicted from half of the runs of the smaller ones."""
    random = np.random.default_rng([seed, 5])
    sizes, tokens = np.array([6.5e4, 1.3e5, 2.9e5, 5.9e5, 1.2e6]), np.array([4e5, 8e5, 1.6e6, 3.3e6])
    N, T, B, factor = (
        v.ravel()
        for v in np.meshgrid(sizes, tokens, 80.0 * 2 ** np.arange(6), np.exp([-1.4, -0.7, 0, 0.7, 1.4]), indexing="ij")
    )
    lr = 2.2e-3 * (B / 300) ** 0.49 * (N / 2e5) ** -0.2 * factor
    run = np.unique(np.stack([N, B, lr], axis=1), axis=0, return_inverse=True)[1].ravel()
    kept = random.random(int(run.max()) + 1)[run] < 0.5
    table = Cells.of_arrays(N, T, B, lr, np.ones(len(N)), run=run, n_ctx=80.0)
    smaller = sizes[-1] > table.N
    surface = fit_surface(sweep(table, kind, 0.05, seed, outliers).rows(smaller & kept))
    heldout = sweep(table, kind, 0.05, seed).rows(~smaller)
    near = heldout.rows(heldout.loss <= 1.02 * heldout.best)
    return _scores(surface.predict(near.N, near.T, near.B, near.lr), near.loss)


def _scores(predicted: Prediction, measured: NDArray) -> dict:
    """Means over points; ``score`` (Gneiting and Raftery) adds 2 / 0.05 times how far the truth is outside."""
    error, half = np.log(measured / predicted.mean), np.log(predicted.high / predicted.low) / 2
    score = 2 * half + 40 * np.maximum(np.abs(error) - half, 0)
    values = np.mean([np.abs(error) <= half, half, error**2, score], axis=1)
    return dict(zip(SCORES, map(float, values)))


def missing(cells: Cells, sweeps: int, done: set[tuple[str, int]]) -> Iterator[dict]:
    """Rows of the sweeps that are not ``done``, all cases in turn."""
    every = cases(cells)
    for seed in range(sweeps):
        for name, (step, simulate) in every.items():
            if seed % step == 0 and (name, seed) not in done:
                yield {"case": name, "seed": seed} | {key: f"{value:.4g}" for key, value in simulate(seed).items()}


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a file of sweeps; lines that begin with # are comments."""
    with path.open(newline="") as handle:
        return list(csv.DictReader(line for line in handle if not line.startswith("#")))


def tables(rows: list[dict[str, str]]) -> Iterator[str]:
    """Markdown: a line per case and exponent, then a line per case of predictions."""
    by_case: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_case.setdefault(row["case"], []).append(row)
    yield "| truth, fit | sweeps | " + " | ".join(TRUE) + " |\n|---|---|" + "---|" * len(TRUE)
    for case, found in by_case.items():
        if found[0]["aB"]:
            cells = [_summary(name, *_columns(found, name, f"{name}_half")) for name in TRUE]
            yield f"| {case} | {len(found)} | " + " | ".join(cells) + " |"
    yield "\n| predictions | sweeps | coverage | half-width / rms error | rms error, % | interval score, % |"
    yield "|---|---|---|---|---|---|"
    for case, found in by_case.items():
        if found[0]["coverage"]:
            coverage, half, square, score = _columns(found, *SCORES).mean(axis=1)
            error = np.sqrt(square)
            values = f"{coverage:.3f} | {half / error:.2f} | {100 * error:.2f} | {100 * score:.2f}"
            yield f"| {case} | {len(found)} | {values} |"


def _columns(rows: list[dict[str, str]], *names: str) -> NDArray:
    return np.array([[float(row[name]) for row in rows] for name in names])


def _summary(name: str, value: NDArray, half: NDArray) -> str:
    """Median error, coverage, and median half-width over 1.96 sd."""
    error = value - TRUE[name]
    width = np.median(half) / (1.96 * value.std(ddof=1)) if len(value) > 1 else np.nan
    return f"{np.median(error):+.3f}, {np.mean(np.abs(error) <= half):.3f}, {width:.2f}"


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, reads=STUDY, default=Path("results/mini/cells"), help="the study's runs")
    parser.add_argument("--sweeps", type=int, default=500, help="sweeps of each case (default 500)")
    parser.add_argument("--limit", type=int, help="stop after so many sweeps")
    parser.add_argument("--out", type=Path, writes="file", help="CSV file to append to")
    parser.add_argument("--table", type=Path, reads=SWEEPS, help="print the tables of a file of sweeps")
    args = parser.parse_args()
    check_paths(parser, args)
    if args.table:
        print("\n".join(tables(read(args.table))))
        return
    if args.out is None:
        raise UserError("say where the sweeps are written: --out RAW.csv")
    table = runs.read(args.runs)
    cells = Cells.of_table(table.rows(~table.heldout))
    new = not args.out.exists()
    done = set() if new else {(row["case"], int(row["seed"])) for row in read(args.out)}
    with args.out.open("a", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        if new:
            date = datetime.datetime.now(datetime.UTC).date().isoformat()
            device = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
            handle.write(f"# {date}, {device}, numpy {np.__version__}, scipy {scipy.__version__}\n")
            writer.writeheader()
        for row in islice(missing(cells, args.sweeps, done), args.limit):
            writer.writerow(row)
            handle.flush()


if __name__ == "__main__":
    run_cli(main)
