import dataclasses

import numpy as np

from tests.scaling import simulate
from videoscaling.scaling.fitting.grids import fit
from videoscaling.scaling.fitting.grids.fit_points import (
    at_nominal,
    grid_optima,
    points_of_grids,
    points_of_rows,
)
from videoscaling.scaling.fitting.unsupported import Checks

SIZES, TOKENS = np.geomspace(0.0168e9, 0.268e9, 3), [2e9, 5e9, 12e9]
NOWHERE = {"name": "test"}


def swept(paper, sizes=SIZES, offset=0.0, noise=1e-4):
    cells = simulate.grid(law=paper, N=sizes, T=TOKENS, batches=5, rates=5, factor=2.0, offset=offset)
    return simulate.run_table(paper, cells, TOKENS, noise, n_ctx=1280)


def test_one_grid_of_diverged_cells_does_not_stop_the_others(paper, cost):
    table = swept(paper)
    stray = (SIZES[0] == table.N) & (table.T == 12e9)
    spoilt = dataclasses.replace(table, loss=np.where(stray, np.inf, table.loss))
    fitted = fit.fit(spoilt, "all", fit.Options(), cost, NOWHERE)
    assert len(fitted.points.N) == 8
    assert any("25 cells, all diverged" in text for text in fitted.law.fit["verdicts"])
    assert any("1 of 9 grids have no interior optimum (1 too few points)" in text for text in fitted.warnings)


def test_forced_points_are_the_finite_ones(paper):
    table = swept(paper, SIZES[:1], offset=4.0)
    gone = table.T == 2e9
    table = dataclasses.replace(table, loss=np.where(gone, np.inf, table.loss))
    optima = tuple(grid_optima(at_nominal(table)))
    assert [o.cells for o in optima] == [0, 25, 25]
    points = points_of_grids(table, optima, Checks(force=True))
    assert points.T.tolist() == [5e9, 12e9]
    assert np.isfinite(points.replicates["loss"]).all()


def test_a_grids_scatter_is_shrunk_to_that_of_all(paper):
    """Ten spare cells' worth: variances and noise of each grid follow its shrunk scatter, and no other does."""
    optima = grid_optima(swept(paper))
    points = points_of_grids(swept(paper), tuple(optima), Checks())
    spare = np.array([o.spare for o in optima])
    own = np.array([o.scatter / o.loss for o in optima])
    pooled = np.sum(spare * own**2) / spare.sum()
    ratio = np.sqrt((10 * pooled + spare * own**2) / (10 + spare)) / own
    assert np.ptp(ratio) > 0.1
    np.testing.assert_allclose(points.noise, ratio * [o.loss_se / o.loss for o in optima])
    np.testing.assert_allclose(points.variance_lr, ratio**2 * [o.covariance[0, 0] for o in optima])
    np.testing.assert_allclose(points.variance_B, ratio**2 * [o.covariance[1, 1] for o in optima])


def test_many_rows_are_deleted_by_the_group(paper):
    """Seven hundred runs, three hundred groups: each row is left out exactly once."""
    table = simulate.run_table(paper, [(1e8, 1e5, 1e-3)] * 700, [2e9], 1e-3)
    present = points_of_rows(table).present
    assert present.shape == (300, 700)
    assert ((~present).sum(axis=0) == 1).all()
    assert set((~present).sum(axis=1)) == {2, 3}


def test_milestones_that_one_step_reached_are_one_measurement(paper):
    """One grid, of one row a run: as two, each would repeat the other without any noise."""
    table = swept(paper, noise=1e-3)
    twice = table.rows(np.repeat(np.arange(len(table)), 2))
    twice.nominal_T[:] = twice.T * np.tile([0.97, 0.98], len(table))
    moved = at_nominal(twice)
    assert len(moved) == len(table)
    once = grid_optima(at_nominal(table))
    assert [(o.N, o.T, o.cells, o.spare) for o in grid_optima(moved)] == [(o.N, o.T, o.cells, o.spare) for o in once]
    # Repeats of a cell under one run's name, as tables have them, stay.
    again = table.rows(np.repeat(np.arange(len(table)), 2))
    assert len(at_nominal(again)) == len(again)
