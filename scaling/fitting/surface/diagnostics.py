"""Does the surface fit? Tests of its residuals against what a right surface leaves no trend in."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from videoscaling.scaling.fitting.surface import least_squares, noise, shape
from videoscaling.scaling.fitting.surface.cells import Cells

# A trend this unlikely under the fitted noise is no chance: five trends are tested.
LEVEL = 0.01
# Trends that move a loss by less than this (in ln L, from end to end of the data) are no concern.
SMALL = 0.002
STEEPER = "the slope in ln T"
CORNER = "the largest size at its largest T"


@dataclass(frozen=True)
class Test:
    """A trend in the residuals.

    Attributes:
        against: what the residuals were regressed on.
        size: change of ln loss from the 5 % to the 95 % quantile of ``against``.
        p: two-sided probability of such a trend by chance.
    """

    against: str
    size: float
    p: float

    @property
    def failed(self) -> bool:
        """Whether the surface misses something there."""
        return self.p < LEVEL and abs(self.size) > SMALL


def lack_of_fit(problem: least_squares.Problem, solution: least_squares.Solution) -> tuple[Test, ...]:
    """Residuals against curvature in ln N and ln T, their product, and the distance from the optimum.

    Each is a column added to the linearised fit: its t value includes the noise, the runs' and the grids' scatter.
    """
    rows, mean, model = problem.inputs, solution.mean, solution.model
    at = noise.Sensitivity(mean.excess, mean.by_x, mean.by_z, solution.inflation)
    V = noise.Whitener(solution.structure, solution.phi, at)
    columns = {"distance from the optimum": np.sqrt(np.maximum(mean.excess, 0)), "lr / B": rows.l - rows.b}
    if model.form != shape.LEVELS:
        columns |= {"ln N squared": rows.n**2, "ln T squared": rows.t**2, "ln N x ln T": rows.n * rows.t}
    base = np.column_stack([mean.jacobian[:, model.free], problem.y - mean.value])
    J, r, explained = _white(V, base[:, :-1]), _white(V, base[:, -1:])[:, 0], []
    # The priors are rows like the data's: without their residuals those of the fit are not orthogonal to its columns.
    away, slope = (values[model.free] for values in model.prior_at(solution.theta))
    J, r = np.vstack([J, np.diag(slope)]), np.append(r, -away)
    basis, _ = np.linalg.qr(J)
    for name, column in columns.items():
        if np.ptp(column) < 1e-9:
            continue
        c = np.append(_white(V, column[:, None])[:, 0], np.zeros(len(away)))
        c = c - basis @ (basis.T @ c)
        norm = float(c @ c)
        if norm < 1e-8:
            continue
        slope = float(c @ r) / norm
        freedom = max(len(np.unique(rows.grid)) - 5.0, 3.0)
        p = 2 * float(stdtr(freedom, -abs(slope * np.sqrt(norm))))
        span = np.subtract(*np.quantile(column, [0.95, 0.05]))
        explained.append(Test(name, float(slope * span), p))
    return tuple(explained)


def steepening(cells: Cells, levels: least_squares.Solution) -> tuple[Test, ...]:
    """Whether losses of some N fall faster and faster in ln T, which no loss form does: all are convex there.

    ``size`` is how far the longest runs of that N lie below where its first two token counts lead.

    Args:
        levels: the fit with free levels.
    """
    first, worst = np.unique(cells.grid, return_index=True)[1], None
    N, T, runs = cells.N[first], np.log(cells.T[first]), len(np.unique(cells.run))
    covariance = levels.covariance[: len(first), : len(first)] + SMALL**2 * np.eye(len(first))
    for size in np.unique(N):
        line = np.flatnonzero(size == N)  # grids are numbered by rising N, then T
        if len(line) > 2:
            pick, reach = np.zeros(len(first)), np.diff(T[line])[-1] / np.diff(T[line])[0]
            np.add.at(pick, line[[-1, -2, 1, 0]], [1, -1, -reach, reach])
            below = float(pick @ levels.theta[: len(first)])
            t = below / np.sqrt(pick @ covariance @ pick)
            p = len(np.unique(N)) * float(stdtr(max(runs - 5.0, 3.0), t))
            if worst is None or p < worst.p:
                worst = Test(STEEPER, below, min(p, 1.0))
    return () if worst is None else (worst,)


def corner(cells: Cells, levels: least_squares.Solution, form: least_squares.Solution) -> Test:
    """Whether the losses of the largest size at its largest T, from which larger runs are predicted, lie off the form.

    ``size`` is their level less the form's, in ln L; its error is the level's own, without the scatter of grids that
    the form's fit claims: a form that misses a grid takes that for scatter.

    Args:
        levels: the fit with free levels.
        form: the fit of a loss form.
    """
    rows, runs = np.flatnonzero(cells.grid == cells.grid.max()), len(np.unique(cells.run))  # by rising N, then T
    at, cell = int(cells.grid.max()), rows[:1]
    value = form.mean.value[cell] - form.mean.excess[cell]
    off = float(levels.theta[at] - value[0])
    t = off / float(np.sqrt(levels.covariance[at, at] + SMALL**2))
    return Test(CORNER, off, 2 * float(stdtr(max(runs - 5.0, 3.0), -abs(t))))


def _white(V: noise.Whitener, values: NDArray) -> NDArray:
    """Columns [rows, k] in units in which V is 1."""
    white = V.whiten(values)
    # (I + Z G Z')^(-1/2) by the eigenvectors of Z'Z.
    roots, vectors = np.linalg.eigh((V.Z / np.sqrt(V.effect_precision)).T @ (V.Z / np.sqrt(V.effect_precision)))
    kept = roots > 1e-12 * max(roots.max(initial=0.0), 1e-300)
    U = (V.Z / np.sqrt(V.effect_precision)) @ vectors[:, kept] / np.sqrt(roots[kept])
    return white - U @ ((1 - 1 / np.sqrt(1 + roots[kept]))[:, None] * (U.T @ white))


def warnings(tests: tuple[Test, ...]) -> list[str]:
    """A line for each failed test."""
    return [_warning(test) for test in tests if test.failed]


def _warning(test: Test) -> str:
    if test.against == STEEPER:
        return (
            f"losses fall faster the longer a run is ({-test.size:.1%} below where its first token counts lead), as "
            "no form does: those of longer runs are likely lower than predicted; add longer runs"
        )
    if test.against == CORNER:
        side = "lower" if test.size < 0 else "higher"
        return (
            f"losses of the largest size at its largest T are {abs(test.size):.1%} {side} than the loss form's (p "
            f"{test.p:.2g}): those of larger runs are likely {side} than predicted; add longer runs of all sizes"
        )
    return (
        f"lack of fit: residuals change by {test.size:+.2%} along {test.against} (p {test.p:.2g}); intervals "
        "beyond the fitted range are widened by the errors seen when larger sizes and token counts are predicted"
    )
