import dataclasses

import numpy as np
import pytest

from tests.scaling import simulate
from videoscaling.scaling.checks.fixed_pair import MOST_TOKENS, compare, prices
from videoscaling.scaling.fitting.unsupported import UnsupportedFit
from videoscaling.scaling.planning import allocation
from videoscaling.utils.errors import UserError

SIZES, TOKENS = np.geomspace(0.0168e9, 0.268e9, 4), [2e9, 5e9, 12e9]


def table_with(law, seed, noise=2e-4):
    return simulate.run_table(law, simulate.grid(law, SIZES, TOKENS, 5, 5, 2.0), TOKENS, noise, seed=seed, n_ctx=1280)


def without_bias(paper):
    """A law whose best batch and rate depend on neither N nor T: one fixed pair is optimal everywhere."""
    batch = dataclasses.replace(paper.batch, coefficient=5e4, T=0.0, N=0.0)
    return dataclasses.replace(paper, batch=batch, lr=dataclasses.replace(paper.lr, T=0.0, N=0.0))


def found(law, cost, count):
    return [compare(table_with(law, seed), cost) for seed in range(count)]


@pytest.mark.slow
def test_a_planted_bias_is_found_and_none_is_invented(paper, cost):
    detected, alarms = (np.mean([c.biased for c in found(law, cost, 100)]) for law in (paper, without_bias(paper)))
    print("with bias", detected, "without", alarms)
    assert detected >= 0.90
    assert alarms <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("scatter", [0.05, 0.15])
def test_grids_that_scatter_are_no_bias(paper, cost, scattered_grids, scatter):
    law = without_bias(paper)
    alarms = [compare(scattered_grids(law, SIZES, TOKENS, 2e-4, s, scatter), cost).biased for s in range(100)]
    print("scatter", scatter, np.mean(alarms))
    assert np.mean(alarms) <= 0.05


@pytest.mark.slow
def test_grids_that_scatter_are_no_bias_on_fewer_tables(paper, cost, scattered_grids):
    # By the runs' noise alone half of them are biased.
    law = without_bias(paper)
    assert sum(compare(scattered_grids(law, SIZES, TOKENS, 2e-4, s, 0.15), cost).biased for s in range(10)) <= 1


@pytest.mark.slow
def test_a_planted_bias_is_found_on_fewer_tables(paper, cost):
    biased = found(paper, cost, 5)
    assert all(c.biased and c.N_fixed > c.N_opt and c.inference_ratio[1] > 1 for c in biased)
    # Two false alarms in eight have a chance of 5 % at the nominal rate.
    assert sum(c.biased for c in found(without_bias(paper), cost, 8)) <= 2


def test_numbers_against_the_planted_law(paper, cost):
    done = compare(table_with(paper, 0, noise=1e-6), cost, C=1e21)
    assert done.N_opt == pytest.approx(float(allocation.optimum(paper.loss, 1e21, cost)), rel=0.02)
    # The pair's own penalty, from the law's curvature at every grid.
    N, T = (v.ravel() for v in np.meshgrid(SIZES, TOKENS))
    penalty = paper.curvature(np.log(done.lr / paper.lr(N, T)), np.log(done.B / paper.batch(N, T)))
    assert done.excess == pytest.approx(penalty.mean(), rel=0.02)
    # What a clip costs to sample goes as the cost of a token, which grows less than N where attention matters.
    assert done.inference_ratio == pytest.approx([float(cost(done.N_opt * r) / cost(done.N_opt)) for r in done.ratio])
    assert done.inference_ratio[0] < 0.99 * done.ratio[0]
    assert done.ratio[0] == pytest.approx(done.N_fixed / done.N_opt)
    value, low, high = done.exponent_difference
    assert low < value < high
    assert value == pytest.approx(done.exponent_fixed - done.exponent)
    truth = float(np.diff(np.log(allocation.optimum(paper.loss, [1e20, 1e21], cost)))[0] / np.log(10))
    assert done.exponent == pytest.approx(truth, abs=0.01)
    assert done.to_dict()["exponent_difference"] == {"value": value, "low": low, "high": high}
    assert f"{value:+.4f} [{low:+.4f}, {high:+.4f}]" in done.text()


def test_the_interval_of_the_bend_follows_the_noise(paper, cost):
    quiet, loud = (compare(table_with(paper, 0, noise), cost).exponent_difference for noise in (1e-5, 1e-4))
    assert (loud[2] - loud[1]) / (quiet[2] - quiet[1]) == pytest.approx(10, rel=0.5)


@pytest.mark.parametrize(
    ("pair", "named"), [((1e30, 1e5), "lr, 1e.30,"), ((2e-4, 1e9), "B, 1e.09,"), ((2e-4, 5.0), "B, 5,")]
)
def test_a_pair_far_outside_the_grids_is_refused(paper, cost, pair, named):
    table = table_with(paper, 0)
    swept = table.lr if named.startswith("lr") else table.B
    with pytest.raises(UserError, match=f"{named} is far outside the grids: {swept.min():.4g} to"):
        compare(table, cost, pair=pair)


def test_a_chosen_pair(paper, cost):
    done = compare(table_with(paper, 0), cost, pair=(2e-4, 1e5), C=1e21)
    assert (done.lr, done.B, done.C) == (2e-4, 1e5, 1e21)
    assert "times [" in done.text()


def test_the_size_of_the_bend_does_not_depend_on_the_noise(paper, cost):
    """A law that does not fit depends on how residuals are weighed: alike, whatever the noise."""
    bends = [
        compare(table_with(paper, seed, noise), cost, (2e-4, 1e5), 1e21).exponent_difference[0]
        for noise in (1e-7, 5e-5)
        for seed in range(2)
    ]
    assert np.ptp(bends) < 0.002


def test_compare_refuses_what_a_fit_refuses(paper, cost):
    few = table_with(paper, 0)
    sizes, tokens = (np.searchsorted(np.unique(values), values) for values in (few.N, few.T))
    few = few.rows((sizes == 0) | ((tokens == 0) & (sizes < 3)))
    with pytest.raises(UnsupportedFit, match="5 optima for 5 constants leave nothing to check the fit by"):
        compare(few, cost)
    # Losses that do not fall with N identify no size, as the command says with status 3 and not 2.
    flat = table_with(dataclasses.replace(paper, loss=dataclasses.replace(paper.loss, Nc=1e-9)), 0)
    with pytest.raises(UnsupportedFit):
        compare(flat, cost)


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
