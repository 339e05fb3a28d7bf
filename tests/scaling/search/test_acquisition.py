"""What a run is said to do to a prediction is what a refit with it does."""

from dataclasses import replace

import numpy as np
import pytest

from tests.scaling import planted
from videoscaling.scaling.fitting.surface import least_squares, noise, shape
from videoscaling.scaling.fitting.surface.cells import Cells
from videoscaling.scaling.fitting.surface.fit import fit_surface
from videoscaling.scaling.fitting.surface.shape import Inputs
from videoscaling.scaling.fitting.unsupported import UnsupportedFit
from videoscaling.scaling.planning.allocation import proportional
from videoscaling.scaling.search.acquisition import (
    Posterior,
    rate_cost,
    solution_of,
    spend,
    target_at,
    target_of_budget,
)

N, T = 4e7, 4e9  # beyond the planted sizes and token counts


def shared_samples(cells: Cells) -> Cells:
    return replace(cells, stream=np.unique(cells.N, return_inverse=True)[1])


@pytest.fixture(scope="module")
def surface():
    cells = shared_samples(planted.cells())
    kept = np.random.default_rng(0).permutation(cells.run.max() + 1)[:40]
    return fit_surface(cells.rows(np.isin(cells.run, kept)), "joint", batch="one_sided", bent=False)


def future(sizes=(1e6, 2e7)) -> Cells:
    """One run of each of two sizes, with three milestones, on the samples of its size."""
    count = len(sizes)
    tokens = np.geomspace(1e8, 2e9, 3)
    stream = np.repeat([0 if size == 1e6 else 3 for size in sizes], 3)
    return Cells.of_arrays(
        np.repeat(sizes, 3),
        np.tile(tokens, count),
        500.0,
        3e-3,
        1.0,
        run=np.repeat(np.arange(count), 3),
        stream=stream,
    )


def refitted(surface, added: Cells, losses, anew: bool) -> np.ndarray:
    """Covariance of the constants with the rows added, at the same noise: at the same constants, or fitted anew."""
    seen, before = surface.cells, solution_of(surface)
    parts = {name: np.concatenate([getattr(seen, name), getattr(added, name)]) for name in ("N", "T", "B", "lr")}
    run = np.concatenate([seen.run, added.run + seen.run.max() + 1])
    stream = np.concatenate([seen.stream, added.stream])
    cells = Cells.of_arrays(
        **parts, loss=np.concatenate([seen.loss, losses]), run=run, stream=stream, n_ctx=seen.n_ctx
    )
    n, t, b = surface.scale.logs(cells.N, cells.T, cells.B)
    problem = least_squares.problem_of(cells, Inputs(n, t, np.log(cells.lr / surface.lr_scale), b, cells.grid))
    inflation = np.append(before.inflation, np.full(len(added), np.mean(before.inflation)))
    given = problem, before.model, before.theta, before.phi
    if anew:
        return least_squares.solve(*given, rounds=0, inflation=inflation).covariance
    structure = noise.structure_of(problem.rows, ~problem.censored, least_squares.effects_of(before.model))
    mean = shape.evaluate(before.model, before.theta, problem.inputs)
    return least_squares.covariance_of(
        structure, before.model, before.theta, mean=mean, phi=before.phi, inflation=inflation * before.robust
    )


def loss_of(surface, cells: Cells):
    return surface.predict(cells.N, cells.T, cells.B, cells.lr).mean


def test_the_posterior_is_the_fits_covariance(surface):
    posterior, target = Posterior(surface, future()), target_at(surface, N, T)
    G = target.gradient
    assert posterior.variances(target) == pytest.approx(np.diag(G @ solution_of(surface).covariance @ G.T), rel=1e-6)


def test_the_fall_of_variance_is_that_of_a_refit_with_the_run(surface):
    """Two runs of two sizes, by milestones: exactly at the same constants, within 5 % where these are fitted anew."""
    target, runs = target_at(surface, N, T), future()
    posterior = Posterior(surface, runs)
    before = posterior.variances(target)
    ((rows, falls),) = posterior.falls(target)

    def close(variances, chosen):
        added = runs.rows(chosen)
        for anew, within in ((False, 1e-6), (True, 0.05)):
            covariance = refitted(surface, added, loss_of(surface, added), anew)
            wanted = np.diag(target.gradient @ covariance @ target.gradient.T)
            assert variances == pytest.approx(wanted, rel=within)

    for milestones in (1, 3):
        assert np.all(falls[0, milestones - 1] > 0)
        close(before - falls[0, milestones - 1], rows[0, :milestones])
    posterior.add(rows[0])
    posterior.add(rows[1, :2])
    close(posterior.variances(target), np.concatenate([rows[0], rows[1, :2]]))


def test_gradients_are_those_of_what_is_predicted(surface):
    """A step of each constant moves ln of the rate, the edge and N_opt as the gradient says."""
    solution, cost = solution_of(surface), proportional()
    C = 6 * N * T
    target = target_of_budget(surface, C, cost)
    assert target.names == ("loss", "lr", "batch edge", "N_opt")
    member = surface.members[0]
    for name in ("aT", "bT", "ln_c", "f.aN", "f.k"):
        at, found = solution.model.place(name), []
        for sign in (-1, 1):
            theta = solution.theta.copy()
            theta[at] += sign * 1e-3
            moved = replace(solution, theta=theta)
            other = replace(surface, members=(replace(member, solution=moved),))
            model, (n, t, _) = solution.model, surface.scale.logs(target.N, target.T, np.nan)
            edge = other.edge_place(model, theta, n, t, np.log(1.01))
            rate = shape.ridge(model, theta, n, t, np.log(target.B / surface.scale.B))
            loss = np.log(other.predict(target.N, target.T, target.B, target.lr).mean[0])
            found.append([loss, float(rate), float(edge), np.log(target_of_budget(other, C, cost).N)])
        slope = np.subtract(*found[::-1]) / 2e-3
        assert target.gradient[:, at] == pytest.approx(slope, rel=0.03, abs=2e-3), name


def test_without_a_loss_form_the_pair_alone_is_narrowed():
    cells = planted.cells(sizes=2, times=2)
    surface = fit_surface(cells, batch="one_sided", bent=False)
    assert target_at(surface, N, T).names == ("lr", "batch edge")
    with pytest.raises(UnsupportedFit, match="N_opt at 1e\\+18 FLOPs is unknown: 2 sizes"):
        target_of_budget(surface, 1e18, proportional())
    with pytest.raises(ValueError, match="without a loss form"):
        Posterior(surface, future((3e6,)))


def candidates(unit: float = 1.0) -> tuple[Cells, np.ndarray]:
    """All runs of the planted sweep, and the FLOPs of each by the T that it ends at."""
    cells = planted.cells()
    return cells, 6 * cells.N * cells.T * unit


def in_units(cells: Cells, factor: float) -> Cells:
    return Cells.of_arrays(
        cells.N * factor,
        cells.T * factor,
        cells.B * factor,
        cells.lr * factor,
        cells.loss * factor,
        run=cells.run,
        stream=cells.stream,
        n_ctx=cells.n_ctx * factor,
    )


def test_the_choice_does_not_depend_on_units(surface):
    """N, T, B, lr and losses in thousands, FLOPs in sixths: the same runs in the same order."""
    chosen = []
    for factor, unit in ((1.0, 1.0), (1e3, 1 / 6)):
        moved = fit_surface(in_units(surface.cells, factor), "joint", batch="one_sided", bent=False)
        runs, flops = candidates(unit)
        runs = in_units(runs, factor)
        target = target_at(moved, N * factor, T * factor)
        found = spend(Posterior(moved, runs), target, runs, flops, budget=3e18 * unit)
        assert sum(one.flops for one in found) <= 3e18 * unit
        chosen.append([tuple(one.rows) for one in found])
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) > 5


def test_a_budget_narrows_and_ends(surface):
    runs, flops = candidates()
    target = target_at(surface, N, T)
    posterior = Posterior(surface, runs)
    before = posterior.variances(target)
    found = spend(posterior, target, runs, flops, budget=1e19)
    variances = np.array([before, *(one.variances for one in found)])
    assert np.all(np.diff(np.log(variances).sum(axis=1)) < 0)
    assert posterior.variances(target) == pytest.approx(variances[-1])
    assert len({int(runs.run[one.rows[0]]) for one in found}) == len(found), "each run once"
    assert spend(Posterior(surface, runs), target, runs, flops, budget=flops.min() / 2) == []
    enough = rate_cost(target, before) * 1.01
    assert spend(Posterior(surface, runs), target, runs, flops, budget=1e19, tolerance=enough) == []
