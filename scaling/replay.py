"""``extend`` on grids that were run long ago: a table of finished cells answers what a study would have trained.

The grids are worked through by rising cost, each with what the ones before it tell. Only cells that were asked for are
shown; those that the table lacks are answered "absent", and cost nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.belief import Found, Grid
from videoscaling.scaling.extend import Settings, decide
from videoscaling.scaling.laws import Law
from videoscaling.scaling.optimum import COEFFICIENTS
from videoscaling.scaling.runs import Ledger
from videoscaling.utils.errors import UserError

# A study gives a grid up when it has paid for this part of it: noise then hides what the tolerance asks for.
MOST = 0.35
# Of the tolerance: how far a table's cells deviate from a smooth surface. They are the truth all the same.
ROUGH = 1.4
# Where the coarse start's rates and batches lie on their axes.
START = (1 / 6, 1 / 2, 5 / 6)


@dataclass(frozen=True)
class Oracle:
    """A grid of the table: every rate with every batch. Arrays [cells].

    Attributes:
        loss: the table's, the mean over a cell's runs; nan where it has no such cell, inf where it diverged.
    """

    N: float
    T: float
    lr: NDArray[np.float64]
    B: NDArray[np.float64]
    loss: NDArray[np.float64]

    @property
    def cells(self) -> int:
        """Those the table has."""
        return int((~np.isnan(self.loss)).sum())

    def regret(self, cell: int) -> float:
        """The cell's loss above that of the table's best, relative."""
        return float(self.loss[cell] / np.nanmin(self.loss) - 1)


@dataclass(frozen=True)
class Outcome:
    """What became of a grid: the chosen ``cell``, the ``runs`` paid for, and the chance of a ``miss`` believed in."""

    oracle: Oracle
    cell: int
    runs: int
    miss: float = float("nan")

    @property
    def share(self) -> float:
        """Of the whole grid's cost."""
        return self.runs / self.oracle.cells


def oracles(ledger: Ledger) -> list[Oracle]:
    """The grids of a table that have a finite loss, by rising cost of a cell, N * T.

    Raises:
        UserError: no grid has enough cells.
    """
    made = []
    for N, T, rows in ledger.grids():
        if len(rows) <= COEFFICIENTS or not np.isfinite(ledger.loss[rows]).any():
            continue
        rates, batches = np.unique(ledger.lr[rows]), np.unique(ledger.B[rows])
        lr, B = np.repeat(rates, len(batches)), np.tile(batches, len(rates))
        place = np.searchsorted(rates, ledger.lr[rows]) * len(batches) + np.searchsorted(batches, ledger.B[rows])
        loss = np.full(len(lr), np.nan)
        for cell in np.unique(place):
            runs = ledger.loss[rows[place == cell]]
            loss[cell] = runs[np.isfinite(runs)].mean() if np.isfinite(runs).any() else np.inf
        made.append(Oracle(N, T, lr, B, loss))
    if not made:
        raise UserError(f"{ledger.source}: no grid of one N and T has more than {COEFFICIENTS} cells")
    return sorted(made, key=lambda oracle: oracle.N * oracle.T)


def study(
    table: Sequence[Oracle],
    law: Law,
    settings: Settings,
    seed: int,
    together: int,
    most: float = MOST,
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Each grid, cell by cell, until ``decide`` asks for no more.

    Args:
        law: exponents expected of B_opt and lr_opt.
        settings: ``noise`` is added to every run of a cell.
        seed: of that noise.
        together: cells that are asked for at once.
        most: share of a grid's cells at which it is given up.
    """
    random = np.random.default_rng(seed)
    told: list[Found] = []
    outcomes = []
    for oracle in table:
        grid = _nothing_run(oracle)
        asked = _coarse(oracle, START) if not told else []
        while True:
            grid = _answered(grid, oracle, asked, settings.noise, random)
            decision = decide(grid, told, law, settings, together)
            asked = [proposal.cell for proposal in decision.cells]
            if not asked or (decision.choice is not None and grid.runs.sum() >= most * oracle.cells):
                break
        assert decision.choice is not None
        told.append(decision.found)
        outcomes.append(Outcome(oracle, decision.choice, int(grid.runs.sum()), decision.miss))
        report(outcomes[-1])
    return outcomes


def _nothing_run(oracle: Oracle) -> Grid:
    count = len(oracle.lr)
    return Grid(
        oracle.N, oracle.T, oracle.lr, oracle.B, np.full(count, np.nan), np.zeros(count, dtype=np.int64),
        np.zeros(count, dtype=bool),
    )  # fmt: skip


def _answered(grid: Grid, oracle: Oracle, asked: Sequence[int], noise: float, random: np.random.Generator) -> Grid:
    """The grid with one more run of each cell asked for."""
    loss, runs, absent = grid.loss.copy(), grid.runs.copy(), grid.absent.copy()
    for cell in asked:
        if np.isnan(oracle.loss[cell]):
            absent[cell] = True
            continue
        run = oracle.loss[cell] * (1 + noise * random.standard_normal())
        loss[cell] = run if not runs[cell] else (loss[cell] * runs[cell] + run) / (runs[cell] + 1)
        runs[cell] += 1
    return replace(grid, loss=loss, runs=runs, absent=absent)


def _coarse(oracle: Oracle, places: Sequence[float]) -> list[int]:
    """The cells at these places of both axes, each once."""
    rates, batches = np.unique(oracle.lr), np.unique(oracle.B)
    rows, columns = ([round((len(values) - 1) * place) for place in places] for values in (rates, batches))
    return [row * len(batches) + column for row in dict.fromkeys(rows) for column in dict.fromkeys(columns)]


def lowest(oracle: Oracle, cells: NDArray[np.int64], noise: float, random: np.random.Generator) -> Outcome:
    """One run of each of ``cells`` that the table has, and the lowest loss of them chosen.

    Where none of them has a finite loss, others at random, until one has.
    """
    cells = cells[~np.isnan(oracle.loss[cells])]
    if not np.isfinite(oracle.loss[cells]).any():
        rest = random.permutation(np.setdiff1d(np.flatnonzero(~np.isnan(oracle.loss)), cells))
        first = np.flatnonzero(np.isfinite(oracle.loss[rest]))[0]
        cells = np.append(cells, rest[: first + 1])
    seen = oracle.loss[cells] * (1 + noise * random.standard_normal(len(cells)))
    return Outcome(oracle, int(cells[np.argmin(seen)]), len(cells))


def full(table: Sequence[Oracle], noise: float, seed: int) -> list[Outcome]:
    """Every cell once."""
    random = np.random.default_rng(seed)
    return [lowest(oracle, np.arange(len(oracle.loss)), noise, random) for oracle in table]


def smoothed(table: Sequence[Oracle], law: Law, settings: Settings, seed: int) -> list[Outcome]:
    """Every cell once, and the choice by the same belief as a study's: the most that so many runs can tell it."""
    random = np.random.default_rng(seed)
    told: list[Found] = []
    outcomes = []
    for oracle in table:
        grid = _answered(_nothing_run(oracle), oracle, range(len(oracle.loss)), settings.noise, random)
        decision = decide(grid, told, law, settings, 0)
        assert decision.choice is not None
        told.append(decision.found)
        outcomes.append(Outcome(oracle, decision.choice, int(grid.runs.sum()), decision.miss))
    return outcomes


def at_random(table: Sequence[Oracle], share: float, noise: float, seed: int) -> list[Outcome]:
    """Cells drawn at random, ``share`` of each grid."""
    random = np.random.default_rng(seed)
    outcomes = []
    for oracle in table:
        there = np.flatnonzero(~np.isnan(oracle.loss))
        outcomes.append(lowest(oracle, random.permutation(there)[: round(share * len(there))], noise, random))
    return outcomes


def coarse(table: Sequence[Oracle], points: int, noise: float, seed: int) -> list[Outcome]:
    """A plain grid of ``points`` rates x ``points`` batches, spread evenly over the axes."""
    random = np.random.default_rng(seed)
    places = [(i + 0.5) / points for i in range(points)]
    return [lowest(oracle, np.array(_coarse(oracle, places)), noise, random) for oracle in table]


def summary(studies: Sequence[Sequence[Outcome]], tolerance: float) -> dict[str, float]:
    """Over studies of the same grids: how many grids are ``within`` the tolerance, regrets (relative) and costs."""
    regret = np.array([[o.oracle.regret(o.cell) for o in outcomes] for outcomes in studies])
    share = np.array([[o.share for o in outcomes] for outcomes in studies])
    price = np.array([o.oracle.N * o.oracle.T for o in studies[0]])
    paid = np.array([[o.runs for o in outcomes] for outcomes in studies]) * price
    whole = sum(o.oracle.cells * o.oracle.N * o.oracle.T for o in studies[0])
    within = (regret <= tolerance).sum(axis=1)
    return {
        "studies": len(studies),
        "grids": regret.shape[1],
        "within": float(within.mean()),
        "within_worst": int(within.min()),
        "regret_mean": float(regret.mean()),
        "regret_worst": float(regret.max()),
        "share_mean": float(share.mean()),
        "share_worst": float(share.max()),
        "flops_share": float((paid.sum(axis=1) / whole).mean()),
    }
