"""N_opt(C) of a fit: through the minima of its loss, and through budgets that several sizes share."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.fitting import isoflop
from videoscaling.scaling.fitting.run_info import training_flops
from videoscaling.scaling.laws import Allocation, LossLaw
from videoscaling.scaling.losses import Losses
from videoscaling.scaling.planning import allocation
from videoscaling.scaling.planning.allocation import Cost
from videoscaling.scaling.runs import RunTable
from videoscaling.utils.errors import UserError

# An exponent of N_opt below this comes of minima at the edge of the search: no law of sizes.
STILL = 1e-6


def check_losses(table: RunTable) -> None:
    """Raise UserError where the losses hold nothing to fit."""
    finite = table.loss[np.isfinite(table.loss)]
    if not len(finite):
        raise UserError(f"{table.source}: nothing to fit: no run that is not held out has a finite loss")
    if np.ptp(finite) == 0 and len(finite) > 1:
        raise UserError(f"{table.source}: all losses are equal: there is no law in them")


@dataclass(frozen=True)
class Sizes:
    """N_opt of a fit.

    Attributes:
        allocation: by estimator, as in a law file; None where there is none.
        fits: those that come of isoFLOP budgets, with their errors.
        unknown: why an estimator is unknown, by key.
        warnings: as text.
    """

    allocation: Allocation | None = None
    fits: dict[str, isoflop.SizeFit] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def intervals(self) -> dict[str, list[float]]:
        """Of exponents, for the law file's ``fit.intervals``."""
        return {f"allocation.{name}.exponent": one.exponent_interval() for name, one in self.fits.items()}

    @property
    def errors(self) -> dict[str, dict[str, dict[str, float]]]:
        """The law file's ``fit.size_errors``, where there are any."""
        return {"size_errors": {name: one.errors() for name, one in self.fits.items()}} if self.fits else {}


def fit_sizes(
    table: RunTable, N: NDArray, T: NDArray, loss: NDArray, law: LossLaw | Losses, cost: Cost, grids: bool = False
) -> Sizes:
    """N_opt by estimator.

    Args:
        N, T, loss: [points] at their best batch and rate.
        law: of their losses.
        grids: whether points are optima of grids; else each is a finite row of the run table, with its own budget.
    """
    C = training_flops(table, N, T, cost)
    predicted = allocation.predicted(law, (float(C.min()), 10 * float(C.max())), cost)
    if predicted.exponent < STILL:
        why = "by the loss law the smallest model is the best at every budget"
        return Sizes(unknown={"allocation": why}, warnings=(f"N_opt is unknown: {why}",))
    curves = []
    if not grids:
        # Each row is a point, but for the diverged ones, and has its own budget or a computed one.
        flops = table.flops[np.isfinite(table.loss)]
        curves = isoflop.budgets(N, flops, loss) or isoflop.budgets(N, C, loss, isoflop.MOSTLY)
    found, reasons = isoflop.estimate(curves or isoflop.interpolated(N, C, loss))
    laws = {name: one and one.law for name, one in found.items()}
    warnings = []
    if laws["measured"] is not None:
        at = 10 * C.max()
        ratio = float(laws["measured"](at) / predicted(at))
        if not 0.5 < ratio < 2:
            warnings.append(f"at {at:.2g} FLOPs the measured N_opt is {ratio:.2g} times the predicted one")
    return Sizes(
        {"measured": laws["measured"], "predicted": predicted, "default": "predicted", "direct": laws["direct"]},
        # Interpolated budgets share their points: their scatter is no error.
        {name: one for name, one in found.items() if curves and one is not None},
        {f"allocation.{name}": reason for name, reason in reasons.items()},
        tuple(warnings),
    )
