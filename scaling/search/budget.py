"""A given amount of compute, spent on the runs that narrow a prediction most per FLOP."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.fitting.surface.cells import Cells
from videoscaling.scaling.search.acquisition import Posterior, Target

# Runs that a budget is spent on at once: after so many, a refit chooses better than what was expected before.
MAX_RUNS = 24
# Where the budget and all places at the best run's rate would lower ln of the variances by less than this, nothing is
# worth a run.
MIN_GAIN = 2e-3


@dataclass(frozen=True)
class Purchase:
    """One run to pay for.

    Attributes:
        rows: of the runs that could be made, [milestones] by rising T; the run ends with the last.
        flops: what it costs.
        variances: of ln of the target's quantities after it and those before it, [names].
    """

    rows: NDArray[np.int64]
    flops: float
    variances: NDArray[np.float64]


def spend(
    posterior: Posterior, target: Target, future: Cells, flops: NDArray[np.float64], *,
    budget: float, tolerance: float | None = None, most: int = MAX_RUNS,
) -> list[Purchase]:  # fmt: skip
    """The runs to pay for, each the one that lowers the sum of ln of the target's variances most per FLOP.

    The sum of logarithms has no unit: halving the interval of the loss counts as much as halving that of the rate.
    Each run also pays for its place, budget / most: per FLOP alone, nearly all places went to the cheapest runs.
    Each run is taken once, up to the milestone that is worth most; earlier milestones come free.

    Args:
        posterior: of ``future``; it is left as it is after the runs.
        flops: [rows] of ``future``: the cost of a run that ends at the row's T.
        budget: FLOPs to spend at most.
        tolerance: end where the rate's error is expected to cost no more than this (relative loss).
    """
    variances, found = posterior.variances(target), []
    taken = np.zeros(len(future), dtype=bool)
    left = budget
    while len(found) < most and not (tolerance is not None and rate_cost(target, variances) <= tolerance):
        best, value, after = None, MIN_GAIN / budget, variances
        for rows, falls in posterior.falls(target):
            remaining = np.maximum(variances - falls, 1e-12 * variances)
            gain = -np.sum(np.log(remaining / np.maximum(variances, 1e-300)), axis=-1)
            possible = (flops[rows] <= left) & ~taken[rows[:, :1]]
            rate = np.where(possible, gain / (flops[rows] + budget / most), 0.0)
            run, milestone = np.unravel_index(int(np.argmax(rate)), rate.shape)
            if rate[run, milestone] > value:
                best, value, after = rows[run, : milestone + 1], rate[run, milestone], remaining[run, milestone]
        if best is None:
            break
        posterior.add(best)
        taken[np.isin(future.run, future.run[best[0]])] = True
        variances, left = after, left - float(flops[best[-1]])
        found.append(Purchase(best, float(flops[best[-1]]), variances))
    return found


def rate_cost(target: Target, variances: NDArray[np.float64]) -> float:
    """What the rate's error is expected to cost at the target, in ln loss; 0 where no rate is predicted."""
    if "lr" not in target.names:
        return 0.0
    return max(target.curvature, 0.0) / 2 * float(variances[target.names.index("lr")])
