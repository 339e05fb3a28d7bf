"""Tables whose rows are optima: no grids around them, and what their losses share."""

import dataclasses

import numpy as np
import pytest

from tests.scaling import simulate
from tests.scaling.fitting.grids.test_fit import NOWHERE, SIZES, TOKENS, exponents, points
from videoscaling.scaling.fitting.grids import fit
from videoscaling.scaling.fitting.unsupported import UnsupportedFit
from videoscaling.scaling.runs import read
from videoscaling.utils.errors import UserError


def test_single_cells_are_not_optima_unless_said_to_be(paper, cost):
    table = points(paper, 1e-5, 0)
    with pytest.raises(UserError, match="--optima"):
        fit.fit(table, "all", fit.Options(), cost, NOWHERE)
    law = fit.fit(table, "all", fit.Options(optima=True), cost, NOWHERE).law
    # Noise-free optima: plain least squares in logs returns the planted exponents.
    assert exponents(law)[:4] == pytest.approx((0.808, 0.1906, -0.0453, -0.1619))


def test_optima_may_repeat_where_their_losses_agree(paper, cost):
    table = simulate.run_table(paper, [(N, np.nan, np.nan) for N in SIZES for _ in range(2)], TOKENS, 1e-5, n_ctx=1280)
    same = dataclasses.replace(table, seed=np.zeros_like(table.seed))
    for repeated in (table, same):
        assert len(fit.fit(repeated, "all", fit.Options(optima=True), cost, NOWHERE).points.N) == 50
    apart = dataclasses.replace(same, loss=same.loss * np.where(np.arange(50) == 7, 1.02, 1))
    with pytest.raises(
        UnsupportedFit, match=r"1 \(N, T\) have several losses .*\n  N 1.68e\+07, T 4.899e\+09: 2 losses"
    ):
        fit.fit(apart, "all", fit.Options(optima=True), cost, NOWHERE)


def test_optima_of_runs_have_intervals(paper, cost):
    table = points(paper, 1e-4, 0)
    noisy = dataclasses.replace(table, B=table.B * np.exp(0.1 * np.random.default_rng(0).standard_normal(25)))
    low, high = fit.fit(noisy, "all", fit.Options(optima=True), cost, NOWHERE).law.fit["intervals"]["batch.T"]
    # The standard error of a regression: noise over the spread of ln T.
    expected = 0.1 / np.std(np.log(noisy.T)) / 5
    assert (high - low) / 2 == pytest.approx(2.06 * expected, rel=0.4)


def test_clips_are_an_error_that_rows_said_to_be_optima_share_too(paper, cost, tmp_path):
    """Their standard errors are the clips', which all share: they identify neither Huber's delta nor the scatter."""
    table, random = points(paper, 1e-4, 0), np.random.default_rng(0)
    by_clip = 1 + 0.2 * random.standard_normal(64)
    by_clip /= by_clip.mean()
    files = [str(tmp_path / f"{i}.npy") for i in range(len(table))]
    for file, loss in zip(files, table.loss):
        np.save(file, np.broadcast_to((loss * by_clip)[None, :, None], (2, 64, 4)))
    folder = dataclasses.replace(table, samples=np.array(files), loss_se=0.025 * table.loss)
    alone, law = (fit.fit(x, "loss", fit.Options(optima=True), cost, NOWHERE).law for x in (table, folder))
    assert "64 validation clips resampled" in law.fit["method"]
    assert law.fit["delta"] == pytest.approx(1.345e-4, rel=0.5)
    width = np.std(np.log(law.drawn("loss")(1e8, 5e9)))
    assert width == pytest.approx(np.std(by_clip) / 8, rel=0.1)
    # An outlier weighs little, as it does where the noise is known.
    moved = [
        fit.fit(
            dataclasses.replace(x, loss=x.loss * np.where(np.arange(25) == 7, 1.01, 1)),
            "loss",
            fit.Options(optima=True),
            cost,
            NOWHERE,
        ).law.loss(1e9, 2e10)
        / x_law.loss(1e9, 2e10)
        - 1
        for x, x_law in ((table, alone), (dataclasses.replace(folder, samples=table.samples), law))
    ]
    assert abs(moved[1]) < 2 * abs(moved[0]) + 1e-4


def test_chinchilla_intervals_overlap_the_published(public_data, cost, tmp_path):
    rows = public_data("epoch_chinchilla/svg_extracted_data.csv")
    fifth = sorted(float(r["loss"]) for r in rows)[-5]
    lines = ["N,flops,loss"]
    lines += [f"{r['Model Size']},{r['Training FLOP']},{r['loss']}" for r in rows if float(r["loss"]) < fifth]
    (tmp_path / "points.csv").write_text("\n".join(lines))
    table = read(tmp_path / "points.csv", hyperparameters=False)
    law = fit.fit(table, "loss", fit.Options(optima=True), cost, NOWHERE).law
    assert law.fit["objective"] <= 1.018275e-3
    assert "bootstrap" in law.fit["method"]
    loss, spans = law.loss, law.fit["intervals"]
    drawn = law.drawn("loss")
    # From the law's units to parameters and tokens, draw by draw: coefficient and exponent move together.
    A = np.quantile(drawn.Nc * loss.scale["N"] ** drawn.aN, [0.025, 0.975])
    B = np.quantile(drawn.Tc * loss.scale["T"] ** drawn.aT, [0.025, 0.975])
    published = [
        (A, (285, 744)),
        (B, (1042, 5810)),
        (spans["loss.Linf"], (1.769, 1.871)),
        (spans["loss.aN"], (0.317, 0.373)),
        (spans["loss.aT"], (0.331, 0.415)),
    ]
    for (low, high), (theirs_low, theirs_high) in published:
        overlap = min(high, theirs_high) - max(low, theirs_low)
        assert overlap >= 0.9 * (theirs_high - theirs_low)
