"""Which cells come next: beyond edges, between cells, again where noise hides the best, and none when all is known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from videoscaling.scaling import belief as module
from videoscaling.scaling.belief import Belief, Found, Grid, Prior, believe, expect, found
from videoscaling.scaling.extend import Settings, as_expected, decide, gain, judge, rival
from videoscaling.scaling.optimum import features

RATES, BATCHES = np.exp(np.arange(-3.0, 4.0) * 0.5), np.exp(np.arange(-3.0, 4.0) * 0.5)
CELLS = np.repeat(RATES, 7), np.tile(BATCHES, 7)
EXACT = Settings(noise=0.0, rough=3e-4)


def loss_at(lr, B, at=(0.0, 0.0)):
    """A bowl around ``at`` in (ln lr, ln B), a little steeper towards high rates."""
    x, y = np.log(lr) - at[0], np.log(B) - at[1]
    return 2.0 * np.exp(0.01 * x**2 + 0.008 * y**2 - 0.006 * x * y + 0.001 * x**3)


def grid(seen, at=(0.0, 0.0), runs=1) -> Grid:
    """A 7 x 7 grid, of which the cells ``seen`` (rate number, batch number) were run."""
    lr, B = CELLS
    loss, count = np.full(49, math.nan), np.zeros(49, dtype=np.int64)
    for i, j in seen:
        loss[7 * i + j], count[7 * i + j] = loss_at(lr[7 * i + j], B[7 * i + j], at), runs
    return Grid(1e6, 1e8, lr, B, loss, count, np.zeros(49, dtype=bool))


def block(rates, batches):
    return [(i, j) for i in rates for j in batches]


def prior() -> Prior:
    return Prior(np.zeros(2), np.full(2, 1.0), module.CURVATURE, np.abs(module.CURVATURE))


def asked(decision, of: Grid):
    return [(of.lr[p.cell], of.B[p.cell], p.why) for p in decision.cells]


@pytest.mark.parametrize(
    ("at", "side"),
    [((1.4, 0.4), "higher lr"), ((-1.4, -0.4), "lower lr"), ((0.4, 1.4), "larger"), ((-0.4, -1.4), "smaller")],
)
def test_beyond_an_edge(paper, at, side) -> None:
    here = grid(block((2, 3, 4), (2, 3, 4)), at)
    cells = asked(decide(here, (), paper, EXACT, 3), here)
    assert cells
    assert side in cells[0][2]
    assert cells[0][2].startswith("beyond the edge")


def rivals_beyond(edge: float, error: float, bend: float = 0.0, lowest: int = 3, rough: float = 0.0) -> set[float]:
    """The batches beyond the runs that hold a rival of the choice, the middle cell of 5 x 5 runs.

    Args:
        edge: ln loss of the largest batch that was run, above the choice's; .03 more but at the rate numbered
            ``lowest``. Cells beyond are as good as the choice, within .05.
        error: standard error of the edge's cells.
        bend: d^2 ln loss / d (ln lr)^2; rates lie .5 apart.
    """
    here = grid(block(range(1, 6), range(1, 6)))
    rate, batch = np.divmod(np.arange(49), 7)
    mean = np.where(batch == 5, edge + np.where(rate == lowest, 0.0, 0.03), 0.01)
    errors = np.where(batch == 5, error, 0.05)
    mean[24], errors[24] = 0.0, 0.0
    nothing = np.zeros((6, 49))
    quadratic = np.array([0.0, 0.0, 0.0, bend, 0.0, 0.0])
    belief = Belief(mean, np.diag(errors**2), quadratic, np.zeros((6, 6)), nothing, np.zeros(2))
    rivals = rival(here, belief, 24, Settings(1e-3, rough))
    assert rivals[24]
    assert rivals[(batch == 0) | (rate == 0) & (batch < 5)].all(), "the other edges are as good"
    return set(here.B[rivals & (batch > 5)])


def test_no_cell_is_a_rival_beyond_an_edge_that_is_worse() -> None:
    """However little is known of the cells there: losses have one valley."""
    assert not rivals_beyond(0.03, 0.01)
    assert rivals_beyond(0.03, 0.02) == {BATCHES[6]}, "its error hides whether it is worse"
    assert rivals_beyond(0.03, 0.01, rough=0.01), "or its own deviation from a smooth surface does"
    assert rivals_beyond(0.03, 0.01, bend=0.5), "its lowest point lies between its cells"
    assert rivals_beyond(0.03, 0.01, lowest=0), "its lowest point lies beyond its runs"
    assert not rivals_beyond(0.03, 0.01, lowest=1)
    assert rivals_beyond(0.0, 0.01)


def test_cells_around_an_interior_optimum_and_then_none(paper) -> None:
    here, spent = grid(block((1, 3, 5), (1, 3, 5)), (0.3, -0.3)), 9
    first = decide(here, (), paper, EXACT, 1)
    assert first.cells[0].why == "a finer step around the best"
    assert max(abs(np.log(values[first.cells[0].cell])) for values in (here.lr, here.B)) <= 0.5
    while (decision := decide(here, (), paper, EXACT, 1)).cells:
        cell = decision.cells[0].cell
        assert not here.runs[cell], "a repeat without noise tells nothing"
        here.loss[cell], here.runs[cell] = loss_at(here.lr[cell], here.B[cell], (0.3, -0.3)), 1
        spent += 1
    assert decision.miss <= EXACT.doubt
    assert loss_at(here.lr[decision.choice], here.B[decision.choice], (0.3, -0.3)) / 2.0 - 1 <= 1.5e-3
    assert spent <= 20  # of 49


def test_a_missing_neighbour_is_named(paper) -> None:
    seen = [c for c in block(range(2, 5), range(2, 5)) if c != (3, 3)]
    here = grid(seen)
    assert [w for *_, w in asked(decide(here, (), paper, EXACT, 1), here)] == ["a missing neighbour of the best"]


def test_repeats_where_noise_hides_the_best(paper) -> None:
    every = grid(block(range(7), range(7)))
    noisy = decide(every, (), paper, Settings(noise=0.02), 4)
    assert len(noisy.cells) == 4
    assert all(p.why.startswith("run ") for p in noisy.cells)
    assert noisy.miss > 0.2
    # Enough of them, and it is known.
    assert not decide(replace(every, runs=every.runs * 400), (), paper, Settings(noise=0.02), 4).cells
    # And without noise one run each is all there is to know.
    assert not decide(every, (), paper, EXACT, 4).cells


def test_a_cell_that_is_expected_to_be_best_is_not_run_again_before_it_is_seen(paper) -> None:
    """It would be the choice then: once it is asked for, the old choice's miss is no reason to ask for it again."""
    here = grid(block((2, 3, 4), (1, 2)), (0.5, 1.5))
    decision = decide(here, (), paper, Settings(noise=1e-3, tolerance=1e-2), 4)
    assert decision.cells
    assert not [p.why for p in decision.cells if p.why.startswith("run ")]


def test_absent_and_diverged_cells_are_not_asked_again(paper) -> None:
    here = grid(block((1, 3, 5), (1, 3, 5)))
    first = decide(here, (), paper, Settings(noise=0.01), 1).cells[0].cell
    here.absent[first] = True
    assert decide(here, (), paper, Settings(noise=0.01), 1).cells[0].cell != first
    here.loss[here.lr > 2.0] = np.where(here.runs[here.lr > 2.0] > 0, math.inf, math.nan)
    decision = decide(here, (), paper, Settings(noise=0.01), 30)
    assert np.isfinite(here.loss[decision.choice])
    assert not {p.cell for p in decision.cells} & set(np.flatnonzero(np.isinf(here.loss)))


def test_where_everything_diverged_lower_rates_come_next(paper) -> None:
    here = grid(block((4, 5, 6), (2, 3, 4)))
    here.loss[here.runs > 0] = math.inf
    decision = decide(here, (), paper, EXACT, 1)
    assert decision.choice is None
    assert decision.miss == 1.0
    assert "lower lr" in decision.cells[0].why


def test_the_same_each_time(paper) -> None:
    here = grid(block((1, 3, 5), (1, 3, 5)), (0.3, 0.3))
    one, two = (decide(here, (), paper, Settings(noise=1e-3), 5) for _ in range(2))
    assert one.cells == two.cells
    assert one.miss == two.miss


def test_a_belief_is_bayes_rule() -> None:
    """Noise alone: the same as generalised ridge regression, solved the other way round; and runs are met exactly."""
    here = grid(block((2, 3, 4), (2, 3, 4)), (0.3, 0.3))
    seen, x, y = here.seen, np.log(CELLS[0]), np.log(CELLS[1])
    value = np.log(here.loss[seen] / here.loss[seen].min())
    after = believe(here, prior(), noise=0.0, rough=1e-3)
    assert after.mean[seen] == pytest.approx(value, abs=1e-9)
    assert np.diag(after.covariance)[seen] == pytest.approx(0.0, abs=1e-9)
    noisy = believe(here, prior(), noise=0.5, rough=0.0)  # so much of it that what the quadratic misses is nothing
    H = np.array([[0.02, -0.01], [-0.01, 0.02]])
    precision = np.zeros((6, 6))
    precision[0, 0], precision[3:, 3:] = 1.0, np.diag(prior().deviation ** -2.0)
    precision[1:3, 1:3] = np.linalg.inv(H @ H)
    rows = features(x, y)
    expected = np.concatenate([np.zeros(3), module.CURVATURE])
    information = precision + rows[seen].T @ rows[seen] / 0.25
    solution = np.linalg.solve(information, precision @ expected + rows[seen].T @ value / 0.25)
    assert noisy.quadratic == pytest.approx(solution, abs=1e-5)
    assert noisy.spread == pytest.approx(np.linalg.inv(information), abs=1e-5)
    assert noisy.shared == pytest.approx(noisy.spread @ rows.T, abs=1e-4)


def test_gain_is_what_one_more_run_brings() -> None:
    """Quadrature against draws of the run's outcome."""
    here, settings = grid(block((1, 3, 5), (1, 3, 5)), (0.3, 0.3)), Settings(noise=1e-3, rough=1e-3)
    belief = believe(here, prior(), settings.noise, settings.rough)
    gains = gain(here, belief, settings)
    random = np.random.default_rng(0)
    for cell in np.argsort(gains)[-3:]:
        column, z = belief.covariance[:, cell], random.standard_normal(200_000)
        step = column / math.sqrt(column[cell] + settings.noise**2)
        # A choice is among what was run.
        run = np.union1d(here.seen, [cell])
        after = (belief.mean[run][:, None] + step[run][:, None] * z).min(axis=0).mean()
        brought = belief.mean[here.seen].min() - after
        assert gains[cell] == pytest.approx(brought, rel=0.1)


def test_the_chance_of_a_miss_is_that_of_draws() -> None:
    here = grid(block((1, 3, 5), (1, 3, 5)), (0.3, 0.3))
    belief = believe(here, prior(), 0.0, 1e-3)
    choice, miss, regret = judge(here, belief, EXACT)
    drawn = np.random.default_rng(1).multivariate_normal(belief.mean, belief.covariance, size=20_000, method="eigh")
    lost = drawn[:, choice] - drawn.min(axis=1)
    assert miss == pytest.approx((lost > EXACT.tolerance).mean(), abs=0.05)
    assert regret == pytest.approx(lost.mean(), rel=0.25)  # less than rivals is left out


def test_other_grids_tell_where_to_look(paper) -> None:
    lr, B = CELLS
    exact = [
        Found(N, T, np.log([paper.lr(N, T), paper.batch(N, T)]), np.full(2, 1e-4), module.CURVATURE, np.full(3, 1e-6))
        for N in (1e7, 1e8)
        for T in (1e9, 1e10)
    ]
    here = Grid(1e9, 1e11, lr, B, np.full(49, math.nan), np.zeros(49, dtype=np.int64), np.zeros(49, dtype=bool))
    told = expect(here, exact, paper)
    assert told.at == pytest.approx(np.log([paper.lr(1e9, 1e11), paper.batch(1e9, 1e11)]), abs=1e-6)
    # One grid alone tells the level, and the exponents come from the law, less surely the further away.
    one = expect(here, exact[:1], paper)
    assert one.at == pytest.approx(told.at, abs=1e-6)
    assert np.all(one.variance > told.variance)
    assert np.all(told.variance > module.BETWEEN**2)
    alone = expect(here, (), paper)
    assert alone.at == pytest.approx(np.zeros(2), abs=1e-9)


def test_a_grid_tells_its_optimum() -> None:
    here = grid(block(range(1, 6), range(1, 6)), (0.2, -0.3))
    told = found(here, believe(here, prior(), 0.0, 1e-4))
    assert told.at == pytest.approx([0.2, -0.3], abs=0.1)
    flat = replace(here, loss=np.where(here.runs > 0, 4.0 - loss_at(*CELLS), math.nan))
    assert np.isnan(found(flat, believe(flat, prior(), 0.0, 1e-4)).at).all()


def test_a_grid_without_a_run_that_lived_tells_nothing(paper) -> None:
    """Its belief has a minimum all the same, the one it began with."""
    dead = grid(block((2, 3, 4), (2, 3, 4)))
    dead.loss[dead.runs > 0] = math.inf
    told = found(dead, believe(dead, expect(dead, (), paper), 1e-3, 0.0))
    assert np.isnan(told.at).all()
    here = grid(block((2, 3, 4), (2, 3, 4)))
    with_it, without = expect(here, [told], paper), expect(here, (), paper)
    for name in ("at", "variance", "curvature", "deviation"):
        assert getattr(with_it, name) == pytest.approx(getattr(without, name))


def test_a_run_that_comes_out_as_expected_is_a_belief_with_that_run() -> None:
    """Where errors do not depend on losses, the shrunk belief is the one that the run would give."""
    here = grid(block((2, 3, 4), (2, 3, 4)), (0.3, 0.3))
    before = believe(here, prior(), 0.02, 0.0)
    cell = 7 * 3 + 5
    loss, runs = here.loss.copy(), here.runs.copy()
    loss[cell], runs[cell] = np.nanmin(here.loss) * math.exp(before.mean[cell]), 1
    after, ahead = believe(replace(here, loss=loss, runs=runs), prior(), 0.02, 0.0), as_expected(before, cell, 0.02)
    assert ahead.spread == pytest.approx(after.spread, rel=0.03, abs=1e-7)
    assert np.diag(ahead.covariance) == pytest.approx(np.diag(after.covariance), rel=0.1, abs=1e-7)
    assert after.mean == pytest.approx(before.mean, abs=1e-3)
