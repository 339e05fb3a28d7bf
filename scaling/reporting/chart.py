"""A figure with the points that it shows, which are also its CSV file."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.scaling.reporting import style
from videoscaling.utils.files import atomic_write

Table = dict[str, NDArray]  # columns [points]


class Chart:
    """A matplotlib figure with its axes [rows, columns], and the points that were drawn on them.

    Attributes:
        name: of its files.
        caption: for readers, with the formula, the number of runs, the commit and the date.
        blocks: (series, columns) in the order of drawing.
    """

    def __init__(self, name: str, title: str, *, size: tuple[float, float], rows: int = 1, columns: int = 1) -> None:
        """``size`` in inches. Figures are drawn without a display or global state."""
        self.name, self.title, self.caption = name, title, ""
        self.figure, self.axes = style.figure(rows, columns, size)
        self.blocks: list[tuple[str, Table]] = []

    def add(self, series: str, **columns: ArrayLike) -> Table:
        """Record points of a series, and return them; columns broadcast to [points]."""
        arrays = np.broadcast_arrays(*map(np.atleast_1d, columns.values()))
        points = dict(zip(columns, map(np.ravel, arrays)))
        self.blocks.append((series, points))
        return points

    def of(self, series: str) -> Table:
        """The points of one series; no columns where it has none."""
        parts = [points for name, points in self.blocks if name == series]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}

    def write_csv(self, path: Path) -> None:
        """The points as CSV, whole or not at all; what is unknown is empty."""
        names = dict.fromkeys(name for _, points in self.blocks for name in points)
        with atomic_write(path) as tmp, tmp.open("w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(["series", *names])
            for series, points in self.blocks:
                columns = (points.get(name, np.full(len(next(iter(points.values()))), "")) for name in names)
                writer.writerows([series, *map(_cell, row)] for row in zip(*columns))

    def encoded(self, form: str) -> bytes:
        """The picture as ``png`` or ``svg``."""
        buffer = io.BytesIO()
        # Without a date the same figure gives the same file.
        self.figure.savefig(buffer, format=form, dpi=144, metadata={"Date": None} if form == "svg" else None)
        return buffer.getvalue()


def rows(table: Table, chosen: NDArray) -> Table:
    """The rows that a mask or an index array chooses."""
    return {name: column[chosen] for name, column in table.items()}


def groups(table: Table, column: str) -> Iterator[tuple[float, Table]]:
    """(Value, rows) for each value of a column, rising."""
    for value in np.unique(table[column]):
        yield value, rows(table, table[column] == value)


def _cell(value: object) -> object:
    if isinstance(value, str):
        return value
    return "" if np.isnan(value) else float(f"{value:.9g}")
