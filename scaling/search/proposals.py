"""Runs that a sweep could add: which cells there are to choose from, and which of them narrow the prediction most.

Where too few runs have results for a surface, the first cells are one step around the best run of each size, in the
rate and in the batch, all trained to the last milestone (``first_cells``).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.scaling.estimates import t_quantile
from videoscaling.scaling.fitting.grids import edges as steps
from videoscaling.scaling.fitting.surface import noise
from videoscaling.scaling.fitting.surface.cells import Cells
from videoscaling.scaling.fitting.surface.fit import fit_surface
from videoscaling.scaling.fitting.surface.surface import Surface
from videoscaling.scaling.planning.allocation import Cost
from videoscaling.scaling.search.acquisition import Posterior, Target, rate_cost, spend, target_at, target_of_budget
from videoscaling.utils.errors import UserError

# A finer step than a factor of 1.2 decides nothing: that far from the optimum a loss is 0.03 % above the lowest.
FINEST = math.log(1.2)
# Where every run of a size diverged, at rates that span this much, lower ones are not what it lacks: three decades.
# Rates that train the ladder's smallest and largest sizes lie within one.
MAX_DEAD_SPAN = math.log(1000)
CLOSE = 1e-6  # of ln lr and ln B: two values are one
SAME = FINEST / 2  # nearer cells add no information: steps halved again would never end


@dataclass(frozen=True)
class Size:
    """One size of a sweep.

    Attributes:
        T: milestone -> T of the grid in the results (the milestone itself where there is none), by rising milestone.
        run: (lr, B) of its cells, with or without a result, repeats listed once more.
        waiting: those of them that have no result yet: they are not asked for again.
        flops_per_token: of training.
        batch_step: the smallest batch and the step of batches, in tokens; 0 where unknown.
    """

    N: float
    T: dict[int, float]
    run: tuple[tuple[float, float], ...]
    waiting: tuple[tuple[float, float], ...]
    flops_per_token: float
    batch_step: int


@dataclass(frozen=True)
class Proposal:
    """A run to add: it ends at ``milestone``; ``after`` is the 95 % half-width of ln of each prediction then."""

    N: float
    lr: float
    B: float
    milestone: int
    flops: float
    why: str
    after: dict[str, float]


@dataclass(frozen=True)
class Decision:
    """What to add to a sweep, and why.

    Attributes:
        target: what is narrowed; None where no surface can be fitted, for the ``reason``.
        before: 95 % half-width of ln of each prediction now.
        rate_cost: expected relative loss of the predicted rate's error, now and after the runs.
        noise: sd of a run's ln loss near the middle of the data; nan without a surface.
        dead: N of the sizes whose every run diverged, at rates three decades apart: nothing is asked of them.
    """

    proposals: tuple[Proposal, ...]
    target: Target | None
    reason: str | None
    before: dict[str, float]
    rate_cost: tuple[float, float]
    noise: float
    dead: tuple[float, ...]
    warnings: tuple[str, ...] = ()


def whole(tokens: float, batch: float) -> int:
    """Tokens of whole batches: a run ends with the first one at or past its last milestone."""
    return math.ceil(tokens / batch) * round(batch)


def decide(
    cells: Cells,
    sizes: Sequence[Size],
    find_target: Callable[[Surface], Target],
    *,
    budget: float,
    tolerance: float | None = None,
    noise_sd: float | None = None,
    first: Callable[[Size], tuple[float, float] | None] = lambda size: None,
) -> Decision:
    """The runs to add.

    Args:
        cells: the sweep's results.
        find_target: what to narrow, from the surface.
        budget: FLOPs to spend at most.
        tolerance: end where the predicted rate is expected to cost no more than this (relative loss).
        noise_sd: of a run's ln loss; None is what the surface estimates.
        first: (lr, B) to begin with at a size without a finite loss, where no surface can be fitted.

    Raises:
        UnsupportedFit: the runs identify no such target.
        UserError: the budget is less than the cheapest run.
    """
    dead = tuple(size.N for size in sizes if _is_dead(cells, size.N))
    alive = [size for size in sizes if size.N not in dead]
    try:
        with np.errstate(all="ignore"):
            surface = fit_surface(cells)
    except (UserError, ValueError) as error:  # ValueError: of linear algebra
        return _without_surface(cells, alive, first, str(error), dead)
    if not (cells.several_rates or cells.several_batches):
        return _without_surface(cells, alive, first, "all runs have one rate and one batch", dead)
    if noise_sd is not None:
        surface = _with_noise(surface, noise_sd)
    target = find_target(surface)
    future, flops, owners = candidates(cells, alive, surface)
    if len(future) and budget < flops.min():
        raise UserError(f"a budget of {budget:.3g} FLOPs is less than the cheapest run, {flops.min():.3g}")
    posterior = Posterior(surface, future)
    variances = posterior.variances(target)
    bought = spend(posterior, target, future, flops, budget=budget, tolerance=tolerance)
    quantile, proposals = t_quantile(surface.freedom), []

    def widths(of: NDArray) -> dict[str, float]:
        return {name: quantile * math.sqrt(v) for name, v in zip(target.names, of)}

    for one in bought:
        last, owner = one.rows[-1], owners[future.run[one.rows[0]]]
        milestone = next(m for m, T in owner.T.items() if future.T[last] == T)
        lr, B = float(future.lr[last]), float(future.B[last])
        why = _why(owner, lr, B)
        proposals.append(
            Proposal(N=owner.N, lr=lr, B=B, milestone=milestone, flops=one.flops, why=why, after=widths(one.variances))
        )
    after = bought[-1].variances if bought else variances
    sd = float(np.exp(surface.shape.solution.phi[noise.NAMES.index("ln_sd")]))
    costs = rate_cost(target, variances), rate_cost(target, after)
    return Decision(
        proposals=tuple(proposals),
        target=target,
        reason=None,
        before=widths(variances),
        rate_cost=costs,
        noise=sd,
        dead=dead,
        warnings=tuple(surface.warnings()),
    )


def target_finder(*, N: float | None, T: float | None, C: float | None, cost: Cost) -> Callable[[Surface], Target]:
    """The target at N parameters, for T tokens or C FLOPs; without N, at the best size of C FLOPs."""
    if N is None:
        return lambda surface: target_of_budget(surface, C, cost)
    tokens = T if T is not None else C / float(cost(np.array(N)))
    return lambda surface: target_at(surface, N, tokens)


def _with_noise(surface: Surface, sd: float) -> Surface:
    """The surface as if a run's noise were ``sd`` everywhere."""

    def changed(owner: Any) -> Any:
        phi = owner.solution.phi.copy()
        phi[: noise.NAMES.index("ln_kappa")] = [math.log(sd), 0.0, 0.0, 0.0]
        return replace(owner, solution=replace(owner.solution, phi=phi))

    return replace(surface, shapes=tuple(map(changed, surface.shapes)), members=tuple(map(changed, surface.members)))


# -- candidates ------------------------------------------------------------------------------------------------------


def axes(lr: NDArray, B: NDArray, batch_step: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rates and batches of a size's candidates: those it has, half-way between, and one step outside.

    Args:
        lr, B: [cells].
        batch_step: as of ``Size``.
    """
    found = []
    for values in (lr, B):
        # To the last digit as they were run, so that a repeat is one.
        logs, first = np.unique(np.log(values).round(6), return_index=True)
        step, between = max(steps.step(logs), FINEST), np.diff(logs) > 2 * FINEST
        added = np.append(((logs[1:] + logs[:-1]) / 2)[between], [logs[0] - step, logs[-1] + step])
        found.append((values[first], np.exp(added)))
    (rates, new_rates), batches = found
    readable = [float(f"{value:.4g}") for value in new_rates]
    return np.unique(np.append(rates, readable)), np.unique(_in_steps(np.concatenate(batches), batch_step))


def _in_steps(batches: ArrayLike, step: int) -> NDArray[np.float64]:
    return np.maximum(np.round(np.divide(batches, step)), 1) * step if step else np.asarray(batches)


def candidates(
    cells: Cells, sizes: Sequence[Size], surface: Surface
) -> tuple[Cells, NDArray[np.float64], dict[int, Size]]:
    """Runs that could be added: rows of all their milestones, FLOPs of ending at each, and each run's size.

    New cells see the samples of their size; a further run of a cell has samples of its own. Rates are left out that
    diverged at the batch or a larger one. Without a loss form, grids without a result are left out.
    """
    rows, flops, owners, streams = [], [], {}, int(max(cells.stream.max(initial=-1), -1)) + 1
    known = set(zip(surface.cells.N, surface.cells.T))
    for size in sizes:
        mine = size.N == cells.N
        shared = cells.stream[mine].max(initial=-1)
        dead = [(r, b) for r, b in zip(cells.lr[mine & np.isinf(cells.loss)], cells.B[mine & np.isinf(cells.loss)])]
        grids = [(m, T) for m, T in size.T.items() if surface.members or (size.N, T) in known]
        for lr, B in product(*axes(*np.array(size.run).T, size.batch_step)) if grids else ():
            if min(size.T) < B or any(lr > r * (1 - CLOSE) and b * (1 + CLOSE) > B for r, b in dead):
                continue
            distance = _distance(lr, B, size.run)
            repeat = distance < CLOSE
            if _distance(lr, B, size.waiting) < SAME or (distance < SAME and not repeat):
                continue
            run = len(owners)
            owners[run] = size
            stream = -1 if shared < 0 else streams + run if repeat else shared
            for milestone, T in grids:
                rows.append((size.N, T, B, lr, run, stream))
                flops.append(size.flops_per_token * whole(milestone, B))
    N, T, B, lr, run, stream = np.array(rows).T if rows else np.zeros((6, 0))
    future = Cells.of_arrays(N, T, B, lr, np.ones(len(N)), run=run, stream=stream.astype(np.int64), n_ctx=cells.n_ctx)
    return future, np.array(flops), owners


def _distance(lr: float, B: float, pairs: Sequence[tuple[float, float]]) -> float:
    """How far the nearest of (lr, B) pairs lies: the larger of its steps in ln lr and in ln B; inf without any."""
    return float(np.abs(np.log(np.reshape(pairs, (-1, 2)) / [lr, B])).max(axis=1).min(initial=np.inf))


def _is_dead(cells: Cells, N: float) -> bool:
    """Whether every run of the size diverged, at rates that span MAX_DEAD_SPAN."""
    mine = N == cells.N
    if not mine.any() or np.isfinite(cells.loss[mine]).any():
        return False
    return bool(np.ptp(np.log(cells.lr[mine])) > MAX_DEAD_SPAN * (1 - CLOSE))


def _why(size: Size, lr: float, B: float) -> str:
    """Where a run lies among the size's cells, as text."""
    own = np.array(size.run)
    if repeats := sum(_distance(lr, B, [pair]) < CLOSE for pair in size.run):
        return f"run {repeats + 1} of this cell"
    sides, known = [], True
    axes_of = ((lr, own[:, 0], "lower lr", "higher lr"), (B, own[:, 1], "smaller batch", "larger batch"))
    for value, values, low, high in axes_of:
        if value < values.min() * (1 - CLOSE):
            sides.append(low)
        elif value > values.max() * (1 + CLOSE):
            sides.append(high)
        known &= bool(np.any(np.abs(np.log(values / value)) < CLOSE))
    if sides:
        return f"beyond the edge: {' and '.join(sides)}"
    return "a missing cell" if known else "between the cells"


# -- first cells -----------------------------------------------------------------------------------------------------


def _without_surface(
    cells: Cells,
    sizes: Sequence[Size],
    first: Callable[[Size], tuple[float, float] | None],
    reason: str,
    dead: tuple[float, ...],
) -> Decision:
    proposals = [one for size in sizes for one in first_cells(cells, size, first)]
    return Decision(
        proposals=tuple(proposals),
        target=None,
        reason=reason,
        before={},
        rate_cost=(math.nan, math.nan),
        noise=math.nan,
        dead=dead,
    )


def first_cells(cells: Cells, size: Size, first: Callable[[Size], tuple[float, float] | None]) -> list[Proposal]:
    """One step around the best run of a size, to the last milestone; below the lowest rate where all diverged.

    Without any run, ``first`` has the middle, which is then run as well.
    """
    mine = np.flatnonzero(size.N == cells.N)
    finite = mine[np.isfinite(cells.loss[mine])]
    own = np.log(np.array(size.run)) if size.run else np.zeros((0, 2))
    step = [max(steps.step(np.unique(v.round(6))), math.log(2)) for v in own.T] if len(own) else [math.log(2)] * 2
    last = max(size.T)
    if len(finite):
        finite = finite[cells.T[finite] == cells.T[finite].max()]
        best = finite[np.argmin(cells.loss[finite])]
        centre = np.log([cells.lr[best], cells.B[best]])
        around, why = [(-1, 0), (1, 0), (0, -1), (0, 1)], "a step around the best run"
    elif len(mine):
        centre = np.log([cells.lr[mine].min(), cells.B[mine][np.argmin(cells.lr[mine])]])
        around, why = [(-1, 0)], "every run diverged: a lower rate"
    else:
        pair = first(size)
        if pair is None:
            return []
        centre, around, why = np.log(pair), [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)], "around the law's pair"
    found: dict[tuple[float, float], Proposal] = {}
    for offset in around:
        lr, B = np.exp(centre + np.multiply(offset, step))
        lr, B = float(f"{lr:.4g}"), float(_in_steps(B, size.batch_step))
        if min(size.T) >= B and not _distance(lr, B, size.run) < SAME:
            flops = size.flops_per_token * whole(last, B)
            found.setdefault((lr, B), Proposal(N=size.N, lr=lr, B=B, milestone=last, flops=flops, why=why, after={}))
    return list(found.values())
