"""``extend`` on tables that were run long ago: the runs that it would have chosen, and what they would have predicted.

A table of finished runs answers. Each row is a run of its own, which costs 6 N T; a study pays for runs until a share
of the table's sum is spent. Held-out sizes are never shown: the surface predicts them, and the table is the judge.
Random runs of the same cost and all runs stand next to it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.fitting.surface.cells import Cells
from videoscaling.scaling.fitting.surface.fit import fit_surface
from videoscaling.scaling.fitting.surface.surface import Surface
from videoscaling.scaling.search.acquisition import Posterior, Target, spend, target_at
from videoscaling.utils.errors import UserError, plural
from videoscaling.utils.options import option
from videoscaling.utils.progress import Progress

# Of a study's budget, for the first runs: the corners and the middle of each grid, from the cheapest grid on.
START = 0.2
ROUNDS = 6  # refits, each after an equal part of the rest of the budget
NEAR = 1.02  # times its grid's best loss: cells by which predictions are judged


@dataclass(frozen=True)
class Options:
    """Which studies are made: by ``extend`` and by random runs at each share, and by all runs."""

    shares: tuple[float, ...] = option(
        (0.02, 0.05, 0.1), "of the table's FLOPs (6 N T) to spend", 1e-3, 1, type=float, nargs="+"
    )
    held_out: int = option(0, "the largest sizes, which are predicted and never shown; 0: all are judged", 0, 100)
    noise: float = option(0.0, "relative noise added to every run", 0, 0.1)
    seeds: int = option(5, "studies with other random runs and noise", 1, 1000)


def replay(cells: Cells, options: Options) -> list[dict[str, Any]]:
    """A row of ``summary`` for each method and share: ``extend``, random runs of the same cost, and all runs."""
    # Without noise only random runs differ by their seed.
    once, seeds = range(options.seeds if options.noise else 1), range(options.seeds)
    asked = [one for share in options.shares for one in ((share, "extend", once), (share, "random", seeds))]
    asked.append((1.0, "all", once))
    rows = []
    with Progress(sum(len(seeds) for *_, seeds in asked), "replay", "studies") as bar:
        for share, method, seeds in asked:
            outcomes = []
            for seed in seeds:
                pool = Pool.of(cells, options.held_out, options.noise, seed)
                outcomes.append(study(pool, share, method, seed))
                bar.update()
            rows.append({"method": method, "share_asked": share} | summary(outcomes))
    return rows


@dataclass(frozen=True)
class Pool:
    """A table of finished runs. Arrays [rows].

    Attributes:
        cells: as the table has them, which is the truth.
        seen: as a study sees them, with the noise that was added.
        flops: of each run, 6 N T.
        heldout: rows that are never shown.
    """

    cells: Cells
    seen: Cells
    flops: NDArray[np.float64]
    heldout: NDArray[np.bool_]

    @staticmethod
    def of(cells: Cells, held_out: int, noise: float = 0.0, seed: int = 0) -> "Pool":
        """The pool of a table, whose ``held_out`` largest sizes are only predicted.

        Args:
            noise: sd of what is added to ln loss of each run; seed: of that.

        Raises:
            UserError: fewer than three sizes would be left.
        """
        sizes = np.unique(cells.N)
        if len(sizes) - held_out < 3:
            raise UserError(
                f"{plural(len(sizes), 'size')}, {held_out} of them held out: three must be left to predict from"
            )
        heldout = sizes[len(sizes) - held_out] <= cells.N if held_out else np.zeros(len(cells), dtype=bool)
        error = noise * np.random.default_rng([seed, 1]).standard_normal(len(cells))
        cells = replace(cells, run=np.arange(len(cells)))
        return Pool(cells, replace(cells, loss=cells.loss * np.exp(error)), 6 * cells.N * cells.T, heldout)

    @property
    def total(self) -> float:
        """FLOPs of the runs that can be shown."""
        return float(self.flops[~self.heldout].sum())


@dataclass(frozen=True)
class Outcome:
    """What a study's surface says of the judged grids.

    Attributes:
        runs: how many were shown; share: of the pool's FLOPs.
        regret: [grids] loss of the cell nearest to the predicted pair, above the grid's lowest, relative.
        error: [cells] ln measured / predicted of the judged cells within NEAR of their grid's best; none without a
            loss form.
    """

    runs: int
    share: float
    regret: NDArray[np.float64]
    error: NDArray[np.float64]


def study(pool: Pool, share: float, choose: str, seed: int = 0) -> Outcome:
    """Pay for runs of the pool up to a share of its FLOPs, and judge the surface through them.

    Args:
        choose: "extend", "random" or "all".
        seed: of the random order.
    """
    open_rows = np.flatnonzero(~pool.heldout)
    if choose == "all":
        return judged(pool, open_rows)
    random = np.random.default_rng(seed)
    budget = share * pool.total
    if choose == "random":
        return judged(pool, _affordable(pool, random.permutation(open_rows), budget))
    first = np.array(list(_first(pool, random)))
    shown = _affordable(pool, first, START * budget)
    for part in range(ROUNDS):
        now = (budget - pool.flops[shown].sum()) / (ROUNDS - part)
        rest = first[~np.isin(first, shown)]
        surface = fit_surface(pool.seen.rows(shown))
        if surface.members:
            future = pool.seen.rows(rest)
            posterior, target = Posterior(surface, future), _targets(pool, surface)
            bought = spend(posterior, target, future, pool.flops[rest], budget=now)
            chosen = [rest[one.rows[0]] for one in bought]
        else:  # the levels of grids without runs are unknown
            chosen = list(_affordable(pool, rest, now))
        shown = np.append(shown, np.array(chosen, dtype=np.int64))
    return judged(pool, shown)


def _affordable(pool: Pool, rows: NDArray[np.int64], budget: float) -> NDArray[np.int64]:
    """The first of the rows whose FLOPs the budget covers."""
    return rows[np.cumsum(pool.flops[rows]) <= budget]


def _first(pool: Pool, random: np.random.Generator) -> Iterator[int]:
    """Cells near the corners and the middle of each grid, from the cheapest grid on; random ones after those."""
    cells, open_rows = pool.cells, np.flatnonzero(~pool.heldout)
    grids = sorted(np.unique(cells.grid[open_rows]), key=lambda grid: pool.flops[cells.grid == grid][0])
    yielded: set[int] = set()
    for grid in grids:
        rows = np.flatnonzero(cells.grid == grid)
        at = np.stack([_places(cells.lr[rows]), _places(cells.B[rows])], axis=1)
        for place in ((0.5, 0.5), (0.2, 0.2), (0.8, 0.8), (0.2, 0.8), (0.8, 0.2)):
            nearest = int(rows[np.argmin(np.abs(at - place).sum(axis=1))])
            if nearest not in yielded:
                yielded.add(nearest)
                yield nearest
    yield from (int(row) for row in random.permutation(open_rows) if row not in yielded)


def _places(values: NDArray) -> NDArray[np.float64]:
    """Where values lie on their axis, from 0 to 1 by rank."""
    there, rank = np.unique(values, return_inverse=True)
    return rank / max(len(there) - 1, 1)


def _targets(pool: Pool, surface: Surface) -> Target:
    """The judged grids' predictions, all together."""
    found = [target_at(surface, N, T) for N, T in _judged_grids(pool)]
    names = tuple(name for one in found for name in one.names)
    return replace(found[0], names=names, gradient=np.vstack([one.gradient for one in found]), curvature=0.0)


def _judged_grids(pool: Pool) -> list[tuple[float, float]]:
    cells = pool.cells.rows(pool.heldout) if pool.heldout.any() else pool.cells
    return sorted(set(zip(cells.N, cells.T)))


def judged(pool: Pool, shown: NDArray[np.int64]) -> Outcome:
    """The outcome of a surface through the shown rows: on the held-out grids, or on all where none is."""
    surface = fit_surface(pool.seen.rows(shown))
    regret, error = [], []
    for N, T in _judged_grids(pool):
        grid = pool.cells.rows((pool.cells.N == N) & (pool.cells.T == T) & np.isfinite(pool.cells.loss))
        B, lr = surface.best(N, T)
        away = np.hypot(np.log(grid.lr / lr), np.log(grid.B / B))
        regret.append(grid.loss[np.argmin(away)] / grid.loss.min() - 1)
        if surface.members:
            near = grid.rows(grid.loss <= NEAR * grid.loss.min())
            error.append(np.log(near.loss / surface.predict(near.N, near.T, near.B, near.lr).mean))
    share = float(pool.flops[shown].sum() / pool.total)
    return Outcome(len(shown), share, np.array(regret), np.concatenate(error) if error else np.zeros(0))


def summary(outcomes: list[Outcome]) -> dict[str, float]:
    """Over studies of one pool: runs and share of the FLOPs, mean and worst regret, error near the best (rms)."""
    regret = np.array([one.regret for one in outcomes])
    rms = [np.sqrt(np.mean(one.error**2)) for one in outcomes if len(one.error)]
    return {
        "studies": len(outcomes),
        "runs": float(np.median([one.runs for one in outcomes])),
        "share": float(np.median([one.share for one in outcomes])),
        "regret": float(np.median(regret.mean(axis=1))),
        "regret_worst_study": float(regret.mean(axis=1).max()),
        "regret_worst_grid": float(regret.max()),
        "error": float(np.median(rms)) if rms else float("nan"),
    }
