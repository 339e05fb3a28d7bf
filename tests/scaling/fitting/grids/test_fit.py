import dataclasses
import time

import numpy as np
import pytest

from tests.scaling import simulate
from videoscaling.models import sizes
from videoscaling.scaling import law_file
from videoscaling.scaling.estimates import interval
from videoscaling.scaling.fitting.grids import fit
from videoscaling.scaling.fitting.unsupported import UnsupportedFit
from videoscaling.scaling.planning import allocation
from videoscaling.scaling.runs import _common_tokens
from videoscaling.utils.errors import UserError

SIZES = np.geomspace(0.0168e9, 0.268e9, 5)
TOKENS = np.geomspace(2e9, 12e9, 5)
NOWHERE = {"name": "test"}


def points(paper, noise, seed):
    """25 independent points at the optimum of the paper's law."""
    cells = [(N, np.nan, np.nan) for N in SIZES for _ in TOKENS]
    table = simulate.run_table(paper, cells, TOKENS, noise, correlation=0.0, seed=seed, n_ctx=1280)
    # One run per (N, T): run k of a size keeps its k-th milestone alone.
    return table.rows(np.array([25 * n + 5 * t + t for n in range(5) for t in range(5)]))


def exponents(law):
    return (law.batch.T, law.batch.N, law.lr.T, law.lr.N, law.loss.aT, law.loss.aN)


def interval_of_size(law, C, cost):
    return interval(allocation.optimum(law.drawn("loss"), C, cost))


def fitted_sizes(paper, cost, noise, tables):
    truth = float(allocation.optimum(paper.loss, 1e22, cost))
    errors, covered = [], []
    for seed in range(tables):
        law = fit.fit(points(paper, noise, seed), "loss", fit.Options(), cost, NOWHERE).law
        low, high = interval_of_size(law, 1e22, cost)
        errors.append(float(allocation.optimum(law.loss, 1e22, cost)) / truth - 1)
        covered.append(low <= truth <= high)
    return np.array(errors), np.array(covered)


def test_a_planted_law_is_recovered_at_noise_1e_5(paper, cost):
    errors, _ = fitted_sizes(paper, cost, 1e-5 / 0.53, tables=5)
    assert np.abs(errors).max() < 0.05


def test_a_planted_law_is_recovered_at_noise_1e_4(paper, cost):
    errors, covered = fitted_sizes(paper, cost, 1e-4 / 0.53, tables=20)
    assert abs(np.median(errors)) < 0.08
    # One standard deviation is about 14 %, as other simulations of the published law found.
    assert 0.08 < np.std(errors) < 0.22
    assert covered.sum() >= 17


@pytest.fixture(scope="module")
def grids(paper):
    tokens = [2e9, 5e9, 12e9]
    return simulate.run_table(paper, simulate.grid(paper, SIZES[::1], tokens, 5, 5, 2.0), tokens, 2e-4, n_ctx=1280)


@pytest.fixture(scope="module")
def whole(cost, grids):
    """The fit of everything to ``grids``."""
    return fit.fit(grids, "all", fit.Options(), cost, NOWHERE)


def test_a_whole_law_from_grids(paper, whole, tmp_path):
    fitted, law = whole, whole.law
    assert len(fitted.points.N) == 15
    assert not fitted.warnings
    assert exponents(law) == pytest.approx(exponents(paper), abs=0.04)
    assert law.curvature.batch_batch == pytest.approx(paper.curvature.batch_batch, rel=0.05)
    assert law.lr_given_batch.slope == pytest.approx(paper.lr_given_batch.slope, abs=0.05)
    for part in ("batch", "lr", "loss"):
        drawn, truth = law.drawn(part), getattr(paper, part)
        for N, T in ((1e8, 1e10), (5e8, 5e10)):
            low, high = interval(drawn(N, T))
            # Three standard errors, not 1.96: this is one table, whose coverage is measured elsewhere.
            middle, half = float(getattr(law, part)(N, T)), 1.6 * (high - low) / 2
            assert abs(middle - float(truth(N, T))) < half
    law_file.save(law, tmp_path / "law.json")
    assert law_file.load(tmp_path / "law.json").loss == law.loss


def test_draws_repeat_the_intervals(whole):
    law = whole.law
    for name, values in zip(law.fit["draw_columns"], np.array(law.draws).T):
        low, high = law.fit["intervals"][name]
        # 500 draws know a 2.5 % quantile to about a tenth of the interval's half-width.
        assert np.quantile(values, [0.025, 0.975]) == pytest.approx([low, high], abs=0.15 * (high - low))


def test_held_out_rows_are_not_fitted(cost, grids):
    heldout = grids.nominal_T == grids.nominal_T.max()
    spoilt = dataclasses.replace(grids, heldout=heldout, loss=np.where(heldout, 9.0, grids.loss))
    law = fit.fit(spoilt, "hyperparameters", fit.Options(), cost, NOWHERE).law
    assert law.domain["T"] == [2e9, 5e9]


def test_held_exponents(cost, grids):
    law = fit.fit(grids, "hyperparameters", fit.Options(fixed={"B.N": 0.0}), cost, NOWHERE).law
    assert law.batch.N == 0.0
    assert law.batch.assumed == ("N",)
    assert law.lr.assumed == ()


@pytest.mark.parametrize("rows", [False, True])
def test_as_many_optima_as_constants_are_not_trusted(paper, cost, rows):
    sizes, tokens = SIZES[[0, 4]], [2e9, 12e9]
    if rows:
        table = simulate.run_table(paper, [(N, np.nan, np.nan) for N in sizes], tokens, 1e-4, n_ctx=1280)
        table = table.rows(np.arange(3))
    else:
        table = simulate.run_table(paper, simulate.grid(paper, sizes, tokens, 5, 5, 2.0), tokens, 1e-4, n_ctx=1280)
        table = table.rows((sizes[0] == table.N) | (tokens[0] == table.T))
    options = fit.Options(optima=rows)
    with pytest.raises(UnsupportedFit, match="B_opt: 3 optima for 3 constants leave nothing to check"):
        fit.fit(table, "hyperparameters", options, cost, NOWHERE)
    forced = fit.fit(table, "hyperparameters", dataclasses.replace(options, force=True), cost, NOWHERE)
    assert any("leave nothing to check" in text for text in forced.warnings)
    held = fit.fit(table, "hyperparameters", dataclasses.replace(options, prior=paper), cost, NOWHERE)
    assert len(held.law.batch.assumed) == len(held.law.lr.assumed) == 1


def test_three_estimators_of_the_size_from_grids(paper, cost):
    """From 4e7 to 2e9 parameters and 1 to 100 billion tokens, the best sizes of ten budgets lie inside."""
    sizes, tokens = np.geomspace(2e6, 4e8, 9), np.geomspace(1e8, 2e11, 12)
    table = simulate.run_table(paper, [(N, np.nan, np.nan) for N in sizes], tokens, 1e-7, n_ctx=1280)
    law = fit.fit(table, "loss", fit.Options(optima=True), cost, NOWHERE).law
    C = 1e20
    truth = float(allocation.optimum(paper.loss, C, cost))
    assert float(law.allocation["predicted"](C)) == pytest.approx(truth, rel=0.1)
    assert float(law.allocation["measured"](C)) == pytest.approx(truth, rel=0.25)
    assert float(law.allocation["direct"](C)) == pytest.approx(truth, rel=0.5)
    assert not any(name.startswith("allocation") for name in law.provenance["unknown"])


def test_sizes_measured_on_grids_recover_a_planted_law(paper, cost):
    """Grids whose best cell is the same everywhere, so that 5 x 5 cells hold it from 1e8 to 2e11 tokens."""
    batch = dataclasses.replace(paper.batch, coefficient=5e4, T=0.0, N=0.0)
    law = dataclasses.replace(paper, batch=batch, lr=dataclasses.replace(paper.lr, T=0.0, N=0.0))
    swept, tokens = np.geomspace(2e6, 4e8, 8), np.geomspace(1e8, 2e11, 10)
    table = simulate.run_table(law, simulate.grid(law, swept, tokens, 4, 4, 2.0), tokens, 1e-6, n_ctx=1280)
    fitted = fit.fit(table, "loss", fit.Options(), cost, NOWHERE)
    assert sum(o.interior for o in fitted.optima) == 80
    measured = fitted.law.allocation["measured"]
    C = np.array([1e19, 1e20, 1e21])
    np.testing.assert_allclose(measured(C), allocation.optimum(paper.loss, C, cost), rtol=0.25)
    truth = allocation.predicted(paper.loss, (1e19, 1e21), cost).exponent
    assert measured.exponent == pytest.approx(truth, abs=0.05)


def test_where_larger_models_are_worse_no_size_is_best(paper, cost, tmp_path):
    """As with the rates of a small one. Forced all the same, the law says what it does not know."""
    table = simulate.run_table(paper, [(N, np.nan, np.nan) for N in (2e6, 2e7, 2e8)], np.geomspace(1e8, 1e10, 4), 1e-4)
    table = dataclasses.replace(table, loss=2 * (1e9 / table.T) ** 0.1 * (table.N / 1e6) ** 0.02)
    law = fit.fit(table, "loss", fit.Options(optima=True, force=True), cost, NOWHERE).law
    assert law.allocation is None
    assert "smallest" in law.reason("allocation")
    assert any("smallest" in text for text in law.fit["warnings"])
    law_file.save(law, tmp_path / "law.json")
    assert law_file.load(tmp_path / "law.json").allocation is None


def timed(table, part, options, cost):
    """In processor time: what else the machine does is not the fit's."""
    start = time.process_time()
    fitted = fit.fit(table, part, options, cost, NOWHERE)
    return time.process_time() - start, fitted


def test_two_thousand_rows_are_fitted_in_five_seconds(paper, cost):
    sizes, tokens = np.geomspace(1e7, 1e9, 20), np.geomspace(1e9, 1e11, 10)
    table = simulate.run_table(
        paper, [(N, np.nan, np.nan) for N in sizes for _ in range(10)], tokens, 1e-4, n_ctx=1280
    )
    seconds, fitted = timed(table, "all", fit.Options(optima=True), cost)
    assert len(fitted.points.N) == 2000
    assert "bootstrap" not in fitted.law.fit["method"]
    assert seconds < 5


def test_two_hundred_runs_are_fitted_with_intervals_in_a_minute(paper, cost):
    sizes, tokens = np.geomspace(0.0168e9, 0.268e9, 8), [2e9, 5e9, 12e9]
    table = simulate.run_table(paper, simulate.grid(paper, sizes, tokens, 5, 5, 2.0), tokens, 1e-4, n_ctx=1280)
    seconds, fitted = timed(table, "all", fit.Options(), cost)
    assert len(fitted.law.provenance["runs"]) == 200
    assert len(fitted.law.fit["intervals"]) == 11
    assert seconds < 60


def test_why_points_tell_no_size_is_written_down(whole):
    law = whole.law
    assert law.allocation["measured"] is None
    assert "budgets shared by three sizes" in law.provenance["unknown"]["allocation.measured"]


def test_edges_enter_no_law(paper, cost):
    tokens = [2e9, 12e9]
    cells = simulate.grid(paper, SIZES[:3], tokens, 5, 5, 2.0, offset=3.0)
    table = simulate.run_table(paper, cells, tokens, 1e-5, n_ctx=1280)
    with pytest.raises(UnsupportedFit, match=r"0 of 6 grids have an interior optimum\n.*edge"):
        fit.fit(table, "all", fit.Options(prior=paper), cost, NOWHERE)
    forced = fit.fit(table, "all", fit.Options(prior=paper, force=True), cost, NOWHERE)
    assert any("best cells stand in for the losses, batches and rates" in text for text in forced.warnings)
    assert forced.law.curvature is None


def test_a_prior_holds_what_one_size_cannot_tell(paper, cost):
    tokens = [2e9, 5e9, 12e9]
    table = simulate.run_table(paper, simulate.grid(paper, SIZES[:1], tokens, 5, 5, 2.0), tokens, 1e-4, n_ctx=1280)
    with pytest.raises(UnsupportedFit, match="share one N"):
        fit.fit(table, "hyperparameters", fit.Options(), cost, NOWHERE)
    fitted = fit.fit(table, "hyperparameters", fit.Options(prior=paper), cost, NOWHERE)
    assert "N" in fitted.law.batch.assumed
    assert fitted.law.batch.N == paper.batch.N
    assert any("assumed from paper" in text for text in fitted.warnings)
    # Far from the one size swept, an assumed exponent must show in the interval.
    near, far = (np.ptp(interval(np.log(fitted.law.drawn("batch")(N, 5e9)))) for N in (SIZES[0], 1e10))
    assert far > 2 * near


def test_a_prior_holds_loss_exponents_that_noise_hides(paper, cost):
    tokens = [4e9, 5e9, 6e9]
    table = simulate.run_table(paper, simulate.grid(paper, SIZES[:3], tokens, 5, 5, 2.0), tokens, 1e-3, n_ctx=1280)
    fitted = fit.fit(table, "loss", fit.Options(prior=paper), cost, NOWHERE)
    assert fitted.law.loss.assumed == ("aN", "aT")
    assert (fitted.law.loss.aT, fitted.law.loss.aN) == (paper.loss.aT, paper.loss.aN)


@pytest.mark.parametrize("part", ["all", "loss", "hyperparameters", "allocation"])
def test_cells_are_not_taken_for_optima(cost, grids, part):
    few = grids.rows((SIZES[0] < grids.N) | (np.arange(len(grids)) < 30))
    with pytest.raises(UserError, match=r"one row for each \(N, T\), but N 3.357e\+07, T 2e\+09 has 25"):
        fit.fit(few, part, fit.Options(optima=True), cost, NOWHERE)


def test_an_overshot_milestone_does_not_flatter_large_batches(paper, cost, grids):
    late = grids.nominal_T + 2 * grids.B
    loss = grids.loss * (paper.loss(grids.N, late) / paper.loss(grids.N, grids.nominal_T))
    overshot = dataclasses.replace(grids, T=late, loss=loss)
    clean, moved, naive = (
        fit.fit(table, "hyperparameters", fit.Options(), cost, NOWHERE).law.batch(1e8, 5e9)
        for table in (grids, overshot, dataclasses.replace(overshot, T=grids.nominal_T))
    )
    assert moved == pytest.approx(clean, rel=1e-3)
    assert abs(naive / clean - 1) > 2 * abs(moved / clean - 1)


def test_with_a_prior_best_cells_stand_in_for_losses_only(paper, cost):
    tokens = [2e9, 5e9, 12e9]
    inside = simulate.grid(paper, SIZES[:1], tokens, 5, 5, 2.0)
    outside = simulate.grid(paper, SIZES[1:3], tokens, 5, 5, 2.0, offset=3.0)
    table = simulate.run_table(paper, inside + outside, tokens[:2], 1e-5, n_ctx=1280)
    with pytest.raises(UnsupportedFit, match="only 2 of 6"):
        fit.fit(table, "all", fit.Options(), cost, NOWHERE)
    fitted = fit.fit(table, "all", fit.Options(prior=paper), cost, NOWHERE)
    assert fitted.points.interior.sum() == 2
    assert fitted.law.batch(SIZES[0], 5e9) == pytest.approx(float(paper.batch(SIZES[0], 5e9)), rel=0.02)
    assert any("4 of 6 grids have no interior optimum (4 edge)" in text for text in fitted.warnings)


def test_repeated_cells_are_pooled_and_said_to_be(cost, grids, whole):
    again = dataclasses.replace(grids, run_id=np.char.add(grids.run_id, "-again"))
    fitted = fit.fit(simulate.concatenate([grids, again]), "all", fit.Options(), cost, NOWHERE)
    assert any("375 cells have several results" in text for text in fitted.warnings)
    assert exponents(fitted.law) == pytest.approx(exponents(whole.law), rel=2e-2)


def test_validation_clips_are_an_error_that_all_runs_share(cost, grids, tmp_path):
    """All losses scaled by one factor per draw of clips: the loss widens by the clips' error, N_opt does not."""
    random = np.random.default_rng(0)
    by_clip = 1 + 0.2 * random.standard_normal(64)
    by_clip /= by_clip.mean()
    files = []
    for i, loss in enumerate(grids.loss):
        files.append(str(tmp_path / f"{i}.npy"))
        np.save(files[-1], np.broadcast_to((loss * by_clip)[None, :, None], (2, 64, 4)))
    shared = dataclasses.replace(grids, samples=np.array(files))
    alone, resampled = (fit.fit(table, "loss", fit.Options(), cost, NOWHERE).law for table in (grids, shared))
    assert "64 validation clips resampled" in resampled.fit["method"]
    widths = [np.std(np.log(law.drawn("loss")(1e8, 1e10))) for law in (alone, resampled)]
    assert widths[1] == pytest.approx(np.std(by_clip) / 8, rel=0.1)
    assert widths[0] < widths[1] / 20
    sizes = [np.ptp(np.log(interval_of_size(law, 1e21, cost))) for law in (alone, resampled)]
    # A common factor changes no N_opt; what is left is the draws' own noise.
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)


def test_batches_at_the_floor_give_losses_and_no_law_of_the_batch(paper, cost):
    """Clips larger than the law's batch: rate and loss are known all the same."""
    tokens = [2e9, 3e9, 4e9]
    n_ctx = round(1.5 * float(paper.batch(SIZES[2], tokens[-1])))
    cells = [
        (N, n_ctx * 2.0**b, float(paper.lr(N, tokens[1])) * 2.0**r)
        for N in SIZES[:3]
        for b in range(4)
        for r in range(-3, 4)
    ]
    table = simulate.run_table(paper, cells, tokens, 1e-6, n_ctx=n_ctx)
    for prior in (None, paper):
        with pytest.raises(UnsupportedFit, match="every grid is best at one clip"):
            fit.fit(table, "all", fit.Options(prior=prior), cost, NOWHERE)
    fitted = fit.fit(table, "loss", fit.Options(), cost, NOWHERE)
    assert [o.verdict for o in fitted.optima] == ["floor"] * 9
    assert any("an edge that bounds" in text for text in fitted.warnings)
    # The best loss with batches of one clip is the curvature's price above the law's own.
    assert fitted.law.loss(SIZES[1], 3e9) > paper.loss(SIZES[1], 3e9)
    assert fitted.law.fit["floor"] == pytest.approx(n_ctx)


def test_overshot_milestones_of_large_batches_stay_in_their_grid():
    N, T, B = np.full(6, 1e6), np.array([2e6, 2.04e6, 2.15e6, 4e6, 4.06e6, 4.3e6]), np.tile([8e4, 1.2e5, 3.2e5], 2)
    assert np.unique(_common_tokens(N, T, B)).tolist() == [2e6, 4e6]
    # The same tokens by small batches are milestones of their own.
    assert len(np.unique(_common_tokens(N, T, B / 1000))) == 4


def test_exponents_that_the_losses_do_not_tell_are_not_trusted(paper, cost):
    tokens = [2e9, 5e9, 12e9]
    cells = simulate.grid(paper, np.geomspace(SIZES[0], SIZES[-1], 4), tokens, 5, 5, 2.0)
    noisy = simulate.run_table(paper, cells, tokens, 4e-3, seed=1, n_ctx=1280)
    with pytest.raises(UnsupportedFit, match=r"loss law: aT's 95 % interval is 0\.\d+ to"):
        fit.fit(noisy, "loss", fit.Options(), cost, {})
    forced = fit.fit(noisy, "loss", fit.Options(force=True), cost, {})
    low, high = forced.law.fit["intervals"]["loss.aT"]
    assert high > 10 * low
    assert any("aT's 95 % interval" in text for text in forced.warnings)
    # With a prior at hand its exponents are taken.
    assert "aT" in fit.fit(noisy, "loss", fit.Options(prior=paper), cost, {}).law.loss.assumed


def test_the_law_knows_what_its_flops_were_counted_by(paper, cost, grids):
    """The report draws budgets by the same cost as the fit, which for other trainers is that of their own column."""
    assert fit.fit(grids, "loss", fit.Options(), cost, {}).law.fit["flops_per_parameter_token"] is None
    theirs = dataclasses.replace(grids, n_ctx=0 * grids.n_ctx)
    law = fit.fit(theirs, "loss", fit.Options(), allocation.proportional(12.0), {}).law
    assert law.fit["flops_per_parameter_token"] == pytest.approx(12.0)
    again = law_file.from_dict(law_file.to_dict(law))
    assert float(allocation.cost_of(again, sizes.smooth_width)(1e8)) == pytest.approx(12e8)
    assert float(allocation.cost_of(paper, sizes.smooth_width)(1e8)) == pytest.approx(float(cost(1e8)))
    unknown = dataclasses.replace(paper, n_ctx=None)
    assert float(allocation.cost_of(unknown, sizes.smooth_width)(1e8)) == pytest.approx(6e8)


def test_recorded_flops_are_the_budgets(paper, cost, grids):
    """C_token at a model's own width, which the smooth rule misses by up to 9 %."""
    own = {N: 1.09 if k == 0 else 1.0 for k, N in enumerate(np.unique(grids.N))}
    per_token = np.array([float(cost(N)) * own[N] for N in grids.N])
    recorded = dataclasses.replace(grids, flops=grids.T * per_token)
    smooth, exact = (fit.fit(g, "loss", fit.Options(), cost, {}).law for g in (grids, recorded))
    assert exact.domain["C"][0] == pytest.approx(1.09 * smooth.domain["C"][0])
    assert exact.domain["C"][1] == pytest.approx(smooth.domain["C"][1])
    # What somebody counted by another rule is no budget next to C_token.
    other = fit.fit(dataclasses.replace(grids, flops=3 * grids.T * per_token), "loss", fit.Options(), cost, {}).law
    assert other.domain["C"] == pytest.approx(smooth.domain["C"])


def test_a_run_with_two_results_in_a_grid_is_warned_of(cost, grids):
    assert not fit.fit(grids, "loss", fit.Options(), cost, {}).warnings
    first, other = np.unique(grids.run_id)[:2]
    shared = dataclasses.replace(grids, run_id=np.where(grids.run_id == other, first, grids.run_id))
    (said,) = fit.fit(shared, "loss", fit.Options(), cost, {}).warnings
    assert said.startswith("1 run has several cells of one (N, T)")
