"""What figures read off a law, of a surface or of power laws with a loss law: values with 95 % intervals."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scaling import allocation
from scaling.laws import Law
from scaling.prediction import predict
from scaling.reporting.plotted import LeftOut
from utils.errors import UserError

EDGE = 0.01  # the batch beyond which the loss is this much (relative) above the best
TOLERANCE = 1e-3  # loss given away for a larger batch or for other sizes, relative; the planner's default too
FORMULAS = {
    "additive": "L = Nc / N^aN + Tc / T^aT + Linf",
    "joint": "L = (Nc / N^aN + Tc / T^aT)^k + Linf",
    "product": "L = (1 + Nc / N^aN) (1 + Tc / T^aT) Linf",
}


def losses(law: Law, N: ArrayLike, T: ArrayLike, B: ArrayLike = np.nan, lr: ArrayLike = np.nan) -> NDArray[np.float64]:
    """(Value, low, high) [3, rows] of the law's loss; at the best batch and rate where they are nan."""
    try:
        found = predict(law, N, T, B, lr)
    except UserError as error:
        raise LeftOut(str(error)) from None
    return np.stack([found.predicted, found.mean_low, found.mean_high])


def has_rates(law: Law) -> bool:
    """Whether the law has a best batch (or its edge) and a best rate."""
    if law.surface is None:
        return law.batch is not None and law.lr is not None
    return law.surface.shape.batch != "none" and bool(np.ptp(np.log(law.surface.cells.lr)) > 0)


def batch(law: Law, N: NDArray, T: NDArray) -> NDArray[np.float64]:
    """(Value, low, high) [3, rows] of B_opt, or of a surface's edge, in tokens."""
    if law.surface is None:
        return _of_power_law(law, "batch", N, T)
    found = law.surface.edge(T, N, EDGE)
    return np.stack([found.value, found.low, found.high])


def rate(law: Law, N: NDArray, T: NDArray) -> NDArray[np.float64]:
    """(Value, low, high) [3, rows] of lr_opt: a surface's at the largest batch within ``TOLERANCE`` of the best."""
    if law.surface is None:
        return _of_power_law(law, "lr", N, T)
    found = law.surface.best(N, T, tolerance=TOLERANCE).lr
    return np.stack([found.value, found.low, found.high])


def _of_power_law(law: Law, part: str, N: NDArray, T: NDArray) -> NDArray[np.float64]:
    value, drawn = getattr(law, part)(N, T), law.drawn(part)
    ends = np.full((2, len(value)), np.nan)
    if drawn is not None:
        ends = np.quantile(drawn(N[:, None], T[:, None]), [0.025, 0.975], axis=1)
    return np.stack([value, *ends])


def batch_name(law: Law) -> str:
    """What ``batch`` gives, for an axis."""
    return "best batch, tokens" if law.surface is None else f"batch with {EDGE:.0%} more loss, tokens"


def best_size(law: Law, C: NDArray, cost: allocation.Cost) -> NDArray[np.float64]:
    """(Value, low, high) [3, budgets] of the N that minimises the loss at C FLOPs."""
    if law.loss is None:
        raise LeftOut(f"the law has no loss law over (N, T) to minimise ({law.reason('loss')})")
    value, ends, drawn = allocation.optimum(law.loss, C, cost), np.full((2, len(C)), np.nan), law.drawn("loss")
    if drawn is not None:
        constants = np.stack([drawn.Tc, drawn.aT, drawn.Nc, drawn.aN, drawn.Linf], axis=-1)[:, None]
        ends = np.quantile(allocation.minimise(constants, drawn.scale, C, cost), [0.025, 0.975], axis=0)
    return np.stack([value, *ends])


def sizes_within(law: Law, C: float, cost: allocation.Cost) -> tuple[float, float]:
    """The smallest and the largest N whose loss at C FLOPs is within ``TOLERANCE`` of the best."""
    return allocation.within(law.loss, C, cost, TOLERANCE)


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
    return f"{FORMULAS[best.form]}; {written}; N in {scale.N:.3g}, T in {scale.T:.3g}"


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
