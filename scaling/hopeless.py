"""Whether a run is beyond any doubt behind: the rule by which a sweep may stop a cell at a milestone.

A cell that is stopped has no loss at later T, so a false alarm costs a fit a cell, and a missed one only compute.
"""

import math
from collections.abc import Sequence
from typing import Any

SIGMAS = 6.0
# Of the best loss. A cell this far behind lies about a factor of five from the optimum in rate or batch (curvature
# .1 per ln^2), and to a later milestone the optimum moves by less than two; losses count in a fit within .03.
MARGIN = 0.25


def hopeless(result: dict[str, Any], others: Sequence[dict[str, Any]]) -> str | None:
    """Why a run will not be one of its size's best, in words; None while there is a doubt.

    Its loss at its newest milestone must exceed the best of the others there by ``SIGMAS`` standard errors of both
    runs, taken as independent (they share validation clips, so the true error is smaller), and by ``MARGIN``.

    Args:
        result: the run's ``result.json``.
        others: those of other runs of the same N.
    """
    if not result["milestones"]:
        return None
    mine = result["milestones"][-1]
    there = [
        milestone
        for other in others
        for milestone in other["milestones"]
        if milestone["nominal"] == mine["nominal"] and milestone.get("ema_val_loss") is not None
    ]
    if not there:
        return None
    best = min(there, key=lambda milestone: milestone["ema_val_loss"])
    gap = mine["ema_val_loss"] - best["ema_val_loss"]
    error = math.hypot(mine["ema_val_se"] or 0.0, best["ema_val_se"] or 0.0)
    if gap <= SIGMAS * error or gap <= MARGIN * best["ema_val_loss"]:
        return None
    return (
        f"at {mine['tokens']:,} tokens its loss of {mine['ema_val_loss']:.4g} is {gap / best['ema_val_loss']:.0%} "
        f"above the best of its size, {best['ema_val_loss']:.4g}"
    )
