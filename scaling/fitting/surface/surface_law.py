"""A law file from one response surface through all runs of a run table, and what it says as text."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.estimates import Estimate
from videoscaling.scaling.fitting import plausibility
from videoscaling.scaling.fitting.grids.fit_points import at_nominal, grid_optima
from videoscaling.scaling.fitting.grids.optimum import Optimum
from videoscaling.scaling.fitting.losses import priors
from videoscaling.scaling.fitting.losses.forms import FORMULAS
from videoscaling.scaling.fitting.run_info import flops_per_parameter_token, law_of, recipe_warnings, skipped_warnings
from videoscaling.scaling.fitting.sizes import STILL
from videoscaling.scaling.fitting.surface import noise
from videoscaling.scaling.fitting.surface.cells import Cells
from videoscaling.scaling.fitting.surface.fit import fit_surface
from videoscaling.scaling.fitting.surface.least_squares import NORMAL, Solution
from videoscaling.scaling.fitting.surface.surface import Member, Surface
from videoscaling.scaling.fitting.unsupported import Checks, UnsupportedFit
from videoscaling.scaling.laws import EDGE, Law, Provenance
from videoscaling.scaling.planning.allocation import Cost, predicted
from videoscaling.scaling.runs import RunTable
from videoscaling.utils.errors import UserError, plural

# Runs of a grid that identify where its best rate or batch lies: two have no optimum between them.
LEAST_CELLS = 3
NEAR = 1.02  # times its grid's best loss: cells by which a surface is judged
RATE = ("aB", "aT", "aN")
HELD_ELSEWHERE = "part of the surface, which tools/predict.py reads"


def fit_law(table: RunTable, part: str, form: str, cost: Cost, provenance: Provenance) -> Law:
    """A law file's law with the surface through the rows that are not held out.

    Args:
        part: of ``fit.PARTS``: N_opt is left out of "hyperparameters", and "loss" and "allocation" need a loss form.
        form: of the loss in N and T: "auto", or one of ``forms.CONSTANTS``.
        cost: training FLOPs per token of N parameters, for the domain.

    Raises:
        UserError: nothing to fit.
        UnsupportedFit: the runs do not support a surface.
    """
    table = table.rows(~table.heldout)
    if not np.isfinite(table.loss).any():
        raise UserError(f"{table.source}: nothing to fit: no run that is not held out has a finite loss")
    warnings = [*table.notes, *recipe_warnings(table), *skipped_warnings(table)]
    plausibility.check_units(table, Checks())
    plausibility.check_spans(table.N, table.nominal_T)
    cells = Cells.of_table(table)
    _check_cells(cells)
    surface = _fit(cells, form)
    _check_surface(surface, grid_optima(at_nominal(table)))
    warnings += surface.warnings()
    if part in ("loss", "allocation") and surface.no_form:
        several = min(len(np.unique(cells.N)), len(np.unique(cells.tokens))) > 1  # else no method has a loss law
        raise UnsupportedFit(f"loss: {surface.no_form}", forcible=several)
    unknown = dict.fromkeys(("batch", "lr", "loss", "curvature", "lr_given_batch", "draws"), HELD_ELSEWHERE)
    unknown["allocation"] = surface.no_form or "fit.py all gives it"
    details = {
        "points": len(surface.cells),
        "flops_per_parameter_token": flops_per_parameter_token(table, cost),
        "intervals": {f"surface.{name}": _span(surface.exponent(name)) for name in _exponents(surface)},
        "method": "95 %: covariance of one surface with scatter between grids, t quantiles",
        "warnings": warnings,
    }
    points = surface.cells.N, surface.cells.T
    law = law_of(table, *points, cost, provenance, unknown, details, surface=surface)
    return law if part == "hyperparameters" or surface.no_form else _with_sizes(law, cost, warnings)


def _with_sizes(law: Law, cost: Cost, warnings: list[str]) -> Law:
    """The law with the power law through the minima of its loss, over the runs' budgets and a decade beyond."""
    low, high = law.domain["C"]
    sizes = predicted(law.response.losses, (low, 10 * high), cost)
    unknown = law.provenance["unknown"]
    if sizes.exponent < STILL:
        unknown["allocation"] = "by the loss forms the smallest model is the best at every budget"
        warnings.append(f"N_opt is unknown: {unknown['allocation']}")
        return law
    del unknown["allocation"]
    unknown["allocation.measured"] = "a surface has no budgets of its own"
    return replace(law, allocation={"measured": None, "predicted": sizes, "default": "predicted"})


def _check_cells(cells: Cells) -> None:
    """Raise UnsupportedFit where no grid can show a best rate or batch."""
    finite = cells.rows(np.isfinite(cells.loss))
    if not (finite.several_rates or finite.several_batches):
        raise UnsupportedFit(
            f"all runs have lr {finite.lr[0]:.4g} and one batch: which are best is unknown (run several rates)",
            forcible=False,
        )
    pairs = np.unique(np.stack([finite.grid, np.log(finite.lr).round(6), np.log(finite.B).round(6)]), axis=1)
    most = int(np.bincount(pairs[0].astype(int)).max())
    if most < LEAST_CELLS:
        raise UnsupportedFit(
            f"no (N, T) has {LEAST_CELLS} different (lr, B), the most is {most}: what a rate and a batch cost is "
            "unknown (run more cells of some grids)",
            forcible=False,
        )
    if len(finite) < 6:
        raise UnsupportedFit(f"{plural(len(finite), 'finite loss')}: a surface needs at least six")
    if np.ptp(finite.loss) == 0:
        raise UnsupportedFit("all losses are equal: there is no surface in them")


def _fit(cells: Cells, form: str) -> Surface:
    try:
        with np.errstate(all="ignore"):
            return fit_surface(cells, form)
    except ValueError as error:  # such as LinAlgError: equations that are singular, or not finite
        raise UnsupportedFit(
            "no surface can be fitted to these runs: they differ too little in N, T, B and lr, or some of their "
            "numbers lie orders of magnitude from the others"
        ) from error


def _check_surface(surface: Surface, optima: list[Optimum]) -> None:
    """Raise UnsupportedFit where the runs identify none of what was asked, or exponents that no training has."""
    values = [surface.exponent(name) for name in _exponents(surface)]
    if not np.all(np.isfinite([_span(value) for value in values])):
        raise UnsupportedFit("the surface's constants are not finite: losses, rates or batches are out of any range")
    unknown = set(surface.unidentified())
    if surface.shape.batch == "none":
        unknown.add("aB")
    if unknown.issuperset(RATE) and (surface.no_best_batch or unknown.issuperset(("bT", "bN"))):
        raise UnsupportedFit("the runs identify no exponent of lr_opt: more sizes, token counts or rates are needed")
    known = {name: float(value.value) for name, value in zip(_exponents(surface), values) if name not in unknown}
    plausibility.check_exponents(known)
    if surface.cells.several_rates and optima:
        N, T, B = (np.array([getattr(one, name) for one in optima]) for name in "NTB")
        plausibility.check_far_grids(optima, surface.lr_opt(B, T, N).value)


def _exponents(surface: Surface) -> tuple[str, ...]:
    """Names of the exponents that the surface has: of the rate, and of the batch."""
    rate = RATE if surface.cells.several_rates else ()
    if surface.shape.batch == "none":
        return rate[1:]
    return (*rate, "bT", "bN")


def summary(surface: Surface) -> list[str]:
    """What a fitted surface says, a line each: laws with intervals, what was fitted to what, and how well.

    One that was read from a file does not know its residuals.
    """
    return [*_rate_lines(surface), *_batch_lines(surface), *_form_lines(surface), *_residual_lines(surface)]


def _rate_lines(surface: Surface) -> list[str]:
    if not surface.cells.several_rates:
        return [f"lr_opt: unknown, all runs have lr {surface.cells.lr[0]:.4g}"]
    scale = surface.scale
    level = surface.lr_opt(scale.B, scale.T, scale.N)
    found = {name: surface.exponent(name) for name in _exponents(surface) if name in RATE}
    terms = " ".join(
        f"({name[1]} / {getattr(scale, name[1]):.6g})^{float(value.value):.3f}" for name, value in found.items()
    )
    along = "" if "aB" in found else f" at B {surface.cells.B[0]:.6g}"
    prior = dict.fromkeys(surface.unidentified(), " (the prior's: not identified)")
    spans = [f"coefficient {_text(level, '.3g')}"]
    spans += [f"{name[1]} {_text(value, '.3f')}{prior.get(name, '')}" for name, value in found.items()]
    return [f"lr_opt = {float(level.value):.3g} {terms}{along}", f"  95 %: {', '.join(spans)}"]


def _batch_lines(surface: Surface) -> list[str]:
    if surface.shape.batch == "none":
        return [f"batch: unknown, all runs have B {surface.cells.B[0]:.6g}"]
    N, T = (surface.domain[name][1] for name in "NT")
    by_shape = surface.edges_by_shape(T, N, EDGE)
    spread = ", ".join(f"{name} {float(np.squeeze(value)):.4g}" for name, value in by_shape.items())
    exponents = ", ".join(
        f"{name[1]} {float(v.value):.2f} {_text(v, '.2f')}" for name in ("bT", "bN") for v in [surface.exponent(name)]
    )
    edge = surface.edge(T, N, EDGE)
    lines = [
        f"loss {EDGE:.0%} worse from B {float(edge.value):.4g} tokens on, at N {N:.6g}, T {T:.6g}",
        f"  95 %: {_text(edge, '.4g')}; by shape: {spread}",
        f"  exponents of the batch: {exponents}",
    ]
    if surface.no_best_batch:
        lines.append(f"B_opt: unknown, {surface.no_best_batch}")
    else:
        best = surface.best_batch(T, N)
        lines.append(f"B_opt = {float(best.value):.4g} {_text(best, '.4g')} tokens at that N and T")
    weights = ", ".join(f"{c.batch}{' bent' if c.bent else ''} {c.weight:.2f}" for c in surface.shapes if c.weight > 0)
    return [*lines, f"shapes of the batch, with weights: {weights}"]


def _form_lines(surface: Surface) -> list[str]:
    if not surface.members:
        return [f"loss: unknown, {surface.no_form}"]
    lines = []
    for member in surface.members:
        names, theta = member.solution.model.level_names, member.solution.theta
        sd, slope = np.sqrt(np.diag(member.solution.covariance)), member.solution.model.prior_at(theta)[1]
        constants = ", ".join(
            f"{name[2:]} {np.exp(value):.4g}{remark}"
            for name, value, remark in zip(names, theta, priors.remarks(sd, slope))
        )
        lines += [
            f"loss form {member.form}, weight {member.weight:.2f}: L = {FORMULAS[member.form]}",
            f"  {constants}; N in {surface.scale.N:.6g}, T in {surface.scale.T:.6g}",
        ]
        for by, what in (("N", "size"), ("T", "token count")):
            errors = [step.error for step in member.steps if step.by == by]
            text = f"unknown, more {what}s are needed"
            if errors:
                rms = np.sqrt(np.mean([np.mean(e**2) for e in errors]))
                verb = "is" if len(errors) == 1 else "are"
                text = f"rms {rms:.2%} where {plural(len(errors), what)} {verb} predicted from the smaller ones"
            lines.append(f"  held-out error by {by}: {text}")
    return lines


def _residual_lines(surface: Surface) -> list[str]:
    cells, best = surface.cells, surface.members[0] if surface.members else surface.shape
    count, grids = len(cells), len(np.unique(cells.grid))
    solution = best.solution
    finite = np.isfinite(cells.loss)
    used = f"{plural(count, 'cell')} of {plural(grids, 'grid')} ({count - finite.sum()} diverged)"
    residual = np.log(np.where(finite, cells.loss, 1.0)) - solution.mean.value
    near = finite & (cells.loss < NEAR * cells.best)
    level = "" if isinstance(best, Member) else " around each grid's own level"
    lines = [
        f"residuals of ln loss{level}: rms {_rms(residual[finite]):.2%}, within {NEAR - 1:.0%} of the grid's best "
        f"{_rms(residual[near]):.2%}; {used}, together as much as {_effective(solution):.0f} near the best"
    ]
    scatter = dict(zip(noise.NAMES, np.exp(solution.phi)))
    parts = [f"ln lr_opt {scatter['ln_x']:.3g}"]
    parts += [f"ln B {scatter['ln_z']:.3g}"] if surface.shape.batch != "none" else []
    if isinstance(best, Member):
        parts.append(f"ln loss {scatter['ln_level']:.2%}, and {scatter['ln_size']:.2%} between sizes")
    lines.append(f"scatter between grids (sd): {', '.join(parts)}; noise of one run {scatter['ln_sd']:.2%}")
    for test in surface.lack_of_fit:
        verdict = "FAILED" if test.failed else "passed"
        lines.append(f"lack of fit along {test.against}: {verdict}, {test.size:+.2%} (p {test.p:.2g})")
    return lines


def _rms(values: NDArray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _effective(solution: Solution) -> float:
    """The number of cells, each counted by how much of its variance is noise of runs: distant ones count less.

    An outlier counts less, too; no cell counts for more than one.
    """
    rows = solution.structure.rows
    own, total = noise.sd_of(solution.phi, rows.n, rows.t, rows.h, solution.mean.excess)
    return float(np.sum((own / total) ** 2 * NORMAL / solution.inflation))


def _span(value: Estimate) -> list[float]:
    return [float(value.low), float(value.high)]


def _text(value: Estimate, digits: str) -> str:
    return f"[{float(value.low):{digits}}, {float(value.high):{digits}}]"
