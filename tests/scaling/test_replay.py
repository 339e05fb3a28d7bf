"""Extending old tables: what a study asks for, what it is told, and what it pays."""

import math

import numpy as np
import pytest

from videoscaling.scaling import extend, replay, runs, simulate, tables
from videoscaling.utils.errors import UserError

STEPLAW = "steplaw/dense_lr_bs_loss.csv"


@pytest.fixture
def table(paper):
    """Four 9 x 9 grids of the paper's laws with ten times its curvature, a cell missing from each."""
    law = type(paper)(**{**vars(paper), "curvature": type(paper.curvature)(0.01, 0.01, -0.006)})
    ledger = simulate.ledger(law, simulate.grid(law, (1e8, 4e8), (2e9, 8e9), 9, 9, 1.5), (2e9, 8e9), 1e-4)
    return replay.oracles(ledger.rows(np.arange(len(ledger)) >= 4))


@pytest.fixture(scope="module")
def steplaw(public_data):
    public_data(STEPLAW)  # skips where it is not
    import os
    from pathlib import Path

    folder = Path(os.environ.get("SCALING_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    columns = tables.parse_columns("T=D,B=bs,L=smooth loss")
    return replay.oracles(runs.read(folder / STEPLAW, columns, "sequences:2048"))


def test_oracles_are_whole_grids_by_rising_cost(table) -> None:
    assert len(table) == 4
    assert [o.N * o.T for o in table] == sorted(o.N * o.T for o in table)
    assert all(len(o.lr) == 81 for o in table)
    assert {o.cells for o in table} == {79, 81}
    assert table[0].regret(int(np.nanargmin(table[0].loss))) == 0.0


def test_a_study_finds_the_best_without_the_truth(table, paper, monkeypatch) -> None:
    """It sees nothing of the table but the cells that it asked for."""
    shown = []
    answered = replay._answered

    def watched(grid, oracle, asked, noise, random):
        new = answered(grid, oracle, asked, noise, random)
        fresh = np.flatnonzero((new.runs > 0) | new.absent)
        assert set(fresh) <= set(np.flatnonzero((grid.runs > 0) | grid.absent)) | set(asked)
        assert np.isnan(new.loss[new.runs == 0]).all()
        shown.append(len(asked))
        return new

    monkeypatch.setattr(replay, "_answered", watched)
    outcomes = replay.study(table, paper, extend.Settings(0.0, 1e-3), 0, 1)
    assert all(o.oracle.regret(o.cell) <= 1e-3 for o in outcomes)
    assert np.mean([o.share for o in outcomes]) < 0.3
    assert sum(shown) >= sum(o.runs for o in outcomes), "absent cells were asked for, and cost nothing"
    assert all(o.miss <= extend.DOUBT for o in outcomes)


def test_the_same_study_twice_and_another_seed_differs(table, paper) -> None:
    noisy = extend.Settings(2e-3, 1e-3)
    one, two, other = (replay.study(table[:2], paper, noisy, seed, 4) for seed in (0, 0, 1))
    assert [(o.cell, o.runs) for o in one] == [(o.cell, o.runs) for o in two]
    assert [(o.cell, o.runs, o.miss) for o in one] != [(o.cell, o.runs, o.miss) for o in other]
    assert all(o.runs <= replay.MOST * o.oracle.cells + 4 for o in one)
    few = replay.study(table[:2], paper, noisy, 0, 1, most=0.15)
    assert all(o.runs <= 0.15 * o.oracle.cells + 1 for o in few)
    # Every cell once, and a belief: noise alone is smoothed, and without noise the best is the best.
    assert all(o.runs == o.oracle.cells for o in replay.smoothed(table, paper, noisy, 0))
    exact = replay.smoothed(table, paper, extend.Settings(0.0, 1e-3), 0)
    assert [o.cell for o in exact] == [o.cell for o in replay.full(table, 0.0, 0)]


def test_a_summary_counts(table) -> None:
    best, worst = ([int(f(o.loss)) for o in table] for f in (np.nanargmin, np.nanargmax))
    good = [replay.Outcome(o, cell, 10) for o, cell in zip(table, best)]
    bad = [replay.Outcome(o, cell, 20) for o, cell in zip(table, worst)]
    s = replay.summary([good, bad], 1e-3)
    assert (s["within"], s["within_worst"], s["grids"], s["studies"]) == (2.0, 0, 4, 2)
    assert s["share_mean"] == pytest.approx(np.mean([15 / o.cells for o in table]))
    assert s["regret_worst"] == max(o.regret(cell) for o, cell in zip(table, worst))
    assert replay.summary([replay.full(table, 0.0, 0)], 1e-3)["within"] == 4
    assert replay.summary([replay.full(table, 0.0, 0)], 1e-3)["flops_share"] == 1.0
    assert all(o.runs == 16 for o in replay.coarse(table[1:], 4, 0.0, 0))


def test_tables_unlike_the_public_ones(table, paper) -> None:
    """Three rates alone, cells in a band, divergence: nothing is counted twice, and a choice has a loss."""
    one = table[0]
    narrow = np.isin(one.lr, np.unique(one.lr)[3:6])
    few = replay.Oracle(one.N, one.T, one.lr[narrow], one.B[narrow], one.loss[narrow])
    (outcome,) = replay.coarse([few], 6, 0.0, 0)
    assert outcome.runs == 3 * 6
    # Of a band the plain grid's cells are absent.
    band = np.where(np.arange(81) % 9 == 1, one.loss, math.nan)
    sparse = replay.Oracle(one.N, one.T, one.lr, one.B, band)
    (outcome,) = replay.coarse([sparse], 2, 0.0, 0)
    assert np.isfinite(band[outcome.cell])
    assert outcome.runs >= 1
    # Given up at one cell, but not before one has a loss.
    cliff = replay.Oracle(one.N, one.T, one.lr, one.B, np.where(one.lr > np.unique(one.lr)[2], math.inf, one.loss))
    (outcome,) = replay.study([cliff], paper, extend.Settings(0.0, 1e-3), 0, 1, most=0.01)
    assert np.isfinite(cliff.loss[outcome.cell])
    for chosen in (replay.at_random([cliff], 0.02, 0.0, seed)[0] for seed in range(20)):
        assert np.isfinite(cliff.loss[chosen.cell])


def test_a_grid_of_which_all_diverged_is_none(paper) -> None:
    rows = simulate.ledger(paper, simulate.grid(paper, (1e8, 4e8), (2e9,), 4, 4, 1.5), (2e9,), 1e-4)
    rows.loss[rows.N.min() == rows.N] = math.inf
    assert [oracle.N for oracle in replay.oracles(rows)] == [4e8]


def test_no_grid_is_a_users_error(paper) -> None:
    few = simulate.ledger(paper, [(1e8, 1e5, 1e-3), (1e8, 1e5, 2e-3)], (1e9,), 1e-4)
    with pytest.raises(UserError, match="no grid"):
        replay.oracles(few)


def test_step_law_fewer_flops_for_the_same_answer(steplaw, paper) -> None:
    """Within a tenth of a per cent of the best on 17 of 17 grids, for less than 15 % of the cells."""
    outcomes = replay.study(steplaw, paper, extend.Settings(0.0, replay.ROUGH * extend.TOLERANCE), 0, 1)
    s = replay.summary([outcomes], extend.TOLERANCE)
    assert s["grids"] == 17
    assert s["within"] == 17
    assert s["share_mean"] <= 0.15
    assert s["flops_share"] <= 0.15
    random = replay.summary([replay.at_random(steplaw, 0.25, 0.0, seed) for seed in range(20)], extend.TOLERANCE)
    assert 6 < random["within"] < 10  # of 17
    assert math.isclose(random["share_mean"], 0.25, abs_tol=0.01)
