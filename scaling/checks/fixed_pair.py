"""The paper's central claim on one's own runs: a fixed, suboptimal (lr, batch) bends the law.

One surface gives the loss at any (N, T, B, lr): at the best pair of each run, and at one pair for all. At each budget
the size of the lowest loss is sought along both. What differs is the pair alone, in every draw of the surface's
constants, so the two sizes share their errors and their ratio has an interval of its own.
"""

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.fitting.surface import shape, surface_law
from videoscaling.scaling.fitting.surface.shape import Inputs, Model
from videoscaling.scaling.fitting.surface.surface import Surface
from videoscaling.scaling.fitting.uncertainty import DRAWS, draw
from videoscaling.scaling.fitting.unsupported import UnsupportedFit
from videoscaling.scaling.laws import Law
from videoscaling.scaling.planning.allocation import Cost
from videoscaling.scaling.runs import RunTable
from videoscaling.utils.errors import UserError

# A pair may lie this factor outside the rates and batches that were run: about one step of a grid.
MARGIN = 2.0
# The default pair's batch is the largest whose loss is at most this much above the best, as in a plan.
TOLERANCE = 1e-3
# Sizes are sought from so many times below the smallest fitted one to so many above the largest.
REACH = 1000.0
SIZES = 400
BUDGETS = 9


class Interval(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """What the fixed pair does to N_opt.

    Attributes:
        lr, B: the fixed pair.
        C: FLOPs at which the sizes are compared.
        N_opt, N_fixed: sizes of the lowest loss at C by the best pairs and by the fixed one.
        exponent, exponent_fixed: of these sizes in C, over the decade below C.
        exponent_difference: exponent_fixed - exponent.
        ratio: N_fixed / N_opt.
        inference_ratio: FLOPs to sample a clip with N_fixed over those with N_opt.
        price: the lowest loss at C by the fixed pair over that by the best ones, less 1.
        excess: the pair's mean relative loss over the best at the fitted (N, T).
        warnings: as text.
    """

    lr: float
    B: float
    C: float
    N_opt: float
    N_fixed: float
    exponent: float
    exponent_fixed: float
    exponent_difference: Interval
    ratio: Interval
    inference_ratio: Interval
    price: Interval
    excess: float
    warnings: tuple[str, ...]

    @property
    def biased(self) -> bool:
        """Whether the ratio's interval excludes 1."""
        return not self.ratio.low <= 1 <= self.ratio.high

    def to_dict(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        shown = {name: v._asdict() if isinstance(v, Interval) else v for name, v in values.items()}
        return shown | {"biased": self.biased, "warnings": list(self.warnings)}

    def text(self) -> str:
        """As text, for readers."""
        verdict = "bends the law" if self.biased else "does not detectably bend the law"
        bend, ratio, served, price = self.exponent_difference, self.ratio, self.inference_ratio, self.price
        lines = [
            f"fixed pair lr {self.lr:.3g}, B {self.B:.4g}: loss {self.excess:+.3%} over the best; it {verdict}",
            f"N_opt exponent    {self.exponent:.4f} with optimal, {self.exponent_fixed:.4f} with fixed: "
            f"{bend.value:+.4f} [{bend.low:+.4f}, {bend.high:+.4f}]",
            f"N_opt({self.C:.3g})   {self.N_opt:.4g} with optimal, {self.N_fixed:.4g} with fixed: "
            f"{ratio.value:.3g} times [{ratio.low:.3g}, {ratio.high:.3g}]",
            f"loss({self.C:.3g})    {price.value:+.3%} [{price.low:+.3%}, {price.high:+.3%}] with fixed at its size",
            f"inference FLOPs   of a clip by the fixed pair's size: {served.value:.3g} times [{served.low:.3g}, "
            f"{served.high:.3g}]",
        ]
        return "\n".join(lines + [f"warning: {text}" for text in self.warnings])


def with_surface(law: Law, table: RunTable, cost: Cost) -> Law:
    """``law``, or where it is one of grids a surface through the same runs (UnsupportedFit where they fix none)."""
    return law if law.surface else surface_law.fit_law(table, "loss", "auto", cost, {})


def compare(law: Law, cost: Cost, pair: tuple[float, float] | None = None, C: float | None = None) -> Comparison:
    """Seek N_opt with the best and with fixed hyper-parameters.

    Args:
        law: with a surface that has a loss form.
        cost: training FLOPs per token as a function of N.
        pair: the fixed (lr, B); by default what a plan takes for the smallest fitted run, which is what tuning once,
            on the cheapest runs, would give.
        C: budget to compare at; by default ten times the largest fitted.

    Raises:
        UnsupportedFit: no surface or loss form, or losses that fall without end in N or T.
        UserError: a pair far outside the runs.
    """
    surface = law.surface
    if surface is None:
        raise UnsupportedFit("a fixed pair is compared on a surface, which needs runs of several rates and batches")
    if not surface.members:
        raise UnsupportedFit(f"a fixed pair needs a loss form: {surface.no_form}")
    lr, B = pair or _of_smallest(surface)
    _refuse_far(surface, lr, B)
    cells, asked, C = surface.cells, C, C or 10 * float(np.max(surface.cells.T * cost(surface.cells.N)))
    budgets = np.geomspace(C / 10, C, BUDGETS)
    low, high = surface.domain["N"]
    N = np.geomspace(low / REACH, high * REACH, SIZES)
    place = surface.scale.logs(N, budgets[:, None] / cost(N), 1.0)[:2]
    logs = np.log(lr / surface.lr_scale), np.log(B / surface.scale.B)

    def losses(model: Model, theta: NDArray, place: tuple[NDArray, NDArray]) -> NDArray[np.float64]:
        """ln L of one theta at the best and at the fixed pair, [2, ...] for n and t [...]."""
        n, t = (v.ravel() for v in np.broadcast_arrays(*place))
        best = surface.floor(model, theta, n, t)
        pairs = (shape.ridge(model, theta, n, t, best), best), (np.full(len(n), logs[0]), np.full(len(n), logs[1]))
        grid = np.zeros(len(n), dtype=np.int64)
        found = [shape.evaluate(model, theta, Inputs(n, t, *one, grid)).value for one in pairs]
        return np.stack(found).reshape(2, *np.broadcast_shapes(*(v.shape for v in place)))

    members, weights = surface.members, np.array([member.weight for member in surface.members])
    alone = [losses(member.solution.model, member.solution.theta, place) for member in members]
    middle = _read(np.einsum("m,m...->...", weights, np.array(alone)), np.log(N), np.log(budgets))
    near = float(np.exp(middle.log_N[0]))
    drawn = [_read(one, np.log(N), np.log(budgets)) for one in alone]
    for member, factor in zip(members, surface.stretch(near, C / float(cost(np.array(near))))):
        solution, own = member.solution, len(member.solution.model.level_names)
        thetas = draw(solution, surface.freedom, DRAWS)[: max(round(DRAWS * member.weight), 2)]
        # Beyond the fitted range the level's errors are those seen when larger runs were predicted from smaller ones.
        thetas[:, :own] = solution.theta[:own] + (thetas[:, :own] - solution.theta[:own]) * factor
        drawn += [_read(losses(solution.model, theta, place), np.log(N), np.log(budgets)) for theta in thetas]
    if middle.at_end:
        reason = (
            f"from {budgets[0]:.3g} to {C:.3g} FLOPs a best size is not within a factor of {REACH:g} of the fitted "
            f"ones: at the largest {np.exp(middle.log_N[0]):.3g} parameters with the best pairs, "
            f"{np.exp(middle.log_N[1]):.3g} with the fixed one"
        )
        raise UserError(reason) if asked else UnsupportedFit(reason)
    warnings = list(law.fit.get("warnings", []))
    if share := np.mean([one.at_end for one in drawn]):
        warnings.append(
            f"in {share:.1%} of the draws a best size is not within a factor of {REACH:g} of the fitted ones"
        )

    def interval(values: list[float]) -> Interval:
        """Of the value, what each form says alone, and the draws: it holds them all but 5 % of the draws."""
        known, of_draws = values[: 1 + len(members)], values[1 + len(members) :]
        low, high = np.quantile(of_draws, [0.025, 0.975])
        return Interval(known[0], min(float(low), *known), max(float(high), *known))

    every = [middle, *drawn]
    ratio = interval([float(np.exp(one.log_N[1] - one.log_N[0])) for one in every])
    served = [float(cost(np.array(near * value)) / cost(np.array(near))) for value in ratio]
    fitted = np.unique(np.stack([cells.N, cells.T]), axis=1)
    at_cells = surface.scale.logs(*fitted, 1.0)[:2]
    excess = sum(m.weight * np.diff(losses(m.solution.model, m.solution.theta, at_cells), axis=0)[0] for m in members)
    return Comparison(
        lr=lr,
        B=B,
        C=C,
        N_opt=near,
        N_fixed=near * ratio.value,
        exponent=float(middle.exponent[0]),
        exponent_fixed=float(middle.exponent[1]),
        exponent_difference=interval([float(one.exponent[1] - one.exponent[0]) for one in every]),
        ratio=ratio,
        inference_ratio=Interval(*served),
        price=interval([float(np.expm1(one.loss[1] - one.loss[0])) for one in every]),
        excess=float(np.mean(np.expm1(excess))),
        warnings=tuple(warnings),
    )


class _Sizes(NamedTuple):
    """Of the best and the fixed pair [2]: ln N_opt and ln L at the largest budget, and the exponent below it."""

    log_N: NDArray[np.float64]
    loss: NDArray[np.float64]
    exponent: NDArray[np.float64]
    at_end: bool


def _read(losses: NDArray, log_N: NDArray, log_C: NDArray) -> _Sizes:
    """The lowest of losses [2, budgets, sizes] over the sizes, by the parabola through the three lowest."""
    at = np.argmin(losses, axis=-1)
    middle = np.clip(at, 1, len(log_N) - 2)
    before, here, after = (np.take_along_axis(losses, (middle + i)[..., None], axis=-1)[..., 0] for i in (-1, 0, 1))
    bend = np.maximum(before - 2 * here + after, 1e-300)
    off = np.clip((before - after) / (2 * bend), -1, 1)
    found = log_N[middle] + off * (log_N[1] - log_N[0])
    x = log_C - log_C.mean()
    loss = here - (before - after) * off / 4
    return _Sizes(found[:, -1], loss[:, -1], found @ x / np.sum(x**2), bool((at != middle).any()))


def _of_smallest(surface: Surface) -> tuple[float, float]:
    """The (lr, B) that tuning once, on the cheapest runs, gives."""
    at = int(np.argmin(surface.cells.N * surface.cells.T))
    N, T = surface.cells.N[at], surface.cells.T[at]
    B = float(np.clip(surface.largest_batch(T, N, TOLERANCE), *surface.domain["B"]))
    return float(surface.rate(B, T, N)), B


def _refuse_far(surface: Surface, lr: float, B: float) -> None:
    """UserError where a pair lies far outside what was run."""
    for name, value in (("lr", lr), ("B", B)):
        low, high = surface.domain[name]
        if not low / MARGIN <= value <= high * MARGIN:
            raise UserError(
                f"the pair's {name}, {value:.4g}, is far outside the grids: {low:.4g} to {high:.4g} were swept"
            )
