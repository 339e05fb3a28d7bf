"""Held-out checks: fit on the small, predict the large, as extrapolation will be asked to do."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from videoscaling.scaling.checks.heldout import paired, relative_error
from videoscaling.scaling.fitting.grids.fit import fit as grids_fit
from videoscaling.scaling.fitting.grids.fit_points import at_nominal, grid_optima
from videoscaling.scaling.fitting.grids.optimum import Optimum
from videoscaling.scaling.fitting.losses import forms
from videoscaling.scaling.fitting.losses.form_fit import fit_form
from videoscaling.scaling.fitting.method import LOSSES, SURFACE, fit_law
from videoscaling.scaling.fitting.options import Options
from videoscaling.scaling.fitting.surface.surface import Surface
from videoscaling.scaling.laws import Law, LossLaw
from videoscaling.scaling.losses import Losses, as_losses
from videoscaling.scaling.planning.allocation import Cost
from videoscaling.scaling.prediction import predict
from videoscaling.scaling.runs import RunTable
from videoscaling.utils.errors import UserError, plural

# So few held-out points in their 95 % intervals, or fewer, are no chance.
UNLIKELY = 0.05


@dataclass(frozen=True)
class Check:
    """One window of one form: fitted up to ``fitted_to``, checked on the next value.

    Attributes:
        form: of ``forms.CONSTANTS``.
        along: "N" or "T".
        fitted_to, checked_at: largest value fitted, and the held-out one.
        error: root mean square relative error of the predicted loss; ``bias`` its mean.
        points: held-out points.
    """

    form: str
    along: str
    fitted_to: float
    checked_at: float
    error: float
    bias: float
    points: int


@dataclass(frozen=True)
class WindowError:
    """All windows of one form in one direction: ``error``, ``bias`` and ``points`` as of a Check."""

    form: str
    along: str
    error: float
    bias: float
    points: int


@dataclass(frozen=True)
class HeldOut:
    """A held-out (N, T): losses at its best cell or optimum, and the law's 95 % interval of such a measurement.

    That is one new run, or the mean of so many as the best cell has.

    Attributes:
        inside: whether the measured loss lies in the interval; None where that is unknown.
        error: measured over predicted, less 1.
        equivalent_compute: ``equivalent_compute``, None where it is infinite or unknown.
    """

    N: float
    T: float
    measured: float
    predicted: float
    low: float | None
    high: float | None
    inside: bool | None
    error: float
    equivalent_compute: float | None

    def text(self) -> str:
        """One line."""
        span = "interval unknown"
        if self.inside is not None:
            span = f"{'inside' if self.inside else 'OUTSIDE'} [{self.low:.5g}, {self.high:.5g}]"
        factor = self.equivalent_compute
        compute = "" if factor is None else f"; the law needs {factor:.3g} times its tokens for that loss"
        return (
            f"held out N {self.N:.4g}, T {self.T:.4g}: predicted {self.predicted:.5g}, measured {self.measured:.5g} "
            f"({self.error:+.3%}), {span}{compute}"
        )


@dataclass(frozen=True)
class Validation:
    """Expanding windows by form and direction, held-out points, and why a direction has no windows."""

    windows: list[WindowError]
    held_out: list[HeldOut]
    distinct: dict[str, int]

    @property
    def verdict(self) -> str | None:
        """Whether the intervals held; None without held-out points that have intervals."""
        known = [point.inside for point in self.held_out if point.inside is not None]
        if not known:
            return None
        inside, count = sum(known), len(known)
        failed = bdtr(inside, count, 0.95) < UNLIKELY
        rms = float(np.sqrt(np.mean([point.error**2 for point in self.held_out])))
        words = "the intervals did NOT hold" if failed else "the intervals held"
        return f"{words}: {inside} of {count} held-out points lie in their 95 % intervals, rms error {rms:.3%}"

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        windows, held = ([asdict(one) for one in many] for many in (self.windows, self.held_out))
        return {"windows": windows, "held_out": held, "verdict": self.verdict}

    def text(self) -> str:
        """As text, for readers."""
        lines = [*describe(self.windows, self.distinct), *(point.text() for point in self.held_out)]
        return "\n".join([*lines, *([self.verdict] if self.verdict else [])])


def validate(table: RunTable, method: str, options: Options, cost: Cost) -> Validation:
    """Fit the loss to the rows that are not held out, and check it on windows and on those that are.

    Raises:
        UserError: nothing to fit.
        UnsupportedFit: the data do not support a fit.
    """
    if method == SURFACE:
        law = fit_law(table, "loss", method, options, cost, {}).law
        rows, N, T = surface_windows(law.surface), law.surface.cells.N, law.surface.cells.T
    elif method == LOSSES:
        law, kept = fit_law(table, "loss", method, options, cost, {}).law, table.rows(~table.heldout)
        kept = kept.rows(np.isfinite(kept.loss))
        noise = kept.loss_se / kept.loss
        rows = summary(_windows_of(kept.N, kept.T, kept.B, kept.loss, noise if np.isfinite(noise).all() else None))
        N, T = kept.N, kept.T
    else:
        fitted = grids_fit(table, "loss", options, cost, {})
        law, points = fitted.law, fitted.points
        rows = summary(_windows_of(points.N, points.T, points.B, points.loss, points.noise))
        N, T = points.N, points.T
    distinct = {"N": len(np.unique(N)), "T": len(np.unique(T))}
    return Validation(rows, held_out(table, law), distinct)


def _windows_of(N: NDArray, T: NDArray, B: NDArray, loss: NDArray, noise: NDArray | None) -> list[Check]:
    names = tuple(name for name in forms.CONSTANTS if name != "three_term" or np.all(np.isfinite(B)))
    return expanding_windows(N, T, B, loss, noise, names)


def surface_windows(surface: Surface) -> list[WindowError]:
    """``summary`` of the windows by which a surface's forms were weighted."""
    rows = []
    for along in ("N", "T"):
        for member in surface.members:
            steps = [step.error for step in member.steps if step.by == along]
            if steps:
                errors = np.expm1(np.concatenate(steps))
                rms, bias = float(np.sqrt(np.mean(errors**2))), float(errors.mean())
                rows.append(WindowError(member.form, along, rms, bias, len(errors)))
    return rows


def expanding_windows(
    N: NDArray,
    T: NDArray,
    B: NDArray,
    loss: NDArray,
    noise: NDArray | None,
    names: tuple[str, ...] = tuple(forms.CONSTANTS),
) -> list[Check]:
    """Fit each form on the smallest three, four, ... values of N (then of T) and predict the next.

    Windows that cannot fix a form's constants are left out for that form.
    """
    checks = []
    for along, values in (("N", N), ("T", T)):
        for inside, outside, last, following in _windows(values):
            if min(len(np.unique(N[inside])), len(np.unique(T[inside]))) < 3:
                continue
            for name in names:
                try:
                    chosen = None if noise is None else noise[inside]
                    law = fit_form(name, N[inside], T[inside], loss[inside], B[inside], noise=chosen)
                except UserError:
                    continue
                miss = relative_error(loss[outside], law(N[outside], T[outside], B[outside]))
                error, bias = float(np.sqrt(np.mean(miss**2))), float(miss.mean())
                checks.append(
                    Check(
                        form=name,
                        along=along,
                        fitted_to=last,
                        checked_at=following,
                        error=error,
                        bias=bias,
                        points=int(outside.sum()),
                    )
                )
    return checks


def _windows(values: NDArray) -> Iterator[tuple[NDArray, NDArray, float, float]]:
    distinct = np.unique(values)
    for last, following in pairwise(distinct[2:]):
        yield values <= last, values == following, float(last), float(following)


def summary(checks: list[Check]) -> list[WindowError]:
    """Per form and direction: the error over all windows that every compared form could fit."""
    rows = []
    for along in ("N", "T"):
        mine = [c for c in checks if c.along == along]
        names = [name for name in forms.CONSTANTS if any(c.form == name for c in mine)]
        shared = [w for w in {c.checked_at for c in mine} if sum(c.checked_at == w for c in mine) == len(names)]
        for name in names:
            chosen = [c for c in mine if c.form == name and c.checked_at in shared]
            if chosen:
                count = sum(c.points for c in chosen)
                error = np.sqrt(sum(c.points * c.error**2 for c in chosen) / count)
                bias = sum(c.points * c.bias for c in chosen) / count
                rows.append(WindowError(name, along, float(error), float(bias), count))
    return rows


def describe(rows: list[WindowError], distinct: dict[str, int]) -> list[str]:
    """The summary as text: the best form of each direction is marked, and a direction without rows says why."""
    lines = ["expanding windows: root mean square error of the predicted loss, and its mean"]
    for along, count in distinct.items():
        mine = [row for row in rows if row.along == along]
        least = min((row.error for row in mine), default=0.0)
        lines += [
            f"  along {along}  {row.form:<12}{row.error:8.3%} {row.bias:+8.3%}  {row.points} points"
            + ("  best" if len(mine) > 1 and row.error == least else "")
            for row in mine
        ]
        if not mine:
            why = "four are needed, to fit three and predict the next"
            why = why if count < 4 else "no form has the points it needs"
            lines.append(f"  along {along}: {plural(count, 'distinct value')}; {why}")
    return lines


def equivalent_compute(law: LossLaw | Losses, N: float, T: float, measured: float) -> float:
    """Measured loss as compute: the tokens at which the law predicts it, over those spent (at one N, so FLOPs too).

    Above 1 the run did better than predicted; 0.8 says that a fifth of its compute was lost against the law.
    Infinite if the law reaches the loss at no T.
    """
    return float(as_losses(law).tokens_for(N, measured) / T)


def held_out(table: RunTable, law: Law) -> list[HeldOut]:
    """Each held-out (N, T): the grid's optimum against the law at its best pair; of a grid without one its best cell,
    against the law at that cell's batch and rate."""
    table = table.rows(table.heldout & np.isfinite(table.loss))
    if not len(table):
        return []
    points = []
    for n, t, loss, B, lr, runs in _measured(table):
        found, at_best = predict(law, n, t, B, lr, seeds=int(runs)), float(predict(law, n, t).predicted[0])
        value, low, high = (float(v[0]) for v in (found.predicted, found.low, found.high))
        known = math.isfinite(low) and math.isfinite(high)
        # The law's tokens are those of runs at the best pair.
        compute = equivalent_compute(law.response.losses, n, t, loss * at_best / value)
        points.append(
            HeldOut(
                N=float(n),
                T=float(t),
                measured=float(loss),
                predicted=value,
                low=low if known else None,
                high=high if known else None,
                inside=bool(low <= loss <= high) if known else None,
                error=float(relative_error(loss, value)),
                equivalent_compute=float(compute) if np.isfinite(compute) else None,
            )
        )
    return points


def _measured(table: RunTable) -> NDArray:
    """N, T, loss, B, lr and the runs of that B and lr, of each (N, T) [points, 6]; of rows without B and lr the mean.

    B and lr are nan, and runs 1, where the loss is that of the best pair: of an optimum, or where a row has none.
    """
    if np.isfinite([table.B, table.lr]).all():
        found = grid_optima(paired(at_nominal(table)))
        pairs = [(np.nan, np.nan, 1) if o.usable else (o.B, o.lr, _repeats(table, o)) for o in found]
        rows = [(o.N, o.T, o.loss, *pair) for o, pair in zip(found, pairs)]
    else:
        rows = [(N, T, float(table.loss[own].mean()), np.nan, np.nan, 1) for N, T, own in table.grids()]
    return np.array(rows)


def _repeats(table: RunTable, cell: Optimum) -> int:
    """How many runs of a grid have its best cell's batch and rate; 1 where none has, as a flat optimum is no cell."""
    same = np.isclose([table.B, table.lr], [[cell.B], [cell.lr]], rtol=1e-6).all(axis=0)
    return max(int(np.sum(same & np.isclose(table.N, cell.N) & np.isclose(table.nominal_T, cell.T, rtol=1e-3))), 1)
