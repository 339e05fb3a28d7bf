"""Where a grid ends: its sides, and the diverged cells that bound it, at places [cells, 2] in ln lr and ln B."""

import math

import numpy as np
from numpy.typing import NDArray

BOTH = ("lr", "B")
SIDES = {"lower lr": "lr", "higher lr": "lr", "smaller batch": "B", "larger batch": "B"}


def inside(at: NDArray, places: NDArray) -> bool:
    """Whether ``at`` [axes] lies within the cells' places [cells, axes]."""
    return bool(np.all((places.min(axis=0) < at) & (at < places.max(axis=0))))


def sides_of(at: NDArray, places: NDArray, axes: tuple[str, ...] = BOTH) -> tuple[str, ...]:
    """The sides of the grid, along ``axes``, that ``at`` [2] lies on or beyond."""
    below, above = at <= places.min(axis=0) + 1e-9, at >= places.max(axis=0) - 1e-9
    outside = dict(zip(SIDES, np.stack([below, above], axis=1).ravel()))
    return tuple(side for side, axis in SIDES.items() if outside[side] and axis in axes)


def beyond_cliff(at: NDArray, places: NDArray, finite: NDArray[np.int64]) -> tuple[str, ...]:
    """The side to which ``at`` [2] lies nearer a diverged cell that bounds the grid than any finite one, or none.

    The finite cells say nothing of the losses there: their quadratic runs on where no run does. Half way to the first
    diverged cell is as far as it is believed.
    """
    x, y = places.T
    # One that diverged below a finite rate of its batch is bad luck of its seed, and bounds nothing.
    lost = np.setdiff1d(np.arange(len(x)), finite)
    bounds = [i for i in lost if not np.any((np.abs(y[finite] - y[i]) < 1e-9) & (x[finite] > x[i] - 1e-9))]
    if not bounds:
        return ()
    distance = np.linalg.norm(places - at, axis=1)
    first = min(bounds, key=lambda i: distance[i])
    if distance[first] >= distance[finite].min():
        return ()
    if np.any(np.abs(y[finite] - y[first]) < 1e-9) or x[finite].max() < x[first]:
        return ("higher lr",)
    return ("smaller batch",) if y[first] < y[finite].min() else ("larger batch",)


def step(values: NDArray) -> float:
    """The usual distance between neighbours of an axis, in ln."""
    return float(np.median(np.diff(values))) if len(values) > 1 else math.log(2)
