"""N_opt(C) from isoFLOP curves: budgets, the best size of each, and power laws through them with their errors.

Trainers round tokens to whole batches, so that the runs of one budget differ in C by a part of a per cent to a few.
Losses are moved to the budget's common C before its sizes are compared.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.scaling.estimates import t_quantile
from videoscaling.scaling.fitting.grids import edges
from videoscaling.scaling.fitting.grids.optimum import quadratic
from videoscaling.scaling.fitting.grids.power_law import between_variance
from videoscaling.scaling.laws import SizeLaw
from videoscaling.scaling.runs import common_values
from videoscaling.utils.errors import plural

# Runs whose C follow each other this closely are of one budget, unless they reach further than its span. Budgets of
# public studies lie a factor of 1.5 or more apart.
SAME_BUDGET, BUDGET_SPAN = 0.03, 0.10
# Points of rows without a budget of their own count as isoFLOP curves where so many of them share one: grids of sizes
# and tokens have products that meet by chance.
MOSTLY = 0.8
# Of the best loss. On the 15 public isoFLOP sets the exponents come out within 0.027 of the published at 4 %, 0.033 at
# 3 % and 0.035 at 2 and 5 %: a narrow window is noisy, and in a wide one the curves are lopsided. Noise opens it,
# to so many of its standard deviations.
WINDOW, WIDEST, NOISE_WIDTHS = 0.04, 0.15, 6.0
# A curve's own scatter counts as much as that of all curves where it has this many degrees of freedom.
SHRINKAGE = 10
# N_opt ~ C^a with a above 1 would have larger budgets train on fewer tokens. Published: 0.45 to 0.88.
MAX_EXPONENT = 1.2


@dataclass(frozen=True)
class Budget:
    """Runs of one budget: C, and N [runs] with the losses [runs] that they would have at C."""

    C: float
    N: NDArray[np.float64]
    loss: NDArray[np.float64]


@dataclass(frozen=True)
class Minimum:
    """The parabola of one budget's ln loss in ln N.

    Attributes:
        C, N_opt: the budget and the size at the minimum.
        sensitivity: variance of ln N_opt over the variance of one ln loss.
        scatter: standard deviation of ln loss around the parabola; nan without degrees of freedom.
        dof: points less the parabola's three constants.
        inside: whether the minimum lies among the sizes that were fitted.
    """

    C: float
    N_opt: float
    sensitivity: float
    scatter: float
    dof: int
    inside: bool


@dataclass(frozen=True)
class SizeFit:
    """A power law through best sizes.

    Attributes:
        law: the law.
        log_C: where its value and its exponent err independently.
        sd, sd_exponent: standard errors of ln N_opt there, and of the exponent.
        quantile: how many of them make a 95 % interval.
    """

    law: SizeLaw
    log_C: float
    sd: float
    sd_exponent: float
    quantile: float

    def exponent_interval(self) -> list[float]:
        half = self.quantile * self.sd_exponent
        return [self.law.exponent - half, self.law.exponent + half]

    def errors(self) -> dict[str, float]:
        """The law file's ``fit.size_errors``."""
        return {"log_C": self.log_C, "sd": self.sd, "sd_exponent": self.sd_exponent, "quantile": self.quantile}


def budget_of(C: NDArray) -> NDArray[np.int64]:
    """The number of the budget [runs] that each C [runs] belongs to, by rising C."""
    order = np.argsort(C, kind="stable")
    number, start, last, found = -1, -math.inf, -math.inf, np.zeros(len(C), dtype=np.int64)
    for row in order:
        if C[row] > last * (1 + SAME_BUDGET) or C[row] > start * (1 + BUDGET_SPAN) or number < 0:
            number, start = number + 1, C[row]
        last = C[row]
        found[row] = number
    return found


def budgets(N: NDArray, C: NDArray, loss: NDArray, mostly: float = 0.0) -> list[Budget]:
    """The budgets that three sizes or more share, each with its losses at its common C; empty where fewer than three.

    Args:
        N, C, loss: [runs], C the FLOPs of each; nan where unknown.
        mostly: the share of runs that must belong to them.
    """
    known = np.isfinite(C) & np.isfinite(loss)
    N, C, loss = common_values(N[known]), C[known], loss[known]
    number = budget_of(C)
    rows = [own for k in np.unique(number) if len(np.unique(N[own := np.flatnonzero(number == k)])) >= 3]
    if len(rows) < 3 or sum(map(len, rows)) < mostly * len(N):
        return []
    common = np.full(len(C), np.nan)
    for own in rows:
        common[own] = math.exp(np.mean(np.log(C[own])))
    at_common = _moved(N, C, loss, common, rows)
    return [Budget(float(common[own[0]]), N[own], at_common[own]) for own in rows]


def interpolated(N: NDArray, C: NDArray, loss: NDArray) -> list[Budget]:
    """Budgets that three sizes or more share, of runs that have several C each.

    Where three values of C have three sizes each they are taken as they are. Else losses are interpolated along each
    size in C, at 12 budgets from the least to the most that three share.

    Args:
        N, C, loss: [points].
    """
    shared = [budget for budget in np.unique(C) if len(np.unique(N[budget == C])) >= 3]
    if len(shared) >= 3:
        return [Budget(float(budget), N[budget == C], loss[budget == C]) for budget in shared]
    curves = []
    for size in np.unique(N):
        rows = np.flatnonzero(size == N)
        order = rows[np.argsort(C[rows])]
        if len(order) > 1:
            curves.append((size, np.log(C[order]), np.log(loss[order])))

    def at(log_C: float) -> list[tuple[float, float]]:
        return [(size, np.interp(log_C, c, y)) for size, c, y in curves if c[0] <= log_C <= c[-1]]

    common, found = [end for _, c, _ in curves for end in (c[0], c[-1]) if len(at(end)) >= 3], []
    for log_C in np.unique(np.linspace(min(common), max(common), 12)) if common else ():
        if len(spanning := at(log_C)) >= 3:
            sizes, losses = np.array(spanning).T
            found.append(Budget(float(np.exp(log_C)), sizes, np.exp(losses)))
    return found


def _moved(N: NDArray, C: NDArray, loss: NDArray, common: NDArray, rows: list[NDArray]) -> NDArray[np.float64]:
    """Losses [runs] at their budget's common C, by the slope in ln C of a quadratic in (ln N, ln C) near the best."""
    distance = np.log(common / C)
    used = np.concatenate([own[loss[own] <= loss[own].min() * (1 + WIDEST)] for own in rows])
    if np.nanmax(np.abs(distance)) < 1e-12 or len(used) < 7:
        return loss
    x, y = np.log(N / np.median(N[used])), np.log(C / np.median(C[used]))
    X = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)
    c, *_ = np.linalg.lstsq(X[used], np.log(loss[used]), rcond=None)
    # More compute never hurts, and ln loss falls by less than a half of ln C anywhere public.
    slope = np.clip(c[2] + 2 * c[4] * y + c[5] * x, -0.5, 0.0)
    return loss * np.exp(slope * np.nan_to_num(distance))


def minimum(budget: Budget) -> Minimum:
    """The parabola through one budget's runs near its best."""
    loss, best = np.log(budget.loss), float(np.log(budget.loss.min()))
    x = np.log(budget.N / budget.N[np.argmin(budget.loss)])
    # A window that leaves a parabola nothing to fit opens to the nearest losses of three sizes.
    lowest = np.sort([loss[x == size].min() for size in np.unique(x)])
    width = max(math.log1p(WINDOW), lowest[2] - best)
    used = loss <= best + width + 1e-12
    fit = quadratic(x[used, None], loss[used])
    if fit.spare and (wanted := min(NOISE_WIDTHS * fit.scatter, WIDEST)) > width:
        # At a wider window's rim losses would choose those that are low by luck: the curve chooses.
        curve = fit(x[:, None])
        used |= (curve <= curve[used].min() + wanted) & (loss <= best + 2 * WIDEST)
        fit = quadratic(x[used, None], loss[used])
    at = fit.minimum()
    inside = at is not None and edges.inside(at, x[used, None])
    N_opt = float(budget.N[np.argmin(budget.loss)] * math.exp(at[0])) if inside else math.nan
    sensitivity = math.inf if at is None else float(fit.sensitivity(at)[0, 0])
    return Minimum(budget.C, N_opt, sensitivity, fit.scatter, fit.spare, inside)


def through(C: ArrayLike, N_opt: ArrayLike, variance: ArrayLike | None = None, freedom: float = math.inf) -> SizeFit:
    """The power law through best sizes [budgets], two different budgets at least.

    Args:
        variance: of ln N_opt [budgets]; what the sizes scatter beyond it is added (restricted maximum likelihood).
            None weighs all alike.
        freedom: degrees of freedom of these variances.
    """
    x, y = np.log(C), np.log(N_opt)
    X, dof = np.stack([np.ones_like(x), x - x.mean()], axis=1), len(x) - 2
    weight, quantile = np.ones_like(x), t_quantile(dof)
    if variance is not None:
        known = np.maximum(np.asarray(variance, dtype=float), 1e-14)
        between = between_variance(X, y, known) if dof else 0.0
        weight = 1 / (known + between)
        # Satterthwaite: what the budgets scatter is known from few of them, the rest from all their runs.
        share = between * float(np.mean(weight))
        quantile = t_quantile(1 / (max(1 - share, 0.0) ** 2 / freedom + share**2 / max(dof, 1) + 1e-9))
    middle = float(np.average(x, weights=weight))
    exponent = float(np.sum(weight * (x - middle) * y) / np.sum(weight * (x - middle) ** 2))
    value = float(np.average(y, weights=weight))
    left = y - value - exponent * (x - middle)
    inflation = float(np.sum(weight * left**2)) / dof if dof else math.nan
    if variance is not None and dof:
        inflation = max(inflation, 1.0)  # scatter that is small by luck does not make known errors smaller
    return SizeFit(
        SizeLaw(math.exp(value - exponent * middle), exponent),
        middle,
        math.sqrt(inflation / weight.sum()),
        math.sqrt(inflation / np.sum(weight * (x - middle) ** 2)),
        quantile,
    )


def estimate(curves: list[Budget]) -> tuple[dict[str, SizeFit | None], dict[str, str]]:
    """N_opt(C) from budgets alone: ``direct`` through each one's best size as it is, ``measured`` by parabolas.

    A budget whose best size, or whose minimum, is not inside the sizes it is judged by identifies nothing: its optimum
    lies beyond them.

    Returns:
        the laws by name, None where the budgets identify none, and for each of those the reason.
    """
    found: dict[str, SizeFit | None] = {}
    reasons: dict[str, str] = {}
    minima, freedom = _minima(curves)
    best = list(_best_sizes(curves))
    # How far a best size as it is lies from the optimum is no draw from a known distribution: its scatter shows it.
    for name, optima, known in (("direct", best, max(len(best) - 2, 1)), ("measured", minima, freedom)):
        found[name], reason = _law(optima, known)
        if reason is not None:
            reasons[name] = f"{plural(len(curves), 'budget')} shared by three sizes; {reason}"
    return found, reasons


def _best_sizes(curves: list[Budget]) -> Iterator[tuple[float, float, float]]:
    """(C, the best size, variance of its ln as the spacing of sizes leaves it) of budgets with it inside."""
    for budget in curves:
        sizes = np.unique(budget.N)
        at = int(np.searchsorted(sizes, budget.N[np.argmin(budget.loss)]))
        if 0 < at < len(sizes) - 1:
            step = math.log(sizes[at + 1] / sizes[at - 1]) / 2
            yield budget.C, float(sizes[at]), step**2 / 12


def _minima(curves: list[Budget]) -> tuple[list[tuple[float, float, float]], float]:
    """(C, N_opt, variance of its ln or nan) of the parabolas with a minimum inside, and these variances' freedom."""
    found = [m for m in map(minimum, curves) if m.inside]
    dof = sum(m.dof for m in found)
    if not dof:
        return [(m.C, m.N_opt, math.nan) for m in found], math.inf
    pooled = sum(m.dof * m.scatter**2 for m in found if m.dof) / dof
    minima = []
    for m in found:
        own = m.dof * m.scatter**2 if m.dof else 0.0
        minima.append((m.C, m.N_opt, m.sensitivity * (SHRINKAGE * pooled + own) / (SHRINKAGE + m.dof)))
    return minima, dof


def _law(optima: list[tuple[float, float, float]], freedom: float) -> tuple[SizeFit | None, str | None]:
    """(The power law through (C, N_opt, variance), or None and why.)"""
    if len(optima) < 3:
        return None, f"{len(optima)} of them have a best size inside their range, and a power law needs three"
    C, N, variance = np.array(optima).T
    # Budgets that span less than a decade would give the optima's own wobble for an exponent.
    if C.max() < 10 * C.min():
        return None, f"those with a best size inside span a factor of {C.max() / C.min():.2g}, less than a decade"
    fitted = through(C, N, variance if np.isfinite(variance).all() else None, freedom)
    exponent = fitted.law.exponent
    if exponent <= 0:
        return None, f"through them N_opt falls with C (exponent {exponent:.2g})"
    if exponent > MAX_EXPONENT:
        return None, f"through them N_opt grows as C^{exponent:.2g}, and so faster than any budget pays for"
    return fitted, None
