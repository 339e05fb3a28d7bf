"""The fit of a response surface: shapes in the batch and loss forms, chosen or averaged by held-out error."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.fitting.losses import forms
from videoscaling.scaling.fitting.surface import diagnostics, least_squares, selection, shape
from videoscaling.scaling.fitting.surface.cells import Cells
from videoscaling.scaling.fitting.surface.shape import Inputs
from videoscaling.scaling.fitting.surface.surface import Member, Surface
from videoscaling.scaling.fitting.uncertainty import shared_errors, weights_of
from videoscaling.utils.errors import UserError, nearest, plural


def fit_surface(cells: Cells, form: str = "auto", batch: str = "auto", bent: bool | None = None) -> Surface:
    """Fit the surface.

    Args:
        form: of forms.CONSTANTS, "levels" for none, or "auto": averaged by expanding-window error.
        batch: of shape.BATCH, or "auto"; not read where all runs have one batch.
        bent: whether the rate's slope in ln B may change with B; None: where held-out cells say so.

    Raises:
        UserError: fewer than six runs of grids where some run has a finite loss, or a form or shape that is not there.
    """
    for value, known in ((form, (*forms.CONSTANTS, shape.LEVELS)), (batch, tuple(shape.BATCH))):
        if value not in ("auto", *known):
            raise UserError(f"{value!r} is none of auto, {', '.join(known)}{nearest(value, list(known))}")
    cells = cells.rows(_useful(cells))
    if len(cells) < 6:
        raise UserError(f"{plural(len(cells), 'usable run')}: a surface needs at least six")
    scale = forms.Scale.of(cells.N, cells.T, cells.B)
    lr_scale = forms.round_to_two_digits(float(np.exp(np.mean(np.log(cells.lr)))))
    n, t, b = scale.logs(cells.N, cells.T, cells.B)
    problem = least_squares.problem_of(cells, Inputs(n, t, np.log(cells.lr / lr_scale), b, cells.grid))
    batches = shape.BATCH_SHAPES if batch == "auto" else (batch,)
    if not cells.several_batches:
        batches = ("none",)
    held = {} if cells.several_rates else dict.fromkeys(("a", "aB", "aT", "aN", "g", "kT", "kN"), 0.0)
    if held:
        held |= {"ln_k": -40.0, "ln_s": 0.0, "r": 0.0, "kB": 0.0}
    shapes = selection.shapes(cells, problem, batches, held, bent)
    chosen = shapes[0]
    names = forms.AUTO if form == "auto" else () if form == shape.LEVELS else (form,)
    no_form = "free levels were asked for" if form == shape.LEVELS else why_no_form(cells)
    members = () if no_form else _members(cells, problem, chosen, names)
    forced = members and form not in ("auto", "joint")
    rival = _members(cells, problem, chosen, ("joint",))[0] if forced else None
    domain = {name: (float(v.min()), float(v.max())) for name, v in zip("NTB", (cells.N, cells.T, cells.B))}
    domain["lr"] = (float(cells.lr.min()), float(cells.lr.max()))
    freedom = max(len(np.unique(cells.grid)) - 4.0, 3.0)
    tested = members[0].solution if members else chosen.solution
    tests = diagnostics.lack_of_fit(problem, tested)
    if members:
        tests += diagnostics.steepening(cells, chosen.solution)
        tests += (diagnostics.corner(cells, chosen.solution, members[0].solution),)
    return Surface(
        cells=cells,
        scale=scale,
        lr_scale=lr_scale,
        shapes=tuple(shapes),
        members=members,
        no_form=no_form,
        domain=domain,
        freedom=freedom,
        lack_of_fit=tests,
        rival=rival,
    )


def _useful(cells: Cells) -> NDArray[np.bool_]:
    """Rows of grids in which some run has a finite loss: where all diverged, nothing says how high it would be."""
    return np.isfinite(cells.best)


def why_no_form(cells: Cells) -> str | None:
    """Why no loss form can be fitted, and what to sweep for one; None if one can."""
    grids, sizes, times = (len(np.unique(v)) for v in (cells.grid, cells.N, cells.tokens))
    if sizes < 3 or times < 3:
        lacking = [plural(3 - n, f"more {one}") for n, one in ((sizes, "size"), (times, "token count")) if n < 3]
        found = f"{plural(sizes, 'size')} and {plural(times, 'token count')} fix no loss form"
        return f"{found}: three of each are needed, so sweep {' and '.join(lacking)}"
    if grids < 6:
        return f"{plural(grids, 'grid')}: a loss form needs six, so sweep {6 - grids} more (N, T)"
    return None


def _members(
    cells: Cells, problem: least_squares.Problem, chosen: selection.Candidate, names: tuple[str, ...]
) -> tuple[Member, ...]:
    """The forms with their weights: expanding-window error to the power of its steps, and tempered evidence."""
    found, evidence = [], []
    base = chosen.solution
    for name in names:
        model = least_squares.model_of(problem, base.model, name)
        theta = least_squares.start_of(problem, model)
        theta[len(model.level_names) :] = base.theta[base.model.grids :]
        solution = least_squares.solve(problem, model, theta, base.phi, inflation=base.inflation)
        steps = selection.expanding_window(cells, problem, solution)
        found.append(Member(name, 1.0, solution, tuple(steps)))
        evidence.append(least_squares.log_evidence(problem, solution))
    windows = [{(s.by, s.value): float(np.mean(s.error**2)) for s in member.steps} for member in found]
    weight = weights_of(*shared_errors(windows), np.array(evidence))
    order = np.argsort(-weight)
    return tuple(replace(found[i], weight=float(weight[i])) for i in order if weight[i] > 0)
