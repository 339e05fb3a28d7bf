import numpy as np
import pytest

from scaling.optimum import find
from utils.errors import UserError

HESSIAN = np.array([[0.02, -0.012], [-0.012, 0.03]])


def grid(lr_at=1e-3, B_at=1e4, lr_shift=0.0, B_shift=0.0, noise=0.0, seed=0, hessian=HESSIAN, side=5):
    """A grid of side x side cells, a factor of 2 apart, around a quadratic's minimum of 1.0 shifted by so many ln."""
    steps = np.log(2) * (np.arange(side) - side // 2)
    x, y = (v.ravel() for v in np.meshgrid(steps, steps))
    d = np.stack([x - lr_shift, y - B_shift], axis=1)
    loss = 1 + np.einsum("ni,ij,nj->n", d, hessian, d) / 2
    loss *= 1 + noise * np.random.default_rng(seed).standard_normal(len(loss))
    return lr_at * np.exp(x), B_at * np.exp(y), loss


def test_finds_the_minimum_of_an_exact_quadratic():
    lr, B, loss = grid(lr_shift=0.3, B_shift=-0.4)
    found = find(1e6, 1e8, lr, B, loss)
    assert found.interior
    assert (found.lr, found.B) == pytest.approx((1e-3 * np.exp(0.3), 1e4 * np.exp(-0.4)), rel=1e-9)
    assert found.loss == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(found.hessian, HESSIAN, rtol=1e-9)


def test_covariance_is_the_spread_over_many_noisy_grids():
    found = [find(1e6, 1e8, *grid(noise=5e-4, seed=s), window=None) for s in range(400)]
    positions = np.log([(o.lr, o.B) for o in found])
    spread = np.cov(positions, rowvar=False)
    told = np.mean([o.covariance for o in found], axis=0)
    # 400 draws know a variance to about 7 %.
    np.testing.assert_allclose(told, spread, rtol=0.3)
    assert np.std([o.loss for o in found]) == pytest.approx(np.mean([o.loss_se for o in found]), rel=0.15)
    # The smallest cell is low by luck, the quadratic's minimum is not.
    assert np.mean([o.loss for o in found]) == pytest.approx(1.0, abs=5e-5)
    noisy = [grid(noise=3e-3, seed=s) for s in range(400)]
    assert np.mean([loss.min() for _, _, loss in noisy]) < 1 - 4e-4
    quadratic = [find(1e6, 1e8, *cells, window=None) for cells in noisy]
    assert np.mean([o.loss for o in quadratic if o.interior]) == pytest.approx(1.0, abs=2e-4)


@pytest.mark.parametrize(
    ("shift", "side"),
    [((-3, 0), "lower lr"), ((3, 0), "higher lr"), ((0, -3), "smaller batch"), ((0, 3), "larger batch")],
)
def test_a_minimum_outside_is_an_edge_that_says_where_to_go(shift, side):
    lr, B, loss = grid(lr_shift=shift[0], B_shift=shift[1])
    found = find(1e6, 1e8, lr, B, loss)
    assert found.verdict == "edge"
    assert side in found.sides
    beyond = {"lower lr": lambda c: c[0] < lr.min(), "higher lr": lambda c: c[0] > lr.max(),
              "smaller batch": lambda c: c[1] < B.min(), "larger batch": lambda c: c[1] > B.max()}[side]  # fmt: skip
    assert any(beyond(cell) for cell in found.run_next)


def test_diverged_cells_bound_the_grid_and_are_not_fitted():
    lr, B, loss = grid(lr_shift=1.0)
    diverged = lr > 3e-3
    loss[diverged] = np.inf
    found = find(1e6, 1e8, lr, B, loss, window=None)
    # Without the diverged column the best cells would be on the border.
    kept = ~diverged
    assert found.interior
    assert find(1e6, 1e8, lr[kept & (lr < 2e-3)], B[kept & (lr < 2e-3)], loss[kept & (lr < 2e-3)]).verdict == "edge"
    assert found.diverged == diverged.sum()
    assert not set(found.used) & set(np.flatnonzero(diverged))


def test_saddle_flat_and_too_few():
    lr, B, loss = grid(hessian=np.array([[0.02, 0.0], [0.0, -0.001]]), side=5)
    loss[np.argmin(loss)] += 0.0
    centre = np.argmin(np.abs(np.log(lr / 1e-3)) + np.abs(np.log(B / 1e4)))
    loss[centre] = loss.min() - 1e-3
    assert find(1e6, 1e8, lr, B, loss, window=None).verdict == "saddle"
    lr, B, loss = grid(noise=0.05, hessian=HESSIAN / 100, seed=3)
    assert find(1e6, 1e8, lr, B, loss, window=None).verdict != "interior"
    few = [6, 7, 8, 11, 12, 13]
    lr, B, loss = grid()
    assert find(1e6, 1e8, lr[few], B[few], loss[few]).verdict in ("too few points", "edge")


def test_nothing_finite_is_an_error():
    with pytest.raises(UserError, match="diverged"):
        find(1e6, 1e8, np.array([1e-3]), np.array([1e3]), np.array([np.inf]))


def test_figure_4_at_4e9_tokens_is_an_edge_towards_small_batches(figure_4):
    lr, B, loss = figure_4[4e9]
    found = find(1.07e9, 4e9, lr, B, loss)
    assert found.verdict == "edge"
    assert found.sides == ("smaller batch",)
    assert all(cell[1] < 8.2e4 for cell in found.run_next)
    assert {round(cell[0], 6) for cell in found.run_next} == {1.1e-4, 1.7e-4, 2.5e-4}


def test_figure_4_at_1e10_tokens_is_interior_in_batch(figure_4, paper):
    lr, B, loss = figure_4[1e10]
    found = find(1.07e9, 1e10, lr, B, loss)
    assert found.interior
    assert 8.2e4 < found.B < 3.3e5
    # The published law's optimum lies within its 95 % ellipse, and its curvature is the law file's.
    d = np.log([paper.lr(1.07e9, 1e10) / found.lr, paper.batch(1.07e9, 1e10) / found.B])
    assert d @ np.linalg.solve(found.covariance, d) < 5.99
    relative = found.hessian / found.loss
    told = paper.curvature
    assert (relative[0, 0] / 2, relative[1, 1] / 2, relative[0, 1]) == pytest.approx(
        (told.lr_lr, told.batch_batch, told.lr_batch), rel=2e-3
    )
    assert -relative[0, 1] / relative[0, 0] == pytest.approx(paper.lr_given_batch.slope, rel=2e-3)


def test_a_best_batch_below_one_clip_is_the_floor():
    # The minimum lies a factor of 20 below the smallest batch; along that batch the best rate moves with the ridge.
    lr, B, loss = grid(B_shift=-3.0 - 2 * np.log(2), lr_shift=-0.9)
    one_clip = B.min()
    ridge = -0.9 - HESSIAN[0, 1] / HESSIAN[0, 0] * 3.0
    found = find(1e6, 1e8, lr, B, loss, window=None, floor=one_clip)
    assert (found.verdict, found.usable, found.interior) == ("floor", True, False)
    assert pytest.approx(one_clip) == found.B
    assert found.lr == pytest.approx(1e-3 * np.exp(ridge), rel=1e-9)
    along = HESSIAN[1, 1] - HESSIAN[0, 1] ** 2 / HESSIAN[0, 0]
    assert found.loss == pytest.approx(1 + along * 3.0**2 / 2, rel=1e-9)
    # Half a clip more on the axis, and it is an edge like any other.
    assert find(1e6, 1e8, lr, B, loss, window=None, floor=one_clip / 2).verdict == "edge"
    # A best rate on the border as well is no floor: there are cells to run.
    corner = find(1e6, 1e8, *grid(B_shift=-4.4, lr_shift=-4.5), window=None, floor=one_clip)
    assert corner.verdict == "edge"
    assert "lower lr" in corner.sides
