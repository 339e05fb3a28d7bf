"""Tables of runs to predict: read with all their columns, and written with the predictions next to them."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.prediction import Predicted
from videoscaling.scaling.tables import known_as, open_table
from videoscaling.utils.errors import UserError

LOSSES = ("predicted", "low", "high", "mean_low", "mean_high")
REGRET = ("regret", "regret_low", "regret_high")  # of laws that read B and lr
OUTSIDE = "extrapolated"


@dataclass(frozen=True)
class RunsToPredict:
    """A table's rows as they are, and what they ask for: arrays [rows], B in tokens, nan where a row has none.

    ``unread`` are its columns of batches and rates where these are not read.
    """

    columns: list[str]
    rows: list[dict[str, object]]
    N: NDArray[np.float64]
    T: NDArray[np.float64]
    B: NDArray[np.float64]
    lr: NDArray[np.float64]
    unread: list[str]


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
    table = open_table(path, {ours: theirs for ours, theirs in columns.items() if ours in wanted}, wanted)
    if taken := [name for name in (*LOSSES, *REGRET, OUTSIDE) if name in table.present]:
        raise UserError(f"{path}: there is a column {taken[0]!r} already; rename it, or leave it out")
    table.require(*(ours for ours in ("N", "T") if table.names[ours] is None))
    per_unit = table.batch_tokens(unit) if hyperparameters else 1.0
    rows, found = [], []
    for cells in table.rows(every=True):
        rows.append(cells.row)
        known = {ours: cells.positive(ours) for ours in wanted if ours in ("N", "T") or cells.has(ours)}
        found.append([known.get(ours, np.nan) for ours in ("N", "T", "B", "lr")])
    N, T, B, lr = np.array(found).T
    unread = [] if hyperparameters else known_as(("B", "lr"), table.present)
    return RunsToPredict(table.table.columns, rows, N, T, B * per_unit, lr, unread)


def write(table: RunsToPredict, predicted: Predicted, handle: TextIO) -> None:
    """The table as CSV with the predictions' columns; what is unknown is blank."""
    writer = csv.writer(handle, lineterminator="\n")
    regret = predicted.regret
    writer.writerow([*table.columns, *LOSSES, *(REGRET if regret else ()), OUTSIDE])
    numbers = [getattr(predicted, name) for name in LOSSES]
    if regret:
        numbers += [regret.value, regret.low, regret.high]
    for row, values, outside in zip(table.rows, np.stack(numbers, axis=1), predicted.extrapolated):
        cells = ["" if (cell := row.get(name)) is None else cell for name in table.columns]
        texts = ["" if np.isnan(value) else f"{value:.8g}" for value in values]
        writer.writerow([*cells, *texts, int(outside)])
