"""Whether a run is beyond any doubt behind: the rule by which a sweep may stop a cell at a milestone.

A cell that is stopped has no loss at later T, so a false alarm costs a fit a cell, and a missed one only compute.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scaling.clips import averaged_weights
from utils.errors import UserError
from utils.results import FILE, DamagedResult, read_result

SIGMAS = 6.0
# Of the best loss. A cell this far behind lies about a factor of five from the optimum in rate or batch (curvature
# .1 per ln^2), and to a later milestone the optimum moves by less than two; losses count in a fit within .03.
MARGIN = 0.25


def hopeless(folder: Path, others: Sequence[Path]) -> str | None:
    """Why a run will not be one of its size's best, in words; None while there is a doubt.

    Its loss at its newest milestone must exceed the best of the others there by ``MARGIN`` and by ``SIGMAS`` standard
    errors: of the difference clip by clip where both runs left their samples' losses, else of two independent losses.

    Args:
        folder: the run's, with its ``result.json``.
        others: those of other runs, whatever their sizes.
    """
    mine = read_result(folder / FILE)
    if not mine["milestones"]:
        return None
    newest = mine["milestones"][-1]
    there = []
    for other in others:
        try:
            result = read_result(other / FILE)
        except DamagedResult:
            continue
        if result["N"] == mine["N"]:
            same = (m for m in result["milestones"] if m["nominal"] == newest["nominal"])
            there += [(m["ema_val_loss"], m["ema_val_se"], _samples(other, m)) for m in same]
    if not there:
        return None
    loss, error, best = min(there, key=lambda entry: entry[0])
    gap = newest["ema_val_loss"] - loss
    error = _error(_samples(folder, newest), best) or math.hypot(newest["ema_val_se"] or 0.0, error or 0.0)
    if gap <= SIGMAS * error or gap <= MARGIN * loss:
        return None
    return (
        f"at {newest['tokens']:,} tokens its loss of {newest['ema_val_loss']:.4g} is {gap / loss:.0%} above the best "
        f"of its size, {loss:.4g}"
    )


def _samples(folder: Path, milestone: dict[str, Any]) -> tuple[str, int]:
    """The file of a milestone's losses by clip, and its checksum, as ``averaged_weights`` takes them."""
    return str(folder / "validation" / f"{milestone['tokens']}.npy"), milestone.get("losses_crc32", -1)


def _error(one: tuple[str, int], other: tuple[str, int]) -> float | None:
    """Standard error of the difference of two runs' losses, by clips; None where they left no like samples."""
    try:
        mine, best = averaged_weights(*one), averaged_weights(*other)
    except UserError:  # none, or damaged: of no consequence here
        return None
    if mine.shape != best.shape or len(mine) < 2:
        return None
    return float((mine - best).std(ddof=1) / math.sqrt(len(mine)))
