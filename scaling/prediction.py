"""Losses of runs to come, with intervals, from a law file: of a loss law (N, T), or of a surface (N, T, B, lr)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.scaling.estimates import Estimate
from videoscaling.scaling.laws import Law
from videoscaling.scaling.tables import LEAST, MOST
from videoscaling.utils.errors import UserError, listed

# Sizes and tokens this near the end of the fitted range are inside: they are one in fits too.
SAME = 1e-3


@dataclass(frozen=True)
class Predicted:
    """Losses [rows]; nan where the law does not identify it.

    Attributes:
        predicted: the law's value.
        low, high: 95 % interval of one new run, or of the mean of ``seeds`` new runs, its noise included.
        mean_low, mean_high: 95 % interval of the law.
        regret: [rows] what B and lr cost: the loss over that of the best pair at its N and T, less 1. nan where a
            row has neither; None where the law reads no B and lr.
        extrapolated: [rows] whether a row lies outside the fitted N, T and, of a surface, B and lr.
        notes: what a reader must know, a sentence each.
    """

    predicted: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mean_low: NDArray[np.float64]
    mean_high: NDArray[np.float64]
    regret: Estimate | None
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
    values = [np.atleast_1d(np.asarray(v, dtype=float)) for v in (N, T, B, lr)]
    N, T, B, lr = (v.ravel() for v in np.broadcast_arrays(*values))
    for name, value, may_lack in (("N", N, False), ("T", T, False), ("B", B, True), ("lr", lr, True)):
        if not np.all(((value >= LEAST) & (value <= MOST)) | (may_lack & np.isnan(value))):
            raise UserError(f"{name} must be positive numbers from {LEAST:g} to {MOST:g}")
    if seeds < 1:
        raise UserError(f"seeds must be at least 1, not {seeds}")
    with np.errstate(all="ignore"):  # constants out of range give what is not finite, which is refused
        found = law.response.predict(N, T, B, lr, seeds)
        regret = law.response.regret(N, T, B, lr)
    outside = np.zeros(len(N), dtype=bool)
    for name, span in law.response.domain.items():
        value = {"N": N, "T": T, "B": B, "lr": lr}[name]
        outside |= ~np.isnan(value) & _outside(span, value)
    numbers = np.stack([found.low, found.high, found.mean_low, found.mean_high])
    bad = ~((found.mean > 0) & np.isfinite(found.mean)) | np.isinf(numbers).any(axis=0)
    if bad.any():
        at = int(np.argmax(bad))
        raise UserError(
            f"law {law.name!r} gives no finite loss at N {N[at]:.4g}, T {T[at]:.4g}: its constants are out of range, "
            "or the row lies too far from the fitted ones"
        )
    notes = tuple(law.response.notes(seeds))
    given = [name for name, value in (("B", B), ("lr", lr)) if not np.isnan(value).all()]
    if given and not law.response.reads_pairs:
        notes += (unread_note(law, given),)
    return Predicted(
        predicted=found.mean,
        low=found.low,
        high=found.high,
        mean_low=found.mean_low,
        mean_high=found.mean_high,
        regret=regret,
        extrapolated=outside,
        notes=notes,
    )


def unread_note(law: Law, columns: Sequence[str]) -> str:
    """That batches and rates are not read, by a law that reads none."""
    return f"not read: {listed(columns)}; law {law.name!r} has no surface, its loss is that of the best B and lr"


def _outside(span: list[float] | None, values: NDArray) -> NDArray[np.bool_]:
    """Whether values lie outside what was fitted; all do where that is unknown."""
    if span is None:
        return np.ones(len(values), dtype=bool)
    return (values < span[0] * (1 - SAME)) | (values > span[1] * (1 + SAME))
