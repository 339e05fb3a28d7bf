"""Evidence for the response surface: public tables and the study's runs.

    python -m videoscaling.tools.benchmarks.surface steplaw study --data FOLDER \\
        --out results/benchmarks/DATE-cpu-surface.csv

study: half-widths of lr_opt's exponents from the study's runs.   scalebench: each large size from the smaller ones.
budget: random cells worth 10 % of the FLOPs.   steplaw: each size left out, all cells and 6 % of them.   farseer: the
last ten rows.   time: seconds. Simulated sweeps: simulated_sweeps.py.

Rows are appended: part, case, quantity, value, target, seconds of processor, date, command. FOLDER holds the tables as
their authors publish them: scalebench/lr_bsz.train.csv, scalebench/farseer.train.csv, steplaw/dense_lr_bs_loss.csv.
"""

import argparse
import csv
import datetime
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling import runs
from videoscaling.scaling.fitting.losses.average import fit_losses
from videoscaling.scaling.fitting.losses.form_fit import fit_form
from videoscaling.scaling.fitting.surface.cells import Cells
from videoscaling.scaling.fitting.surface.fit import fit_surface
from videoscaling.scaling.fitting.surface.surface import Surface
from videoscaling.tools.inputs import FOLDER, STUDY
from videoscaling.utils.errors import Parser, UserError, run_cli
from videoscaling.utils.inputs import check_paths

COLUMNS = ("part", "case", "quantity", "value", "target", "cpu_seconds", "date", "command")
NEAR = 1.02  # cells within 2 % of their grid's best
# Batches of the public tables count sequences of this many tokens.
SEQUENCE = 2048


@dataclass(frozen=True)
class Row:
    """One measured figure; ``target`` is its bound, as text, or empty."""

    case: str
    quantity: str
    value: float
    target: str = ""


def table(path: Path) -> dict[str, NDArray[np.float64]]:
    """The numeric columns of a CSV file."""
    if not path.exists():
        raise UserError(f"{path}: no such file; --data names the folder of the public tables")
    with path.open() as handle:
        rows = list(csv.DictReader(handle))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0] if name != "exp_name"}


def scalebench(folder: Path) -> Cells:
    """ScaleBench's lr_bsz table."""
    t = table(folder / "scalebench" / "lr_bsz.train.csv")
    return Cells.of_arrays(t["N"], t["T"], t["B"] * SEQUENCE, t["lr"], t["loss"], n_ctx=SEQUENCE)


def step_law(folder: Path) -> Cells:
    """Step Law's grids, smoothed losses."""
    t = table(folder / "steplaw" / "dense_lr_bs_loss.csv")
    return Cells.of_arrays(t["N"], t["D"], t["bs"] * SEQUENCE, t["lr"], t["smooth loss"], n_ctx=SEQUENCE)


def study_cells(folder: Path) -> tuple[Cells, Cells]:
    """The study's fitted runs and its held-out ones."""
    table = runs.read(folder)
    return Cells.of_table(table.rows(~table.heldout)), Cells.of_table(table.rows(table.heldout))


def rms(values: NDArray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def bench_study(args: argparse.Namespace) -> Iterator[Row]:
    """lr_opt's exponents over the shapes, the edge, and the held-out sizes (seen before: no blind check)."""
    fitted, heldout = study_cells(args.runs)
    limits = {"aB": 0.03, "aT": 0.05, "aN": 0.06}
    surface = fit_surface(fitted)
    for name, estimate in surface.rate_exponents().items():
        yield Row("chosen shape", f"lr exponent {name}", float(estimate.value), "excludes 0")
        yield Row("chosen shape", f"half-width {name}", float(estimate.high - estimate.value), f"<= {limits[name]}")
    yield Row(f"chosen {surface.shape.batch}", "B_opt identified", float(surface.no_best_batch is None), "0")
    spread: dict[str, list[float]] = {name: [] for name in limits}
    for batch in ("one_sided", "two_sided", "ellipse"):
        found = fit_surface(fitted, form="levels", batch=batch, bent=False).rate_exponents()
        for name in limits:
            spread[name].append(float(found[name].value))
            yield Row(batch, f"lr exponent {name}", float(found[name].value))
            yield Row(batch, f"half-width {name}", float(found[name].high - found[name].value), f"<= {limits[name]}")
    for name, values in spread.items():
        yield Row("three shapes", f"range {name}", float(np.ptp(values)), "<= 0.03")
    for T in (819200.0, 3276800.0):
        edge = surface.edge(T, 65536.0)
        yield Row(f"1x64, T {T:.3g}", "edge of 1 %, clips", float(edge.value / fitted.n_ctx))
        for end in ("low", "high"):
            yield Row(f"1x64, T {T:.3g}", f"edge {end}, clips", float(getattr(edge, end) / fitted.n_ctx))
        by_shape = [float(v / fitted.n_ctx) for v in surface.edges_by_shape(T, 65536.0).values()]
        yield Row(f"1x64, T {T:.3g}", "edge, least and most over six shapes", min(by_shape))
        yield Row(f"1x64, T {T:.3g}", "edge, least and most over six shapes", max(by_shape))
    for name in ("bT", "bN"):
        estimate = surface.exponent(name)
        yield Row("chosen shape", f"edge exponent {name}", float(estimate.value))
        yield Row("chosen shape", f"edge half-width {name}", float(estimate.high - estimate.value))
    B, lr = surface.best(1048576.0, 1638400.0)
    yield Row("held out 4x128 (seen before)", "lr at the best pair", float(lr), "best cells 8.5e-4")
    yield Row("held out 4x128 (seen before)", "B at the best pair", float(B), "best cells 80")
    yield from _held_out("held-out sizes (seen before)", surface, heldout, {})


def _held_out(case: str, surface: Surface, cells: Cells, targets: dict[str, str]) -> Iterator[Row]:
    finite = cells.rows(np.isfinite(cells.loss))
    predicted = surface.predict(finite.N, finite.T, finite.B, finite.lr)
    near = finite.loss <= NEAR * finite.best
    error = np.log(finite.loss / predicted.mean)
    inside = (finite.loss >= predicted.low) & (finite.loss <= predicted.high)
    half = np.log(predicted.high / predicted.low) / 2
    left = np.sum((finite.loss - predicted.mean) ** 2)
    values = {
        "rms near, %": 100 * rms(error[near]),
        "mean near, %": 100 * float(error[near].mean()),
        "coverage near": float(inside[near].mean()),
        "coverage, all cells": float(inside.mean()),
        "median half-width near, %": 100 * float(np.median(half[near])),
        "R2, all cells": float(1 - left / np.sum((finite.loss - finite.loss.mean()) ** 2)),
    }
    for name, value in values.items():
        yield Row(case, name, value, targets.get(name, ""))


def bench_scalebench(args: argparse.Namespace) -> Iterator[Row]:
    """Each of the three largest sizes from the smaller ones; the additive form forced next to it."""
    cells = scalebench(args.data)
    targets = {"rms near, %": "<= 0.50", "coverage near": ">= 0.90", "median half-width near, %": "<= 0.8"}
    for N in np.unique(cells.N)[-3:]:
        smaller, heldout = cells.rows(cells.N < N), cells.rows(cells.N == N)
        surface = fit_surface(smaller)
        chosen = f"{surface.shape.batch}{' bent' if surface.shape.bent else ''}, {surface.members[0].form}"
        yield from _held_out(f"N {N:.3g} from smaller ({chosen})", surface, heldout, targets)
        forced = fit_surface(smaller, form="additive", batch=surface.shape.batch, bent=surface.shape.bent)
        yield from _held_out(f"N {N:.3g} from smaller, additive forced", forced, heldout, {})
        yield Row(f"N {N:.3g} from smaller, additive forced", "warns", float(bool(forced.warnings())), "1")


def bench_budget(args: argparse.Namespace) -> Iterator[Row]:
    """Random cells until their 6NT is 10 % of the sum; the largest size at T of 2e10 and more is never drawn."""
    cells = scalebench(args.data)
    target = (cells.N.max() == cells.N) & (cells.T >= 2e10)
    heldout, pool = cells.rows(target), cells.rows(~target)
    cost = 6 * pool.N * pool.T
    errors = []
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(len(pool))
        taken = order[: np.searchsorted(np.cumsum(cost[order]), 0.1 * cost.sum()) + 1]
        surface = fit_surface(pool.rows(np.sort(taken)))
        rows = list(_held_out(f"draw {seed}, {len(taken)} cells", surface, heldout, {}))
        errors.append(rows[0].value)
        yield from rows
    yield Row("ten draws", "median rms near, %", float(np.median(errors)), "<= 0.40")


def regrets(surface: Surface, heldout: Cells) -> list[float]:
    """Regret of the predicted pair at the nearest cell in (ln lr, ln B), by grid."""
    found = []
    for grid in np.unique(heldout.grid):
        cells = heldout.rows(heldout.grid == grid)
        B, lr = surface.best(cells.N[0], cells.T[0])
        distance = np.log(cells.lr / lr) ** 2 + np.log(cells.B / B) ** 2
        found.append(float(cells.loss[np.argmin(distance)] / cells.loss.min() - 1))
    return found


def bench_steplaw(args: argparse.Namespace) -> Iterator[Row]:
    """One size left out at a time, every choice made inside the others: all cells, and six of each grid."""
    cells = step_law(args.data)

    def mean_regret(part: Cells) -> tuple[float, float]:
        values = []
        for N in np.unique(cells.N):
            surface = fit_surface(part.rows(part.N != N), form="levels")
            values += regrets(surface, cells.rows(cells.N == N))
        return 100 * float(np.mean(values)), 100 * max(values)

    mean, worst = mean_regret(cells)
    yield Row("all cells", "mean regret, %", mean, "<= 0.17")
    yield Row("all cells", "largest regret of a grid, %", worst)
    means = []
    for seed in range(args.subsets):
        random = np.random.default_rng(seed)
        grids = [np.flatnonzero(cells.grid == g) for g in np.unique(cells.grid)]
        kept = np.sort(np.concatenate([random.choice(grid, 6, replace=False) for grid in grids]))
        means.append(mean_regret(cells.rows(kept))[0])
        yield Row(f"six cells a grid, subset {seed}", "mean regret, %", means[-1])
    yield Row(
        f"six cells a grid, {len(means)} subsets", "median of mean regrets, %", float(np.median(means)), "<= 0.23"
    )
    yield Row(f"six cells a grid, {len(means)} subsets", "worst of mean regrets, %", max(means))


def bench_farseer(args: argparse.Namespace) -> Iterator[Row]:
    """The last ten rows by N T, by N and by T; twins count once."""
    t = table(args.data / "scalebench" / "farseer.train.csv")
    _, first = np.unique(np.stack([t["N"], t["T"]], axis=1), axis=0, return_index=True)
    N, T, loss = (t[name][np.sort(first)] for name in ("N", "T", "loss"))
    for by, order in (("N T", N * T), ("N", N), ("T", T)):
        last = np.argsort(order, kind="stable")[-10:]
        rest = np.setdiff1d(np.arange(len(N)), last)
        for form in ("auto", "additive"):
            law = fit_losses(N[rest], T[rest], loss[rest], form=form)
            predicted = law.predict(N[last], T[last])
            error = np.log(loss[last] / predicted.mean)
            inside = (loss[last] >= predicted.low) & (loss[last] <= predicted.high)
            half = np.log(predicted.high / predicted.low) / 2
            case = f"last ten by {by}, {form} ({law.members[0].form})"
            auto = form == "auto"
            yield Row(case, "rms, %", 100 * rms(error), "<= 0.4" if auto else "")
            yield Row(case, "coverage", float(inside.mean()), ">= 0.90" if auto else "")
            yield Row(case, "median half-width, %", 100 * float(np.median(half)), "<= 0.75" if auto else "")
            yield Row(case, "warns", float(bool(law.warnings())), "" if auto else "1")


def bench_time(args: argparse.Namespace) -> Iterator[Row]:
    """Seconds of processor and memory: 2,702 runs with intervals, the study's rows, 50,000 rows of (N, T, loss)."""
    cells = scalebench(args.data)
    start = time.process_time()
    surface = fit_surface(cells)
    surface.lr_opt(1e6, 1e11, 1e9), surface.edge(1e11, 1e9), surface.predict(cells.N, cells.T, cells.B, cells.lr)
    yield Row(
        "2,702 runs, all choices and intervals", "CPU seconds", time.process_time() - start, "<= 20 s on 2 cores"
    )
    fitted, _ = study_cells(args.runs)
    start = time.process_time()
    fit_surface(fitted)
    yield Row("455 rows of the study", "CPU seconds", time.process_time() - start, "<= 3 s")
    random = np.random.default_rng(0)
    N, T = 10 ** random.uniform(7, 10, 50_000), 10 ** random.uniform(9, 12, 50_000)
    loss = (400 / N**0.34 + 400 / T**0.28 + 1.7) * np.exp(0.003 * random.standard_normal(50_000))
    start = time.process_time()
    fit_form("joint", N, T, loss, draws=200)
    yield Row(
        "50,000 rows of (N, T, loss)", "CPU seconds, joint with 200 draws", time.process_time() - start, "<= 30 s"
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    yield Row("all of these", "peak memory, GiB", peak, "<= 1")


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "study": bench_study,
    "steplaw": bench_steplaw,
    "scalebench": bench_scalebench,
    "budget": bench_budget,
    "farseer": bench_farseer,
    "time": bench_time,
}


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=[*PARTS, "all"], help="what to measure")
    parser.add_argument("--data", type=Path, reads=FOLDER, help="folder of the public tables")
    parser.add_argument("--runs", type=Path, reads=STUDY, default=Path("results/mini/cells"), help="the study's runs")
    parser.add_argument("--subsets", type=int, default=20, help="random subsets of Step Law's cells (default 20)")
    parser.add_argument("--out", type=Path, writes="file", help="CSV file to append to")
    args = parser.parse_args()
    chosen = list(PARTS) if "all" in args.parts else args.parts
    if args.data is None and set(chosen) & {"steplaw", "scalebench", "budget", "farseer", "time"}:
        raise UserError("say where the public tables are: --data FOLDER")
    check_paths(parser, args)
    # Paths differ from machine to machine.
    command = " ".join(["videoscaling.tools.benchmarks.surface", *args.parts, f"--subsets {args.subsets}"])
    for part in chosen:
        start = time.process_time()
        for row in PARTS[part](args):
            seconds = time.process_time() - start
            print(f"{part:<11}{row.case:<52}{row.quantity:<36}{row.value:<12.5g}{row.target}", flush=True)
            if args.out:
                _append(args.out, part, row, seconds, command)


def _append(path: Path, part: str, row: Row, seconds: float, command: str) -> None:
    new = not path.exists()
    with path.open("a", newline="") as handle:
        writer = csv.writer(handle)
        if new:
            writer.writerow(COLUMNS)
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        writer.writerow(
            [part, row.case, row.quantity, f"{row.value:.6g}", row.target, f"{seconds:.1f}", date, command]
        )


if __name__ == "__main__":
    run_cli(main)
