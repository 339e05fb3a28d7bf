import dataclasses
import math
import re

import numpy as np
import pytest

from tests.scaling import simulate
from tests.scaling.planned import plan, text_of
from videoscaling.models import sizes
from videoscaling.scaling.fitting.grids import fit, jackknife
from videoscaling.scaling.losses import as_losses
from videoscaling.scaling.planning import allocation
from videoscaling.scaling.planning.request import Request
from videoscaling.utils.errors import UserError


def test_the_published_numbers_at_1e22(paper):
    planned = plan(paper, Request(flops=1e22))
    assert planned["N_opt"]["predicted"] == pytest.approx(2.435e9, rel=1e-3)
    assert planned["N_opt"]["measured"] == pytest.approx(2.087e9, rel=1e-3)
    assert 3.3e9 < planned["N_opt"]["minimised"] < 3.7e9
    assert planned["N"] == planned["N_opt"]["predicted"]
    assert planned["C"] == pytest.approx(1e22)
    assert planned["B"] % planned["n_ctx"] == 0
    assert planned["steps"] == math.ceil(planned["T"] / planned["B"])
    assert planned["heads"] * 64 == planned["width"]


@pytest.mark.parametrize(("params", "tokens", "loss"), [(1.07e9, 10e9, 0.51268), (0.72e9, 140e9, 0.50353)])
def test_published_extrapolations(paper, params, tokens, loss):
    planned = plan(paper, Request(params=params, tokens=tokens))
    assert planned["loss"] == pytest.approx(loss, abs=5e-6)
    if tokens == 140e9:
        assert planned["C"] == pytest.approx(5.852e20, rel=1e-4)


@pytest.mark.parametrize("tokens", [4e9, 1e10])
def test_the_plan_falls_in_the_best_cell_of_the_published_grids(paper, figure_4, tokens):
    planned = plan(paper, Request(params=1.07e9, tokens=tokens))
    lr, B, loss = figure_4[tokens]
    away = np.log(lr / planned["lr"]) ** 2 + np.log(B / planned["B"]) ** 2
    assert np.argmin(away) == np.argmin(loss)


def test_all_ways_of_asking_agree(paper):
    first = plan(paper, Request(flops=1e21))
    hours = plan(paper, Request(gpu_hours=first["gpu_hours"]))
    assert hours["C"] == pytest.approx(1e21)
    fixed = plan(paper, Request(params=first["N"], flops=1e21))
    assert fixed["T"] == pytest.approx(first["T"])
    by_tokens = plan(paper, Request(tokens=first["T"]))
    # Rounding N to a shape moves T by up to a per cent or two along the optimum.
    assert by_tokens["N"] == pytest.approx(first["N"], rel=0.05)
    by_loss = plan(paper, Request(loss=first["loss"]))
    assert by_loss["loss"] == pytest.approx(first["loss"], abs=1e-9)
    assert by_loss["C"] == pytest.approx(1e21, rel=0.05)


def test_a_given_batch_moves_the_rate_along_the_ridge(paper):
    free = plan(paper, Request(params=1.07e9, tokens=1e10))
    half = plan(paper, Request(params=1.07e9, tokens=1e10, batch=free["B"] / 2 // 1280 * 1280))
    assert half["lr"] / free["lr"] == pytest.approx((half["B"] / free["B"]) ** paper.lr_given_batch.slope)
    with pytest.raises(UserError, match="nearest 1280 and 2560"):
        plan(paper, Request(params=1.07e9, tokens=1e10, batch=2000))


def test_serving_many_clips_wants_a_smaller_model_at_equal_loss(paper):
    alone = plan(paper, Request(flops=1e21))
    served = plan(paper, Request(flops=1e21, serve_clips=1e8))
    assert served["N"] < alone["N"]
    assert served["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    total = [p["C"] + 1e8 * p["inference_flops_per_clip"] for p in (served, alone)]
    assert total[0] < total[1]


def test_serving_cost_counts_steps_and_guidance(paper):
    one = plan(paper, Request(flops=1e21, sampler_steps=1, guidance=False))
    fifty = plan(paper, Request(flops=1e21))
    assert fifty["inference_flops_per_clip"] == pytest.approx(100 * one["inference_flops_per_clip"])
    shape = one["layers"], one["width"]
    # A forward pass by the exact count is at most a few per cent above C_token's.
    exact = sizes.exact_flops(*shape, 1280, 64, 1, 4096, training=False)
    assert one["inference_flops_per_clip"] == pytest.approx(exact, rel=0.05)


def test_far_extrapolation_warns(paper):
    assert any("500 times" in w for w in plan(paper, Request(flops=1e22))["warnings"])
    assert not any("times the largest" in w for w in plan(paper, Request(flops=1e20))["warnings"])


def test_a_rate_that_no_optimiser_bears_is_named(paper):
    """At 1e10 FLOPs, a law of 3e17 and more gives one of 0.8."""
    far = [text for text in plan(paper, Request(flops=1e10))["warnings"] if text.startswith("learning rate 0.786: ab")]
    assert len(far) == 1
    assert "fit a law to runs of this size" in far[0]
    for flops in (1e17, 1e22):
        assert not any("learning rate" in text for text in plan(paper, Request(flops=flops))["warnings"])


def test_hours_of_a_gpu_are_not_counted_in_seconds(paper):
    """A run that small is for a CPU, or waits for its start: 3.7e-05 GPU-hours say nothing of its time."""
    assert re.search(r"^GPU-hours +below 0.01; train.py --dry-run measures", text_of(paper, Request(flops=1e12)), re.M)
    assert re.search(r"^GPU-hours +70.22$", text_of(paper, Request(flops=1e20)), re.M)


def test_intervals_come_from_the_draws(paper, cost):
    tokens = [2e9, 5e9, 12e9]
    cells = simulate.grid(paper, np.geomspace(0.0168e9, 0.268e9, 4), tokens, 5, 5, 2.0)
    table = simulate.run_table(paper, cells, tokens, 1e-4, n_ctx=1280)
    law = fit.fit(table, "all", fit.Options(), cost, {"name": "simulated"}).law
    planned = plan(law, Request(flops=1e21))
    for name in ("loss", "lr", "B_opt"):
        assert planned[name]["low"] < planned[name]["value"] < planned[name]["high"]
    size = planned["N_opt"]["minimised"]
    assert size["low"] < float(allocation.optimum(paper.loss, 1e21, cost)) < size["high"]
    assert "predicted loss" in text_of(law, Request(flops=1e21))
    # Each estimator has its own interval: the minima's, and that of the power law fitted again for each draw.
    drawn = law.drawn("loss")
    C = planned["C"]
    log_N, exponent = allocation.power_law_of_minima(
        as_losses(drawn), (law.domain["C"][0], 10 * law.domain["C"][1]), cost
    )
    for name, sizes_drawn in (
        ("minimised", allocation.optimum(drawn, C, cost)),
        ("predicted", np.exp(log_N + exponent * np.log(C))),
    ):
        found = planned["N_opt"][name]
        assert (found["low"], found["high"]) == pytest.approx(
            tuple(np.quantile(sizes_drawn, [0.025, 0.975])), rel=0.02
        )


def test_estimators_without_draws_have_no_interval(paper, cost):
    sizes_swept, tokens = np.geomspace(2e6, 4e8, 9), np.geomspace(1e8, 2e11, 12)
    table = simulate.run_table(paper, [(N, np.nan, np.nan) for N in sizes_swept], tokens, 1e-4, n_ctx=1280)
    law = fit.fit(table, "all", fit.Options(optima=True), cost, {"name": "simulated"}).law
    planned = plan(law, Request(flops=1e20))
    assert set(planned["N_opt"]) == {"predicted", "measured", "direct", "minimised"}
    for name in ("measured", "direct"):
        assert isinstance(planned["N_opt"][name], float)
    assert text_of(law, Request(flops=1e20)).count("(no interval known)") == 2
    assert plan(law, Request(flops=1e20, estimator="direct"))["N"] == pytest.approx(
        planned["N_opt"]["direct"], rel=0.2
    )


# tests/tools/test_plan.py has those of the command line.
@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(flops=-1), "--flops -1: must be a number from 1e-09"),
        (Request(flops=1e5), "no model has about|less than one clip"),
        (Request(params=1e9, flops=1e10), "less than one clip"),
        (Request(flops=1e20, mfu=1.5), "--mfu 1.5: must be a number from 1e-09 to 1"),
        (Request(params=1e6, tokens=1e7, batch=12800000), r"--batch 12800000 is more than the run's 1e\+07 tokens"),
        (Request(flops=1e20, params=1e9, estimator="measured"), "--estimator chooses N: it contradicts --params"),
    ],
)
def test_bad_requests(paper, request_, message):
    with pytest.raises(UserError, match=message):
        plan(paper, request_)


@pytest.fixture(scope="module")
def fitted(paper, cost):
    """A law with draws, from simulated grids."""
    tokens = [2e9, 5e9, 12e9]
    cells = simulate.grid(paper, np.geomspace(0.0168e9, 0.268e9, 4), tokens, 5, 5, 2.0)
    table = simulate.run_table(paper, cells, tokens, 1e-4, n_ctx=1280)
    return fit.fit(table, "all", fit.Options(), cost, {"name": "simulated"}).law


def test_a_batch_off_its_best_costs_loss_and_moves_the_rates_interval(fitted):
    """Four times the best batch: the price is the curvature's along the ridge, on the loss and its interval alike."""
    free = plan(fitted, Request(params=1e8, tokens=5e9))
    large = plan(fitted, Request(params=1e8, tokens=5e9, batch=4 * free["B"]))
    off, slope = [math.log(p["B"] / p["B_opt"]["value"]) for p in (free, large)], fitted.lr_given_batch.slope
    price = [1 + float(fitted.curvature(slope * o, o)) for o in off]
    assert price[1] > 1.001
    for end in ("value", "low", "high"):
        assert large["loss"][end] / free["loss"][end] == pytest.approx(price[1] / price[0], rel=1e-9)
        assert large["lr"][end] / free["lr"][end] == pytest.approx(4**slope, rel=1e-9)


def test_what_a_plan_cannot_know_is_a_warning(paper, fitted):
    said = "; ".join(plan(paper, Request(flops=1e22))["warnings"])
    # The paper's own estimators differ by three quarters there.
    assert "the estimators of N_opt disagree: 2.09e+09 to" in said
    assert not any("disagree" in text for text in plan(fitted, Request(flops=1e19))["warnings"])
    # A clip far above the best batch.
    assert "less than half a clip" in "; ".join(plan(paper, Request(params=1e6, tokens=1e7))["warnings"])
    assert not any("a clip" in text for text in plan(paper, Request(flops=1e20))["warnings"])
    # Draws whose coefficients differ a thousandfold identify no size.
    columns = fitted.fit["draw_columns"]
    wild = np.array(fitted.draws)
    wild[:, columns.index("loss.Nc")] *= np.geomspace(1 / 30, 30, len(wild))
    loose = plan(dataclasses.replace(fitted, draws=wild.tolist()), Request(flops=1e21))
    assert any("the law identifies no size" in text for text in loose["warnings"])
    assert not any("identifies no size" in text for text in plan(fitted, Request(flops=1e21))["warnings"])


def test_what_serving_costs_decides_the_size(paper):
    """Guidance doubles each clip's cost: it is as if twice as many clips were served."""
    guided = plan(paper, Request(flops=1e21, serve_clips=1e8))
    twice = plan(paper, Request(flops=1e21, serve_clips=2e8, guidance=False))
    plain = plan(paper, Request(flops=1e21, serve_clips=1e8, guidance=False))
    assert guided["N"] == twice["N"] < plain["N"]


def test_intervals_widen_with_few_degrees_of_freedom():
    spread = jackknife.Spread(np.array([[0.1], [-0.2], [0.1]]), np.zeros((1, 1)), 2)
    assert spread.half_width() == pytest.approx(4.3027 * np.sqrt(0.06), rel=1e-4)


def test_the_rate_follows_the_batch_unless_the_law_was_fitted_at_a_floor(paper):
    """A plan whose clips are not the law's: only a law that was fitted at one clip has its rates there."""
    small = dataclasses.replace(paper, fit=paper.fit | {"floor": 1280})
    request = Request(params=1.05e6, tokens=1e7, n_ctx=80)
    free, floored = plan(paper, request), plan(small, request)
    assert (free["B"], round(free["B_opt"])) == (160, 143)
    slope, off = paper.lr_given_batch.slope, math.log(160 / free["B_opt"])
    assert free["lr"] == pytest.approx(float(paper.lr(1.05e6, 1e7)) * math.exp(slope * off))
    assert free["loss"] == pytest.approx(
        float(paper.loss(1.05e6, 1e7)) * (1 + float(paper.curvature(slope * off, off)))
    )
    assert floored["lr"] == pytest.approx(float(paper.lr(1.05e6, 1e7)) * (160 / 1280) ** slope)
    # At the law's own clips the rate of a floored law is its rate at one clip.
    assert plan(small, Request(params=1.05e6, tokens=1e7))["lr"] == pytest.approx(float(paper.lr(1.05e6, 1e7)))


def test_clips_that_are_not_the_laws_are_warned_about(paper):
    said = plan(paper, Request(flops=1e20, n_ctx=80))["warnings"]
    (clips,) = [text for text in said if "clips" in text]
    assert "clips of 80 tokens, but the law's have 1280" in clips
    assert "N_opt (measured, predicted)" in clips
    assert not any("the law's have" in text for text in plan(paper, Request(flops=1e20, n_ctx=1280))["warnings"])


def test_a_loss_is_reached_with_the_batch_that_is_given(paper):
    """What a batch off its best costs is trained for."""
    free = plan(paper, Request(params=1e8, loss=0.545))
    large = plan(paper, Request(params=1e8, loss=0.545, batch=8 * free["B"]))
    assert [p["loss"] for p in (free, large)] == pytest.approx([0.545, 0.545], rel=1e-7)
    assert large["T"] > 1.02 * free["T"]
    # One clip where the law's batch is a ninth of it costs as well.
    assert plan(paper, Request(params=1e6, loss=1.75))["loss"] == pytest.approx(1.75, rel=1e-7)
    assert plan(paper, Request(loss=0.545, batch=8 * free["B"]))["loss"] == pytest.approx(0.545, rel=1e-7)
    with pytest.raises(UserError, match=r"batches of 9.984e\+14 tokens"):
        plan(paper, Request(params=1e8, loss=0.503, batch=9.984e14))


def test_the_unit_of_a_law_changes_no_plan(paper):
    """Constants in single tokens and parameters, not in 1e9 of them."""
    loss, one = paper.loss, {"T": 1.0, "N": 1.0}
    plain = dataclasses.replace(
        paper,
        loss=dataclasses.replace(loss, Tc=loss.Tc * 1e9**loss.aT, Nc=loss.Nc * 1e9**loss.aN, scale=one),
        **{
            part: dataclasses.replace(law, coefficient=law.coefficient * 1e9 ** -(law.T + law.N), scale=one)
            for part, law in (("batch", paper.batch), ("lr", paper.lr))
        },
    )
    for request in (Request(flops=1e21), Request(loss=0.53), Request(flops=1e20, serve_clips=1e8)):
        first, second = plan(paper, request), plan(plain, request)
        assert first.pop("N_opt") == pytest.approx(second.pop("N_opt"), rel=1e-9)
        for name in ("N", "T", "B", "lr", "loss", "C"):
            assert first[name] == pytest.approx(second[name], rel=1e-6), name


def test_a_plan_of_few_steps_is_warned_about(paper):
    few = plan(paper, Request(params=1e6, tokens=1e7, batch=1280000))
    assert few["steps"] == 8
    assert any("only 8 steps" in text for text in few["warnings"])
    assert not any("steps" in text for text in plan(paper, Request(flops=1e20))["warnings"])
