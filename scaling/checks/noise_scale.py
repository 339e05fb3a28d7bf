"""The law's batch against the gradient noise scale of the runs: a check that shares no loss with the fit."""

import numpy as np

from videoscaling.scaling.estimates import Estimate
from videoscaling.scaling.laws import EDGE, Law
from videoscaling.scaling.runs import RunTable

# Runs of a grid whose noise scale counts: a badly trained model has another. Within 2 % of the best loss lie the cells
# by which a surface is judged.
NEAR = 1.02


def noise_scales(table: RunTable) -> list[tuple[float, float, float]]:
    """(N, T, tokens) of each grid of runs that measured their noise scale: the median of those near its best loss."""
    found = []
    for N, T, rows in table.grids():
        known = rows[np.isfinite(table.loss[rows]) & np.isfinite(table.noise_scale[rows])]
        near = known[table.loss[known] <= NEAR * table.loss[rows].min()]
        if len(near):
            found.append((N, T, float(np.median(table.noise_scale[near]))))
    return found


def compare(table: RunTable, law: Law) -> list[str]:
    """A line for each N and T: the noise scale over the law's B_opt, or the batch's edge where B_opt is unknown."""
    lines = []
    for N, T, tokens in noise_scales(table.rows(~table.heldout)):
        name, batch = "B_opt", law.response.best_batch(N, T)
        if batch is None and law.surface is not None and law.surface.shape.batch != "none":
            name, batch = f"the {EDGE:.0%} edge", law.surface.edge(T, N, EDGE)
        if batch is None:
            return []
        ratio = Estimate(*(tokens / np.squeeze(value) for value in (batch.value, batch.high, batch.low)))
        times = f"{ratio.value:.3g} {ratio.span('.3g')}".rstrip()
        lines.append(f"noise scale at N {N:.6g}, T {T:.6g}: {tokens:.4g} tokens, {times} times {name}")
    return lines
