"""Where a grid ends, and the cells to run next: in ln of the rate (x) and of the batch (y) around its best cell."""

import math

import numpy as np
from numpy.typing import NDArray

# In any order: sides are of the grid, and cells are (lr, B) within it or one step beyond.
Cells = tuple[tuple[float, float], ...]


def inside(at: NDArray, x: NDArray, y: NDArray) -> bool:
    """Whether ``at`` lies within the cells' rates and batches."""
    return bool(x.min() < at[0] < x.max() and y.min() < at[1] < y.max())


def sides_of(at: NDArray, x: NDArray, y: NDArray) -> tuple[str, ...]:
    """The sides of the grid that ``at`` lies on or beyond."""
    where = {
        "lower lr": at[0] <= x.min() + 1e-9,
        "higher lr": at[0] >= x.max() - 1e-9,
        "smaller batch": at[1] <= y.min() + 1e-9,
        "larger batch": at[1] >= y.max() - 1e-9,
    }
    return tuple(side for side, outside in where.items() if outside)


def cliff(x: NDArray, y: NDArray, finite: NDArray[np.int64]) -> NDArray[np.int64]:
    """The diverged cells that bound the grid: those with no finite cell of their batch at their rate or above.

    One below a finite cell is bad luck of its seed.
    """
    lost = np.setdiff1d(np.arange(len(x)), finite)
    kept = [i for i in lost if not np.any((np.abs(y[finite] - y[i]) < 1e-9) & (x[finite] > x[i] - 1e-9))]
    return np.array(kept, dtype=np.int64)


def beyond_cliff(at: NDArray, x: NDArray, y: NDArray, finite: NDArray[np.int64]) -> str | None:
    """The side to which ``at`` lies nearer a diverged cell that bounds the grid than any finite one, or None.

    The finite cells say nothing of the losses there: their quadratic runs on where no run does. Half way to the first
    diverged cell is as far as it is believed.
    """
    bounds = cliff(x, y, finite)
    if not len(bounds):
        return None
    distance = np.hypot(x - at[0], y - at[1])
    first = bounds[np.argmin(distance[bounds])]
    if distance[first] >= distance[finite].min():
        return None
    if np.any((np.abs(y[finite] - y[first]) < 1e-9) | (x[finite].max() < x[first])):
        return "higher lr"
    return "smaller batch" if y[first] < y[finite].min() else "larger batch"


def step(values: NDArray) -> float:
    """The usual distance between neighbours of an axis, in ln."""
    return float(np.median(np.diff(values))) if len(values) > 1 else math.log(2)


def beyond(
    sides: tuple[str, ...], x: NDArray, y: NDArray, lr: float, B: float, floor: float, finite: NDArray[np.int64]
) -> Cells:
    """One more row or column of cells beyond each side, near the best cell (which lies at x = y = 0).

    Where runs diverge on the way there, cells half way between the last that did not and the first that did.
    """
    xs, ys = np.unique(x.round(9)), np.unique(y.round(9))

    def outward(values: NDArray, upper: bool) -> float:
        return values[-1] + step(values) if upper else values[0] - step(values)

    def near(values: NDArray) -> NDArray:
        return values[np.sort(np.argsort(np.abs(values), kind="stable")[:3])]

    cells = []
    for side in sides:
        if side.endswith("lr"):
            row = [(outward(xs, side.startswith("higher")), v) for v in near(ys)]
        else:
            row = [(v, outward(ys, side.startswith("larger"))) for v in near(xs)]
        cells += [_this_side(cell, 0 if side.endswith("lr") else 1, x, y, finite) for cell in row]
    return runnable(cells, x, y, lr, B, floor)


def _this_side(cell: tuple[float, float], axis: int, x: NDArray, y: NDArray, finite: NDArray) -> tuple[float, float]:
    """The cell, or the middle between the last finite and the first diverged one on the way to it along ``axis``."""
    bounds, places = cliff(x, y, finite), np.stack([x, y], axis=1)
    nearest = np.argmin(np.linalg.norm(places - cell, axis=1))
    if nearest not in bounds or not len(finite):
        return cell

    def on_the_way(rows: NDArray) -> NDArray:
        """Those that differ from the cell along the axis alone, or all where none does."""
        same = rows[np.abs(places[rows, 1 - axis] - cell[1 - axis]) < 1e-9]
        return places[same if len(same) else rows]

    lost, kept = on_the_way(bounds), on_the_way(finite)
    first = lost[np.argmin(np.linalg.norm(lost, axis=1))]
    last = kept[np.argmin(np.linalg.norm(kept - first, axis=1))]
    u, v = (first + last) / 2
    return float(u), float(v)


def between(x: NDArray, y: NDArray, lr: float, B: float, floor: float) -> Cells:
    """Cells half a step from the best one, to either side in the rate and in the batch."""
    u, v = step(np.unique(x.round(9))) / 2, step(np.unique(y.round(9))) / 2
    return runnable([(-u, 0.0), (u, 0.0), (0.0, -v), (0.0, v)], x, y, lr, B, floor)


def runnable(cells: list[tuple[float, float]], x: NDArray, y: NDArray, lr: float, B: float, floor: float) -> Cells:
    """(lr, B) of cells given in ln from (lr, B), batches in whole clips; without those that are there already."""
    there = {(float(f"{u:.6f}"), float(f"{v:.6f}")) for u, v in zip(x, y)}
    found = []
    for u, v in cells:
        batch = B * math.exp(v)
        if floor:
            batch = math.floor(batch / floor + 0.5) * floor
        if batch and (float(f"{u:.6f}"), float(f"{math.log(batch / B):.6f}")) not in there:
            found.append((float(lr * math.exp(u)), float(batch)))
    return tuple(dict.fromkeys(found))
