"""Compute goes to the runs that narrow a prediction most."""

from dataclasses import replace

import numpy as np
import pytest

from videoscaling.scaling import simulate
from videoscaling.scaling.belief import CURVATURE, Prior, believe, expect
from videoscaling.scaling.points import Untrusted
from videoscaling.scaling.proposals import grid_of
from videoscaling.scaling.target import MOST_RUNS, Known, best_size, knowledge, pair, spend

TOKENS = (2e9, 4e9, 8e9)
SIZES = (1.6e7, 6.4e7, 2.6e8)


def known(law, cost, noise=1e-3, sizes=SIZES, tokens=TOKENS):
    cells = simulate.grid(law, sizes, tokens, 5, 5, 2.0)
    cells = [(N, max(round(B / 1280), 1) * 1280.0, lr) for N, B, lr in cells]
    ledger = simulate.ledger(law, cells, tokens, noise, n_ctx=1280)
    made = []
    for N, T, rows in ledger.grids():
        grid = grid_of(ledger.rows(rows), N, T)
        price = np.full(len(grid.lr), float(cost(np.array(N))) * T)
        made.append(Known(grid, believe(grid, expect(grid, (), law), noise, 0.0), price))
    return made


def test_knowledge_is_the_scatter_of_the_minima(paper, cost) -> None:
    """Variances of a minimum by the delta method against minima of drawn quadratics."""
    grid = known(paper, cost, noise=2e-5)[0].grid
    prior = Prior(
        np.log([paper.lr(grid.N, grid.T), paper.batch(grid.N, grid.T)]), np.full(2, 0.1), CURVATURE, CURVATURE**2
    )
    belief = believe(grid, prior, 1e-4, 0.0)
    spread = belief.spread / 100  # small enough for the delta method
    drawn = np.random.default_rng(0).multivariate_normal(belief.quadratic, spread, size=4000)
    H = np.array([[drawn[:, 3], drawn[:, 5]], [drawn[:, 5], drawn[:, 4]]]).transpose(2, 0, 1)
    at = -np.linalg.solve(H, drawn[:, 1:3, None])[..., 0]
    level = drawn[:, 0] + (drawn[:, 1:3] * at).sum(axis=1) / 2
    expected = [*at.var(axis=0), level.var()]
    assert knowledge(belief, spread) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("which", ["pair", "size"])
def test_a_budget_is_spent_on_what_narrows_most(paper, cost, which) -> None:
    grids = known(paper, cost)
    target = pair(1e9, 1e10, grids) if which == "pair" else best_size(1e21, cost, grids)
    flops = 2 * max(k.price[0] for k in grids)
    asked, paid, variances = spend(grids, target, flops, 1e-3)
    assert asked
    assert sum(paid) <= flops
    assert np.all(np.diff(variances) < 0)
    # No one of the grids, given all of it, does better.
    for k in grids[::3]:
        _, _, alone = spend(
            [Known(o.grid, o.belief, o.price if o is k else o.price + 1e300) for o in grids], target, flops, 1e-3
        )
        assert variances[-1] <= alone[-1] * 1.02
    again = spend(grids, target, flops, 1e-3)
    assert again[0] == asked


def test_a_budget_beyond_all_need_ends(paper, cost) -> None:
    grids = known(paper, cost, sizes=SIZES[:2], tokens=TOKENS[:2])
    asked, _, variances = spend(grids, pair(1e9, 1e10, grids), 1e60, 1e-3)
    assert len(asked) == MOST_RUNS
    assert len(variances) == MOST_RUNS + 1


def test_dear_cells_are_not_paid_for(paper, cost) -> None:
    """A large batch overshoots its tokens: the cells of one grid do not all cost the same."""
    middle = {(k.grid.N, k.grid.T): np.median(k.grid.B) for k in known(paper, cost)}
    grids = [
        Known(k.grid, k.belief, np.where(middle[k.grid.N, k.grid.T] < k.grid.B, 2e18, 1e18))
        for k in known(paper, cost)
    ]
    ((one,), paid, _) = spend(grids, pair(1e9, 1e10, grids), 1.5e18, 1e-3)
    assert paid == [1e18]
    assert middle[one.N, one.T] >= one.B


def test_what_is_expected_comes_true(paper, cost) -> None:
    """Grids of the same cells run twice err by as much less as the runs were expected to bring."""
    once = known(paper, cost)
    twice = []
    for k in once:
        doubled = type(k.grid)(k.grid.N, k.grid.T, k.grid.lr, k.grid.B, k.grid.loss, 2 * k.grid.runs, k.grid.absent)
        twice.append(Known(doubled, believe(doubled, expect(doubled, (), paper), 1e-3, 0.0), k.price))
    for grids in (once, twice):
        assert np.isfinite([knowledge(k.belief, k.belief.spread) for k in grids]).all()
    before = np.array([knowledge(k.belief, k.belief.spread) for k in once])
    after = np.array([knowledge(k.belief, k.belief.spread) for k in twice])
    ratio = after / before
    assert np.all(ratio[:, 2] < 1)
    assert np.all(np.median(ratio, axis=0) < 1)  # places move a little with the curvature found
    assert np.median(ratio[:, 2]) == pytest.approx(0.5, abs=0.2)


def test_a_grid_without_a_run_that_lived_is_none_of_the_law(paper, cost) -> None:
    """What is believed of it has a minimum, but no loss there."""
    grids = known(paper, cost)
    lost = grids[0].grid
    lost = replace(lost, loss=np.where(lost.runs > 0, np.inf, lost.loss))
    dead = Known(lost, believe(lost, expect(lost, (), paper), 1e-3, 0.0), grids[0].price)
    for make in (lambda given: best_size(1e21, cost, given), lambda given: pair(1e9, 1e10, given)):
        flops = 2 * max(k.price[0] for k in grids)
        asked, _, variances = spend([dead, *grids[1:]], make([dead, *grids[1:]]), flops, 1e-3)
        alone = spend(grids[1:], make(grids[1:]), flops, 1e-3)
        assert asked == alone[0]
        assert variances == pytest.approx(alone[2])


def test_a_law_that_is_not_told_cannot_be_narrowed(paper, cost) -> None:
    with pytest.raises(Untrusted, match="loss law"):
        best_size(1e21, cost, known(paper, cost, sizes=SIZES[:1]))
    blank = known(paper, cost, sizes=SIZES[:1], tokens=TOKENS[:1])
    with pytest.raises(Untrusted, match="fewer than two grids"):
        pair(1e9, 1e10, blank)
