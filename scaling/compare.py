"""The paper's central claim on one's own runs: a fixed, suboptimal (lr, batch) bends the law.

Two loss laws are fitted to the same grids: one to the losses at each grid's own optimum, one to the losses at one
fixed pair, both read off the grids' fitted surfaces. What differs is the pair alone, so the two share their noise and
the jackknife is of their difference.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scaling import allocation, jackknife, loss_law
from scaling.optimum import Optimum, surface_at
from scaling.points import Points, Untrusted, at_nominal, grid_optima, points_of_grids
from scaling.runs import Ledger
from utils.errors import UserError


@dataclass(frozen=True)
class Comparison:
    """What the fixed pair does to N_opt. Intervals are 95 %.

    Attributes:
        lr, B: the fixed pair.
        C: FLOPs at which the sizes are compared.
        N_opt, N_fixed: sizes that the two laws ask for.
        exponent, exponent_fixed: of N_opt in C.
        ratio: N_fixed / N_opt and its interval.
        wasted: share of the fixed law's inference cost that the optimal law saves, 1 - N_opt / N_fixed.
        excess: the pair's mean relative loss over the grids' optima.
        biased: the ratio's interval excludes 1.
        warnings: in words.
    """

    lr: float
    B: float
    C: float
    N_opt: float
    N_fixed: float
    exponent: float
    exponent_fixed: float
    ratio: tuple[float, float, float]
    wasted: float
    excess: float
    biased: bool
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        value, low, high = self.ratio
        return asdict(self) | {"ratio": {"value": value, "low": low, "high": high}, "warnings": list(self.warnings)}

    def text(self) -> str:
        """For people."""
        value, low, high = self.ratio
        verdict = "bends the law" if self.biased else "does not detectably bend the law"
        lines = [
            f"fixed pair lr {self.lr:.3g}, B {self.B:.4g}: loss {self.excess:+.3%} over the optima; it {verdict}",
            f"N_opt exponent    {self.exponent:.4f} with optimal, {self.exponent_fixed:.4f} with fixed",
            f"N_opt({self.C:.3g})   {self.N_opt:.4g} with optimal, {self.N_fixed:.4g} with fixed: "
            f"{value:.3g} times [{low:.3g}, {high:.3g}]",
            f"inference cost the fixed pair would waste: {self.wasted:.1%}",
        ]
        return "\n".join(lines + [f"warning: {text}" for text in self.warnings])


def compare(
    ledger: Ledger,
    cost: allocation.Cost,
    pair: tuple[float, float] | None = None,
    C: float | None = None,
    window: float | None = 0.02,
) -> Comparison:
    """Fit the loss law with optimal and with fixed hyper-parameters.

    Args:
        ledger: grids over (lr, B); held-out rows are left out.
        cost: training FLOPs per token as a function of N.
        pair: the fixed (lr, B); by default the optimum of the smallest grid, which is what tuning once, on the
            cheapest runs, would give.
        C: budget to compare at; by default ten times the largest swept.

    Raises:
        Untrusted: too few interior grids for a loss law.
    """
    ledger = at_nominal(ledger.rows(~ledger.heldout))
    warnings: list[str] = []
    points = points_of_grids(ledger, tuple(grid_optima(ledger, window)), warnings)
    reason = loss_law.unidentified(points.N, points.T, {})
    if reason:
        raise Untrusted(f"loss law: {reason}")
    smallest = min(points.optima, key=lambda o: o.N * o.T)
    lr, B = pair or (smallest.lr, smallest.B)
    outside = [o for o in points.optima if not _covered(ledger, o, lr, B)]
    if outside:
        warnings.append(f"the pair lies outside {len(outside)} of {len(points.optima)} grids: extrapolated there")
    C = C or 10 * float(np.max(points.T * cost(points.N)))
    scale = {"T": float(np.exp(np.log(points.T).mean())), "N": float(np.exp(np.log(points.N).mean()))}
    fixed, fixed_replicates = _losses_at(ledger, points.optima, lr, B, len(points.present))
    if np.any(fixed <= 0):
        raise UserError(f"the surfaces say nothing at lr {lr:.3g}, B {B:.4g}: too far from the grids")
    size, size_replicates, exponent = _sizes(points, points.loss, np.exp(points.replicates["loss"]), scale, C, cost)
    size_fixed, fixed_sizes, exponent_fixed = _sizes(points, fixed, fixed_replicates, scale, C, cost)
    difference = np.log(fixed_sizes / size_replicates)
    middle = float(np.log(size_fixed / size))
    width = jackknife.t_quantile(len(difference) - 1) * float(
        np.linalg.norm(jackknife.deviations(difference[:, None]))
    )
    ratio = tuple(float(np.exp(v)) for v in (middle, middle - width, middle + width))
    return Comparison(
        lr, B, C, size, size_fixed, exponent, exponent_fixed, ratio, 1 - size / size_fixed,
        float(np.mean(fixed / points.loss - 1)), not ratio[1] <= 1 <= ratio[2], tuple(warnings),
    )  # fmt: skip


def _covered(ledger: Ledger, optimum: Optimum, lr: float, B: float) -> bool:
    rows = optimum.used
    return bool(
        ledger.lr[rows].min() <= lr <= ledger.lr[rows].max() and ledger.B[rows].min() <= B <= ledger.B[rows].max()
    )


def _losses_at(
    ledger: Ledger, optima: tuple[Optimum, ...], lr: float, B: float, clusters: int
) -> tuple[NDArray, NDArray]:
    """Each grid's surface at (lr, B): [points], and with each cluster deleted: [clusters, points]."""
    names = np.unique(ledger.run_id[np.concatenate([o.used for o in optima])])
    values = np.array([surface_at(ledger, o.used, lr, B) for o in optima])
    replicates = np.tile(values, (clusters, 1))
    for g, optimum in enumerate(optima):
        for run in np.unique(ledger.run_id[optimum.used]):
            kept = optimum.used[ledger.run_id[optimum.used] != run]
            replicates[np.searchsorted(names, run), g] = surface_at(ledger, kept, lr, B)
    return values, np.where(np.isfinite(replicates) & (replicates > 0), replicates, values)


def _sizes(
    points: Points, loss: NDArray, replicates: NDArray, scale: dict[str, float], C: float, cost: allocation.Cost
) -> tuple[float, NDArray, float]:
    """N_opt(C), the same with each cluster deleted, and the exponent of N_opt over the decade below C."""
    fitted = loss_law.fit(points.N, points.T, loss, points.noise, scale=scale)
    precision, _ = loss_law.precisions(points.noise, len(points.N))
    start = np.repeat(fitted.theta[None], len(replicates), axis=0)
    thetas, _ = loss_law.descend(start, points.N, points.T, replicates, precision, fitted.delta, {}, scale, steps=100)
    sizes = allocation.minimise(loss_law.constants_of(thetas), scale, C, cost)
    law = allocation.predicted(fitted.law, (C / 10, C), cost)
    return float(allocation.optimum(fitted.law, C, cost)), sizes, law.exponent
