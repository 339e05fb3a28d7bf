"""Predictions of runs: values, intervals of the law and of new runs, by loss laws and by surfaces."""

from dataclasses import replace

import numpy as np
import pytest

from tests.scaling import planted
from videoscaling.scaling import laws
from videoscaling.scaling.fitting.surface.fit import fit_surface
from videoscaling.scaling.prediction import predict
from videoscaling.utils.errors import UserError

SCALE = {"T": 1e9, "N": 1e8}
T_20 = 2.0859634  # t quantile, 20 degrees of freedom


@pytest.fixture(scope="module")
def law(paper):
    """A law with draws: Linf is normal around 1.8 with sd 0.01."""
    loss = laws.LossLaw(0.5, 0.3, 0.6, 0.2, 1.8, SCALE)
    draws = 1.8 + 0.01 * np.random.default_rng(0).standard_normal(4000)
    fit = {"draw_columns": ["loss.Linf"], "scatter": {"points": 0.006, "run": 0.008, "freedom": 20}}
    domain = {"N": [1e7, 1e9], "T": [1e8, 1e11], "B": None, "C": None}
    return replace(paper, name="planted", loss=loss, draws=[[v] for v in draws], fit=fit, domain=domain)


@pytest.fixture(scope="module")
def surface_law(paper):
    surface = fit_surface(planted.cells(), form="joint", batch="one_sided", bent=False)
    return replace(paper, name="surface", loss=None, surface=surface)


def test_loss_law_with_its_interval_and_that_of_a_run(law):
    N, T = np.array([1e8, 8e8]), np.array([1e9, 2e10])
    found = predict(law, N, T)
    value = 0.5 * (T / 1e9) ** -0.3 + 0.6 * (N / 1e8) ** -0.2 + 1.8
    assert found.predicted == pytest.approx(value)
    assert found.mean_low == pytest.approx(value - 1.96 * 0.01, abs=1e-3)
    assert found.mean_high == pytest.approx(value + 1.96 * 0.01, abs=1e-3)
    for seeds in (1, 4):
        found = predict(law, N, T, seeds=seeds)
        own = np.log(found.mean_high / value)
        noise = T_20 * np.sqrt(0.006**2 + 0.008**2 / seeds)
        assert np.log(found.high / value) == pytest.approx(np.hypot(own, noise), rel=1e-6)
        assert found.notes == ()


def test_points_that_are_single_runs_say_that_seeds_narrow_nothing(law):
    law = replace(law, fit=law.fit | {"scatter": {"points": 0.006, "run": None, "freedom": 20}})
    one, four = predict(law, 1e8, 1e9), predict(law, 1e8, 1e9, seeds=4)
    assert four.high == one.high
    assert "more seeds narrow nothing" in four.notes[0]
    assert one.notes == ()


def test_what_a_law_does_not_tell_is_nan_with_a_note(law, paper):
    found = predict(paper, 1e9, 1e10)
    assert found.predicted == pytest.approx(0.0373 * 10**-0.2917 + 0.0082 + 0.4856)
    assert np.isnan([found.low, found.high, found.mean_low, found.mean_high]).all()
    assert "no draws" in found.notes[0]
    found = predict(replace(law, fit={"draw_columns": ["loss.Linf"]}), 1e8, 1e9)
    assert np.isfinite(found.mean_low)
    assert np.isnan(found.low)
    assert "fit it again" in found.notes[0]


def test_rows_beyond_the_fitted_range_are_extrapolated(law):
    found = predict(law, [1e7, 0.99e7, 1e9, 1.0005e9, 1e8], [1e8, 1e9, 1e11, 1e11, 1.1e11])
    assert found.extrapolated.tolist() == [False, True, False, False, True]
    unknown = replace(law, domain=law.domain | {"T": None})
    assert predict(unknown, 1e8, 1e9).extrapolated.tolist() == [True]


@pytest.mark.parametrize(("N", "T", "seeds"), [(-1, 1e9, 1), (1e8, np.nan, 1), (np.inf, 1e9, 1), (1e8, 1e9, 0)])
def test_numbers_that_no_run_has_are_refused(law, N, T, seeds):
    with pytest.raises(UserError, match=r"must be positive|at least 1"):
        predict(law, N, T, seeds=seeds)


def test_a_law_without_losses_or_with_absurd_ones_is_refused(law):
    with pytest.raises(UserError, match="has no loss"):
        predict(replace(law, loss=None), 1e8, 1e9)
    absurd = replace(law, loss=replace(law.loss, aT=-400.0), draws=None)
    with pytest.raises(UserError, match="no finite loss at N 1e\\+08, T 1e\\+10"):
        predict(absurd, 1e8, 1e10)


def test_surface_covers_new_runs_of_a_larger_size(surface_law):
    random = np.random.default_rng(5)
    N, T, B = (
        np.exp(random.uniform(np.log(low), np.log(high), 200)) for low, high in ((1e6, 5e7), (1e8, 4e9), (100, 1e4))
    )
    lr = planted.best_rate(B, T, N) * np.exp(random.uniform(-1, 1, 200))
    measured = np.exp(planted.ln_loss(N, T, B, lr) + planted.NOISE * random.standard_normal(200))
    found = predict(surface_law, N, T, B, lr)
    assert np.mean((measured > found.low) & (measured < found.high)) > 0.9
    assert np.sqrt(np.mean(np.log(measured / found.predicted) ** 2)) < 0.01
    assert np.all(predict(surface_law, N, T, B, lr, seeds=9).high < found.high)
    assert found.extrapolated.tolist() == ((N > 2e7 * 1.001) | (T > 2e9 * 1.001)).tolist()


def test_rows_without_batch_or_rate_are_predicted_at_the_best_ones(surface_law):
    N, T = 8e6, 1e9
    # One clip costs least. The best batch at a high rate is larger: the rate's law asks for it.
    rate, nan = planted.best_rate(2e3, T, N), np.nan
    found = predict(surface_law, N, T, [nan, 2e3, nan, 2e3], [nan, nan, rate, 9e-4])
    batches = np.geomspace(100, 12500, 2000)
    at_rate = planted.ln_loss(N, T, batches, rate).min()
    truth = [
        planted.ln_loss(N, T, 100, planted.best_rate(100, T, N)),
        planted.ln_loss(N, T, 2e3, rate),
        at_rate,
        planted.ln_loss(N, T, 2e3, 9e-4),
    ]
    assert np.log(found.predicted) == pytest.approx(truth, abs=0.005)
    assert found.predicted[1] >= found.predicted[2] >= found.predicted[0]
    many = predict(surface_law, np.full(40, N), T)
    assert np.ptp(many.predicted) == 0
    assert many.predicted[0] == pytest.approx(found.predicted[0])


def test_seeds_average_noise_and_not_what_the_surface_misses_far_from_the_best(surface_law):
    N, T, B = 8e6, 1e9, 2e3
    lr = planted.best_rate(B, T, N) * np.array([1.0, 6.0])
    member = surface_law.surface.members[0]
    # An error of half of the excess, 0.016 at six times the best rate: five times the noise of a run.
    phi = np.where(np.arange(len(member.solution.phi)) == 4, np.log(0.5), member.solution.phi)
    misses = replace(member, solution=replace(member.solution, phi=phi))
    law = replace(surface_law, surface=replace(surface_law.surface, members=(misses,)))
    one, many = (predict(law, N, T, B, lr, seeds=seeds) for seeds in (1, 1000))
    near, far = np.log(many.high / many.low) / np.log(one.high / one.low)
    assert near < 0.97
    assert far > 0.99


def test_regret_is_what_batch_and_rate_cost(surface_law):
    random = np.random.default_rng(6)
    N, T, B = (
        np.exp(random.uniform(np.log(low), np.log(high), 200)) for low, high in ((1e6, 2e7), (1e8, 2e9), (100, 1e4))
    )
    lr = planted.best_rate(B, T, N) * np.exp(random.uniform(-1, 1, 200))
    batches = np.geomspace(100, 1e4, 2000)[:, None]
    best = planted.ln_loss(N, T, batches, planted.best_rate(batches, T, N)).min(axis=0)
    truth = np.expm1(planted.ln_loss(N, T, B, lr) - best)
    found = predict(surface_law, N, T, B, lr).regret
    # Errors in the constants are common to all rows, so that these miss together: 0.9 instead of 0.95.
    assert np.mean((found.low <= truth) & (truth <= found.high)) > 0.9
    assert np.sqrt(np.mean((found.value - truth) ** 2)) < 0.003 < np.std(truth) / 3
    assert np.all((found.low >= 0) & (found.low <= found.value) & (found.value <= found.high))


def test_regret_of_one_of_batch_and_rate_is_at_the_best_other_one(surface_law):
    N, T, nan = 8e6, 1e9, np.nan
    rate = planted.best_rate(2e3, T, N)
    found = predict(surface_law, N, T, [nan, 2e3, nan, 2e3], [nan, nan, rate, rate]).regret
    assert np.isnan([found.value[0], found.low[0], found.high[0]]).all()
    assert 0 <= found.value[2] <= found.value[3]
    assert found.value[1] == pytest.approx(found.value[3], abs=0.002)


def test_a_loss_law_says_that_it_reads_no_rate(law):
    assert any("not read: lr" in note for note in predict(law, 1e8, 1e10, lr=1e-3).notes)
    assert not any("not read" in note for note in predict(law, 1e8, 1e10).notes)


def test_a_loss_law_knows_no_regret(law):
    assert predict(law, 1e8, 1e10, 1e5, 1e-3).regret is None


def test_rates_and_batches_that_were_not_run_are_extrapolated(surface_law):
    low, high = surface_law.surface.domain["lr"]
    found = predict(surface_law, 4e6, 4e8, [100, 99, 100, 100, np.nan], [low, low, high * 1.01, np.nan, np.nan])
    assert found.extrapolated.tolist() == [False, True, True, False, False]


def test_a_surface_without_a_form_predicts_nothing(surface_law):
    bare = replace(surface_law.surface, members=(), no_form="too few sizes")
    with pytest.raises(UserError, match="too few sizes"):
        predict(replace(surface_law, surface=bare), 1e6, 1e8, 100, 1e-3)


def test_the_python_interface_is_loaded_when_it_is_used():
    from videoscaling import scaling

    for name in scaling.__all__:
        assert getattr(scaling, name)
    assert scaling.predict is predict
    with pytest.raises(AttributeError, match="nothing_such"):
        scaling.nothing_such  # noqa: B018
