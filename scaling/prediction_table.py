"""Tables of runs to predict: read with all their columns, and written with the predictions next to them."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.prediction import Predicted
from videoscaling.scaling.tables import batch_tokens, open_table, positive
from videoscaling.utils.errors import UserError

ADDED = ("predicted", "low", "high", "mean_low", "mean_high", "extrapolated")


@dataclass(frozen=True)
class RunsToPredict:
    """A table's rows as they are, and what they ask for: arrays [rows], B in tokens, nan where a row has none."""

    columns: list[str]
    rows: list[dict[str, Any]]
    N: NDArray[np.float64]
    T: NDArray[np.float64]
    B: NDArray[np.float64]
    lr: NDArray[np.float64]


def read(path: Path, columns: dict[str, str], unit: str | None, hyperparameters: bool) -> RunsToPredict:
    """The rows of a table (``scaling.runs.read``'s kinds).

    Args:
        columns: our name -> the table's.
        unit: what a batch counts; it must be given where the batches' column has another name than B.
        hyperparameters: whether B and lr are read; a row may lack them.

    Raises:
        UserError: no table, a row without N or T, or a column that the predictions would be called like.
    """
    wanted = ("N", "T", "B", "lr") if hyperparameters else ("N", "T")
    table, names = open_table(path, {ours: theirs for ours, theirs in columns.items() if ours in wanted}, wanted)
    present = [name.strip() for name in table.columns]
    if taken := [name for name in ADDED if name in present]:
        raise UserError(f"{path}: there is a column {taken[0]!r} already; rename it, or leave it out")
    if missing := [ours for ours in ("N", "T") if names[ours] is None]:
        raise UserError(
            f"{path}: no columns {', '.join(missing)} (name them with --columns); there are {', '.join(present)}"
        )
    batch = names.get("B")
    per_unit = batch_tokens(unit) if unit is not None or batch not in (None, "B") else 1.0
    of_table = dict(zip(present, table.columns))
    rows, found = [], []
    for place, row in table.rows(table.columns):
        rows.append(row)
        values = []
        for ours in ("N", "T", "B", "lr"):
            theirs = names.get(ours)
            cell = None if theirs is None else row.get(of_table[theirs])
            cell = cell.strip() if isinstance(cell, str) else cell
            lacking = ours in ("B", "lr") and cell in (None, "")
            where = f"{path}, row {place.rsplit(' ', 1)[1]}: {theirs}"
            values.append(np.nan if lacking else positive(cell, where) * (per_unit if ours == "B" else 1.0))
        found.append(values)
    if not rows:
        raise UserError(f"{path}: no rows")
    return RunsToPredict(table.columns, rows, *np.array(found).T)


def write(table: RunsToPredict, predicted: Predicted, handle: TextIO) -> None:
    """The table as CSV with ``ADDED``'s columns; what is unknown is blank."""
    writer = csv.writer(handle, lineterminator="\n")
    writer.writerow([*table.columns, *ADDED])
    numbers = np.stack([getattr(predicted, name) for name in ADDED[:-1]], axis=1)
    for row, values, outside in zip(table.rows, numbers, predicted.extrapolated):
        cells = ["" if (cell := row.get(name)) is None else cell for name in table.columns]
        texts = ["" if np.isnan(value) else f"{value:.8g}" for value in values]
        writer.writerow([*cells, *texts, int(outside)])
