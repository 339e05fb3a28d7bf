"""Results of runs as one table: from run directories, or from a table of any trainer (``scaling.tables``)."""

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.scaling.duplicates import distinct
from videoscaling.scaling.laws import Recipe
from videoscaling.scaling.tables import COLUMNS, Result, positive, read_results, whole_number
from videoscaling.utils.errors import UserError, nearest, nearest_path, plural
from videoscaling.utils.files import atomic_write, find_files
from videoscaling.utils.results import FILE, RunResult, read_result, report_left_out

MEASURED = {  # a milestone's, as ours -> in result.json
    "loss": "val_loss",
    "loss_se": "val_se",
    "ema_loss": "ema_val_loss",
    "ema_loss_se": "ema_val_se",
    "flops": "flops",
    "noise_scale": "noise_scale",
}
# Two results of one N belong to one grid if their tokens differ by less than this, or by less than the later one's
# batch: runs stop at the first step at or past a milestone, and a large batch overshoots it by up to one batch. Losses
# are moved to the common T (``fit_points.at_nominal``), so that 5 % are safe; milestones lie much further apart.
SAME_TOKENS = 0.05
# Sizes, and tokens of rows without a batch, that differ by less are one: the same shape with and without its biases.
SAME_SIZE = 1e-3
# Standard errors count by their ratios. One further than this from the others' median, relative to its loss, would
# leave a fit few points, and is rather of another kind than so much better known.
ERROR_RATIO = 30.0
MOST_OVERSHOT = 0.25  # milestones lie further apart than this
ARRAYS = ("N", "T", "B", "lr", "loss")  # what a run table of arrays is made from, all positive
SHARED = ("source", "recipe", "unit", "columns", "notes")  # what a run table has once, not a row each


@dataclass(frozen=True)
class RunTable:
    """One row per milestone. Every field is an array [rows]; B in tokens; the loss of a diverged run is inf.

    ``loss`` is what laws are fitted on (the EMA's, where recorded) and ``loss_se`` its standard error or nan;
    ``raw_loss`` and ``raw_loss_se`` are the raw weights'. ``nominal_T`` is the milestone asked for, common to a grid.
    ``samples`` names the file of per-sample validation losses, or is empty; ``samples_crc32`` is its checksum, or -1
    where it is not known. ``recipe`` holds what all the runs share.
    ``stream`` is the seed of a run's samples, which several runs may share, or -1 where it is not known. ``skipped``
    is the share of the run's steps that moved nothing, or nan where it is not known. ``noise_scale`` is its gradient's
    in tokens, or nan. ``unit`` is what the source counts its batches in, in tokens. ``columns`` maps our names to a
    table's, where it has others that are known; ``notes`` are sentences on rows that were left out.
    """

    run_id: NDArray[np.str_]
    N: NDArray[np.float64]
    T: NDArray[np.float64]
    nominal_T: NDArray[np.float64]
    B: NDArray[np.float64]
    lr: NDArray[np.float64]
    loss: NDArray[np.float64]
    loss_se: NDArray[np.float64]
    raw_loss: NDArray[np.float64]
    raw_loss_se: NDArray[np.float64]
    flops: NDArray[np.float64]
    seed: NDArray[np.int64]
    n_ctx: NDArray[np.int64]
    heldout: NDArray[np.bool_]
    samples: NDArray[np.str_]
    samples_crc32: NDArray[np.int64]
    stream: NDArray[np.int64]
    skipped: NDArray[np.float64]
    noise_scale: NDArray[np.float64]
    source: str
    recipe: Recipe = field(default_factory=dict)
    unit: float = 1.0
    columns: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.N)

    def rows(self, chosen: NDArray) -> "RunTable":
        """The table of the rows a mask or an index array chooses."""
        shared = {name: getattr(self, name) for name in SHARED}
        arrays = {name: getattr(self, name)[chosen] for name in self.__dataclass_fields__ if name not in shared}
        return RunTable(**arrays, **shared)

    def grids(self) -> Iterator[tuple[float, float, NDArray[np.int64]]]:
        """(N, T, row numbers) of each grid, by rising N, then T."""
        for N in np.unique(self.N):
            for T in np.unique(self.nominal_T[self.N == N]):
                yield float(N), float(T), np.flatnonzero((self.N == N) & (self.nominal_T == T))


def read(
    path: str | Path,
    columns: dict[str, str] | None = None,
    batch_unit: str | None = None,
    hyperparameters: bool | None = True,
    losses: bool = True,
    duplicates: str | None = None,
) -> RunTable:
    """Results from a sweep's folder, one run's folder, or a table (CSV, TSV, JSON lines, .gz of these, Parquet).

    Args:
        path: a folder holding ``result.json`` somewhere below it, or a file with one row per result.
        columns: our name -> the file's name, e.g. ``{"N": "params", "L": "loss"}``; L is short for ema_loss. Other
            trainers' names are known (``scaling.tables.ALIASES``).
        batch_unit: "tokens" or "sequences:TOKENS_EACH"; must be given for a file whose batches have another name than
            B. A file without T, but with flops, gives T = flops / 6N. Rows without run_id are milestones of one run
            where they share N, B, lr and seed.
        hyperparameters: whether B and lr are needed; None: both or neither. Where the file has none they are nan.
        losses: whether losses are needed; where they are not and a row has none, its loss is nan.
        duplicates: "last" keeps the later of two losses of one run at one T; None refuses them.

    Raises:
        UserError: nothing there, missing columns, a value that is no positive number (with its row), or a run with two
            losses at one T.
    """
    path = Path(path)
    if path.is_dir():
        if columns or batch_unit:
            raise UserError(f"{path} is a folder of runs: --columns and --batch-unit are for tables")
        return _from_runs(path, duplicates)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder{nearest_path(path)}")
    table = read_results(path, columns or {}, batch_unit, hyperparameters, losses)
    shared = {"source": str(path), "unit": table.unit, "columns": table.columns, "notes": table.notes}
    return _table(table.results, duplicates, losses=losses, **shared)


def from_arrays(columns: Mapping[str, ArrayLike]) -> RunTable:
    """A table of columns [rows] that broadcast to one length; each row is a run where there is no run_id.

    Args:
        columns: N, T and loss (inf: diverged), and where known B, lr, loss_se, run_id, n_ctx, heldout, flops, seed.

    Raises:
        UserError: an unknown or a missing column, another length, or a number that is not positive.
    """
    known = (*ARRAYS, "loss_se", "run_id", "n_ctx", "heldout", "flops", "seed")
    for name in columns:
        if name not in known:
            raise UserError(f"unknown column {name!r}{nearest(name, list(known))}; known: {', '.join(known)}")
    if missing := [name for name in ("N", "T", "loss") if name not in columns]:
        raise UserError(f"the columns {', '.join(missing)} are missing")
    try:
        arrays = dict(zip(columns, np.broadcast_arrays(*(np.atleast_1d(np.asarray(v)) for v in columns.values()))))
    except ValueError:
        lengths = ", ".join(f"{name} {np.size(value)}" for name, value in columns.items())
        raise UserError(f"the columns have different lengths: {lengths}") from None
    results, named = [], "run_id" in columns
    for number, values in enumerate(zip(*(column.tolist() for column in arrays.values())), start=1):
        row = {"run_id": f"row-{number}"} | dict(zip(arrays, values))
        diverged = row["loss"] == math.inf
        checked = [name for name in ARRAYS if name in row and not (name == "loss" and diverged)]
        row |= {name: positive(row[name], f"row {number}: {name}") for name in checked}
        results.append(
            Result(**row | {"run_id": str(row["run_id"])}, nominal_T=row["T"], named=named, diverged=diverged)
        )
    return _table(results, source="arrays")


def written_columns(table: RunTable) -> list[str]:
    """The columns of the table's CSV: COLUMNS, without the noise scale where no run measured it."""
    measured = np.isfinite(table.noise_scale).any()
    return [name for name in COLUMNS if measured or name != "noise_scale"]


def write_csv(table: RunTable, path: str | Path) -> None:
    """The table as CSV in the order of COLUMNS, whole or not at all."""
    with atomic_write(path) as tmp, tmp.open("w", newline="") as handle:
        writer, columns = csv.writer(handle), written_columns(table)
        measured = "noise_scale" in columns
        writer.writerow(columns)
        for i in range(len(table)):
            status = "done" if math.isfinite(table.loss[i]) else "diverged"
            floats = (table.raw_loss, table.raw_loss_se, table.loss, table.loss_se, table.flops)
            writer.writerow(
                [table.run_id[i], status, int(table.N[i]), int(table.T[i]), int(table.B[i]), float(table.lr[i])]
                + [int(table.seed[i]), int(table.n_ctx[i]) or ""]
                + ["" if math.isnan(values[i]) else repr(float(values[i])) for values in floats]
                + [int(table.heldout[i])]
                + (["" if math.isnan(table.noise_scale[i]) else float(table.noise_scale[i])] if measured else [])
            )


def _from_runs(folder: Path, duplicates: str | None) -> RunTable:
    paths = find_files(folder, FILE)
    if not paths:
        raise UserError(f"{folder}: no {FILE} below it; has the sweep run?")
    results, recipes, damaged, mixed = [], [], [], []
    for path in paths:
        try:
            result = read_result(path)
            mixed += [path] if "shapes" in result else []
            results += _milestones(result, path.parent)
            recipes.append({"B": float(result["B"]), **(result.get("recipe") or {})})
        except UserError as error:
            damaged.append(error)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            damaged.append(UserError(f"{path}: not a run's result ({error!r:.200})"))
    if mixed:
        raise UserError(f"{mixed[0]}: trained on clips of several shapes, and a law's clips have one; leave it out")
    report_left_out(damaged, len(recipes))
    if not results:
        raise UserError(f"{folder}: {plural(len(paths), 'result')}, but none has a milestone or diverged")
    _fill_beta2_range(recipes)
    recipe = {key: value for key, value in recipes[0].items() if all(other.get(key) == value for other in recipes)}
    differing = sorted({key for other in recipes for key in other} - set(recipe))
    if differing:
        recipe["differs_between_runs"] = differing
    table = _table(results, duplicates, renamed=False, source=str(folder), recipe=recipe)
    folders = {path.parent for path in find_files(folder, "config.yaml") if path.parent.parent.name != "checkpoints"}
    begun = folders - {path.parent for path in paths}
    if not begun:
        return table
    note = f"{len(begun)} of {len(begun) + len(paths)} runs have no result yet: finish the sweep first (sweep.py run)"
    return replace(table, notes=(*table.notes, note))


def _fill_beta2_range(recipes: list[Recipe]) -> None:
    """Say of runs from before beta2 was kept in a range whether they were trained as the others (``B`` is taken out).

    Their beta2 was 2^(-B / half-life) whatever the batch: where it lies in the others' range, that is the same.
    """
    known = next((recipe["beta2_range"] for recipe in recipes if "beta2_range" in recipe), None)
    for recipe in recipes:
        batch, half_life = recipe.pop("B"), recipe.get("beta2_half_life")
        if known is not None and half_life and "beta2_range" not in recipe:
            same = known[0] <= 2.0 ** (-batch / half_life) <= known[1]
            recipe["beta2_range"] = known if same else [0.0, 1.0]


def _milestones(result: RunResult, folder: Path) -> list[Result]:
    """The results of one run's milestones; those that a diverged run did not reach are censored."""
    path = folder / FILE
    shared = {key: positive(result[key], f"{path}: {key}") for key in ("N", "B", "lr")}
    shared |= {"run_id": folder.name, "seed": whole_number(result.get("seed", 0), f"{path}: seed")}
    shared |= {"n_ctx": int(positive(result["n_ctx"], f"{path}: n_ctx")), "heldout": bool(result.get("heldout"))}
    stream = ((result.get("config") or {}).get("data") or {}).get("seed")
    shared["stream"] = -1 if stream is None else int(stream)
    if "skipped" in result:  # older results do not have it
        skipped = whole_number(result["skipped"], f"{path}: skipped")
        if skipped < 0:
            raise UserError(f"{path}: skipped is {skipped}, not a number of steps")
        shared["skipped"] = skipped * shared["B"] / positive(result["tokens"], f"{path}: tokens") if skipped else 0.0
    found = []
    for milestone in result["milestones"]:
        tokens = positive(milestone["tokens"], f"{path}: tokens")
        nominal = positive(milestone.get("nominal", tokens), f"{path}: nominal")
        samples = folder / "validation" / f"{milestone['tokens']}.npy"
        # A run can diverge between its last step and a milestone: its losses there are null. One clip has no error.
        given = {**milestone, "val_loss": milestone["val_loss"]}
        measured = {
            ours: positive(given[theirs], f"{path}: {theirs}")
            for ours, theirs in MEASURED.items()
            if given.get(theirs) is not None and (given[theirs] != 0 or not theirs.endswith("_se"))
        }
        known = {"samples": str(samples) if samples.exists() else "", "asked": "nominal" in milestone}
        if (crc32 := milestone.get("losses_crc32")) is not None:
            known["crc32"] = int(crc32)
        found.append(Result(T=tokens, nominal_T=nominal, **shared, **measured, **known))
    if result["status"] == "diverged":
        asked = {positive(T, f"{path}: milestones_asked") for T in result.get("milestones_asked") or []}
        missed = asked - {one.nominal_T for one in found}
        found += [Result(T=T, nominal_T=T, **shared, diverged=True, asked=True) for T in missed]
    return found


def _table(
    results: list[Result], duplicates: str | None = None, renamed: bool = True, losses: bool = True, **shared: Any
) -> RunTable:
    """The table of results, each measurement once.

    Args:
        duplicates, losses: as of ``read``.
        renamed: as of ``distinct``.
        shared: the fields of RunTable that are not a row's.
    """
    source = shared["source"]
    results, copies = distinct(results, source, duplicates == "last", renamed)
    column = _in_order(
        {f.name: np.array([getattr(one, f.name) for one in results], dtype=f.type) for f in fields(Result)}
    )
    raw, ema = column["loss"], column["ema_loss"]
    # A run can diverge between its last step and a milestone: its loss there is not a number.
    diverged = column["diverged"] | (losses & np.isnan(raw) & np.isnan(ema))
    if 0 < (lacking := int(np.sum(np.isnan(ema) & ~diverged))) < np.sum(~diverged):
        raise UserError(
            f"{source}: {lacking} of {np.sum(~diverged)} results have no EMA loss: raw and EMA losses are no one law "
            "(give every row its ema_loss, or none; --columns L=loss fits a table's raw ones)"
        )
    loss = np.where(diverged, math.inf, np.where(np.isnan(ema), raw, ema))
    error, moved = _moderate(np.where(np.isnan(ema), column["loss_se"], column["ema_loss_se"]), loss)
    N, nominal, B = column["N"], column["nominal_T"], column["B"]
    # Rows without a batch are points: they stay as they are.
    N = np.where(np.isnan(B), N, common_values(N))
    # Where runs record what was asked for, that is what they share.
    if not column["asked"].all():
        nominal = _common_tokens(N, nominal, B, column["run_id"])
    same = ("run_id", "T", "B", "lr", "flops", "seed", "n_ctx", "heldout", "samples", "stream", "skipped")
    return RunTable(
        **{name: column[name] for name in (*same, "noise_scale")},
        N=N,
        nominal_T=nominal,
        loss=loss,
        loss_se=error,
        raw_loss=np.where(np.isnan(raw), loss, raw),
        raw_loss_se=column["loss_se"],
        samples_crc32=column["crc32"],
        **shared | {"notes": (*shared.get("notes", ()), *copies, *moved)},
    )


def _in_order(column: dict[str, NDArray]) -> dict[str, NDArray]:
    """The columns with rows by run, then by rising T, whatever the order of the source.

    Outliers are found milestone by milestone, each as the earlier ones of its run leave it: in another order of one
    table's rows, the batch that costs 1 % was 6,100 to 7,500 tokens. Runs without a name are in order of their values.
    """
    keys = ("ema_loss", "loss", "nominal_T", "T", "seed", "lr", "B", "N")
    order = np.lexsort([*(column[key] for key in keys), np.where(column["named"], column["run_id"], "")])
    return {name: values[order] for name, values in column.items()}


def _moderate(error: NDArray, loss: NDArray) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Standard errors of losses, those far from all others brought nearer, and a sentence where any is."""
    relative = error / loss
    known = np.isfinite(relative) & (relative > 0)
    if not known.any():
        return error, ()
    middle = float(np.median(relative[known]))
    near = np.clip(relative, middle / ERROR_RATIO, middle * ERROR_RATIO)
    moved = known & (near != relative)
    if not moved.any():
        return error, ()
    text = (
        f"{moved.sum()} of {known.sum()} standard errors of losses are beyond a factor of {ERROR_RATIO:g} from their"
    )
    return np.where(moved, near * loss, error), (f"{text} median, and count as that far from it",)


def common_values(values: NDArray, same: float = SAME_SIZE) -> NDArray[np.float64]:
    """Values with those within ``same`` (relative) made equal, to the smallest of them; by default as sizes are."""
    common = values.copy()
    start = None
    for value in np.unique(values):
        start = value if start is None or value > start * (1 + same) else start
        common[value == values] = start
    return common


def _common_tokens(N: NDArray, T: NDArray, B: NDArray, run_id: NDArray | None = None) -> NDArray:
    """T with near-equal values of one N made equal (to their lowest), so that overshoot does not split a grid.

    Those of one run stay apart: they are its milestones. Rows without a batch are points of their own T.
    """
    common = T.copy()
    for size in np.unique(N):
        rows = np.flatnonzero(size == N)
        rows = rows[np.argsort(T[rows], kind="stable")]
        start, there = T[rows[0]], {}
        for row in rows:
            overshot = T[row] - B[row] < start and T[row] < start * (1 + MOST_OVERSHOT)
            run = row if run_id is None else run_id[row]
            near = SAME_SIZE if np.isnan(B[row]) else SAME_TOKENS
            if (T[row] > start * (1 + near) and not overshot) or there.get(run, T[row]) != T[row]:
                start, there = T[row], {}
            common[row], there[run] = start, T[row]
    return common
