"""The loss at the best batch and rate, L(N, T), by any law: one form, an average of forms, or a surface's forms.

ln L is the weighted mean of the forms' ln f(N, T). Every form comes with joint draws of its constants where its law
has them. A function of the law (a loss, N_opt) gets its interval by being evaluated for each draw.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.scaling.estimates import Estimate, Prediction
from videoscaling.scaling.fitting.losses import forms

if TYPE_CHECKING:
    from videoscaling.scaling.fitting.losses.average import LossLaws
    from videoscaling.scaling.laws import LossLaw

MAX_TOKENS = 1e20  # more than any run has


@dataclass(frozen=True)
class Form:
    """A form of ``forms.CONSTANTS`` with its weight.

    Attributes:
        theta: [..., constants] logarithms of its constants; one law, or a batch of laws.
        draws: [draws, constants] joint draws of theta, or None.
    """

    name: str
    weight: float
    theta: NDArray[np.float64]
    draws: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Losses:
    """L(N, T).

    Attributes:
        forms: with weights that add up to 1.
        scale: what N and T are divided by.
        predict: losses of runs with intervals, from N, T [rows] and a number of seeds.
        stretch: what a form's draws are stretched by around its constants, from (N, T), one number for each form:
            beyond the fitted range, errors that were seen when larger runs were predicted from smaller ones.
    """

    forms: tuple[Form, ...]
    scale: forms.Scale
    predict: Callable[[ArrayLike, ArrayLike, int], Prediction] | None = None
    stretch: Callable[[float, float], NDArray[np.float64]] | None = None

    @staticmethod
    def additive(constants: ArrayLike, scale: dict[str, float]) -> "Losses":
        """The additive form (eq. 9) of constants [..., 5] (Tc, aT, Nc, aN, Linf): one law, or a batch of laws."""
        with np.errstate(divide="ignore"):  # ln 0, where Linf is 0
            Tc, aT, Nc, aN, Linf = np.moveaxis(np.log(np.asarray(constants, dtype=float)), -1, 0)
        theta = np.stack([Nc, aN, Tc, aT, Linf], axis=-1)
        return Losses((Form("additive", 1.0, theta),), forms.Scale(scale["N"], scale["T"], 1.0))

    def __call__(self, N: ArrayLike, T: ArrayLike) -> NDArray[np.float64]:
        """The loss at N parameters and T tokens; arrays broadcast, against a batch of laws too."""
        return np.exp(self._evaluate(N, T)[0])

    def slopes(self, N: ArrayLike, T: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The derivatives of ln L in ln N and in ln T."""
        return self._evaluate(N, T)[1:]

    def _evaluate(self, N: ArrayLike, T: ArrayLike) -> tuple[NDArray, NDArray, NDArray]:
        """ln L and its derivatives in ln N and ln T."""
        n, t, _ = self.scale.logs(N, T, 1.0)
        total = [0.0, 0.0, 0.0]
        for form in self.forms:
            name, theta = at_best_batch(form.name, form.theta)
            value, J = forms.evaluate(name, theta, n[..., None], t[..., None], np.zeros((*n.shape, 1)))
            # A term is exp(ln Nc - aN ln N): its derivative in ln N is -aN times that in ln Nc.
            by = [-np.exp(theta[..., 1 + at]) * J[..., 0, at] for at in (0, 2)]
            total = [sum_ + form.weight * part for sum_, part in zip(total, (value[..., 0], *by))]
        return total[0], total[1], total[2]

    @property
    def batch(self) -> tuple[int, ...]:
        """The shape of the batch of laws; empty for one law."""
        return np.broadcast_shapes(*(form.theta.shape[:-1] for form in self.forms))

    def drawn(self, N: float, T: float) -> "list[Losses]":
        """The joint draws, for use at (N, T): for each form a batch of laws, as many as its weight asks for.

        Empty where the law has no draws.
        """
        if any(form.draws is None for form in self.forms):
            return []
        factors = np.ones(len(self.forms)) if self.stretch is None else self.stretch(N, T)
        batches = []
        for form, factor in zip(self.forms, factors):
            count = max(round(form.weight * len(form.draws)), 2)
            theta = form.theta + (form.draws[:count] - form.theta) * factor
            batches.append(replace(self, forms=(Form(form.name, 1.0, theta),)))
        return batches

    def estimate(self, read: "Callable[[Losses], ArrayLike]", N: float, T: float) -> Estimate:
        """What ``read`` says of the law near (N, T), with its interval: central 95 % of what it says of the draws.

        The interval holds what each form says alone: it is never narrower than the forms disagree.
        """
        drawn = [np.asarray(read(batch)) for batch in self.drawn(N, T)]
        found = Estimate.of(np.asarray(read(self)), np.concatenate(drawn) if drawn else None)
        if not drawn or len(self.forms) == 1:
            return found
        alone = [np.asarray(read(replace(self, forms=(replace(form, weight=1.0),)))) for form in self.forms]
        return Estimate(found.value, np.minimum(found.low, np.min(alone)), np.maximum(found.high, np.max(alone)))

    def limit(self, N: ArrayLike = np.inf) -> NDArray[np.float64]:
        """The loss of N parameters on endless tokens; without N, that of endless parameters too."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self(N, np.inf)

    def tokens_for(self, N: float, loss: float) -> float:
        """Tokens at which N parameters reach ``loss``; infinite where ``MAX_TOKENS`` do not."""

        def excess(log_T: float) -> float:
            return float(self._evaluate(N, np.exp(log_T))[0]) - math.log(loss)

        if not excess(math.log(MAX_TOKENS)) <= 0:
            return math.inf
        from scipy.optimize import brentq  # not at the top: most plans do without

        return 1.0 if excess(0.0) <= 0 else math.exp(brentq(excess, 0.0, math.log(MAX_TOKENS), xtol=1e-13))


def as_losses(loss: "LossLaw | LossLaws | Losses") -> Losses:
    """A loss law of constants, or averaged forms, as ``Losses``."""
    if isinstance(loss, Losses):
        return loss
    if hasattr(loss, "members"):
        found = tuple(Form(m.form, m.weight, m.fit.theta, m.fit.draws) for m in loss.members)
        return Losses(found, loss.members[0].fit.scale, loss.predict, loss.stretch)
    return Losses.additive(np.stack([loss.Tc, loss.aT, loss.Nc, loss.aN, loss.Linf], axis=-1), loss.scale)


def at_best_batch(name: str, theta: NDArray[np.float64]) -> tuple[str, NDArray[np.float64]]:
    """A form's name and logarithms of constants where the batch is the best one: three_term is additive there.

    The best batch balances Bc / B^aB and Sc / (T / B)^aS. Their sum at it falls with T to the power aB aS / (aB + aS).
    """
    if name != "three_term":
        return name, theta
    Nc, aN, Bc, ln_aB, Sc, ln_aS, Linf = np.moveaxis(theta, -1, 0)
    aB, aS = np.exp(ln_aB), np.exp(ln_aS)
    Tc = Bc + np.log1p(aB / aS) - aB / (aB + aS) * (ln_aB + Bc - ln_aS - Sc)
    return "additive", np.stack([Nc, aN, Tc, ln_aB + ln_aS - np.log(aB + aS), Linf], axis=-1)
