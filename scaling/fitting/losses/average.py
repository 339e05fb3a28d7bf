"""The law of losses from tables of (N, T, loss) alone: forms averaged by expanding-window error, honest intervals."""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.scaling.estimates import Prediction, t_quantile
from videoscaling.scaling.fitting.losses import forms
from videoscaling.scaling.fitting.losses.form_fit import fit_form
from videoscaling.scaling.fitting.uncertainty import (
    UNTESTED,
    WORSE,
    calibration,
    shared_errors,
    untested_warning,
    weights_of,
)
from videoscaling.utils.errors import UserError, plural

# Rows (as a share) that each window predicts from those with smaller N, T or N T, and windows of each kind.
WINDOW = 0.05
WINDOWS = 4
LEAST_WINDOW = 3
DRAWS = 200


@dataclass(frozen=True)
class Member:
    """One fitted form with its weight, its window error (rms, in ln L) and what its variances are multiplied by."""

    fit: forms.FormFit
    weight: float
    window_error: float
    calibration: float

    @property
    def form(self) -> str:
        """The form's name."""
        return self.fit.form

    @property
    def tested(self) -> bool:
        """Whether the table was long enough to predict larger N or T from the rest of it."""
        return bool(np.isfinite(self.window_error))

    def variance_factor(self, beyond: ArrayLike) -> NDArray[np.float64]:
        """What claimed variances are multiplied by, by whether a run lies ``beyond`` the table."""
        return np.where(beyond, self.calibration if self.tested else UNTESTED, max(1.0, self.calibration))


@dataclass(frozen=True)
class LossLaws:
    """Fitted forms, best first.

    Attributes:
        rival: the joint form where another one was forced.
        rows: how many losses were fitted.
        domain: (smallest, largest) N, T and N T.
        trends: what the residuals of the best form still depend on, with the change of ln loss from end to end.
    """

    assumed: ClassVar[tuple[str, ...]] = ()  # no constant is another law's
    members: tuple[Member, ...]
    rival: Member | None
    rows: int
    domain: dict[str, tuple[float, float]]
    trends: dict[str, float]

    def __call__(self, N: ArrayLike, T: ArrayLike) -> NDArray[np.float64]:
        """The loss at N parameters and T tokens (arrays broadcast)."""
        return np.exp(sum(member.weight * np.log(member.fit(N, T)) for member in self.members))

    def stretch(self, N: ArrayLike, T: ArrayLike) -> NDArray[np.float64]:
        """What errors of each form's constants are multiplied by for runs of N and T, [members]."""
        beyond = np.squeeze(self._beyond(np.asarray(N, dtype=float), np.asarray(T, dtype=float)))
        return np.sqrt([float(member.variance_factor(beyond)) for member in self.members])

    def predict(self, N: ArrayLike, T: ArrayLike, seeds: int = 1) -> Prediction:
        """Losses at N parameters and T tokens, at the best batch and rate.

        Args:
            seeds: not read. The scatter of the points is noise and the forms' own error, and which is which is not
                known: the mean of several runs has the interval of one.
        """
        N, T = np.broadcast_arrays(*(np.atleast_1d(np.asarray(v, dtype=float)) for v in (N, T)))
        weights = np.array([member.weight for member in self.members])
        beyond = self._beyond(N, T)
        means, own, new = [], [], []
        for member in self.members:
            law, scatter = member.fit.interval(N, T) ** 2, member.fit.noise**2
            factor = member.variance_factor(beyond)
            means.append(np.log(member.fit(N, T)))
            own.append(factor * law)
            new.append(factor * (law + scatter))
        middle = weights @ np.array(means)
        between = weights @ (np.array(means) - middle) ** 2
        freedom = max(self.rows - 6.0, 3.0)
        half, wide = (t_quantile(freedom) * np.sqrt(weights @ np.array(v) + between) for v in (own, new))
        return Prediction(*(np.exp(v) for v in (middle, middle - half, middle + half, middle - wide, middle + wide)))

    def _beyond(self, N: NDArray, T: NDArray) -> NDArray[np.bool_]:
        """Whether runs are larger than those fitted, or longer, or of a larger budget."""
        return (self.domain["N"][1] < N) | (self.domain["T"][1] < T) | (self.domain["N T"][1] < N * T)

    def warnings(self) -> list[str]:
        """What a reader of the law must know, a line each."""
        best, lines = self.members[0], []
        if not best.tested:
            lines.append(untested_warning("N or T"))
        for against, size in self.trends.items():
            lines.append(f"lack of fit: residuals of the {best.form} form change by {size:+.2%} along {against}")
        if self.rival and best.window_error > WORSE * self.rival.window_error:
            lines.append(
                f"the {best.form} form errs by {best.window_error:.2%} on larger N and T than it was fitted to, the "
                f"joint form by {self.rival.window_error:.2%}"
            )
        return lines


def fit_losses(
    N: ArrayLike,
    T: ArrayLike,
    loss: ArrayLike,
    B: ArrayLike = np.nan,
    *,
    noise: ArrayLike | None = None,
    cluster: ArrayLike | None = None,
    form: str = "auto",
    draws: int = DRAWS,
) -> LossLaws:
    """Fit losses that each are at their best batch and rate.

    Args:
        N, T, loss, B: [rows]; B for the three_term form only.
        noise: [rows] relative standard errors, whose ratios weigh the rows.
        cluster: [rows] what errs together (a run), drawn as one in the bootstrap.
        form: of forms.CONSTANTS, or "auto".

    Raises:
        UserError: too few rows, or a form that is not there.
    """
    if form != "auto" and form not in forms.CONSTANTS:
        raise UserError(f"form {form!r} is none of {', '.join(forms.CONSTANTS)}")
    N, T, loss = (np.asarray(v, dtype=float) for v in (N, T, loss))
    B = np.broadcast_to(np.asarray(B, dtype=float), N.shape)
    noise = None if noise is None else np.asarray(noise, dtype=float)
    names = [name for name in forms.AUTO if len(N) >= least_rows(name)] if form == "auto" else [form]
    least = least_rows(form)
    if len(N) < least:
        raise UserError(f"{plural(len(N), 'point')} for {least - 1} constants leave nothing to check the fit by")
    found, windows = zip(*(_member(name, N, T, loss, B, noise) for name in names))
    evidence = np.array([-0.5 * len(N) * np.log(member.fit.noise**2) for member in found])
    evidence -= np.array([0.5 * len(forms.CONSTANTS[member.form]) * np.log(len(N)) for member in found])
    weight = weights_of(*shared_errors(windows), evidence)
    kept = [(w, member) for w, member in zip(weight, found) if w > 0]
    members = [replace(member, weight=float(w)) for w, member in sorted(kept, key=lambda pair: -pair[0])]
    if draws:
        drawn = {"noise": noise, "cluster": cluster, "draws": draws}
        members = [
            replace(m, fit=fit_form(m.form, N, T, loss, B, scale=m.fit.scale, start=m.fit.theta, **drawn))
            for m in members
        ]
    rival = None
    if form not in ("auto", "joint") and len(N) >= least_rows("joint"):
        rival = _member("joint", N, T, loss, B, noise)[0]
    residuals = np.log(loss) - np.log(members[0].fit(N, T, B))
    domain = {"N": _span(N), "T": _span(T), "N T": _span(N * T)}
    return LossLaws(tuple(members), rival, len(N), domain, _trends(members[0].fit, N, T, B, residuals))


def least_rows(form: str) -> int:
    """The fewest rows that ``form`` (auto: one of its forms) is fitted to: one more than it has constants.

    Through as many rows as constants it passes exactly: it claims no error at all, and outweighs every other form.
    """
    return min(len(forms.CONSTANTS[name]) for name in (forms.AUTO if form == "auto" else (form,))) + 1


def _span(values: NDArray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _member(
    form: str, N: NDArray, T: NDArray, loss: NDArray, B: NDArray, noise: NDArray | None
) -> tuple[Member, dict[Hashable, float]]:
    """The fitted form with its expanding-window error, and the mean squared error of each window."""
    fit = fit_form(form, N, T, loss, B, noise=noise)
    squares: dict[Hashable, float] = {}
    ratios = []
    size = max(int(WINDOW * len(N)), LEAST_WINDOW)
    for along, key in (("N", N), ("T", T), ("N T", N * T)):
        order = np.argsort(key, kind="stable")
        for window in range(WINDOWS):
            out = order[len(N) - (window + 1) * size : len(N) - window * size]
            rest = order[: max(len(N) - (window + 1) * size, 0)]
            # Windows that share no value with what they are predicted from.
            rest = rest[key[rest] < key[out].min()] if len(out) else rest
            if (
                len(rest) < 2 * len(forms.CONSTANTS[form])
                or len(np.unique(N[rest])) < 3
                or len(np.unique(T[rest])) < 3
            ):
                continue
            errors = None if noise is None else noise[rest]
            part = fit_form(
                form, N[rest], T[rest], loss[rest], B[rest], noise=errors, scale=fit.scale, start=fit.theta
            )
            error = _without_outliers(np.log(loss[out]) - np.log(part(N[out], T[out], B[out])))
            scatter = fit.noise if noise is None else fit.noise * noise[out] / np.sqrt(np.mean(noise**2))
            variance = part.interval(N[out], T[out], B[out]) ** 2 + scatter**2
            squares[along, window] = float(np.mean(error**2))
            ratios.append(float(np.mean(error**2 / variance)))
    window_error = float(np.sqrt(np.mean(list(squares.values())))) if squares else np.nan
    return Member(fit, 1.0, window_error, calibration(ratios)), squares


def _without_outliers(errors: NDArray) -> NDArray[np.float64]:
    """Errors at most five robust sd from their median: what they have in common stays, a wrong loss counts little."""
    middle = np.median(errors)
    most = 5 * 1.4826 * float(np.median(np.abs(errors - middle)))
    return middle + np.clip(errors - middle, -most, most)


def _trends(fit: forms.FormFit, N: NDArray, T: NDArray, B: NDArray, residuals: NDArray) -> dict[str, float]:
    """Trends of the residuals that are no chance (four standard errors) and move the loss by more than 0.2 %."""
    n, t, b = fit.scale.logs(N, T, B)
    _, J = forms.evaluate(fit.form, fit.theta, n, t, b)
    basis, _ = np.linalg.qr(J / np.maximum(np.linalg.norm(J, axis=0), 1e-300))
    found = {}
    for name, column in {"ln N squared": n * n, "ln T squared": t * t, "ln N x ln T": n * t}.items():
        left = column - basis @ (basis.T @ column)
        norm = float(left @ left)
        if norm < 1e-6 * float(column @ column) or norm == 0:
            continue
        slope = float(left @ residuals) / norm
        error = np.sqrt(float(np.sum((residuals - slope * left) ** 2)) / max(len(N) - J.shape[1] - 1, 1) / norm)
        size = slope * float(np.subtract(*np.quantile(column, [0.95, 0.05])))
        if abs(slope) > 4 * error and abs(size) > 0.002:
            found[name] = size
    return found
