"""A law file from losses alone, each at the best batch and rate of its (N, T): averaged loss forms, and N_opt."""

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.fitting import table_kind
from videoscaling.scaling.fitting.grids.loss_law import unidentified
from videoscaling.scaling.fitting.losses import forms, priors
from videoscaling.scaling.fitting.losses.average import LossLaws, fit_losses, least_rows
from videoscaling.scaling.fitting.losses.forms import FORMULAS
from videoscaling.scaling.fitting.options import Options
from videoscaling.scaling.fitting.run_info import flops_per_parameter_token, law_of, recipe_warnings, skipped_warnings
from videoscaling.scaling.fitting.sizes import check_losses, fit_sizes
from videoscaling.scaling.fitting.unsupported import Checks, UnsupportedFit
from videoscaling.scaling.laws import Law, Provenance, with_hyperparameters
from videoscaling.scaling.losses import as_losses
from videoscaling.scaling.planning.allocation import Cost
from videoscaling.scaling.runs import RunTable
from videoscaling.utils.errors import UserError, plural

# The slope of ln L in ln N or ln T, in the middle of the data, may not be this many times larger at one end of its
# 95 % interval than at the other.
MAX_INTERVAL_RATIO = 10.0


def fit_law(table: RunTable, options: Options, cost: Cost, provenance: Provenance) -> Law:
    """The law of the rows that are not held out.

    Raises:
        UserError: nothing to fit, or fewer rows than constants.
        UnsupportedFit: the losses do not identify how they fall with N and T.
    """
    table = table.rows(~table.heldout & ~np.isinf(table.loss))
    check_losses(table)
    warnings = [*table.notes, *recipe_warnings(table), *skipped_warnings(table)]
    table_kind.check_repeats(table, Checks())
    if len(table) < 5:
        raise UserError(f"loss law: {plural(len(table), 'point')} cannot fix 5 constants")
    if reason := unidentified(table.N, table.T, {}):
        raise UnsupportedFit(f"loss law: {reason}", advice="more sizes and tokens help")
    if len(table) < (least := least_rows(options.form)):
        raise UnsupportedFit(
            f"loss law: {plural(len(table), 'point')} for {least - 1} constants leave nothing to check the fit by",
            advice="more sizes and tokens help",
        )
    if options.form == "three_term" and not np.isfinite(table.B).all():
        raise UserError(f"--form three_term: needs the batch, and {table.source} names none (--columns B=...)")
    noise = table.loss_se / table.loss
    fitted = fit_losses(
        table.N,
        table.T,
        table.loss,
        table.B,
        form=options.form,
        cluster=_numbers(table.run_id),
        noise=noise if np.all(np.isfinite(noise)) else None,
    )
    _check_slopes(fitted, table)
    warnings += fitted.warnings()
    unknown = dict.fromkeys(("batch", "lr", "curvature", "lr_given_batch"), "the results name no batch and no rate")
    if np.isfinite([table.B, table.lr]).all():
        unknown = dict.fromkeys(
            unknown, "each (N, T) has one batch and rate: fit.py all --optima takes them for the best"
        )
    unknown["draws"] = "part of each form"
    sizes = fit_sizes(table, table.N, table.T, table.loss, as_losses(fitted), cost)
    unknown |= sizes.unknown
    warnings += sizes.warnings
    details = {
        "points": len(table),
        "flops_per_parameter_token": flops_per_parameter_token(table, cost),
        "intervals": sizes.intervals,
        **sizes.errors,
        "method": "95 %: bootstrap weights over runs, and errors of predicting larger N and T",
        "warnings": warnings,
    }
    parts = {"loss": fitted, "allocation": sizes.allocation}
    law = law_of(
        table=table, N=table.N, T=table.T, cost=cost, provenance=provenance, unknown=unknown, fit=details, **parts
    )
    return law if options.prior is None else with_hyperparameters(law, options.prior)


def _numbers(names: NDArray[np.str_]) -> NDArray[np.int64]:
    """Number of each row's run in the table's order, by which the bootstrap draws: names may be places in a source."""
    _, first, run = np.unique(names, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[run]


def _check_slopes(fitted: LossLaws, table: RunTable) -> None:
    """Raise UnsupportedFit where the losses hardly identify how they fall with N, or with T."""
    losses = as_losses(fitted)
    middle = (float(np.exp(np.log(v).mean())) for v in (table.N, table.T))
    slopes = [np.stack(batch.slopes(*at)) for at in [tuple(middle)] for batch in losses.drawn(*at)]
    for name, drawn in zip("NT", np.concatenate(slopes, axis=-1)):
        low, high = np.quantile(-drawn, [0.025, 0.975])
        if not 0 < high <= MAX_INTERVAL_RATIO * low:
            raise UnsupportedFit(
                f"loss law: the 95 % interval of how ln L falls with ln {name} is {low:.3g} to {high:.3g}: the losses "
                "hardly identify it",
                advice="more sizes and tokens help",
            )


def summary(fitted: LossLaws, lowest: float) -> list[str]:
    """Each form with its constants, and how well it fits; ``lowest``: the lowest loss that was fitted."""
    lines = []
    for member in fitted.members:
        fit = member.fit
        _, slope = priors.prior_at(
            fit.theta,
            priors.prior_of(forms.CONSTANTS[fit.form]),
            forms.floor_of(fit.form),
            np.log(lowest),
        )
        constants = ", ".join(
            f"{name} {value:.4g}{remark}"
            for (name, value), remark in zip(fit.constants.items(), priors.remarks(fit.errors, slope))
        )
        error = f"rms {member.window_error:.2%} where the largest N, T and N T are predicted from smaller ones"
        if np.isnan(member.window_error):
            error = "unknown, more sizes and token counts are needed"
        lines += [
            f"loss form {fit.form}, weight {member.weight:.2f}: L = {FORMULAS[fit.form]}",
            f"  {constants}; N in {fit.scale.N:.6g}, T in {fit.scale.T:.6g}",
            f"  residuals of ln loss: sd {fit.noise:.2%}, {fitted.rows} points; held-out error: {error}",
        ]
    return lines
