"""Held-out checks: fit on the small, predict the large, as extrapolation will be asked to do."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling import forms
from videoscaling.scaling.heldout import paired, relative_error
from videoscaling.scaling.laws import LossLaw
from videoscaling.scaling.points import at_nominal, grid_optima
from videoscaling.scaling.runs import Ledger
from videoscaling.utils.errors import UserError


@dataclass(frozen=True)
class Check:
    """One window of one form: fitted up to ``fitted_to``, checked on the next value.

    Attributes:
        form: of ``forms.FORMS``.
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


def expanding_windows(
    N: NDArray, T: NDArray, B: NDArray, loss: NDArray, noise: NDArray | None, names: tuple[str, ...] = forms.FORMS
) -> list[Check]:
    """Fit each form on the smallest three, four, ... values of N (then of T) and predict the next.

    Windows that cannot fix a form's constants are left out for that form.
    """
    checks = []
    for along, values in (("N", N), ("T", T)):
        for inside, outside, last, following in _windows(values):
            for name in names:
                try:
                    chosen = None if noise is None else noise[inside]
                    law = forms.fit(name, N[inside], T[inside], B[inside], loss[inside], chosen)
                except UserError:
                    continue
                miss = relative_error(loss[outside], law(N[outside], T[outside], B[outside]))
                error, bias = float(np.sqrt(np.mean(miss**2))), float(miss.mean())
                checks.append(Check(name, along, last, following, error, bias, int(outside.sum())))
    return checks


def _windows(values: NDArray) -> Iterator[tuple[NDArray, NDArray, float, float]]:
    distinct = np.unique(values)
    for last, following in pairwise(distinct[2:]):
        yield values <= last, values == following, float(last), float(following)


def summary(checks: list[Check]) -> list[dict[str, Any]]:
    """Per form and direction: the error over all windows that every compared form could fit."""
    rows = []
    for along in ("N", "T"):
        mine = [c for c in checks if c.along == along]
        names = sorted({c.form for c in mine}, key=forms.FORMS.index)
        shared = [w for w in {c.checked_at for c in mine} if sum(c.checked_at == w for c in mine) == len(names)]
        for name in names:
            chosen = [c for c in mine if c.form == name and c.checked_at in shared]
            if chosen:
                count = sum(c.points for c in chosen)
                error = np.sqrt(sum(c.points * c.error**2 for c in chosen) / count)
                bias = sum(c.points * c.bias for c in chosen) / count
                rows.append(
                    {"form": name, "along": along, "error": float(error), "bias": float(bias), "points": count}
                )
    return rows


def describe(rows: list[dict[str, Any]], N: NDArray, T: NDArray) -> list[str]:
    """The summary for people: the best form of each direction is marked, and a direction without rows says why."""
    lines = ["expanding windows: root mean square error of the predicted loss, and its mean"]
    for along, values in (("N", N), ("T", T)):
        mine = [row for row in rows if row["along"] == along]
        least = min((row["error"] for row in mine), default=0.0)
        lines += [
            f"  along {along}  {row['form']:<12}{row['error']:8.3%} {row['bias']:+8.3%}  {row['points']} points"
            + ("  best" if len(mine) > 1 and row["error"] == least else "")
            for row in mine
        ]
        if not mine:
            count = len(np.unique(values))
            why = (
                "four are needed, to fit three and predict the next"
                if count < 4
                else "no form has the points it needs"
            )
            lines.append(f"  along {along}: {count} distinct values; {why}")
    return lines


def equivalent_compute(law: LossLaw, N: float, T: float, measured: float) -> float:
    """Measured loss as compute: the tokens at which the law predicts it, over those spent (at one N, so FLOPs too).

    Above 1 the run did better than predicted; 0.8 says that a fifth of its compute was lost against the law.
    Infinite if the law reaches the loss at no T.
    """
    return float(law.tokens_for(N, measured) / T)


def held_out(ledger: Ledger, law: LossLaw, window: float | None) -> list[dict[str, float]]:
    """Prediction against measurement for each held-out (N, T): at the grid's optimum, or its best cell without one."""
    ledger = ledger.rows(ledger.heldout & np.isfinite(ledger.loss))
    if not len(ledger):
        return []
    rows = []
    for o in grid_optima(paired(at_nominal(ledger)), window):
        predicted = float(law(o.N, o.T))
        compute = equivalent_compute(law, o.N, o.T, o.loss)
        rows.append(
            {"N": o.N, "T": o.T, "measured": o.loss, "predicted": predicted,
             "error": float(relative_error(o.loss, predicted)),
             "equivalent_compute": compute if np.isfinite(compute) else None}
        )  # fmt: skip
    return rows
