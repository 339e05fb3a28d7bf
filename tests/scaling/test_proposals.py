"""A sweep's ledger as grids, the noise it shows, and what is asked for."""

import math
from dataclasses import replace

import numpy as np
import pytest

from videoscaling.scaling import simulate
from videoscaling.scaling.extend import Settings
from videoscaling.scaling.optimum import WINDOW
from videoscaling.scaling.points import at_nominal, grid_optima
from videoscaling.scaling.proposals import NOISE, TOGETHER, candidates, grid_of, noise_of, states
from videoscaling.scaling.runs import concatenate

SIZES, TOKENS = (1.6e7, 6.4e7, 2.6e8), (2e9, 8e9)


def ledger(law, noise=1e-3, offset=0.0, seed=0, count=4):
    cells = simulate.grid(law, SIZES, TOKENS, count, count, 2.0, offset)
    cells = [(N, max(round(B / 1280), 1) * 1280.0, lr) for N, B, lr in cells]
    return simulate.ledger(law, cells, TOKENS, noise, seed=seed, n_ctx=1280)


def none_waits(N, T):
    return ()


def test_candidates_hold_the_grid_its_middles_and_a_step_beyond() -> None:
    lr, B = candidates(np.repeat([1e-3, 2e-3, 4e-3], 2), np.tile([1280.0, 5120.0], 3), 1280.0)
    assert set(np.unique(B)) == {1280.0, 2560.0, 5120.0, 20480.0}
    assert B.min() == 1280.0, "no batch below one clip"
    assert np.all(B % 1280 == 0)
    assert np.unique(lr).min() == pytest.approx(5e-4)
    assert np.unique(lr).max() == pytest.approx(8e-3)
    assert np.any(np.isclose(np.unique(lr), 1e-3 * math.sqrt(2), rtol=1e-3))


def test_candidates_are_no_finer_than_decides_anything_and_stay_the_same_numbers() -> None:
    rates = np.array([1e-3, 1.1e-3, 3.3333333333e-3])
    lr, B = candidates(np.append(rates, 1e-3 * (1 + 1e-9)), np.full(4, 1280.0), 1280.0)
    assert set(rates) <= set(lr)
    assert not np.any((lr > 1e-3) & (lr < 1.1e-3))
    # Step by step, the grid fills up and no further.
    for _ in range(6):
        lr, B = candidates(lr, B, 1280.0)
        inside = np.unique(lr[(lr >= 1e-3) & (lr <= 3.34e-3)])
    assert np.diff(np.log(inside)).min() >= math.log(1.1) - 1e-9
    assert len(inside) <= 10


def test_noise_is_that_of_repeats_and_else_of_the_scatter(paper) -> None:
    one = ledger(paper, noise=2e-3)
    optima = grid_optima(at_nominal(one), WINDOW)
    noise, source = noise_of(one, optima)
    assert "scatter" in source
    assert noise == pytest.approx(2e-3, rel=0.4)
    again = concatenate([one, ledger(paper, noise=2e-3, seed=1)])
    noise, source = noise_of(again, grid_optima(at_nominal(again), WINDOW))
    assert source == "96 repeats"
    assert noise == pytest.approx(2e-3, rel=0.2)
    few = one.rows(np.arange(4))
    assert noise_of(few, grid_optima(few, WINDOW))[0] == NOISE


def test_a_grid_keeps_the_sweeps_own_digits_and_counts_repeats(paper) -> None:
    rows = concatenate([ledger(paper, 1e-3), ledger(paper, 1e-3, seed=1)])
    N, T, where = next(rows.grids())
    part = rows.rows(where)
    grid = grid_of(part, N, T, waiting=[(1e-2, 1280.0)])
    assert set(zip(part.lr, part.B)) == {(grid.lr[i], grid.B[i]) for i in grid.seen}
    assert set(grid.runs[grid.seen]) == {2}
    inside = [(v >= ran.min()) & (v <= ran.max()) for v, ran in ((grid.lr, part.lr), (grid.B, part.B))]
    assert set(np.flatnonzero(grid.absent)) >= set(np.flatnonzero(~inside[0] & ~inside[1])), "corners beyond two sides"
    assert not grid.absent[inside[0] & inside[1]].any()
    part.loss[:] = math.inf
    lost = grid_of(part, N, T)
    assert np.isinf(lost.loss[lost.seen]).all()


def test_off_the_optimum_cells_beyond_the_edge_are_asked_for(paper) -> None:
    made, *_ = states(ledger(paper, 1e-4, offset=2.5), paper, Settings, None, none_waits)
    assert all(state.optimum.verdict == "edge" for state in made)
    for state in made:
        assert 0 < len(state.asked) <= TOGETHER
        first = state.asked[0]
        assert first.why.startswith("beyond the edge: ")
        assert "lower lr" in first.why or "smaller batch" in first.why
    # Where the best is well inside and every run exact, nothing is left to ask.
    centred, *_ = states(ledger(paper, 1e-5), paper, Settings, None, none_waits)
    assert {state.optimum.verdict for state in centred} == {"interior"}
    assert not any(state.asked for state in centred)


def wide(law, costs, seed, fall=0.5):
    """Two sizes, rates over two decades, 1 to 64 clips of 80 tokens, noise of 1 %.

    ``costs`` [4] is ln loss at the best rate of each batch, at the first T; it falls as T^-``fall``. The best rate
    rises with the batch, and losses are steeper above it.
    """
    tokens, clips = 409600.0 * 2.0 ** np.arange(4), 4.0 ** np.arange(4)
    cells = [(N, 80 * c, lr) for N in (65536.0, 131072.0) for c in clips for lr in (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)]
    rows = simulate.ledger(replace(law, curvature=None), cells, tokens, 0.01, seed=seed, n_ctx=80)
    y = np.log(rows.B / 80)
    x = np.log(rows.lr / 1.5e-3) - 0.6 * y
    costly = np.interp(y, np.log(clips), costs) * (rows.T / tokens[0]) ** -fall
    return replace(rows, loss=rows.loss * np.exp(costly + 0.015 * x**2 + 0.004 * np.clip(x, 0, None) ** 3))


def test_nothing_is_asked_for_beyond_an_edge_that_is_much_worse_than_the_best(paper) -> None:
    """The largest batch costs 12 % at the first T and 4 at the last, four times the noise: no way leads on there."""
    asked = []
    for seed in range(3):
        made, *_ = states(wide(paper, (0.0, 0.01, 0.05, 0.12), seed), paper, Settings, None, none_waits)
        asked += [one for state in made for one in state.asked]
    assert asked
    assert max(one.B for one in asked) <= 64 * 80
    # Where the noise hides whether the edge is worse, there may be.
    made, *_ = states(wide(paper, (0.0, 0.0, 0.0, 0.01), 0), paper, Settings, None, none_waits)
    assert max(one.B for state in made for one in state.asked) == 256 * 80


def test_what_waits_is_not_asked_again(paper) -> None:
    rows = ledger(paper, 1e-3, offset=2.0)
    first, *_ = states(rows, paper, Settings, None, none_waits)
    waiting = {(s.grid.N, s.grid.T): [(a.lr, a.B) for a in s.asked] for s in first}
    again, *_ = states(rows, paper, Settings, None, lambda N, T: waiting[N, T])
    for state in again:
        known = waiting[state.grid.N, state.grid.T]
        for asked in state.asked:
            assert all(abs(math.log(asked.lr / lr)) + abs(math.log(asked.B / B)) > 1e-6 for lr, B in known)


def test_a_grid_that_no_fit_would_use_is_not_done(paper) -> None:
    """Whatever is believed of it: the cells that the fit's verdict asks for are asked for."""
    rows = ledger(paper, 1e-3, offset=1.0)
    loose, *_ = states(rows, paper, lambda noise: Settings(noise, tolerance=0.1), None, none_waits)
    assert any(not state.optimum.usable for state in loose)
    for state in loose:
        assert not state.decision.cells
        assert bool(state.asked) == (not state.optimum.usable)
        assert all(asked.why.startswith(f"the fit's verdict, {state.optimum.verdict}") for asked in state.asked)
        assert {round(asked.B) % 1280 for asked in state.asked} <= {0}
    waiting = {(s.grid.N, s.grid.T): [(a.lr, a.B) for a in s.asked] for s in loose}
    again, *_ = states(
        rows, paper, lambda noise: Settings(noise, tolerance=0.1), None, lambda N, T: waiting[N, T], lambda N: 1e5
    )
    for state in again:
        known = waiting[state.grid.N, state.grid.T]
        assert not {(asked.lr, asked.B) for asked in state.asked} & set(known)
        assert all(asked.B <= 1e5 for asked in state.asked)


def test_a_choice_that_is_known_is_not_run_again_for_want_of_other_cells(paper) -> None:
    """Fewer cells than a quadratic has coefficients: other ones are missing, and repeats would never end."""
    rows = ledger(paper, 1e-3, offset=2.0, count=2)
    made, *_ = states(rows, paper, lambda noise: Settings(noise, tolerance=0.1), 1e-3, none_waits)
    assert any(state.asked for state in made)
    for state in made:
        assert state.decision.miss <= 0.1
        assert not any(asked.why.startswith("run ") for asked in state.asked)


def test_a_verdict_asks_for_no_cell_that_is_there_but_for_rounding(paper) -> None:
    """Nor for one so near that it decides nothing: halving a step again and again would never end."""
    rows = ledger(paper, 1e-3, offset=1.0)
    loose, *_ = states(rows, paper, lambda noise: Settings(noise, tolerance=0.1), None, none_waits)
    # One of each grid is there by 0.01 %, the others by 8 %.
    near = (1.0001, 1.08, 1.08, 1.08)
    waiting = {(s.grid.N, s.grid.T): [(a.lr * f, a.B) for a, f in zip(s.asked, near)] for s in loose}
    assert any(waiting.values())
    again, *_ = states(rows, paper, lambda noise: Settings(noise, tolerance=0.1), None, lambda N, T: waiting[N, T])
    for state in again:
        for asked in state.asked:
            for lr, B in waiting[state.grid.N, state.grid.T]:
                assert max(abs(math.log(asked.lr / lr)), abs(math.log(asked.B / B))) > 0.09


def test_few_spare_cells_tell_no_noise(paper) -> None:
    """Three cells more than coefficients may lie on the quadratic by luck: no repeats would be asked for then."""
    rows = ledger(paper, 1e-6, count=3)
    one = rows.rows(np.flatnonzero((rows.N[0] == rows.N) & (rows.nominal_T == rows.nominal_T[0])))
    assert noise_of(one, grid_optima(one, WINDOW)) == (NOISE, "an assumption, as nothing repeats yet")
    one.loss[::2] *= 1.02  # that there is more, they do tell
    assert noise_of(one, grid_optima(one, WINDOW))[0] > 5 * NOISE


def test_where_nothing_lives_lower_rates_are_asked_for_over_three_decades_and_no_further(paper) -> None:
    """Each answer diverges too: what is wrong is not the rate, and asking would never end."""
    rows = ledger(paper)
    rows = rows.rows(np.flatnonzero((rows.N[0] == rows.N) & (rows.nominal_T == rows.nominal_T[0])))
    rows.loss[:] = math.inf
    first = rows.lr.copy()
    for _ in range(40):
        (state,), *_ = states(rows, paper, Settings, None, none_waits)
        if not state.asked:
            break
        assert not state.lifeless
        assert all(one.lr < rows.lr.min() for one in state.asked)
        more = rows.rows(np.zeros(len(state.asked), dtype=int))
        more.lr[:], more.B[:] = [one.lr for one in state.asked], [one.B for one in state.asked]
        rows = concatenate([rows, more])
    assert state.lifeless
    assert not state.asked
    assert first.max() / 4000 < rows.lr.min() <= first.max() / 999
    # One run that lives, and the grid is like any other.
    rows.loss[-1] = 1.0
    (state,), *_ = states(rows, paper, Settings, None, none_waits)
    assert not state.lifeless
    assert state.asked
