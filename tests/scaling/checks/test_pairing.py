"""What it does to an optimum that cells share their samples (docs/stacked_runs.md): on grids whose optimum is known.

A cell's noise is its own and, by ``correlation`` of its variance, that of all cells with the same stream.
"""

import dataclasses

import numpy as np
import pytest

from tests.scaling import simulate
from videoscaling.scaling.estimates import interval
from videoscaling.scaling.fitting.grids import fit
from videoscaling.scaling.fitting.grids.optimum import features, find
from videoscaling.scaling.planning import allocation

STEP, NOISE, CORRELATION, GRIDS = 2.0, 2e-3, 0.33, 400
HESSIAN = np.array([[0.05, -0.015], [-0.015, 0.04]])  # of the relative loss, in (ln lr, ln B)


def grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """ln lr and ln B of the cells, the optimum in their middle: [cells] each."""
    steps = (np.arange(side) - (side - 1) / 2) * np.log(STEP)
    return tuple(axis.ravel() for axis in np.meshgrid(steps, steps))


def covariance(y: np.ndarray, along_rates: float, along_both: float) -> np.ndarray:
    """Of the cells' noise, in units of its variance, [cells, cells]: correlations within a row and between rows."""
    same_row = y[:, None] == y[None]
    shared = np.where(same_row, along_rates, along_both)
    return np.where(np.eye(len(y), dtype=bool), 1.0, shared)


def errors(side: int, along_rates: float, along_both: float) -> dict[str, np.ndarray]:
    """True errors of ln lr, ln B and the loss (the last in NOISE), and those that ``find`` reports: [3] each."""
    x, y = grid(side)
    excess = 0.5 * np.einsum("ni,ij,nj->n", np.stack([x, y], 1), HESSIAN, np.stack([x, y], 1))
    root = np.linalg.cholesky(covariance(y, along_rates, along_both))
    random, found, reported = np.random.default_rng(0), [], []
    for _ in range(GRIDS):
        loss = 1 + excess + NOISE * root @ random.standard_normal(len(x))
        optimum = find(N=1e6, T=1e8, lr=np.exp(x), B=np.exp(y), loss=loss, noise=np.full(len(x), NOISE), window=None)
        if optimum.interior:
            found.append([np.log(optimum.lr), np.log(optimum.B), (optimum.loss - 1) / NOISE])
            reported.append([*np.diag(optimum.covariance), (optimum.loss_se / NOISE) ** 2])
    assert len(found) > 0.95 * GRIDS
    return {"true": np.sqrt(np.mean(np.square(found), axis=0)), "reported": np.sqrt(np.mean(reported, axis=0))}


@pytest.mark.parametrize("side", [4, 5])
def test_a_stream_that_a_grid_shares_sharpens_its_optimum_by_a_fifth(side: int) -> None:
    alone, shared = errors(side, 0, 0), errors(side, CORRELATION, CORRELATION)
    gain = shared["true"][:2] / alone["true"][:2]
    assert gain == pytest.approx(np.full(2, (1 - CORRELATION) ** 0.5), rel=0.06)
    for grids in (alone, shared):  # an optimum is as sure as reported
        assert grids["true"][:2] == pytest.approx(grids["reported"][:2], rel=0.1)
    # What all cells share stays in the loss, and no scatter within the grid shows it.
    assert shared["true"][2] > alone["true"][2]
    assert shared["true"][2] > 1.5 * shared["reported"][2]
    assert shared["true"][2] == pytest.approx((shared["reported"][2] ** 2 + CORRELATION) ** 0.5, rel=0.1)


def test_a_stream_of_each_row_makes_the_batch_less_sure_than_reported() -> None:
    alone, rows = errors(4, 0, 0), errors(4, CORRELATION, 0)
    assert rows["true"][1] > 1.2 * alone["true"][1]
    assert rows["true"][1] > 1.4 * rows["reported"][1]
    # As much of it as rates have in common beyond what batches have: as was measured, 0.35 to 0.25.
    between = errors(4, 0.35, 0.25)
    assert 1.1 < between["true"][1] / between["reported"][1] < 1.4
    assert between["true"][0] == pytest.approx(between["reported"][0], rel=0.1)


@pytest.mark.parametrize(("along_rates", "along_both"), [(CORRELATION, CORRELATION), (CORRELATION, 0), (0.39, 0.25)])
def test_the_covariance_would_move_no_optimum(along_rates: float, along_both: float) -> None:
    """Generalised least squares give the quadratic that ordinary ones give."""
    x, y = grid(4)
    X, S = features(np.stack([x, y], axis=1)), covariance(y, along_rates, along_both)
    loss = np.random.default_rng(1).standard_normal(len(x))
    inverse = np.linalg.inv(S)
    generalised = np.linalg.solve(X.T @ inverse @ X, X.T @ inverse @ loss)
    np.testing.assert_allclose(generalised, np.linalg.lstsq(X, loss, rcond=None)[0], atol=1e-10)


def stream_of_a_size(paper, seed):
    """4 sizes x 3 T x 5 x 5 cells of the paper's law; those of a size share a third of their noise's variance.

    Correlation 0.6 within a run, and within what a size shares.
    """
    sizes, tokens, noise = np.geomspace(0.0168e9, 0.268e9, 4), np.geomspace(2e9, 12e9, 3), 1e-4 / 0.53
    table = simulate.run_table(paper, simulate.grid(paper, sizes, tokens, 5, 5, 2.0), tokens, 0.0, n_ctx=1280)
    random, error = np.random.default_rng(seed), np.zeros(len(table))
    time = np.unique(table.T, return_inverse=True)[1]
    for key, variance in ((table.run_id, 1 - CORRELATION), (table.N, CORRELATION)):
        names, which = np.unique(key, return_inverse=True)
        whole, own = random.standard_normal(len(names)), random.standard_normal((len(names), len(tokens)))
        error += np.sqrt(variance) * (np.sqrt(0.6) * whole[which] + np.sqrt(0.4) * own[which, time])
    loss, stream = table.loss * (1 + noise * error), np.unique(table.N, return_inverse=True)[1]
    return dataclasses.replace(table, loss=loss, loss_se=noise * loss, raw_loss=loss, stream=stream)


def test_only_streams_that_runs_share_are_counted(paper, cost):
    """Of a third of the variance, for each point of a size alike; and a law's N constants are less sure for it."""
    shared = stream_of_a_size(paper, 0)
    alone = dataclasses.replace(shared, stream=np.unique(shared.run_id, return_inverse=True)[1])
    unknown = dataclasses.replace(shared, stream=np.full(len(shared), -1))
    fits = [fit.fit(one, "loss", fit.Options(), cost, {}) for one in (shared, alone, unknown)]
    assert [f.points.streams is None for f in fits] == [False, True, True]
    loadings = fits[0].points.streams
    assert loadings.shape == (12, 4)
    assert loadings[loadings > 0] == pytest.approx((CORRELATION**0.5) * 1e-4 / 0.53, rel=0.15)
    assert (loadings > 0).sum(axis=0).tolist() == [3, 3, 3, 3]
    widths = [np.ptp(f.law.fit["intervals"]["loss.aN"]) for f in fits]
    assert widths[0] > 1.15 * widths[1]
    assert widths[1] == widths[2]


@pytest.fixture(scope="module")
def covered(paper, cost):
    """Share of 100 such run tables whose 95 % intervals hold the truth, by constant and for N_opt(1e22)."""
    inside = []
    for seed in range(100):
        law = fit.fit(stream_of_a_size(paper, seed), "loss", fit.Options(), cost, {"name": "simulated"}).law
        spans = {name: law.fit["intervals"][f"loss.{name}"] for name in ("aT", "aN")}
        truth = {"aT": paper.loss.aT, "aN": paper.loss.aN}
        spans["N_opt"] = interval(allocation.optimum(law.drawn("loss"), 1e22, cost))
        truth["N_opt"] = float(allocation.optimum(paper.loss, 1e22, cost))
        inside.append([low <= truth[name] <= high for name, (low, high) in spans.items()])
    print(found := dict(zip(spans, np.mean(inside, axis=0).tolist())))
    return found


@pytest.mark.slow
def test_the_loss_law_of_sizes_with_a_stream_each_covers(covered):
    assert all(0.90 <= share <= 0.99 for share in covered.values()), covered
