"""Losses of runs to come, with intervals, from a law file: of a loss law (N, T), or of a surface (N, T, B, lr)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scaling.jackknife import t_quantile
from scaling.laws import Law
from scaling.tables import LEAST, MOST
from utils.errors import UserError

if TYPE_CHECKING:
    from scaling.fitting.surface import Surface

# Sizes and tokens this near the end of the fitted range are inside: they are one in fits too.
SAME = 1e-3
LACKS_RATE, LACKS_BATCH = 1, 2  # their sum: both
BATCHES = 200  # from one clip to the largest batch that was run
# Rows whose best batch is sought at once (draws x rows x batches numbers), and rows whose draws are.
BATCH_ROWS, DRAW_ROWS = 16, 4096


@dataclass(frozen=True)
class Predicted:
    """Losses [rows]; nan where the law does not identify it.

    Attributes:
        predicted: the law's value.
        low, high: 95 % interval of one new run, or of the mean of ``seeds`` new runs, its noise included.
        mean_low, mean_high: 95 % interval of the law.
        extrapolated: [rows] whether a row lies outside the fitted N, T and, of a surface, B and lr.
        notes: what a reader must know, a sentence each.
    """

    predicted: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mean_low: NDArray[np.float64]
    mean_high: NDArray[np.float64]
    extrapolated: NDArray[np.bool_]
    notes: tuple[str, ...] = ()


def predict(
    law: Law,
    N: ArrayLike,
    T: ArrayLike,
    B: ArrayLike = np.nan,
    lr: ArrayLike = np.nan,
    *,
    seeds: int = 1,
) -> Predicted:
    """Losses of runs of N parameters on T tokens; arrays broadcast to [rows].

    Args:
        B, lr: batch in tokens and rate. Where they are nan they are the best ones, of the given other one if it is
            given. A loss law does not read them: its loss is that of the best batch and rate.
        seeds: ``low`` and ``high`` hold the mean of so many runs that differ in their seeds.

    Raises:
        UserError: the law has no loss, a number that is not positive, or constants that give no finite loss.
    """
    if law.surface is None:
        law.require("loss")
    values = [np.atleast_1d(np.asarray(v, dtype=float)) for v in (N, T, B, lr)]
    N, T, B, lr = (v.ravel() for v in np.broadcast_arrays(*values))
    for name, value, may_lack in (("N", N, False), ("T", T, False), ("B", B, True), ("lr", lr, True)):
        if not np.all(((value >= LEAST) & (value <= MOST)) | (may_lack & np.isnan(value))):
            raise UserError(f"{name} must be positive numbers from {LEAST:g} to {MOST:g}")
    if seeds < 1:
        raise UserError(f"seeds must be at least 1, not {seeds}")
    with np.errstate(all="ignore"):  # constants out of range give what is not finite, which is refused
        found = _of_loss_law(law, N, T, seeds) if law.surface is None else _of_surface(law, (N, T, B, lr), seeds)
    numbers = np.stack([found.low, found.high, found.mean_low, found.mean_high])
    bad = ~((found.predicted > 0) & np.isfinite(found.predicted)) | np.isinf(numbers).any(axis=0)
    if bad.any():
        at = int(np.argmax(bad))
        raise UserError(
            f"law {law.name!r} gives no finite loss at N {N[at]:.4g}, T {T[at]:.4g}: its constants are out of range, "
            "or the row lies too far from the fitted ones"
        )
    return found


def _of_loss_law(law: Law, N: NDArray, T: NDArray, seeds: int) -> Predicted:
    notes = []
    value, drawn = law.loss(N, T), law.drawn("loss")
    ends = np.full((2, len(N)), np.nan)
    if drawn is None:
        notes.append(f"law {law.name!r} has no draws: its intervals are unknown")
    else:
        for start in range(0, len(N), DRAW_ROWS):
            rows = slice(start, start + DRAW_ROWS)
            quantiles = np.quantile(drawn(N[rows, None], T[rows, None]), [0.025, 0.975], axis=1)
            ends[:, rows] = np.minimum(quantiles[0], value[rows]), np.maximum(quantiles[1], value[rows])
    scatter = law.fit.get("scatter")
    new = np.full((2, len(N)), np.nan)
    if drawn is not None and scatter is None:
        notes.append(f"law {law.name!r} does not say how runs scatter around it: fit it again for low and high")
    elif drawn is not None:
        variance = scatter["points"] ** 2
        if scatter["run"] is not None:
            variance += scatter["run"] ** 2 / seeds
        elif seeds > 1:
            notes.append("the law's points are single runs: their noise is not known apart, so more seeds narrow "
                         "nothing")  # fmt: skip
        noise = t_quantile(scatter["freedom"]) * np.sqrt(variance)
        wide = np.hypot(np.log(ends / value), noise)
        new = value * np.exp(np.array([[-1.0], [1.0]]) * wide)
    outside = _outside(law.domain["N"], N) | _outside(law.domain["T"], T)
    return Predicted(value, *new, *ends, outside, tuple(notes))


def _of_surface(law: Law, at: tuple[NDArray, NDArray, NDArray, NDArray], seeds: int) -> Predicted:
    surface, (N, T, B, lr) = law.surface, at
    outside = np.zeros(len(N), dtype=bool)
    for name, value in zip(("N", "T", "B", "lr"), at):
        outside |= ~np.isnan(value) & _outside(list(surface.domain[name]), value)
    B, lr = _filled(law, N, T, B, lr)
    found = surface.predict(N, T, B, lr, seeds)
    return Predicted(found.mean, found.low, found.high, found.mean_low, found.mean_high, outside)


def _filled(law: Law, N: NDArray, T: NDArray, B: NDArray, lr: NDArray) -> tuple[NDArray, NDArray]:
    """B and lr with the best ones where they are nan."""
    surface, B, lr = law.surface, B.copy(), lr.copy()
    lacking = np.flatnonzero(np.isnan(B) | np.isnan(lr))
    given = np.stack([N, T, B, lr], axis=1)[lacking]
    # nan is no number: equal rows are found by their text.
    _, first, inverse = np.unique(given.astype(str), axis=0, return_index=True, return_inverse=True)
    distinct, filled = given[first], np.empty((len(first), 2))
    kinds = np.isnan(distinct[:, 2]) * LACKS_BATCH + np.isnan(distinct[:, 3]) * LACKS_RATE
    for kind in np.unique(kinds):
        rows = np.flatnonzero(kinds == kind)
        for start in range(0, len(rows), BATCH_ROWS):
            some = rows[start : start + BATCH_ROWS]
            n, t, b, rate = distinct[some].T
            if kind == LACKS_BATCH:
                filled[some] = np.stack([_best_batch(surface, n, t, rate), rate], axis=1)
                continue
            pair = surface.best(n, t, B=b if kind == LACKS_RATE else None)
            filled[some] = np.stack([pair.B.value, pair.lr.value], axis=1)
    B[lacking], lr[lacking] = filled[inverse.ravel()].T
    return B, lr


def _best_batch(surface: "Surface", N: NDArray, T: NDArray, lr: NDArray) -> NDArray[np.float64]:
    """The batch of the lowest loss at given rates [rows]. ``Surface.best`` also gives its interval, in seconds."""
    low, high = surface.domain["B"]
    batches = np.geomspace(min(surface.cells.n_ctx or low, high), high, BATCHES)
    sizes, tokens, rates = (np.repeat(v, BATCHES) for v in (N, T, lr))
    loss = surface.predict(sizes, tokens, np.tile(batches, len(N)), rates).mean.reshape(len(N), BATCHES)
    return batches[np.argmin(loss, axis=1)]


def _outside(span: list[float] | None, values: NDArray) -> NDArray[np.bool_]:
    """Whether values lie outside what was fitted; all do where that is unknown."""
    if span is None:
        return np.ones(len(values), dtype=bool)
    return (values < span[0] * (1 - SAME)) | (values > span[1] * (1 + SAME))
