"""Which surface: the batch's shape and the loss form, by the error of cells that the fit did not see.

Shapes are compared with free levels per grid, by predicting the cells of whole sizes from the others: what counts is
where the best cells are, not how high a grid lies. Forms are compared by predicting each size, and each token count,
from the smaller ones. Cells near their grid's best count most: an R2 over whole grids reaches 0.95 with a wrong form.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.fitting.surface import least_squares, noise, shape
from videoscaling.scaling.fitting.surface.cells import Cells
from videoscaling.scaling.fitting.surface.shape import Model
from videoscaling.scaling.fitting.uncertainty import weights_of

# A cell so far (in ln L) above the best of its grid counts half.
NEAR = 0.01
# Sizes and token counts that are predicted from the smaller ones.
STEPS = 5
STRAIGHT = {"r": 0.0}
# (batch shape, whether the rate's slope in ln B may change), simplest first.
CANDIDATES = (
    ("one_sided", False),
    ("two_sided", False),
    ("ellipse", False),
    ("one_sided", True),
    ("two_sided", True),
    ("ellipse", True),
)


@dataclass(frozen=True)
class Candidate:
    """A shape that was tried.

    Attributes:
        batch, bent: the shape.
        error: rms of held-out cells around their grid's level, in ln L, those near the best weighing most.
        weight: in averages over shapes.
        solution: the fit to all cells, with free levels.
    """

    batch: str
    bent: bool
    error: float
    weight: float
    solution: least_squares.Solution


def near_weight(loss: NDArray, best: NDArray) -> NDArray[np.float64]:
    """Weights [rows] of cells in comparisons; 0 for diverged ones."""
    above = np.log(np.where(np.isfinite(loss), loss, best) / best)
    return np.where(np.isfinite(loss), 1 / (1 + (above / NEAR) ** 2), 0.0)


def folds_of(cells: Cells) -> list[NDArray[np.bool_]]:
    """Rows to hold out in turn: sizes, or token counts, or grids, whichever gives three folds first."""
    for label in (*(np.unique(v, return_inverse=True)[1] for v in (cells.N, cells.tokens)), cells.grid):
        if label.max() >= 2:
            # Many sizes are held out by the group.
            group = label % 6
            return [group == i for i in np.unique(group)]
    return []


def shape_error(
    problem: least_squares.Problem, solution: least_squares.Solution, weight: NDArray, folds: list[NDArray]
) -> float:
    """rms error of held-out cells within their grids; nan where nothing can be held out."""
    model, squares, total = solution.model, 0.0, 0.0
    grid = problem.inputs.grid
    for fold in folds:
        kept = least_squares.subset(problem, ~fold)
        # Levels of grids that are held out have no rows: their prior keeps them from being singular.
        structure = noise.structure_of(kept.rows, ~kept.censored, least_squares.effects_of(model))
        inflation = solution.inflation[~fold]
        theta, _, _ = least_squares.descend(kept, structure, model, solution.theta, solution.phi, inflation)
        out = problem.inputs.rows(fold)
        error = problem.y[fold] - shape.evaluate(model, theta, out).value
        w = weight[fold]
        sums = [np.bincount(grid[fold], v, minlength=grid.max() + 1) for v in (w, w * error)]
        centred = error - (sums[1] / np.maximum(sums[0], 1e-300))[grid[fold]]
        squares += float(np.sum(w * centred**2))
        total += float(w.sum())
    return np.sqrt(squares / total) if total > 0 else np.nan


def shapes(
    cells: Cells, problem: least_squares.Problem, batches: tuple[str, ...], held: dict[str, float], bent: bool | None
) -> list[Candidate]:
    """Every candidate shape with its held-out error and its weight, the heaviest first.

    Args:
        batches: the batch shapes to try.
        held: constants that are not fitted.
        bent: whether the rate's slope may change; None tries both.
    """
    weight, folds = near_weight(cells.loss, cells.best), folds_of(cells)
    chosen = [(name, may) for name, may in CANDIDATES if name in batches and bent in (None, may)]
    chosen = chosen if batches != ("none",) else [("none", False)]
    found, evidence, phi, inflation = [], [], None, None
    for batch, may_bend in chosen:
        mine = held if may_bend or batch == "none" else held | STRAIGHT
        model = Model(shape.LEVELS, batch, int(cells.grid.max()) + 1, mine)
        # A bent shape starts from the straight one.
        straight = [each.solution.theta for each in found if each.batch == batch]
        start = straight[0] if straight else least_squares.starts_of(problem, model)
        solution = least_squares.solve(problem, model, start, phi, inflation=inflation)
        phi, inflation = solution.phi, solution.inflation
        # With nothing to choose between, nothing is held out.
        error = shape_error(problem, solution, weight, folds) if len(chosen) > 1 else np.nan
        found.append(Candidate(batch, may_bend, error, 1.0, solution))
        evidence.append(least_squares.log_evidence(problem, solution))
    errors = np.array([candidate.error for candidate in found])
    steps = len(np.unique(cells.grid)) if folds and len(found) > 1 else 0
    weight = weights_of(errors, steps, np.array(evidence))
    order = np.argsort(-weight, kind="stable")
    return [replace(found[i], weight=float(weight[i])) for i in order]


@dataclass(frozen=True)
class Step:
    """A prediction of held-out grids from smaller ones.

    Attributes:
        by: "N" or "T"; value: the size or token count that was predicted.
        error: [grids] ln measured / predicted, the mean of each grid's cells, those near the best weighing most.
        sd: [grids] standard deviation that the fit itself gave.
        reach: ln of value over the largest one fitted.
    """

    by: str
    value: float
    error: NDArray[np.float64]
    sd: NDArray[np.float64]
    reach: float


def expanding_window(
    cells: Cells,
    problem: least_squares.Problem,
    solution: least_squares.Solution,
    steps: int = STEPS,
) -> list[Step]:
    """Each of the largest sizes from the smaller ones, then each of the largest token counts from the smaller ones."""
    weight, found = near_weight(cells.loss, cells.best), []
    model, theta, phi, inflation = solution.model, solution.theta, solution.phi, solution.inflation
    for by, values in (("N", cells.N), ("T", cells.tokens)):
        distinct = np.unique(values)
        for value in distinct[max(3, len(distinct) - steps) :]:
            kept, out = values < value, (values == value) & np.isfinite(cells.loss)
            if len(np.unique(cells.grid[kept])) < len(model.level_names) + 1 or not out.any():
                continue
            if len(np.unique(cells.N[kept])) < 3 or len(np.unique(cells.tokens[kept])) < 2:
                continue
            part = least_squares.subset(problem, kept)
            model = least_squares.model_of(part, model, model.form)
            # The noise is the whole fit's: few sizes do not identify how sizes scatter.
            fitted = least_squares.solve(part, model, theta, phi, rounds=0, inflation=inflation[kept])
            rows = problem.inputs.rows(out)
            mean = shape.evaluate(model, fitted.theta, rows)
            error, grid = problem.y[out] - mean.value, cells.grid[out]
            w = weight[out]
            groups = np.unique(grid)
            pick = (grid == groups[:, None]) * w
            pick = pick / pick.sum(axis=1, keepdims=True)
            J = pick @ mean.jacobian
            variance = np.einsum("ij,jk,ik->i", J, fitted.covariance, J)
            variance += np.exp(2 * fitted.phi[noise.NAMES.index("ln_level")])
            variance += np.exp(2 * fitted.phi[noise.NAMES.index("ln_size")]) * (by == "N")
            reach = float(np.log(value / values[kept].max()))
            found.append(Step(by, float(value), pick @ error, np.sqrt(variance), reach))
    return found


def window_error(steps: list[Step]) -> float:
    """rms of the errors, each step counting alike; nan without steps."""
    return float(np.sqrt(np.mean([np.mean(step.error**2) for step in steps]))) if steps else np.nan
