"""Planted scatter is found again, with an interval that covers it."""

import dataclasses

import numpy as np
import pytest

from tests.scaling import simulate
from videoscaling.scaling import noise

SIZES, TOKENS = [1e8, 4e8], [2e9, 4e9]


def repeated(law, seed, sd, repeats=6, n_ctx=0):
    cells = simulate.grid(law, SIZES, TOKENS, 1, 2, 2.0) * repeats
    return simulate.run_table(law, cells, TOKENS, sd, correlation=1.0, seed=seed, n_ctx=n_ctx)


def test_the_scatter_between_seeds_is_the_planted_one(paper):
    covered, values = 0, []
    for seed in range(100):
        rows = noise.between_seeds(repeated(paper, seed, 1e-3))
        assert [row["N"] for row in rows] == SIZES
        # Two cells of six runs each; the second T of a run is no second look at its noise.
        assert [row["freedom"] for row in rows] == [10, 10]
        values += [row["ema"]["value"] for row in rows]
        covered += sum(row["ema"]["low"] <= 1e-3 <= row["ema"]["high"] for row in rows)
    assert np.sqrt(np.mean(np.square(values))) == pytest.approx(1e-3, rel=0.05)
    assert covered >= 180


def test_raw_weights_have_a_scatter_of_their_own(paper):
    table = repeated(paper, 0, 1e-3)
    rough = dataclasses.replace(table, raw_loss=table.loss * np.random.default_rng(1).normal(1, 0.05, len(table)))
    row = noise.between_seeds(rough)[0]
    assert row["raw"]["value"] > 20 * row["ema"]["value"]


def test_without_repeats_nothing_is_said(paper):
    assert noise.between_seeds(repeated(paper, 0, 1e-3, repeats=1)) == []
    assert noise.of_validation(repeated(paper, 0, 1e-3)) == []


def test_pairs_share_the_clips(paper, tmp_path):
    """Clips differ by 10 %, runs by 0.1 % from clip to clip: a difference is known a hundred times better."""
    table = repeated(paper, 0, 1e-3, repeats=2)
    random, clips = np.random.default_rng(0), 400
    common, files = random.normal(1, 0.1, clips), []
    for row in range(len(table)):
        own = common * random.normal(1, 1e-3, clips) * table.loss[row] / common.mean()
        np.save(tmp_path / f"{row}.npy", np.tile(own[None, :, None], (2, 1, 1)))
        files.append(str(tmp_path / f"{row}.npy"))
    rows = noise.of_validation(dataclasses.replace(table, samples=np.array(files)))
    assert len(rows) == 4
    for row in rows:
        assert row["one"] == pytest.approx(0.1 / 20, rel=0.1)
        assert row["paired"] == pytest.approx(np.sqrt(2) * 1e-3 / 20, rel=0.15)


def test_what_a_larger_size_buys(paper):
    cells = simulate.grid(paper, SIZES, TOKENS, 5, 5, 1.5)
    steps = noise.steps_in_size(simulate.run_table(paper, cells, TOKENS, 1e-9))
    assert [(step["T"], step["N"], step["to"]) for step in steps] == [(T, *SIZES) for T in TOKENS]
    for step in steps:
        true = float(paper.loss(step["to"], step["T"]) / paper.loss(step["N"], step["T"])) - 1
        assert step["change"] == pytest.approx(true, abs=1e-6)
