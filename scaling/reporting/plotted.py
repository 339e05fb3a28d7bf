"""The plain data of a figure: one table of plotted points, which is also its CSV file, with a title and a caption."""

import csv
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.utils.files import atomic_write

Table = dict[str, NDArray]


class LeftOut(Exception):
    """A figure cannot be drawn from this law and these runs; the text says why."""


@dataclass(frozen=True)
class Plotted:
    """What one figure shows.

    Attributes:
        name: of its files.
        title, caption: for readers; the caption has the formula, the number of runs, the commit and the date.
        table: columns [points]; ``series`` names what a point belongs to, numbers that it lacks are nan.
    """

    name: str
    title: str
    caption: str
    table: Table

    def of(self, series: str) -> Table:
        """The rows of one series."""
        return rows(self.table, self.table["series"] == series)

    def groups(self, series: str, column: str) -> Iterator[tuple[float, Table]]:
        """(Value, rows) for each value of a column in one series, rising."""
        own = self.of(series)
        for value in np.unique(own[column]):
            yield value, rows(own, own[column] == value)

    def write_csv(self, path: Path) -> None:
        """The table as CSV, whole or not at all; what is unknown is empty."""
        with atomic_write(path) as tmp, tmp.open("w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(self.table)
            for values in zip(*(column.tolist() for column in self.table.values())):
                writer.writerow(["" if value != value else _rounded(value) for value in values])


def rows(table: Table, chosen: NDArray) -> Table:
    """The rows that a mask or an index array chooses; a column that the table lacks is empty."""
    return defaultdict(lambda: np.zeros(0), {name: column[chosen] for name, column in table.items()})


def table(*blocks: tuple[str, dict[str, ArrayLike]]) -> Table:
    """One table of blocks (series, columns); columns of a block broadcast, those that it lacks are nan or empty."""
    parts = []
    for series, columns in blocks:
        arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(v)) for v in columns.values()))
        parts.append({"series": np.full(arrays[0].shape, series), **dict(zip(columns, arrays))})
    names = dict.fromkeys(name for part in parts for name in part)
    texts = {name for part in parts for name, column in part.items() if column.dtype.kind == "U"}
    return {name: np.concatenate([_column(part, name, name in texts) for part in parts]) for name in names}


def _column(part: Table, name: str, text: bool) -> NDArray:
    if name in part:
        return part[name].ravel() if text else part[name].ravel().astype(float)
    return np.full(part["series"].size, "" if text else np.nan)


def _rounded(value: Any) -> Any:
    return float(f"{value:.9g}") if isinstance(value, float) else value
