"""Runs of a sweep that are not trained yet, and what no losses of theirs could identify."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from videoscaling.scaling.fitting.grids import power_law
from videoscaling.scaling.fitting.surface.cells import Cells
from videoscaling.scaling.fitting.surface.fit import why_no_form

LEAST = 3  # rates or batches of one size between which a best one can lie


@dataclass(frozen=True)
class PlannedRun:
    """A run that is not trained yet: N parameters, B tokens a batch; ``stream`` is the seed of its samples, or -1."""

    N: float
    B: float
    lr: float
    milestones: tuple[float, ...]
    stream: int = -1


def fit_warnings(runs: Sequence[PlannedRun]) -> list[str]:
    """Why a surface through these runs could not decide, a line each; empty where it could."""
    if not runs:
        return ["every size is held out: nothing is left to fit"]
    found, several = [], set()
    for axis, key in (("learning rates", "lr"), ("batch sizes", "B")):
        most = {N: len({getattr(run, key) for run in runs if run.N == N}) for N in {run.N for run in runs}}
        several |= {N for N, count in most.items() if count >= LEAST}
        if max(most.values()) < LEAST:
            found.append(f"no size has {LEAST} {axis}: a best one between them cannot be found")
    N, T = np.array([(run.N, tokens) for run in runs for tokens in run.milestones]).T
    if several:
        # Only sizes with several rates or batches show where the best ones are.
        kept = np.isin(N, list(several))
        points = np.unique(np.stack([N[kept], T[kept]]), axis=1)
        if reason := power_law.unidentified(*points, {}):
            found.append(f"laws of the rate and the batch: {reason}; add sizes or milestones")
    if reason := why_no_form(Cells.of_arrays(N, T, 1.0, 1.0, 1.0)):
        found.append(f"loss law: {reason}")
    return found
