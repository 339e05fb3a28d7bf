"""Simulated sweeps: their noise and scatter are as stated, and fits of them find what was planted."""

import dataclasses
import math

import numpy as np
import pytest

from tests.scaling import planted
from videoscaling.scaling.estimates import t_quantile
from videoscaling.scaling.fitting.surface import noise, surface_law
from videoscaling.scaling.fitting.surface.fit import fit_surface
from videoscaling.scaling.fitting.unsupported import UnsupportedFit
from videoscaling.scaling.planning.allocation import proportional
from videoscaling.scaling.runs import from_arrays
from videoscaling.scaling.search import simulate
from videoscaling.scaling.search.planned_runs import PlannedRun, fit_warnings
from videoscaling.scaling.search.simulate import Target, expect
from videoscaling.scaling.search.truth import SCATTER, Truth, simulated_runs
from videoscaling.utils.errors import UserError

COST = proportional()
CLIP = int(planted.CLIP)
EXPONENTS = {
    "aB": planted.SLOPE,
    "aT": planted.RATE_T,
    "aN": planted.RATE_N,
    "bT": planted.BATCH_T,
    "bN": planted.BATCH_N,
}
FAR = Target(4e7, 4e9, 6 * 4e7 * 4e9)


def planned(sizes=4, rates=5, batches=4, times=3) -> list[PlannedRun]:
    """Rates around the planted best one at each batch, as in ``planted.cells``."""
    tokens = tuple(np.geomspace(1e8, 2e9, times))
    return [
        PlannedRun(N, B, float(planted.best_rate(B, 4e8, N) * factor), tokens, stream=7)
        for N in np.geomspace(1e6, 2e7, sizes)
        for B in CLIP * 5.0 ** np.arange(batches)
        for factor in np.exp(np.linspace(-1.6, 1.6, rates))
    ]


@pytest.fixture(scope="module")
def law():
    cells = planted.cells()
    columns = {name: getattr(cells, name) for name in ("N", "T", "B", "lr", "loss")}
    table = from_arrays(columns | {"run_id": cells.run, "n_ctx": CLIP})
    return surface_law.fit_law(table, "all", "joint", COST, {"name": "planted"})


def without_scatter(truth: Truth, **scatter: float) -> Truth:
    return dataclasses.replace(truth, scatter=dict.fromkeys(SCATTER, 0.0) | scatter)


def errors(truth: Truth, runs: list[PlannedRun], seeds: range) -> np.ndarray:
    """ln of simulated losses less the law's, [seeds, rows]."""
    found = []
    for seed in seeds:
        table = simulated_runs(truth, runs, seed, CLIP)
        found.append(np.log(table.loss) - truth.ln_loss(table.N, table.T, table.B, table.lr))
    return np.array(found)


def test_a_runs_error_has_the_asked_size_and_persists(paper):
    runs = [PlannedRun(1e8, 1e5, 1e-4, (2e9, 8e9))] * 4000
    error = errors(Truth.of(paper, 1e-3), runs, range(1)).reshape(-1, 2)
    # 4000 draws know a standard deviation to 1.1 % and a correlation of 0.9 to 0.003.
    assert error.std(axis=0) == pytest.approx([1e-3, 1e-3], rel=0.05)
    assert np.corrcoef(error.T)[0, 1] == pytest.approx(0.9, abs=0.015)


def test_runs_of_a_size_on_the_same_samples_share_a_third_of_their_variance(paper):
    """Other sizes, other samples, and unknown ones share nothing."""
    runs = [PlannedRun(N, 1e5, 1e-4, (2e9, 8e9), stream) for N, stream in ((1e8, 0), (1e8, 0), (1e8, 1), (2e8, 0))]
    runs += [PlannedRun(1e8, 1e5, 1e-4, (2e9, 8e9))] * 2
    found = np.corrcoef(errors(Truth.of(paper, 1e-3), runs, range(800)).T)
    expected = np.eye(6)
    expected[0, 1] = expected[1, 0] = 1 / 3
    in_time = np.array([[1.0, 0.9], [0.9, 1.0]])
    assert found == pytest.approx(np.kron(expected, in_time), abs=0.12)


def test_a_surfaces_noise_depends_on_size_tokens_and_rate_over_batch(law):
    truth = without_scatter(Truth.of(law))
    member = truth.law.surface.members[0]
    phi = member.solution.phi.copy()
    places = [noise.NAMES.index(name) for name in ("ln_sd", "sd_T", "sd_N", "sd_H")]
    phi[places] = np.log(0.004), -0.3, 0.2, 0.25
    solution = dataclasses.replace(member.solution, phi=phi)
    surface = dataclasses.replace(truth.law.surface, members=(dataclasses.replace(member, solution=solution),))
    truth = dataclasses.replace(truth, law=dataclasses.replace(law, surface=surface))
    sd = truth.run_sd(
        *np.array([(4e6, 4e8, 3e3, 1e-3), (4e6, 8e8, 3e3, 1e-3), (8e6, 4e8, 3e3, 1e-3), (4e6, 4e8, 6e3, 1e-3)]).T
    )
    assert sd[1:] / sd[0] == pytest.approx(2 ** np.array([-0.3, 0.2, -0.25]))
    runs = [PlannedRun(4e6, 3e3, 1e-3, (4e8, 1.6e9))] * 2000
    error = errors(truth, runs, range(1)).reshape(-1, 2)
    assert error.std(axis=0) == pytest.approx(sd[0] * np.array([1, 4**-0.3]), rel=0.06)


def test_a_simulated_runs_noise_is_that_which_predictions_count(law):
    """It was 10 % less: a robust fit's weights were taken for noise. At one clip a batch costs next to nothing."""
    N, T, B = 4e6, 4e8, planted.CLIP
    truth = without_scatter(Truth.of(law))
    surface, lr = truth.law.surface, truth.law.response.rate(N, T, B).value
    one, endless = (np.log(found.high / found.mean) for found in (surface.predict(N, T, B, lr, k) for k in (1, 1e12)))
    sd = np.sqrt(one**2 - endless**2) / t_quantile(surface.freedom)
    assert truth.run_sd(*map(np.atleast_1d, (N, T, B, lr))) == pytest.approx(sd, rel=0.02)


@pytest.mark.parametrize(("scatter", "sd", "seeds"), [({"ln_x": 0.2}, 0.2, 150), ({"ln_z": 0.5}, 0.0, 10)])
def test_grids_scatter_in_the_best_rate_and_apart_from_it_in_the_batch(law, scatter, sd, seeds):
    """The rate that is best at a batch moves by ln_x from grid to grid; a moved batch leaves it where it is."""
    truth = without_scatter(Truth.of(law, 1e-9), **scatter)
    best = float(truth.law.response.rate(4e6, 4e8, 3e3).value)
    offsets = np.linspace(-1, 1, 81)
    runs = [PlannedRun(4e6, 3e3, best * math.exp(x), (4e8,)) for x in offsets]
    lowest, level = [], []
    for seed in range(seeds):
        loss = np.log(simulated_runs(truth, runs, seed, CLIP).loss)
        lowest.append(offsets[np.argmin(loss)])
        level.append(loss.min())
    assert np.std(lowest) == pytest.approx(sd, rel=0.2, abs=0.03)
    assert (np.std(level) > 1e-4) == ("ln_z" in scatter)


def test_levels_scatter_by_grid_and_by_size(law):
    runs = [PlannedRun(N, 3e3, 1e-3, (2e8, 4e8)) for N in (1e6, 4e6)]
    for scatter, correlation in ({"ln_level": 0.01}, 0.0), ({"ln_size": 0.01}, 1.0):
        error = errors(without_scatter(Truth.of(law, 1e-9), **scatter), runs, range(150))
        assert error.std(axis=0) == pytest.approx([0.01] * 4, rel=0.2)
        found = np.corrcoef(error.T)
        assert found[0, 1] == pytest.approx(correlation, abs=0.25)
        assert found[0, 2] == pytest.approx(0.0, abs=0.25)


def test_a_seed_gives_the_same_sweep_again(law):
    truth, runs = Truth.of(law), planned()
    first, again, other = (simulated_runs(truth, runs, seed, CLIP).loss for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.any(first == other)


def test_runs_may_have_milestones_of_their_own(paper):
    mixed = [PlannedRun(1e7, 1e4, 1e-3, (1e9, 2e9)), PlannedRun(1e8, 1e5, 1e-3, (4e9,))]
    table = simulated_runs(Truth.of(paper), mixed, 0, 1280)
    assert list(zip(table.N, table.T)) == [(1e7, 1e9), (1e7, 2e9), (1e8, 4e9)]
    assert len(set(table.run_id)) == 2


def test_power_laws_are_the_truth_that_they_say(paper):
    truth = Truth.of(paper)
    assert (truth.noise, truth.scatter) == (1e-3, dict.fromkeys(SCATTER, 0.0))
    at = truth.at(1e8, 4e9, 1e19, cost=COST, n_ctx=1280)
    assert at["B_opt"] == pytest.approx(float(paper.batch(1e8, 4e9)))
    assert at["loss"] == pytest.approx(float(paper.loss(1e8, 4e9)))

    def loss(B, lr):
        return np.exp(truth.ln_loss(*np.broadcast_arrays(1e8, 4e9, B, lr)))

    rate = truth.law.response.rate
    # The edge is sought in steps of 0.5 %.
    assert loss(at["edge"], rate(1e8, 4e9, at["edge"]).value) == pytest.approx(1.01 * at["loss"], rel=1e-4)
    rates = at["lr"] * np.exp(np.linspace(-0.5, 0.5, 101))
    assert rates[np.argmin(loss(at["B"], rates))] == pytest.approx(at["lr"])
    # ln lr_opt at a batch, along which the exponents are partial derivatives.
    step, (N, T, B) = 1.1, (1e8, 4e9, 1e5)
    for name, moved in (("aB", (N, T, B * step)), ("aT", (N, T * step, B)), ("aN", (N * step, T, B))):
        slope = math.log(rate(*moved).value / rate(N, T, B).value) / math.log(step)
        assert truth.exponents[name] == pytest.approx(slope)


def test_the_heaviest_of_averaged_shapes_is_the_truth(law):
    """The loss, the best rate and the exponents are those of one surface."""
    truth = Truth.of(law)
    rate = truth.law.response.rate
    slope = math.log(rate(4e6, 4e8, 6e3).value / rate(4e6, 4e8, 3e3).value) / math.log(2)
    if not truth.law.surface.shape.bent:
        assert truth.exponents["aB"] == pytest.approx(slope)
    best = float(rate(4e6, 4e8, 3e3).value)
    rates = best * np.exp(np.linspace(-0.5, 0.5, 201))
    found = truth.ln_loss(*np.broadcast_arrays(4e6, 4e8, 3e3, rates))
    assert rates[np.argmin(found)] == pytest.approx(best, rel=0.01)


def test_a_law_without_losses_is_refused(law, paper):
    surface = dataclasses.replace(law.surface, members=(), no_form="three sizes")
    for lacking, message in (
        (dataclasses.replace(law, surface=surface), r"predicts no losses \(three sizes\)"),
        (dataclasses.replace(paper, curvature=None), "has no curvature"),
    ):
        with pytest.raises(UserError, match=message):
            Truth.of(lacking)


def test_fits_that_are_true_have_no_bias_and_the_chance_of_a_close_loss_is_the_noises(law, monkeypatch):
    truth = without_scatter(Truth.of(law, 0.005))
    monkeypatch.setattr(surface_law, "fit_law", lambda *given: truth.law)
    for seeds, chance in ((1, 0.6827), (4, 0.9545)):  # within one, and within two standard deviations
        found = expect(truth, planned(), [FAR], cost=COST, n_ctx=CLIP, sweeps=3, seeds=seeds)
        (at,) = found["targets"]
        assert at["close"] == pytest.approx(chance, abs=0.04)
        for one in (*found["exponents"].values(), *(at[name] for name in ("loss", "lr", "edge", "N_opt"))):
            assert one["bias"] == pytest.approx(0, abs=1e-3)
            assert (one["coverage"], one["sd"], one["sweeps"]) == (1.0, pytest.approx(0, abs=1e-9), 3)
            assert one["half_width"] > 0
        assert abs(at["regret"]) < 2e-3
    text = simulate.text(found)
    assert "the mean of 4 new runs within 0.5% of the predicted loss: chance 0.9" in text
    assert "refused" not in text


@pytest.mark.parametrize(("fitted_on", "clip"), [(0, CLIP), (5 * CLIP, CLIP), (CLIP, 10 * CLIP)])
def test_no_pair_is_better_than_the_best(law, monkeypatch, fitted_on, clip):
    """A law without n_ctx had the smallest batch of its runs as the least; the predicted pair then cost -0.4 %."""
    surface = law.surface
    wide = surface.cells.rows(surface.cells.B > CLIP)  # as of runs on larger batches
    unknown = dataclasses.replace(surface, cells=dataclasses.replace(wide, n_ctx=fitted_on))
    truth = without_scatter(Truth.of(dataclasses.replace(law, surface=unknown), 0.005)).of_clips(clip)
    batches, rates = np.meshgrid(clip * 1.2 ** np.arange(60), np.geomspace(1e-5, 1e-2, 200))
    lowest = truth.ln_loss(*np.broadcast_arrays(FAR.N, FAR.T, batches.ravel(), rates.ravel())).min()
    best = truth.best_ln_loss(FAR.N, FAR.T)
    assert best - 1e-12 <= lowest < best + 1e-4  # the lowest of a grid of rates 3.5 % apart
    monkeypatch.setattr(surface_law, "fit_law", lambda *given: truth.law)
    found = expect(truth, planned(), [FAR], cost=COST, n_ctx=clip, sweeps=2)
    assert 0 <= found["targets"][0]["regret"] < 1.1e-3  # what a plan's batch may cost


def test_a_best_batch_beyond_the_laws_runs_is_the_best(law):
    """B_opt of longer runs lies there. Plans take it, and cost less than the best of the batches that were run."""
    cells = planted.cells()
    small = np.exp(0.02 * np.logaddexp(0, np.log(1e3 * (cells.T / 4e8) / cells.B)))  # what small batches cost
    cells = dataclasses.replace(cells, loss=cells.loss * small)
    surface = fit_surface(cells, form="joint", batch="two_sided", bent=False)
    surface = dataclasses.replace(surface, domain=surface.domain | {"B": (planted.CLIP, 20 * planted.CLIP)})
    truth = Truth.of(dataclasses.replace(law, surface=surface)).of_clips(CLIP)
    at = truth.at(FAR.N, FAR.T, FAR.C, cost=COST, n_ctx=CLIP)
    there = truth.ln_loss(*(np.atleast_1d(v) for v in (FAR.N, FAR.T, at["B"], at["lr"])))[0]
    assert at["best_ln_loss"] <= there < math.log(at["loss"]) - 3e-4


@pytest.mark.parametrize("refusals", [0, 1, 3])
def test_numbers_of_few_sweeps_are_none(law, monkeypatch, refusals):
    """The fits that happen to succeed are the lucky ones: below half of them, their numbers are no expectation."""
    calls = iter(range(4))

    def some(*given):
        if next(calls) < refusals:
            raise UnsupportedFit("no such luck\nmore of it")
        return law

    monkeypatch.setattr(surface_law, "fit_law", some)
    found = expect(Truth.of(law), planned(), [FAR], cost=COST, n_ctx=CLIP, sweeps=4)
    text, (at,) = simulate.text(found), found["targets"]
    assert found["fitted"] == 4 - refusals
    assert found["refused"] == ({"no such luck": refusals} if refusals else {})
    for one in (*found["exponents"].values(), at["loss"], at["lr"]):
        assert ("bias" in one) == (refusals < 3)
    assert (at["close"] is None) == (refusals == 3)
    assert ("unknown  unknown     unknown   1 of 4 sweeps" in text) == (refusals == 3)
    assert (f"refused in {refusals} of 4 sweeps" in text) == (refusals > 0)
    assert ("where the law has the best runs" in text) == (refusals > 0)


def test_a_sweep_that_cannot_be_fitted_is_reported_before_it_is_simulated(law):
    one_cell = [PlannedRun(N, 3e3, 1e-3, (1e8, 1e9)) for N in (1e6, 4e6, 1e7)]
    with pytest.raises(UserError, match=r"nothing to simulate: no \(N, T\) has 3 different"):
        expect(Truth.of(law), one_cell, [FAR], cost=COST, n_ctx=CLIP, sweeps=2)
    with pytest.raises(UserError, match="every size is held out"):
        expect(Truth.of(law), [], [FAR], cost=COST, n_ctx=CLIP, sweeps=2)


def test_a_law_used_far_outside_its_compute_is_reported(paper, cost):
    runs = [PlannedRun(3e7, 1e5, 1e-3, (2e9, 5e9))]
    assert simulate._far(paper, runs, [Target.best_at(paper, 1e21, cost, 1280)], cost) == []
    for asked, C in ((runs, 2.1e21), ([PlannedRun(1e5, 1e5, 1e-3, (1e7,))], 1e19)):
        (reported,) = simulate._far(paper, asked, [Target.best_at(paper, C, cost, 1280)], cost)
        assert reported.startswith("law 'paper' was fitted from 3e+17 to 2e+19 FLOPs")


def test_a_budget_of_less_than_a_clip_is_refused(paper, cost):
    with pytest.raises(UserError, match="less than one clip of 1280"):
        Target.best_at(paper, 1e6, cost, 1280)


def check_planted(law, sweeps: int, runs: list[PlannedRun]) -> dict:
    """Exponents without bias beyond what so many sweeps leave open (3 standard errors)."""
    found = expect(Truth.of(law), runs, [FAR], cost=COST, n_ctx=CLIP, sweeps=sweeps)
    assert found["fitted"] == sweeps
    for name, one in found["exponents"].items():
        assert one["truth"] == pytest.approx(EXPONENTS[name], abs=0.1)
        # Few sweeps hardly know their own sd: the intervals' does not depend on luck.
        sd = max(one["sd"], one["half_width"] / 1.96)
        assert abs(one["bias"]) < 3 * sd / math.sqrt(sweeps), (name, one)
    return found


@pytest.mark.slow
def test_planted_exponents_are_recovered(law):
    check_planted(law, 2, planned(rates=4, batches=3))


@pytest.mark.slow
def test_planted_exponents_and_losses_are_recovered_and_covered(law):
    found = check_planted(law, 60, planned())
    (at,) = found["targets"]
    for one in (*found["exponents"].values(), at["loss"], at["lr"], at["edge"]):
        assert one["coverage"] >= 0.85, found
        assert one["half_width"] < 3 * 1.96 * one["sd"], found
    assert abs(at["loss"]["bias"]) < 3 * at["loss"]["sd"] / math.sqrt(60)
    assert at["inside"] >= 0.85


def small(sizes=(1e7, 3e7, 1e8), lr=(1e-4, 2e-4, 4e-4), B=(1e4, 2e4, 4e4), T=(1e9, 2e9, 4e9)):
    return [PlannedRun(n, b, r, tuple(T)) for n in sizes for b in B for r in lr]


@pytest.mark.parametrize(
    ("asked", "messages"),
    [
        (small(), []),
        (small(lr=(1e-4, 2e-4)), ["no size has 3 learning rates"]),
        (small(B=(1e4,)), ["no size has 3 batch sizes"]),
        (small(lr=(1e-4,) * 3), ["no size has 3 learning rates"]),
        (small(sizes=(1e7,)), ["share one N", "1 size and 3 token counts"]),
        (small(sizes=(1e7, 3e7)), ["2 sizes and 3 token counts"]),
        (small(T=(1e9,)), ["share one T", "3 sizes and 1 token count fix"]),
        ([], ["every size is held out"]),
        (
            [c for n in (1, 2, 4) for c in small((n * 1e7,), T=(n * 1e9,))],
            ["collinear", "3 grids: a loss form"],
        ),
    ],
)
def test_runs_too_few_to_decide_are_reported_before_they_are_run(asked, messages):
    found = fit_warnings(asked)
    assert len(found) == len(messages), found
    for text, message in zip(found, messages):
        assert message in text
