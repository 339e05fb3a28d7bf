"""One call for all fits: the method follows from what the table holds, where the user names none."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from videoscaling.scaling.checks.noise_scale import compare
from videoscaling.scaling.fitting import table_kind
from videoscaling.scaling.fitting.grids import fit
from videoscaling.scaling.fitting.grids.fit_points import at_nominal, grid_optima
from videoscaling.scaling.fitting.losses import loss_fit
from videoscaling.scaling.fitting.options import Options
from videoscaling.scaling.fitting.surface import surface_law
from videoscaling.scaling.laws import ESTIMATORS, Law, Provenance
from videoscaling.scaling.planning import allocation
from videoscaling.scaling.planning.allocation import Cost
from videoscaling.scaling.runs import RunTable
from videoscaling.utils.errors import UserError

SURFACE, LOSSES, GRIDS = "surface", "losses", "grids"
# What one surface, and averaged loss forms, have no use for: nothing is held or assumed.
UNREAD_BY = {SURFACE: ("fix", "prior", "force"), LOSSES: ("fix", "force"), GRIDS: ("form",)}
FITTED_BY = {SURFACE: "one surface is fitted", LOSSES: "loss forms are fitted", GRIDS: "optima are fitted"}
# Which parts read an option: the others would ignore it in silence.
FITTED = (*fit.PARTS, "validate")
READ_BY = dict.fromkeys(("optima", "fix", "force", "method", "form"), FITTED)
READ_BY |= {"prior": fit.PARTS, "n_ctx": (*fit.PARTS, "compare"), "pair": ("compare",), "flops": ("compare",)}


@dataclass(frozen=True)
class Fit:
    """A law with what to print of it.

    Attributes:
        lines: the laws as text, and how well they fit.
    """

    law: Law
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """All lines, with the warnings last."""
        return "\n".join([*self.lines, *(f"warning: {text}" for text in self.law.fit["warnings"])])


def unread_by_part(part: str, optima: bool, method: str | None) -> tuple[list[str], str]:
    """Options of ``tools/fit.py`` that it does not read where these are asked for, and that as text."""
    unread = {name for name, parts in READ_BY.items() if part not in parts}
    if optima:
        # Optima are no grids; and N_opt(C) through them is a straight line.
        unread |= {"form"} | ({"fix", "prior", "force"} if part == "allocation" else set())
    if method:
        unread |= {*UNREAD_BY[method], *(("optima",) if method == SURFACE else ())}
    asked = part + (" --optima" if optima and "optima" not in unread else "")
    asked += f" --method {method}" if method and "method" not in unread else ""
    return sorted(unread), f"not read by fit.py {asked}"


def unread_by_method(method: str, form: str | None) -> tuple[tuple[str, ...], str]:
    """Options that the method of the table does not read, and that as text.

    Raises:
        UserError: a form that no surface has.
    """
    if method == SURFACE and form == "three_term":
        raise UserError(
            "--form three_term: is for losses alone, one for each (N, T); a surface has the batch in itself"
        )
    way = "" if method == GRIDS else " (--method grids reads it)"
    return UNREAD_BY[method], f"not read where {FITTED_BY[method]} to the table, as here{way}"


def choose_method(table: RunTable, part: str, optima: bool, asked: str | None) -> str:
    """The method of a fit: as asked, or by what the table holds.

    A surface where some (N, T) has several (lr, B), loss forms where losses alone are there or asked for, and else
    grids, whose fit says what the table lacks.
    """
    fitted = table.rows(~table.heldout)
    if asked or optima or not len(fitted):
        return asked or GRIDS
    known = bool(np.isfinite([fitted.B, fitted.lr]).all())
    if known and table_kind.most_cells(fitted) > 1:
        return SURFACE
    return GRIDS if part == "hyperparameters" or (known and part == "all") else LOSSES


def fit_law(table: RunTable, part: str, method: str, options: Options, cost: Cost, provenance: Provenance) -> Fit:
    """Fit ``part`` of the laws to the rows that are not held out.

    Raises:
        UserError: nothing to fit.
        UnsupportedFit: the data do not support it.
    """
    try:
        if method == SURFACE:
            law = surface_law.fit_law(table, part, options.form, cost, provenance)
            lines = (*surface_law.summary(law.surface), *_sizes(law, cost), *_verdicts(table))
            return Fit(law, (*lines, *compare(table, law)))
        if method == LOSSES:
            law = loss_fit.fit_law(table, options, cost, provenance)
            lowest = float(table.loss[~table.heldout].min())
            return Fit(law, (*loss_fit.summary(law.loss, lowest), *_sizes(law, cost)))
        fitted = fit.fit(table, part, options, cost, provenance)
        return Fit(fitted.law, (*_describe(fitted), *_sizes(fitted.law, cost), *compare(table, fitted.law)))
    except UserError as error:
        raise UserError("; ".join([str(error), *table.notes])) from None


def _describe(fitted: fit.Fitted) -> list[str]:
    """Verdicts on grids, and constants with intervals."""
    law, found = fitted.law, [one.describe() for one in fitted.optima]
    for part in ("batch", "lr", "loss"):
        value = getattr(law, part)
        if value is None:
            continue
        for name in value.__dataclass_fields__:
            if name in ("scale", "assumed"):
                continue
            text = f"{part}.{name:<12}{getattr(value, name):>12.5g}"
            span = law.fit["intervals"].get(f"{part}.{name}")
            if name in value.assumed:
                text += "  assumed"
            elif span is not None:
                text += f"  [{span[0]:.5g}, {span[1]:.5g}]"
            found.append(text)
        found.append(f"{part} is in units of {value.scale['T']:g} tokens and {value.scale['N']:g} parameters")
    return found


def _sizes(law: Law, cost: Cost) -> list[str]:
    """N_opt by estimator, with intervals, and why some are unknown."""
    if not law.allocation or not law.domain["C"]:
        return []
    found = allocation.side_by_side(law, law.domain["C"][1], cost)
    for name in ESTIMATORS:
        if span := law.fit["intervals"].get(f"allocation.{name}.exponent"):
            exponent = law.allocation[name].exponent
            found.append(f"N_opt, {name}: exponent {exponent:.4f} [{span[0]:.4f}, {span[1]:.4f}]")
    reasons: dict[str, list[str]] = {}
    for name in ("direct", "measured") if law.surface is None else ():
        if reason := law.provenance.get("unknown", {}).get(f"allocation.{name}"):
            reasons.setdefault(reason, []).append(name)
    return found + [
        f"N_opt, {' and '.join(names)}: unknown ({reason}): three sizes at shared budgets, or at tokens whose C "
        "overlap over a decade, would identify it"
        for reason, names in reasons.items()
    ]


def _verdicts(table: RunTable) -> list[str]:
    """How many grids have an optimum of their own: a picture of the data, which no surface needs."""
    table = at_nominal(table.rows(~table.heldout))
    verdicts = Counter(one.verdict for one in grid_optima(table))
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    return [f"grids by their own optima: {counts} (--method grids lists them)"]
