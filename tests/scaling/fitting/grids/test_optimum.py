import numpy as np
import pytest

from videoscaling.scaling.fitting.grids.optimum import find, refit

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
    reported = np.mean([o.covariance for o in found], axis=0)
    # 400 draws know a variance to about 7 %.
    np.testing.assert_allclose(reported, spread, rtol=0.3)
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


def test_a_minimum_among_diverged_rates_is_an_edge():
    """The quadratic runs on where no run does: finite at 1, 2 and 4, diverged from 8 on, and a minimum at 12."""
    lr, B = np.repeat([1, 2, 4, 8, 16, 32.0], 5) * 1e-4, np.tile([1, 2, 4, 8, 16.0], 6) * 1e4
    for best, verdict in ((12e-4, "edge"), (7e-4, "edge"), (5e-4, "interior"), (100e-4, "edge")):
        loss = 0.5 * (1 + 0.003 * np.log(lr / best) ** 2 + 0.003 * np.log(B / 4e4) ** 2)
        loss[lr > 7e-4] = np.inf
        found = find(1e8, 1e9, lr, B, loss, window=None)
        assert found.verdict == verdict, best
        if verdict == "edge":
            assert found.sides == ("higher lr",)
    # One cell that diverged below rates that did not is its seed's bad luck, and bounds nothing.
    loss = 0.5 * (1 + 0.003 * np.log(lr / 5e-4) ** 2 + 0.003 * np.log(B / 4e4) ** 2)
    loss[(lr == 4e-4) & (B == 4e4)] = np.inf
    assert find(1e8, 1e9, lr, B, loss, window=None).interior


def test_small_batches_that_diverged_bound_the_grid_too():
    lr, B, loss = grid(B_shift=-0.9, hessian=np.diag([0.02, 0.03]))
    loss[B < 9e3] = np.inf
    found = find(1e6, 1e8, lr, B, loss, window=None)
    assert (found.verdict, found.sides) == ("edge", ("smaller batch",))
    # At one clip, with the rates above the best cell's diverged: the best rate along it is unknown.
    lr, B, loss = grid(B_shift=-4.0, lr_shift=1.2, hessian=np.diag([0.02, 0.03]))
    loss[lr > 1.5e-3] = np.inf
    found = find(1e6, 1e8, lr, B, loss, window=None, floor=B.min())
    assert (found.verdict, found.usable) == ("edge", False)
    assert "higher lr" in found.sides


def test_a_saddle_is_no_optimum():
    lr, B, loss = grid(hessian=np.array([[0.02, 0.0], [0.0, -0.001]]))
    # The best cell is in the middle by luck; the surface falls to both sides of it in B.
    loss[12] = loss.min() - 1e-3
    found = find(1e6, 1e8, lr, B, loss, window=None)
    assert (found.verdict, found.usable) == ("saddle", False)
    assert np.linalg.eigvalsh(found.hessian)[0] < 0
    assert np.isnan(found.covariance).all()


def test_a_minimum_far_below_every_cell_is_a_misfit():
    """Runs that all but diverge pull the quadratic of a whole grid down between them: within the window it fits."""
    lr, B, loss = grid(side=7)
    cliff = np.where(np.log(lr / 1e-3) ** 2 + np.log(B / 1e4) ** 2 > 4.5, 4.0, 0.0)
    found = find(1e6, 1e8, lr, B, loss + cliff, window=None)
    assert (found.verdict, found.usable) == ("misfit", False)
    # Its best cell is reported, not the minimum, and what to do.
    assert (found.loss, found.lr, found.B) == pytest.approx((1.0, 1e-3, 1e4))
    assert "they span more than it follows" in found.describe()
    assert find(1e6, 1e8, lr, B, loss + cliff).interior


def test_a_flat_grid_has_a_minimum_that_its_noise_could_put_anywhere():
    """Shallow in B, and a scatter that no quadratic follows: the same on a steep bowl leaves it interior."""
    found = []
    for steep in (0.02, 0.0004):
        lr, B, loss = grid(hessian=np.diag([0.02, steep]))
        loss += 1.5e-3 * np.where(np.arange(25) % 2, 1, -1)
        loss[12] = loss.min() - 1e-5
        found.append(find(1e6, 1e8, lr, B, loss, window=None))
    assert [(o.verdict, o.usable) for o in found] == [("interior", True), ("flat", False)]
    assert np.sqrt(found[1].covariance[1, 1]) > 2 * np.log(2)
    # Losses that are all the same have no optimum anywhere.
    assert not find(1e6, 1e8, lr, B, np.ones(25)).usable


def test_too_few_cells_say_so():
    lr, B, loss = grid(side=3)
    # Six cells are fitted exactly: nothing shows how far to trust them.
    six = [0, 1, 3, 4, 5, 7]
    found = find(1e6, 1e8, lr[six], B[six], loss[six])
    assert (found.verdict, found.usable, found.spare) == ("too few points", False, 0)
    # A cross has five: no quadratic at all.
    cross = [1, 3, 4, 5, 7]
    found = find(1e6, 1e8, lr[cross], B[cross], loss[cross])
    assert (found.verdict, found.loss) == ("too few points", loss.min())
    assert np.isnan(found.hessian).all()
    # Two rates of three batches: six cells, and still none; the best one's border comes first.
    two = lr < 1.5e-3
    assert find(1e6, 1e8, lr[two], B[two], loss[two]).verdict == "edge"


def test_verdicts_come_in_order():
    """An edge is an edge though its surface is a saddle or its cells are few."""
    lr, B, loss = grid(hessian=np.array([[0.02, 0.0], [0.0, -0.03]]), B_shift=0.1)
    found = find(1e6, 1e8, lr, B, loss, window=None)
    assert np.linalg.eigvalsh(found.hessian)[0] < 0
    assert (found.verdict, found.sides) == ("edge", ("smaller batch",))
    assert find(1e6, 1e8, lr[:4], B[:4], loss[:4]).verdict == "edge"


def test_a_grid_of_diverged_cells_has_no_optimum():
    lr, B, _ = grid(side=3)
    found = find(1e6, 1e8, lr, B, np.full(9, np.inf), floor=2500)
    assert (found.verdict, found.usable, found.cells, found.diverged) == ("too few points", False, 0, 9)
    assert found.describe() == "N 1e+06, T 1e+08: too few points, 9 cells, all diverged"


def test_at_the_floor_without_a_best_rate_is_an_edge():
    """Best at one clip, with no minimum in the rate."""
    lr, B, loss = grid(hessian=np.array([[-0.01, 0.0], [0.0, 0.03]]), B_shift=-4.0)
    loss[2] -= 0.012
    found = find(1e6, 1e8, lr, B, loss, window=None, floor=B.min())
    assert (found.verdict, found.sides) == ("edge", ("smaller batch",))


def test_figure_4_at_4e9_tokens_is_an_edge_towards_small_batches(figure_4):
    lr, B, loss = figure_4[4e9]
    found = find(1.07e9, 4e9, lr, B, loss)
    assert found.verdict == "edge"
    assert found.sides == ("smaller batch",)


def test_figure_4_at_1e10_tokens_is_interior_in_batch(figure_4, paper):
    lr, B, loss = figure_4[1e10]
    found = find(1.07e9, 1e10, lr, B, loss)
    assert found.interior
    assert 8.2e4 < found.B < 3.3e5
    # The published law's optimum lies within its 95 % ellipse, and its curvature is the law file's.
    d = np.log([paper.lr(1.07e9, 1e10) / found.lr, paper.batch(1.07e9, 1e10) / found.B])
    assert d @ np.linalg.solve(found.covariance, d) < 5.99
    relative = found.hessian / found.loss
    reported = paper.curvature
    assert (relative[0, 0] / 2, relative[1, 1] / 2, relative[0, 1]) == pytest.approx(
        (reported.lr_lr, reported.batch_batch, reported.lr_batch), rel=2e-3
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
    # A best rate on the border as well is no floor.
    corner = find(1e6, 1e8, *grid(B_shift=-4.4, lr_shift=-4.5), window=None, floor=one_clip)
    assert corner.verdict == "edge"
    assert "lower lr" in corner.sides


def test_noise_of_the_losses_weighs_the_cells():
    """A cell known ten times worse than the others, and wrong: weighted, it hardly moves the optimum."""
    lr, B, loss = grid(noise=1e-5)
    clean = find(1e6, 1e8, lr, B, loss, window=None)
    noise = np.full(25, 1e-4)
    noise[18] *= 30
    spoilt = np.where(np.arange(25) == 18, loss + 3e-3, loss)
    plain, weighted = (find(1e6, 1e8, lr, B, spoilt, n, window=None) for n in (None, noise))
    moved = [np.hypot(np.log(o.lr / clean.lr), np.log(o.B / clean.B)) for o in (plain, weighted)]
    assert moved[1] < moved[0] / 20
    # Only ratios count: the same noise for all, however large, weighs nothing.
    same = find(1e6, 1e8, lr, B, spoilt, np.full(25, 7.0), window=None)
    assert (same.lr, same.loss_se) == pytest.approx((plain.lr, plain.loss_se), rel=1e-9)


def test_a_coarse_grid_opens_its_window_to_nine_cells_but_not_to_any():
    # The nine inner cells of this one are within 4 % of its best, two of them within 2 %.
    lr, B, loss = grid(hessian=np.diag([0.08, 0.08]))
    found = find(1e6, 1e8, lr, B, loss)
    assert 0.02 < found.window < 0.1
    assert sorted(found.used) == [6, 7, 8, 11, 12, 13, 16, 17, 18]
    # A dense grid's window stays as it was asked for, and cells beyond it are not fitted.
    dense = find(1e6, 1e8, *grid(hessian=HESSIAN / 3))
    assert dense.window == 0.02
    assert 9 <= len(dense.used) < 25
    # Cells so far apart that five are within 15 % of the best: no quadratic goes beyond.
    steep = find(1e6, 1e8, *grid(hessian=np.diag([0.5, 0.5])))
    assert (steep.window, steep.verdict, len(steep.used)) == (0.15, "too few points", 5)


def test_repeats_of_a_few_cells_do_not_keep_the_window_shut():
    """Nine cells are nine different ones: three of them, three times each, say nothing of a curvature."""
    lr, B, loss = grid(hessian=5 * HESSIAN)
    near = np.argsort(loss)[:3]
    more = [np.append(values, np.tile(values[near], 4)) for values in (lr, B, loss)]
    once, again = find(1e6, 1e8, lr, B, loss), find(1e6, 1e8, *more)
    assert once.window > 0.02
    assert again.window == once.window
    assert again.verdict == once.verdict == "interior"


def test_a_window_no_wider_than_the_noise_opens():
    """Within 2 % of the luckiest of 81 cells that scatter by 1 %, the cells are chosen by luck, not by their place."""
    found = [find(1e6, 1e8, *grid(noise=1e-2, seed=s, side=9)) for s in range(60)]
    interior = [o for o in found if o.interior]
    assert len(interior) >= 57
    assert np.mean([o.loss for o in interior]) == pytest.approx(1.0, abs=1e-3)
    assert np.std(np.log([o.B for o in interior])) < 0.15
    assert np.mean([o.scatter for o in found]) == pytest.approx(1e-2, rel=0.07)
    # Little noise leaves it as it was asked for, and a user's own is never narrowed.
    assert {find(1e6, 1e8, *grid(noise=1e-3, seed=s, side=9)).window for s in range(20)} == {0.02}
    assert find(1e6, 1e8, *grid(noise=1e-2, side=9), window=0.3).window == 0.3


def test_a_best_cell_on_the_border_by_luck_is_no_edge():
    """The quadratic has its minimum inside, and a border cell is best by less than the cells scatter."""
    random = np.random.default_rng(1)
    lr, B, exact = grid(hessian=HESSIAN / 10, side=7)
    verdicts = []
    for lucky in (1.0, 40.0):
        loss = exact * (1 + 3e-4 * random.standard_normal(49))
        loss[45] = np.delete(loss, 45).min() - lucky * 3e-4
        verdicts.append(find(1e6, 1e8, lr, B, loss, window=None).verdict)
    assert verdicts == ["interior", "edge"]


def test_a_downhill_gradient_on_the_border_is_an_edge():
    """The best cell is inside by luck; the surface falls beyond the grid."""
    lr, B, loss = grid(lr_shift=1.8)
    inside = 2 * 5 + 3
    loss[inside] = loss.min() - 1e-5
    found = find(1e6, 1e8, lr, B, loss, window=None)
    assert (found.verdict, found.sides) == ("edge", ("higher lr",))


def test_left_out_cells_that_take_the_minimum_away_give_the_best_cell():
    lr, B, loss = grid()
    found = find(1e6, 1e8, lr, B, loss, window=None)
    kept = lr < 0.6e-3
    assert refit(found, lr[kept], B[kept], loss[kept], np.full(kept.sum(), np.nan)) == pytest.approx(
        (5e-4, 1e4, loss[kept].min())
    )
    # A quadratic whose minimum lies beyond what is left is no better.
    lr, B, loss = grid(lr_shift=0.5)
    kept = lr < 1.5e-3
    again = refit(find(1e6, 1e8, lr, B, loss, window=None), lr[kept], B[kept], loss[kept], np.full(15, np.nan))
    assert again == pytest.approx((1e-3, 1e4, loss[kept].min()))
    lr, B, loss = grid()
    most = np.arange(25) != 7
    again = refit(found, lr[most], B[most], loss[most], np.full(24, np.nan))
    assert again == pytest.approx((found.lr, found.B, found.loss))
    # At the floor the batch stays, and the rate is the best one along it.
    lr, B, loss = grid(B_shift=-3.0 - 2 * np.log(2), lr_shift=-0.9)
    floor = find(1e6, 1e8, lr, B, loss, window=None, floor=B.min())
    again = refit(floor, lr[most], B[most], loss[most], np.full(24, np.nan))
    assert again == pytest.approx((floor.lr, floor.B, floor.loss))


def test_an_edges_loss_is_the_mean_of_its_cells_runs_not_the_luckiest():
    """Else repeats of a cell would lower the measured loss of a grid without an optimum inside."""
    lr, B, loss = grid(lr_shift=-5.0, side=3)
    at = int(np.argmin(loss))
    repeated = [np.concatenate([v, np.full(3, v[at])]) for v in (lr, B)]
    runs = np.concatenate([loss, loss[at] * np.array([0.99, 1.01, np.inf])])
    found = find(1e6, 1e8, *repeated, runs)
    assert (found.verdict, found.lr, found.B) == ("edge", lr[at], B[at])
    assert found.loss == pytest.approx(loss[at], rel=1e-12)
    # One lucky run of another cell does not make that the best.
    other = int(np.argsort(loss)[1])
    repeated = [np.concatenate([v, np.full(2, v[other])]) for v in (lr, B)]
    runs = np.concatenate([loss, [0.9 * loss[other], 1.3 * loss[other]]])
    assert find(1e6, 1e8, *repeated, runs).lr == lr[at]
