"""What figures read off a law, of a surface or of power laws with a loss law: values with 95 % intervals."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.scaling.estimates import Estimate
from videoscaling.scaling.fitting.losses.forms import FORMULAS
from videoscaling.scaling.laws import Law
from videoscaling.scaling.losses import Losses
from videoscaling.scaling.planning import allocation
from videoscaling.scaling.prediction import predict
from videoscaling.scaling.reporting.plotted import LeftOut
from videoscaling.utils.errors import UserError

EDGE = 0.01  # the batch beyond which the loss is this much (relative) above the best
TOLERANCE = 1e-3  # loss given away for a larger batch or for other sizes, relative; the planner's default too


def losses(law: Law, N: ArrayLike, T: ArrayLike, B: ArrayLike = np.nan, lr: ArrayLike = np.nan) -> NDArray[np.float64]:
    """(Value, low, high) [3, rows] of the law's loss; at the best batch and rate where they are nan."""
    try:
        found = predict(law, N, T, B, lr)
    except UserError as error:
        raise LeftOut(str(error)) from None
    return np.stack([found.predicted, found.mean_low, found.mean_high])


def has_rates(law: Law) -> bool:
    """Whether the law has a best batch (or a surface's edge) and a best rate."""
    if law.surface is None:
        return law.batch is not None and law.lr is not None
    return law.surface.shape.batch != "none" and bool(np.ptp(np.log(law.surface.cells.lr)) > 0)


def batch(law: Law, N: NDArray, T: NDArray) -> NDArray[np.float64]:
    """(Value, low, high) [3, rows] of B_opt, or of a surface's edge, in tokens."""
    return _stacked(law.response.best_batch(N, T) if law.surface is None else law.surface.edge(T, N, EDGE))


def rate(law: Law, N: NDArray, T: NDArray) -> NDArray[np.float64]:
    """(Value, low, high) [3, rows] of lr_opt at the batch that a plan takes."""
    return _stacked(law.response.rate(N, T, law.response.wanted_batch(N, T, TOLERANCE)))


def _stacked(found: Estimate) -> NDArray[np.float64]:
    return np.stack(np.broadcast_arrays(found.value, found.low, found.high))


def best_size(law: Law, C: NDArray, cost: allocation.Cost) -> NDArray[np.float64]:
    """The N [budgets] that minimises the loss at C FLOPs."""
    return allocation.optimum(_loss_law(law), C, cost)


def size_interval(law: Law, C: float, cost: allocation.Cost) -> tuple[float, float, float]:
    """(Value, low, high) of the N that minimises the loss at C FLOPs."""
    losses, best = _loss_law(law), float(best_size(law, np.array(C), cost))
    found = losses.estimate(lambda one: allocation.optimum(one, C, cost), best, C / float(cost(np.array(best))))
    return tuple(float(v) for v in (found.value, found.low, found.high))


def sizes_within(law: Law, C: float, cost: allocation.Cost) -> tuple[float, float]:
    """The smallest and the largest N whose loss at C FLOPs is within ``TOLERANCE`` of the best."""
    return allocation.within(_loss_law(law), C, cost, TOLERANCE)


def _loss_law(law: Law) -> Losses:
    if law.response.no_losses is not None:
        raise LeftOut(f"the law has no loss over (N, T): {law.response.no_losses}")
    return law.response.losses


def loss_formula(law: Law) -> str:
    """The loss law with its constants."""
    if law.loss is not None:
        value = law.loss
        N, T = (f"({name} / {value.scale[name]:.3g})" for name in "NT")
        return f"L = {value.Nc:.3g} {N}^-{value.aN:.3g} + {value.Tc:.3g} {T}^-{value.aT:.3g} + {value.Linf:.3g}"
    if law.surface is None or not law.surface.members:
        return "no loss law"
    best = law.surface.members[0]
    constants = zip(best.solution.model.level_names, np.exp(best.solution.theta))
    written = ", ".join(f"{name[2:]} {value:.3g}" for name, value in constants)
    scale = law.surface.scale
    return f"L = {FORMULAS[best.form]}; {written}; N in {scale.N:.3g}, T in {scale.T:.3g}"


def rate_formula(law: Law) -> str:
    """The laws of the best batch and rate with their constants."""
    if law.surface is None:
        parts = {"B_opt": law.batch, "lr_opt": law.lr}
        written = [
            f"{name} = {p.coefficient:.3g} (T / {p.scale['T']:.3g})^{p.T:.3g} (N / {p.scale['N']:.3g})^{p.N:.3g}"
            for name, p in parts.items()
            if p is not None
        ]
        return "; ".join(written) or "no laws of batch and rate"
    surface = law.surface
    if not has_rates(law):
        return "one batch, or one rate, in all runs"
    scale, exponents = surface.scale, surface.rate_exponents()
    terms = " ".join(f"({n[1]} / {getattr(scale, n[1]):.3g})^{float(v.value):.3g}" for n, v in exponents.items())
    level = float(surface.lr_opt(scale.B, scale.T, scale.N).value)
    return f"lr_opt = {level:.3g} {terms}"
