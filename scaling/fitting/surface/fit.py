"""The fit of a response surface: shapes in the batch and loss forms, chosen or averaged by held-out error."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from videoscaling.scaling.fitting.losses import forms
from videoscaling.scaling.fitting.surface import diagnostics, least_squares, selection, shape
from videoscaling.scaling.fitting.surface.cells import Cells
from videoscaling.scaling.fitting.surface.shape import Inputs
from videoscaling.scaling.fitting.surface.surface import Member, Surface
from videoscaling.scaling.fitting.uncertainty import weights_of
from videoscaling.utils.errors import UserError

FORMS = ("joint", "additive", "product")
# Half of the 95 % quantile of chi squared: what -ln likelihood may lose.
LIKELIHOOD_BOUND = 1.92
# Where this standard deviation of ln Linf holds, Linf is far from 0.
IDENTIFIED = 0.3
NO_FLOOR, MAX_FLOOR = 1e-3, 0.99  # Linf over the lowest loss: as good as none, and the most
FLOORS = 5  # values of Linf that stand for all that the runs do not exclude


def fit_surface(cells: Cells, form: str = "auto", batch: str = "auto", bent: bool | None = None) -> Surface:
    """Fit the surface.

    Args:
        form: of FORMS, "levels" for none, or "auto": averaged by expanding-window error.
        batch: of shape.BATCH_SHAPES, or "auto".
        bent: whether the rate's slope in ln B may change with B; None: where held-out cells say so.

    Raises:
        UserError: fewer runs than constants.
    """
    cells = cells.rows(_useful(cells))
    if len(cells) < 6:
        raise UserError(f"{len(cells)} usable runs: a surface needs at least six")
    scale = forms.Scale.of(cells.N, cells.T, cells.B)
    lr_scale = forms.round_to_two_digits(float(np.exp(np.mean(np.log(cells.lr)))))
    n, t, b = scale.logs(cells.N, cells.T, cells.B)
    problem = least_squares.problem_of(cells, Inputs(n, t, np.log(cells.lr / lr_scale), b, cells.grid))
    batches = shape.BATCH_SHAPES if batch == "auto" else (batch,)
    if np.ptp(np.log(cells.B)) < 1e-9:
        batches = ("none",)
    held = {} if np.ptp(np.log(cells.lr)) > 1e-9 else dict.fromkeys(("a", "aB", "aT", "aN", "g", "kT", "kN"), 0.0)
    if held:
        held |= {"ln_k": -40.0, "ln_s": 0.0, "r": 0.0, "kB": 0.0}
    shapes = selection.shapes(cells, problem, batches, held, bent)
    chosen = shapes[0]
    names = FORMS if form == "auto" else () if form == shape.LEVELS else (form,)
    no_form = "free levels were asked for" if form == shape.LEVELS else why_no_form(cells)
    members = () if no_form else _members(cells, problem, chosen, names)
    forced = members and form not in ("auto", "joint")
    rival = _members(cells, problem, chosen, ("joint",))[0] if forced else None
    domain = {name: (float(v.min()), float(v.max())) for name, v in zip("NTB", (cells.N, cells.T, cells.B))}
    domain["lr"] = (float(cells.lr.min()), float(cells.lr.max()))
    freedom = max(len(np.unique(cells.grid)) - 4.0, 3.0)
    tested = members[0].solution if members else chosen.solution
    tests = diagnostics.lack_of_fit(problem, tested)
    members = tuple(floored for member in members for floored in _over_floors(problem, member))
    members = tuple(sorted(members, key=lambda member: -member.weight))
    return Surface(cells, scale, lr_scale, tuple(shapes), members, no_form, domain, freedom, tests, rival)


def _useful(cells: Cells) -> NDArray[np.bool_]:
    """Rows of grids in which some run has a finite loss: where all diverged, nothing says how high it would be."""
    return np.isfinite(cells.best)


def why_no_form(cells: Cells) -> str | None:
    """Why no loss form can be fitted; None if one can."""
    grids, sizes, times = (len(np.unique(v)) for v in (cells.grid, cells.N, cells.T))
    if sizes < 3 or times < 3:
        return f"{sizes} sizes and {times} token counts fix no loss form: three of each are needed"
    if grids < 6:
        return f"{grids} grids fix no loss form: six are needed"
    return None


def _members(
    cells: Cells, problem: least_squares.Problem, chosen: selection.Candidate, names: tuple[str, ...]
) -> tuple[Member, ...]:
    """The forms with their weights: expanding-window error to the power of its steps, and tempered evidence."""
    found, evidence = [], []
    base = chosen.solution
    for name in names:
        model = replace(base.model, form=name, grids=0)
        theta = least_squares.start_of(problem, model)
        theta[len(model.level_names) :] = base.theta[base.model.grids :]
        solution = least_squares.solve(problem, model, theta, base.phi, rounds=3)
        steps = selection.expanding_window(cells, problem, solution)
        found.append(Member(name, 1.0, solution, tuple(steps)))
        evidence.append(least_squares.log_evidence(problem, solution))
    errors = np.array([member.window_error for member in found])
    weight = weights_of(errors, np.array([len(member.steps) for member in found]), np.array(evidence))
    order = np.argsort(-weight)
    return tuple(replace(found[i], weight=float(weight[i])) for i in order if weight[i] > 0)


def _over_floors(problem: least_squares.Problem, member: Member) -> list[Member]:
    """The member, or where its Linf may as well be 0, one for each of the Linf that the likelihood does not exclude.

    Near 0 the losses do not depend on ln Linf, so that its variance, and a prediction's share of it, come out as 0.
    On this repository's runs Linf is anything from 0 to 0.39: at 88 times their compute the loss is then 0.585 to
    0.640, and the interval of the best fit alone ended at 0.631.
    """
    solution = member.solution
    model, at = solution.model, solution.model.place("f.Linf")
    lowest = float(np.min(problem.y[~problem.censored]))
    share = float(np.exp(solution.theta[at] - lowest))
    if share > NO_FLOOR and np.sqrt(solution.covariance[at, at]) < IDENTIFIED:
        return [member]

    def held_at(floor: float) -> least_squares.Solution:
        theta = solution.theta.copy()
        theta[at] = lowest + np.log(floor)
        held = replace(model, held=model.held | {"f.Linf": float(theta[at])})
        return least_squares.solve(problem, held, theta, solution.phi, 0, solution.inflation)

    # Costs compare at one weighting alone, that of the rows' excess losses at the solution.
    best = least_squares.solve(problem, model, solution.theta, solution.phi, 0, solution.inflation).cost

    def excluded(floor: float) -> float:
        return held_at(floor).cost - best - LIKELIHOOD_BOUND

    if excluded(NO_FLOOR) > 0:
        return [member]
    highest = MAX_FLOOR if excluded(MAX_FLOOR) < 0 else brentq(excluded, NO_FLOOR, MAX_FLOOR, xtol=0.01)
    # A flat prior over Linf from 0 to what the likelihood excludes.
    fits = [held_at(highest * (k + 0.5) / FLOORS) for k in range(FLOORS)]
    weight = np.exp([best - fit.cost for fit in fits])
    return [replace(member, weight=member.weight * float(w), solution=f) for f, w in zip(fits, weight / weight.sum())]
