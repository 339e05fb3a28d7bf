"""N_opt(C) of a fit: through the minima of its loss, and through budgets that several sizes share."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.fitting import isoflop
from videoscaling.scaling.fitting.run_info import training_flops
from videoscaling.scaling.laws import LossLaw
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


def fit_sizes(
    table: RunTable,
    N: NDArray,
    T: NDArray,
    loss: NDArray,
    law: LossLaw | Losses,
    cost: Cost,
    unknown: dict[str, str],
    warnings: list[str],
    grids: bool = False,
) -> tuple[dict[str, Any] | None, dict[str, isoflop.SizeFit]]:
    """N_opt by estimator, None where there is none, and the errors of those that come of isoFLOP budgets.

    Args:
        N, T, loss: [points] at their best batch and rate.
        law: of their losses.
        unknown: gets the reason where an estimator is unknown.
        grids: whether points are optima of grids; else each is a finite row of the run table, with its own budget.
    """
    C = training_flops(table, N, T, cost)
    sizes: dict[str, Any] = {"measured": None, "predicted": None, "default": "predicted"}
    sizes["predicted"] = allocation.predicted(law, (float(C.min()), 10 * float(C.max())), cost)
    if sizes["predicted"].exponent < STILL:
        unknown["allocation"] = "by the loss law the smallest model is the best at every budget"
        warnings.append(f"N_opt is unknown: {unknown['allocation']}")
        return None, {}
    curves = []
    if not grids:
        # Each row is a point, but for the diverged ones, and has its own budget or a computed one.
        flops = table.flops[np.isfinite(table.loss)]
        curves = isoflop.budgets(N, flops, loss) or isoflop.budgets(N, C, loss, isoflop.MOSTLY)
    found, reasons = isoflop.estimate(curves or isoflop.interpolated(N, C, loss))
    sizes |= {name: None if one is None else one.law for name, one in found.items()}
    # Interpolated budgets share their points: their scatter is no error.
    fits = {name: one for name, one in found.items() if curves and one is not None}
    unknown |= {f"allocation.{name}": reason for name, reason in reasons.items()}
    if sizes["measured"] is not None:
        at = 10 * C.max()
        ratio = float(sizes["measured"](at) / sizes["predicted"](at))
        if not 0.5 < ratio < 2:
            warnings.append(f"at {at:.2g} FLOPs the measured N_opt is {ratio:.2g} times the predicted one")
    return sizes, fits
