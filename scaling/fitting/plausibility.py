"""Whether optima and laws through them can be what they seem: batch units, exponents, and optima far from the rest."""

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.fitting.grids.fit_points import Points
from videoscaling.scaling.fitting.grids.optimum import Optimum
from videoscaling.scaling.fitting.grids.power_law import LEAST_SPAN, PowerFit, near
from videoscaling.scaling.fitting.unsupported import Checks, UnsupportedFit
from videoscaling.scaling.runs import RunTable

# Published exponents of the batch and the rate in N and T lie between -0.7 and 0.9.
MAX_EXPONENT = 2.0
# An optimum this factor from the law of the others, and this many of their standard deviations, is no noise: grids
# whose optima scatter by 0.4 in ln have one beyond a factor of 5 in 20,000.
FAR_FACTOR, FAR_SIGMAS = 5.0, 5.0
# Neighbouring batches of one table differ by 2 to 8. A clip or a sequence has hundreds of tokens or more.
UNIT_GAP = 64.0
LEAVE_OUT = "  leave them out, or mark them as held out (heldout 1), if something went wrong there"


def check_units(table: RunTable, checks: Checks) -> None:
    """Refuse batches of a table, or of two neighbouring grids, that lie as far apart as two units of batch."""
    batches = np.unique(table.B)
    ratio = batches[1:] / batches[:-1]
    if len(ratio) and ratio.max() > UNIT_GAP:
        at = int(np.argmax(ratio))
        text = (
            f"the batches lie in two groups, {batches[0]:.6g} to {batches[at]:.6g} and {batches[at + 1]:.6g} to "
            f"{batches[-1]:.6g} tokens, {ratio[at]:.3g} times apart"
        )
    elif apart := _far_neighbours(table):
        text = f"the batches of neighbouring grids are far apart: {apart}"
    else:
        return
    advice = "bring them to one unit, and name it with --batch-unit"
    checks.refuse(f"{text}: are some counted in sequences and some in tokens?", advice)


def _far_neighbours(table: RunTable) -> str:
    """Two grids next to each other in N or T whose batches no plausible exponent takes so far apart; or empty."""
    grids = [(math.log(N), math.log(T), float(np.log(table.B[rows]).mean())) for N, T, rows in table.grids()]
    pairs = []
    for key, other in ((0, 1), (1, 0)):
        ordered = sorted(grids, key=lambda grid: (grid[key], grid[other]))
        pairs += [(a, b) for a, b in pairwise(ordered) if a[key] == b[key]]
    for a, b in pairs:
        if abs(a[2] - b[2]) > math.log(UNIT_GAP) + abs(a[0] - b[0]) + abs(a[1] - b[1]):
            places = (f"N {math.exp(N):.4g}, T {math.exp(T):.4g}: about {math.exp(B):.4g}" for N, T, B in (a, b))
            return "; ".join(places)
    return ""


def check_power(points: Points, symbol: str, power: PowerFit, checks: Checks) -> None:
    """Refuse optima that lie far from the law of the others, or an exponent beyond ``MAX_EXPONENT``."""
    found = far_optima(points, symbol, power)
    if not found:
        free = [name for name in ("T", "N") if name not in power.law.assumed]
        found = [
            f"{symbol}_opt: an exponent of {getattr(power.law, name):.4g} in {name} is beyond any plausible one, "
            f"{MAX_EXPONENT:g} (hold it with --fix {symbol}.{name}=0, or sweep a wider range of {name})"
            for name in free
            if abs(getattr(power.law, name)) > MAX_EXPONENT
        ][:1]
    if found:
        checks.refuse("\n".join(found))


def check_spans(N: NDArray, T: NDArray) -> None:
    """Refuse sizes, or tokens, that differ, but too little to identify an exponent.

    Raises:
        UnsupportedFit: they lie within a factor of ``power_law.LEAST_SPAN``.
    """
    for name, values in (("N", N), ("T", T)):
        if np.ptp(np.log(values)) > 1e-6 and near(np.log(values)):
            raise UnsupportedFit(
                f"{name} from {values.min():.5g} to {values.max():.5g}, within a factor of {LEAST_SPAN:g}: nothing "
                f"identifies what follows {name}",
                advice=f"sweep a wider range of {name}, or hold its exponents with --method grids --fix B.{name}=0 "
                f"--fix lr.{name}=0",
            )


def check_exponents(exponents: dict[str, float]) -> None:
    """Refuse exponents of a surface that no training has.

    Raises:
        UnsupportedFit: one lies beyond ``MAX_EXPONENT``.
    """
    for name, value in exponents.items():
        if abs(value) > MAX_EXPONENT:
            raise UnsupportedFit(
                f"an exponent {name} of {value:.3g} is beyond any plausible one, {MAX_EXPONENT:g}: look for wrong "
                "units of N, T, B or lr, or sweep a wider range"
            )


def check_far_grids(optima: list[Optimum], expected: NDArray) -> None:
    """Refuse grids whose own best rates lie far from a law's.

    Args:
        expected: [optima] the law's best rate at each optimum's batch.

    Raises:
        UnsupportedFit: some do; each is named.
    """
    inside = np.array([one.interior for one in optima], dtype=bool)
    off = np.log([one.lr for one in optima] / expected)[inside]
    if len(off) < 4:
        return
    far = _far(off)
    if not far.any():
        return
    chosen = [one for one, is_inside in zip(optima, inside) if is_inside]
    lines = [f"lr_opt: {far.sum()} of {len(far)} grids have their best rate far from that of the others"]
    lines += [
        f"  N {one.N:.4g}, T {one.T:.4g}: lr {one.lr:.4g}, {math.exp(value):.3g} times the law's"
        for one, value, is_far in zip(chosen, off, far)
        if is_far
    ]
    raise UnsupportedFit("\n".join([*lines, LEAVE_OUT]))


def far_optima(points: Points, symbol: str, power: PowerFit) -> list[str]:
    """A line that says so and one for each optimum that is far from the law through the others; empty without any.

    The others are found by a fit to the median, which a few wrong ones do not move.
    """
    inside = points.inside(symbol)
    N, T, value = points.N[inside], points.T[inside], getattr(points, symbol)[inside]
    X, y = power.X, power.y
    far = _far(y - X @ _median_fit(X, y))
    if power.spare < 2 or not far.any() or np.linalg.matrix_rank(X[~far]) < X.shape[1]:
        return []
    others = X @ np.linalg.lstsq(X[~far], y[~far], rcond=None)[0]
    ratios = np.exp((y - others)[far])
    lines = [f"{symbol}_opt: {far.sum()} of {len(far)} optima lie far from the law through the others"]
    lines += [
        f"  N {n:.4g}, T {t:.4g}: {symbol} {v:.4g}, {ratio:.3g} times that law's"
        for n, t, v, ratio in zip(N[far], T[far], value[far], ratios)
    ]
    if symbol == "B" and np.all(np.abs(np.log(ratios)) > math.log(UNIT_GAP)):
        lines.append("  are their batches counted in another unit? bring them to one (--batch-unit)")
    else:
        lines.append(LEAVE_OUT)
    return lines


def _far(off: NDArray) -> NDArray[np.bool_]:
    """Which residuals in ln are far from all others; none where a third of them would be."""
    spread = 1.4826 * float(np.median(np.abs(off)))
    far = (np.abs(off) > math.log(FAR_FACTOR)) & (np.abs(off) > FAR_SIGMAS * spread)
    return far & (far.sum() <= len(far) / 3)


def _median_fit(X: NDArray, y: NDArray) -> NDArray[np.float64]:
    """Least absolute deviations by iterated least squares: [columns]."""
    weight = np.ones(len(y))
    for _ in range(50):
        root = np.sqrt(weight)
        beta = np.linalg.lstsq(X * root[:, None], y * root, rcond=None)[0]
        weight = 1 / np.maximum(np.abs(y - X @ beta), 1e-6)
    return beta
