import dataclasses

import numpy as np
import pytest

from tests.scaling import simulate
from videoscaling.scaling.checks.pair_prices import MOST_TOKENS, prices
from videoscaling.utils.errors import UserError

SIZES, TOKENS = np.geomspace(0.0168e9, 0.268e9, 4), [2e9, 5e9, 12e9]


def table_with(law, seed, noise=2e-4):
    return simulate.run_table(law, simulate.grid(law, SIZES, TOKENS, 5, 5, 2.0), TOKENS, noise, seed=seed, n_ctx=1280)


def test_what_a_pair_costs_is_the_planted_penalty(paper, cost):
    """Without a law: each grid's surface at the pair, and the tokens by which the planted loss makes up for it."""
    table = table_with(paper, 0, noise=1e-6)
    table = dataclasses.replace(table, heldout=np.isclose(table.N, SIZES[-1]))
    (lr, B), rows = prices(table)
    assert (lr, B) == pytest.approx((paper.lr(SIZES[0], TOKENS[0]), paper.batch(SIZES[0], TOKENS[0])), rel=0.05)
    assert len(rows) == len(SIZES) * len(TOKENS)  # held-out sizes too
    for row in rows:
        N, T = row["N"], row["T"]
        penalty = float(paper.curvature(np.log(lr / paper.lr(N, T)), np.log(B / paper.batch(N, T))))
        assert row["price"]["value"] == pytest.approx(penalty, rel=0.05, abs=1e-5)
        # A straight line stands for a loss that levels off, between milestones 2.5 apart.
        made_up = float(paper.loss(N, T) / paper.loss(N, T * row["tokens"])) - 1
        assert made_up == pytest.approx(penalty, rel=0.3, abs=1e-5)


def test_a_pair_among_the_cells_but_far_from_the_best_has_no_price(paper, cost):
    """The surface goes through the cells near the best one, and is none beyond."""
    pair = 3 * float(paper.lr(SIZES[0], TOKENS[0])), float(paper.batch(SIZES[0], TOKENS[0]))
    _, rows = prices(table_with(paper, 0, noise=1e-6), pair)
    assert len(rows) == len(SIZES) * len(TOKENS)
    without = [row for row in rows if row["price"] is None]
    assert 0 < len(without) < len(rows)
    for row in rows:
        steps = np.log(pair[0] / paper.lr(row["N"], row["T"])), np.log(pair[1] / paper.batch(row["N"], row["T"]))
        if row["price"] is None:  # among the outermost cells or beyond: five of each, a factor of two apart
            assert max(map(abs, steps)) > 1.5 * np.log(2.0)
        else:
            assert row["price"]["value"] == pytest.approx(float(paper.curvature(*steps)), rel=0.05)


@pytest.mark.slow
def test_the_interval_of_a_price_is_as_wide_as_it_scatters(paper, cost):
    """Of 40 run tables' intervals at most five leave the planted price out (two on average, six or more in 1.4 % of
    cases), and they are about as wide as the prices' own scatter says."""
    pair = paper.lr(SIZES[0], TOKENS[0]), paper.batch(SIZES[0], TOKENS[0])
    rows = [[row for row in prices(table_with(paper, seed), pair)[1] if row["price"]][-1] for seed in range(40)]
    (N, T), *others = [(row["N"], row["T"]) for row in rows]
    assert set(others) == {(N, T)}
    planted = float(paper.curvature(np.log(pair[0] / paper.lr(N, T)), np.log(pair[1] / paper.batch(N, T))))
    value, low, high = np.array([[row["price"][key] for key in ("value", "low", "high")] for row in rows]).T
    assert np.sum((planted < low) | (planted > high)) <= 5
    # The scatter of 40 is known to 11 %, and a window's cells change with the noise.
    assert 0.6 < np.mean(high - low) / (2 * 2.1 * value.std(ddof=1)) < 1.6


def test_a_price_is_not_reported_by_one_run(paper, cost):
    """One cell at the highest rate: without it there is no surface, so no interval. Where loss is level, no tokens."""
    table = simulate.run_table(paper, simulate.grid(paper, SIZES, TOKENS, 3, 3, 1.5), TOKENS, 1e-6, n_ctx=1280)
    cells = np.flatnonzero(np.isclose(table.N, SIZES[0]) & np.isclose(table.T, TOKENS[1]))
    highest = cells[np.isclose(table.lr[cells], table.lr[cells].max())]
    kept = table.rows(~np.isin(np.arange(len(table)), highest[[0, 2]]))
    pair = float(paper.lr(SIZES[0], TOKENS[1])) * 1.1, float(paper.batch(SIZES[0], TOKENS[1]))
    whole, few = (prices(one, pair)[1][0] for one in (table, kept))
    assert (whole["N"], whole["T"]) == (few["N"], few["T"]) == (SIZES[0], TOKENS[1])
    assert few["price"]["value"] == pytest.approx(whole["price"]["value"], rel=0.1)
    assert (few["price"]["low"], few["price"]["high"]) == (None, None)
    assert whole["price"]["low"] <= whole["price"]["value"] <= whole["price"]["high"]
    level = dataclasses.replace(paper, loss=dataclasses.replace(paper.loss, Tc=1e-9))
    reported = prices(table_with(level, 0), pair)[1]
    assert all(row["tokens"] is None or row["tokens"] < MOST_TOKENS for row in reported)
    assert any(row["tokens"] is None and row["price"] for row in reported)


def test_prices_of_a_pair_far_outside_the_grids_are_refused(paper, cost):
    with pytest.raises(UserError, match="the pair's lr, 1, is far outside the grids"):
        prices(table_with(paper, 0), (1.0, 1e5))
