"""From a run table to a law: optima of grids, hyper-parameter laws, the loss law, N_opt, and the error of it all."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.fitting import isoflop, plausibility, table_kind
from videoscaling.scaling.fitting.grids import lines, loss_law
from videoscaling.scaling.fitting.grids.fit_points import (
    Points,
    at_nominal,
    grid_optima,
    points_of_grids,
    points_of_rows,
    pooled_scatter,
)
from videoscaling.scaling.fitting.grids.joint_draws import joint_draws
from videoscaling.scaling.fitting.grids.law_fits import JACKKNIFE, LossStage, hyper_law, hyper_replicates, loss_stage
from videoscaling.scaling.fitting.grids.optimum import COEFFICIENTS, Optimum
from videoscaling.scaling.fitting.options import Options
from videoscaling.scaling.fitting.run_info import domain, recipe_warnings, run_names, skipped_warnings, tokens_per_clip
from videoscaling.scaling.fitting.sizes import check_losses, fit_sizes
from videoscaling.scaling.fitting.unsupported import UnsupportedFit
from videoscaling.scaling.laws import Curvature, GivenBatch, Law, with_hyperparameters
from videoscaling.scaling.planning import allocation
from videoscaling.scaling.runs import RunTable
from videoscaling.utils.errors import UserError, plural

PARTS = ("hyperparameters", "loss", "allocation", "all")
# Best sizes of one budget, of other seeds or by other ways, differ by less than this factor.
SAME_OPTIMUM = 2.0
# An exponent of the loss that may as well be this many times larger is not one to plan by. Refitted draws never reach
# 0: where a linear interval does, theirs spans like this.
UNTOLD = 10.0
PARABOLA = 3  # constants of a parabola


@dataclass(frozen=True)
class Fitted:
    """A law, with the points, optima, warnings and residuals that a report shows."""

    law: Law
    points: Points
    optima: tuple[Optimum, ...]
    warnings: tuple[str, ...]
    residuals: NDArray[np.float64] | None


def fit(table: RunTable, part: str, options: Options, cost: allocation.Cost, provenance: dict[str, Any]) -> Fitted:
    """Fit ``part`` of the laws ("all" for every one) to the rows not held out.

    Raises:
        UserError: nothing to fit.
        UnsupportedFit: the data do not identify what was asked, or only at the edge of their grids.
    """
    # A row that diverged is no optimum.
    table = table.rows(~table.heldout & ~(options.optima & np.isinf(table.loss)))
    if not len(table):
        raise UserError(f"{table.source}: every row is held out or diverged; there is nothing to fit")
    if options.optima:
        table_kind.check_optima(table)
    if part == "allocation" and options.optima:
        return _sizes_of_optima(table, cost, provenance)
    if not (part == "hyperparameters" and options.optima):
        check_losses(table)
    warnings = [*table.notes, *recipe_warnings(table), *skipped_warnings(table)]
    known = bool(np.isfinite([table.B, table.lr]).all())
    swept = part in ("hyperparameters", "all") and known
    if known:
        plausibility.check_units(table, options.force, warnings)
    points, optima = _points(table, part, options, warnings)
    axes = optima[0].axes if optima else lines.BOTH
    scale = {"T": _round_scale(points.T), "N": _round_scale(points.N)}
    constants: dict[str, Any] = {"batch": None, "lr": None, "loss": None}
    unknown: dict[str, str] = {}
    centre, replicates, extra = np.full(6, np.nan), np.full((len(points.present), 6), np.nan), np.zeros((6, 6))
    freedom = len(points.present) - 1
    if swept:
        for offset, name, symbol in ((0, "batch", "B"), (3, "lr", "lr")):
            if symbol not in axes:
                continue
            power, beyond = hyper_law(points, name, symbol, options, scale, warnings)
            constants[name] = power.law
            centre[offset : offset + 3] = power.beta
            place = slice(offset, offset + 3)
            replicates[:, place], extra[place, place] = hyper_replicates(points, symbol, power), beyond
            # Rows have no cells: what scatters is the points themselves, and the constants take their share of them.
            freedom = freedom if optima else max(min(freedom, power.spare), 1)
    stage, method = None, JACKKNIFE
    if part in ("loss", "allocation", "all"):
        stage = loss_stage(points, options, scale, warnings)
        constants["loss"], method = stage.fitted.law, stage.method
    fitted = None if stage is None else stage.fitted
    along = _along(table, axes)
    for name, value in along.items():
        other = {"B": "batch", "lr": "lr"}[name]
        unknown[other] = f"all runs have the one {name} {value:.6g}: what is fitted holds along it"
        warnings.insert(0, f"{other} is unknown: {unknown[other]}")
    if np.isnan([table.B, table.lr]).all():
        unknown |= dict.fromkeys(("batch", "lr"), "the results name no batch and no rate")
    for name in constants:
        if constants[name] is None and name not in unknown:
            unknown[name] = "not fitted: only part of the laws was asked for, fit.py all gives every one"
    columns, draws, intervals = joint_draws(points, (centre, replicates, extra), stage, freedom, scale)
    _check_exponents(intervals, options, warnings)
    sizes, size_fits = None, {}
    if constants["loss"] is not None:
        found = constants["loss"], cost, unknown, warnings
        sizes, size_fits = fit_sizes(table, points.N, points.T, points.loss, *found, grids=bool(points.optima))
    else:
        unknown["allocation"] = "needs the loss law"
    curvature, given = _curvature(points.optima)
    if curvature is None:
        unknown |= {"curvature": "no grids to take it from", "lr_given_batch": "no grids to take it from"}
    if draws is None:
        unknown["draws"] = "fewer than three clusters"
    law = Law(
        name=str(provenance.get("name", "law")),
        **constants,
        allocation=sizes,
        curvature=curvature,
        lr_given_batch=given,
        n_ctx=tokens_per_clip(table),
        domain=domain(table, points.N, points.T, cost),
        recipe=table.recipe,
        fit={
            "objective": None if fitted is None else fitted.objective,
            "delta": None if fitted is None else fitted.delta,
            "points": len(points.N),
            "flops_per_parameter_token": None if tokens_per_clip(table) else float(cost(np.array(1e9)) / 1e9),
            "window": options.window,
            # One clip, where grids were best at it: their rates and losses are those of that batch.
            "floor": max((o.B for o in optima if o.verdict == "floor"), default=None),
            **({"along": along} if along else {}),
            "scatter": None if stage is None else _scatter(stage, points, optima),
            **({"size_errors": {name: one.errors() for name, one in size_fits.items()}} if size_fits else {}),
            "draw_columns": columns,
            "intervals": intervals
            | {f"allocation.{name}.exponent": one.exponent_interval() for name, one in size_fits.items()},
            "method": f"95 %: {method}; {len(points.present)} clusters",
            "verdicts": [optimum.describe() for optimum in optima],
            "warnings": list(warnings),
        },
        draws=draws,
        provenance=provenance | {"unknown": unknown, "source": table.source, "runs": run_names(table)},
    )
    if options.prior is not None and np.isnan([table.B, table.lr]).all():
        law = with_hyperparameters(law, options.prior)
    return Fitted(law, points, optima, tuple(law.fit["warnings"]), None if fitted is None else fitted.residuals)


def _along(table: RunTable, axes: tuple[str, ...]) -> dict[str, float]:
    """The one batch or rate that all runs of the grids have, by its name; empty where both vary."""
    return {name: float(np.median(getattr(table, name))) for name in lines.BOTH if name not in axes}


def _points(table: RunTable, part: str, options: Options, warnings: list[str]) -> tuple[Points, tuple[Optimum, ...]]:
    """What to fit, and the optima of all grids where the run table has grids."""
    if repeated := _repeated(table):
        several = plural(repeated, "cell has", "cells have")
        warnings.append(f"{several} several results: each weighs as one result in the fit of its grid")
    cells = set(zip(table.run_id.tolist(), table.N, table.nominal_T, table.B, table.lr))
    if mixed := {run for (run, *_), count in Counter(cell[:3] for cell in cells).items() if count > 1}:
        several = plural(len(mixed), "run has", "runs have")
        warnings.append(
            f"{several} several cells of one (N, T), such as {min(mixed)}: a run_id is one run's, whose milestones "
            "err together"
        )
    unknown = np.isnan([table.B, table.lr]).any()
    if options.optima or unknown or table_kind.most_cells(table) == 1:
        if part in ("hyperparameters", "all") and not options.optima and not unknown:
            raise UserError("every (N, T) has one cell: if each is an optimum already, say so with --optima")
        if not (options.optima and unknown):
            table_kind.check_repeats(table, options.force, warnings)
        return points_of_rows(table), ()
    axes = lines.swept(table) if table_kind.most_cells(table) >= PARABOLA else lines.BOTH
    if len(axes) == 1:
        table_kind.check_line(table, axes[0])
    elif (largest := max(len(rows) for *_, rows in table.grids())) < COEFFICIENTS:
        raise UserError(
            f"no grid has the {COEFFICIENTS} cells that a quadratic in (lr, B) needs, or the {PARABOLA} along one of "
            f"them: the largest has {largest} (run more cells, or keep the best row of each (N, T) and say --optima)"
        )
    table = at_nominal(table)
    optima = tuple(grid_optima(table, options.window, axes))
    return points_of_grids(table, optima, warnings, options.prior is not None, options.force), optima


def _check_exponents(intervals: dict[str, list[float]], options: Options, warnings: list[str]) -> None:
    """Raise UnsupportedFit, or warn where forced, if the losses do not identify how they fall."""
    for name in ("aT", "aN"):
        low, high = intervals.get(f"loss.{name}", (1.0, 1.0))
        if high > UNTOLD * low and options.prior is None:
            reason = f"loss law: {name}'s 95 % interval is {low:.3g} to {high:.3g}: the losses hardly tell it"
            if not options.force:
                raise UnsupportedFit(f"{reason} (more sizes and tokens, or --prior)")
            warnings.append(reason)


def _repeated(table: RunTable) -> int:
    """Cells (N, T, B, lr) with more than one result."""
    cells = np.stack([table.N, table.nominal_T, table.B, table.lr], axis=1)
    if not np.isfinite(cells).all():
        return 0
    return int(np.sum(np.unique(cells, axis=0, return_counts=True)[1] > 1))


def _sizes_of_optima(table: RunTable, cost: Callable, provenance: dict[str, Any]) -> Fitted:
    """N_opt(C) through rows that are each the best size of their budget, by plain least squares in logs."""
    C = np.where(np.isfinite(table.flops), table.flops, table.T * cost(table.N))
    number = isoflop.budget_of(C)
    for k in np.unique(number):
        N, budget = table.N[number == k], C[number == k].mean()
        if N.max() > SAME_OPTIMUM * N.min():
            raise UserError(
                f"{table.source}: --optima wants the best size of each budget; that at {budget:.2g} FLOPs has sizes "
                f"from {N.min():.4g} to {N.max():.4g}: leave --optima out to fit isoFLOP curves"
            )
    if len(table) < 3:
        raise UserError(f"{table.source}: {len(table)} rows: a power law through best sizes needs three")
    if np.ptp(np.log(C)) < 1e-9:
        raise UserError(f"{table.source}: the optima share one budget: N_opt's exponent is unknown")
    through = isoflop.through(C, table.N)
    measured, span = through.law, through.exponent_interval()
    if measured.exponent <= 0:
        rows = ", ".join(f"N {table.N[i]:.4g} at {C[i]:.4g} FLOPs" for i in np.argsort(C, kind="stable")[:5])
        raise UserError(f"{table.source}: N_opt falls with C (exponent {measured.exponent:.3f}): {rows}")
    warnings = () if span[0] > 0 else (f"N_opt's exponent is not told from 0: {span[0]:.3g} to {span[1]:.3g}",)
    points = points_of_rows(table)
    known = dict.fromkeys(("batch", "lr", "loss", "curvature", "lr_given_batch", "draws"))
    reason = "not fitted: rows are the best sizes of their budgets"
    law = Law(
        name=str(provenance.get("name", "law")),
        **known,
        allocation={"measured": measured, "predicted": None, "default": "measured"},
        n_ctx=tokens_per_clip(table),
        domain=domain(table, points.N, points.T, cost),
        recipe=table.recipe,
        fit={
            "points": len(table),
            "method": "95 %: least squares of ln N in ln C, t quantiles",
            "intervals": {"allocation.measured.exponent": span} if span[0] < span[1] else {},
            "warnings": list(warnings),
        },
        provenance=provenance | {"unknown": dict.fromkeys(known, reason), "source": table.source},
    )
    return Fitted(law, points, (), warnings, None)


def _curvature(optima: tuple[Optimum, ...]) -> tuple[Curvature | None, GivenBatch | None]:
    """Median curvature of the grids around their optima, relative to their losses, and the slope of the ridge."""
    hessians = [o.hessian / o.loss for o in optima if o.usable and np.linalg.eigvalsh(o.hessian)[0] > 0]
    middle = np.median(hessians, axis=0) if hessians else np.zeros((2, 2))
    # The median is taken term by term, so that it need not have a minimum.
    if np.linalg.eigvalsh(middle)[0] <= 0:
        return None, None
    curvature = Curvature(float(middle[0, 0] / 2), float(middle[1, 1] / 2), float(middle[0, 1]))
    return curvature, GivenBatch(float(-middle[0, 1] / middle[0, 0]))


def _scatter(stage: LossStage, points: Points, optima: tuple[Optimum, ...]) -> dict[str, float | None] | None:
    """How losses scatter around the loss law, in ln L: what a prediction of new runs adds to the law's own error.

    ``points``: sd of the fitted points, with ``freedom`` degrees of it. ``run``: sd of single runs around their
    grid's surface, None where the points are runs themselves.
    """
    free = len(loss_law.CONSTANTS) - len(stage.fitted.law.assumed)
    freedom = len(points.N) - free
    if freedom < 1:
        return None
    sd = float(np.sqrt(np.sum(stage.fitted.residuals**2) / freedom))
    return {"points": sd, "run": pooled_scatter(list(optima)) or None, "freedom": freedom} if sd > 0 else None


def _round_scale(values: NDArray) -> float:
    """The power of ten nearest the geometric middle: there the coefficients are least tangled with the exponents."""
    return float(10.0 ** round(float(np.mean(np.log10(values)))))
