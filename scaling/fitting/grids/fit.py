"""From a run table to a law: optima of grids, hyper-parameter laws, the loss law, N_opt, and the error of it all."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.fitting import isoflop, plausibility, table_kind
from videoscaling.scaling.fitting.grids.edges import BOTH
from videoscaling.scaling.fitting.grids.fit_points import (
    Points,
    at_nominal,
    grid_optima,
    points_of_grids,
    points_of_rows,
    pooled_scatter,
)
from videoscaling.scaling.fitting.grids.hyper_law import PARTS as HYPERS
from videoscaling.scaling.fitting.grids.hyper_law import hyper_law
from videoscaling.scaling.fitting.grids.joint_draws import joint_draws
from videoscaling.scaling.fitting.grids.loss_stage import JACKKNIFE, LossStage, loss_stage
from videoscaling.scaling.fitting.grids.optimum import COEFFICIENTS, WINDOW, Optimum
from videoscaling.scaling.fitting.options import Options
from videoscaling.scaling.fitting.run_info import flops_per_parameter_token, law_of, recipe_warnings, skipped_warnings
from videoscaling.scaling.fitting.sizes import Sizes, check_losses, fit_sizes
from videoscaling.scaling.fitting.unsupported import Checks
from videoscaling.scaling.laws import Curvature, GivenBatch, Law, Provenance, with_hyperparameters
from videoscaling.scaling.planning import allocation
from videoscaling.scaling.runs import RunTable
from videoscaling.utils.errors import UserError, plural

PARTS = ("hyperparameters", "loss", "allocation", "all")
# Best sizes of one budget, of other seeds or by other ways, differ by less than this factor.
SAME_OPTIMUM = 2.0
# An exponent of the loss that may as well be this many times larger is not one to plan by. Refitted draws never reach
# 0: where a linear interval does, theirs spans like this.
MAX_INTERVAL_RATIO = 10.0


@dataclass(frozen=True)
class Fitted:
    """A law, with the points and optima that a report shows."""

    law: Law
    points: Points
    optima: tuple[Optimum, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(self.law.fit["warnings"])


def fit(table: RunTable, part: str, options: Options, cost: allocation.Cost, provenance: Provenance) -> Fitted:
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
    checks, known = Checks(options.force), bool(np.isfinite([table.B, table.lr]).all())
    for text in (*table.notes, *recipe_warnings(table), *skipped_warnings(table)):
        checks.warn(text)
    if known:
        plausibility.check_units(table, checks)
    points, optima = _points(table, part, options, checks)
    axes, unknown = optima[0].axes if optima else BOTH, {}
    along = {name: float(np.median(getattr(table, name))) for name in BOTH if name not in axes}
    for name, value in along.items():
        unknown[HYPERS[name]] = why = f"all runs have the one {name} {value:.6g}: what is fitted holds along it"
        checks.warn(f"{HYPERS[name]} is unknown: {why}")
    scale = {"T": _round_scale(points.T), "N": _round_scale(points.N)}
    hypers, stage, sizes, freedom = {}, None, Sizes(), len(points.present) - 1
    if known and part in ("hyperparameters", "all"):
        hypers = {symbol: hyper_law(points, symbol, options, scale, checks) for symbol in HYPERS if symbol in axes}
    if not optima:
        # Rows have no cells: what scatters is the points themselves, and the constants take their share of them.
        freedom = max(min([freedom, *(law.spare for law in hypers.values())]), 1)
    laws = {HYPERS[symbol]: found.law for symbol, found in hypers.items()}
    if part != "hyperparameters":
        stage = loss_stage(points, options, scale, checks)
        laws["loss"] = stage.fitted.law
    if np.isnan([table.B, table.lr]).all():
        unknown |= dict.fromkeys(("batch", "lr"), "the results name no batch and no rate")
    for name in {"batch", "lr", "loss"} - set(laws):
        unknown.setdefault(name, "not fitted: only part of the laws was asked for, fit.py all gives every one")
    drawn = joint_draws(hypers, stage, len(points.present), freedom)
    if drawn.draws is None:
        unknown["draws"] = "fewer than three clusters"
    if options.prior is None:
        _check_exponents(drawn.intervals, checks)
    if stage is None:
        unknown["allocation"] = "needs the loss law"
    else:
        sizes = fit_sizes(table, points.N, points.T, points.loss, laws["loss"], cost, grids=bool(points.optima))
        unknown |= sizes.unknown
        checks.warnings += sizes.warnings
    curvature, given = _curvature(points.optima)
    if curvature is None:
        unknown |= dict.fromkeys(("curvature", "lr_given_batch"), "no grids to take it from")
    details = {
        "objective": stage and stage.fitted.objective,
        "delta": stage and stage.fitted.delta,
        "points": len(points.N),
        "flops_per_parameter_token": flops_per_parameter_token(table, cost),
        "window": WINDOW,
        # One clip, where grids were best at it: their rates and losses are those of that batch.
        "floor": max((o.B for o in optima if o.verdict == "floor"), default=None),
        **({"along": along} if along else {}),
        "scatter": stage and _scatter(stage, optima),
        **sizes.errors,
        "draw_columns": drawn.columns,
        "intervals": drawn.intervals | sizes.intervals,
        "method": f"95 %: {stage.method if stage else JACKKNIFE}; {plural(len(points.present), 'cluster')}",
        "verdicts": [optimum.describe() for optimum in optima],
        **({"forced": True} if checks.forced else {}),
        "warnings": [*checks.forced, *checks.warnings],
    }
    law = law_of(
        table=table,
        N=points.N,
        T=points.T,
        cost=cost,
        provenance=provenance,
        unknown=unknown,
        fit=details,
        **laws,
        allocation=sizes.allocation,
        curvature=curvature,
        lr_given_batch=given,
        draws=drawn.draws,
    )
    if options.prior is not None and np.isnan([table.B, table.lr]).all():
        law = with_hyperparameters(law, options.prior)
    return Fitted(law, points, optima)


def _points(table: RunTable, part: str, options: Options, checks: Checks) -> tuple[Points, tuple[Optimum, ...]]:
    """What to fit, and the optima of all grids where the run table has grids."""
    _warn_of_repeats(table, checks)
    unknown = np.isnan([table.B, table.lr]).any()
    if options.optima or unknown or table_kind.most_cells(table) == 1:
        if part in ("hyperparameters", "all") and not options.optima and not unknown:
            raise UserError("every (N, T) has one cell: if each is an optimum already, say so with --optima")
        if not (options.optima and unknown):
            table_kind.check_repeats(table, checks)
        return points_of_rows(table), ()
    axes, largest = table_kind.swept(table), max(len(rows) for *_, rows in table.grids())
    if largest < COEFFICIENTS[len(axes)]:
        raise UserError(
            f"no grid has the {COEFFICIENTS[2]} cells that a quadratic in (lr, B) needs, or the {COEFFICIENTS[1]} "
            f"along one of them: the largest has {largest} (run more cells, or keep the best row of each (N, T) and "
            "say --optima)"
        )
    if len(axes) == 1:
        table_kind.check_line(table, axes[0])
    table = at_nominal(table)
    optima = tuple(grid_optima(table))
    return points_of_grids(table, optima, checks, lenient=options.prior is not None), optima


def _warn_of_repeats(table: RunTable, checks: Checks) -> None:
    """Warn of cells with several results, and of runs with several cells of one (N, T)."""
    cells = np.stack([table.N, table.nominal_T, table.B, table.lr], axis=1)
    if not np.isfinite(cells).all():
        return
    if repeated := int(np.sum(np.unique(cells, axis=0, return_counts=True)[1] > 1)):
        several = plural(repeated, "cell has", "cells have")
        checks.warn(f"{several} several results: each weighs as one result in the fit of its grid")
    distinct = set(zip(table.run_id.tolist(), map(tuple, cells)))
    counts = Counter((run, cell[:2]) for run, cell in distinct)
    if mixed := {run for (run, _), count in counts.items() if count > 1}:
        several = plural(len(mixed), "run has", "runs have")
        checks.warn(
            f"{several} several cells of one (N, T), such as {min(mixed)}: a run_id is one run's, whose milestones "
            "err together"
        )


def _check_exponents(intervals: dict[str, list[float]], checks: Checks) -> None:
    """Refuse losses that do not identify how they fall."""
    for name in ("aT", "aN"):
        low, high = intervals.get(f"loss.{name}", (1.0, 1.0))
        if high > MAX_INTERVAL_RATIO * low:
            checks.refuse(
                f"loss law: {name}'s 95 % interval is {low:.3g} to {high:.3g}: the losses hardly identify it "
                "(more sizes and tokens, or --prior)"
            )


def _sizes_of_optima(table: RunTable, cost: Callable, provenance: Provenance) -> Fitted:
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
        raise UserError(f"{table.source}: {plural(len(table), 'row')}: a power law through best sizes needs three")
    if np.ptp(np.log(C)) < 1e-9:
        raise UserError(f"{table.source}: the optima share one budget: N_opt's exponent is unknown")
    through = isoflop.through(C, table.N)
    measured, span = through.law, through.exponent_interval()
    if measured.exponent <= 0:
        rows = ", ".join(f"N {table.N[i]:.4g} at {C[i]:.4g} FLOPs" for i in np.argsort(C, kind="stable")[:5])
        raise UserError(f"{table.source}: N_opt falls with C (exponent {measured.exponent:.3f}): {rows}")
    details = {
        "points": len(table),
        "method": "95 %: least squares of ln N in ln C, t quantiles",
        "intervals": {"allocation.measured.exponent": span} if span[0] < span[1] else {},
        "warnings": [] if span[0] > 0 else [f"N_opt's exponent does not exclude 0: {span[0]:.3g} to {span[1]:.3g}"],
    }
    unknown = dict.fromkeys(
        ("batch", "lr", "loss", "curvature", "lr_given_batch", "draws"),
        "not fitted: rows are the best sizes of their budgets",
    )
    sizes = {"measured": measured, "predicted": None, "default": "measured"}
    points = points_of_rows(table)
    law = law_of(
        table=table,
        N=points.N,
        T=points.T,
        cost=cost,
        provenance=provenance,
        unknown=unknown,
        fit=details,
        allocation=sizes,
    )
    return Fitted(law, points)


def _curvature(optima: tuple[Optimum, ...]) -> tuple[Curvature | None, GivenBatch | None]:
    """Median curvature of the grids around their optima, relative to their losses, and the slope of the ridge."""
    hessians = [o.hessian / o.loss for o in optima if o.usable and np.linalg.eigvalsh(o.hessian)[0] > 0]
    middle = np.median(hessians, axis=0) if hessians else np.zeros((2, 2))
    # The median is taken term by term, so that it need not have a minimum.
    if np.linalg.eigvalsh(middle)[0] <= 0:
        return None, None
    curvature = Curvature(float(middle[0, 0] / 2), float(middle[1, 1] / 2), float(middle[0, 1]))
    return curvature, GivenBatch(float(-middle[0, 1] / middle[0, 0]))


def _scatter(stage: LossStage, optima: tuple[Optimum, ...]) -> dict[str, float | None] | None:
    """How losses scatter around the loss law, in ln L: what a prediction of new runs adds to the law's own error.

    ``points``: sd of the fitted points, with ``freedom`` degrees of it. ``run``: sd of single runs around their
    grid's surface, None where the points are runs themselves.
    """
    residuals, free = stage.fitted.residuals, len(stage.fitted.theta) - len(stage.held)
    freedom = len(residuals) - free
    if freedom < 1 or not np.any(residuals):
        return None
    sd = float(np.sqrt(np.sum(residuals**2) / freedom))
    return {"points": sd, "run": pooled_scatter(list(optima)) or None, "freedom": freedom}


def _round_scale(values: NDArray) -> float:
    """The power of ten nearest the geometric middle: there the coefficients are least tangled with the exponents."""
    return float(10.0 ** round(float(np.mean(np.log10(values)))))
