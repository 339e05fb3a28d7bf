"""Planted laws: what the law's own pair costs on a local grid is known."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.scaling import simulate
from videoscaling.models import sizes
from videoscaling.scaling import law_file
from videoscaling.scaling.checks.heldout import check, relative_error
from videoscaling.scaling.planning.plan import plan
from videoscaling.scaling.planning.request import Request
from videoscaling.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
N, T = 0.72e9, 2e10
NOISE = 2e-4


def local_grid(law, x, y, seed, noise=NOISE):
    """3 x 3 cells, a factor of 2 apart, around what a law says whose optimum is off the true one by e^x and e^y."""
    off = dataclasses.replace(
        law,
        lr=dataclasses.replace(law.lr, coefficient=law.lr.coefficient * np.exp(x)),
        batch=dataclasses.replace(law.batch, coefficient=law.batch.coefficient * np.exp(y)),
    )
    table = simulate.run_table(law, simulate.grid(off, [N], [T], 3, 3, 2.0), [T], noise, seed=seed, n_ctx=0)
    return off, dataclasses.replace(table, heldout=np.ones(len(table), dtype=bool))


def test_without_noise_regret_and_distance_are_the_planted_ones(paper):
    x, y = 0.25, 0.2
    off, table = local_grid(paper, x, y, 0, noise=1e-9)
    (entry,) = check(table, off)
    assert entry["verdict"] == "interior"
    assert entry["steps"]["lr"] == pytest.approx(x / np.log(2), abs=1e-3)
    assert entry["steps"]["B"] == pytest.approx(y / np.log(2), abs=1e-3)
    # The minimum is sought on a raster of 61 points: within the square of half its step.
    raster = paper.curvature.batch_batch * (np.log(4) / 60) ** 2
    assert entry["regret"]["value"] == pytest.approx(float(paper.curvature(x, y)), abs=raster)
    assert entry["loss"]["error"] == pytest.approx(0, abs=1e-5)


def test_the_laws_pair_is_the_one_that_a_plan_takes(paper):
    """The batch was rounded to whole clips, while the rate stayed that of the unrounded one."""
    surface = law_file.load(ROOT / "results" / "study" / "law.json")
    for law, n_ctx, size, tokens in ((paper, 90_000, N, T), (surface, 1_000, 131_072, 1.6e6)):
        cells = simulate.grid(paper, [size], [tokens], 3, 3, 2.0)
        table = simulate.run_table(paper, cells, [tokens], NOISE, n_ctx=n_ctx)
        (entry,) = check(dataclasses.replace(table, heldout=np.ones(len(table), dtype=bool)), law)
        planned = plan(law, Request(params=size, tokens=tokens, n_ctx=n_ctx), sizes)
        assert entry["law"] == {"lr": pytest.approx(float(planned.lr.value)), "B": planned.B}
        # Rounding moves either rate by more than its last digits.
        assert abs(np.log(entry["law"]["lr"] / law.best_pair(size, tokens)[0])) > 0.05


def test_a_loss_above_its_prediction_errs_upwards(paper):
    _, table = local_grid(paper, 0, 0, 0, noise=1e-9)
    (entry,) = check(dataclasses.replace(table, loss=1.03 * table.loss), paper)
    assert entry["loss"]["error"] == pytest.approx(0.03, abs=1e-5)
    assert relative_error([2.0, 1.0], 2.0).tolist() == [0.0, -0.5]


@pytest.mark.slow
def test_the_interval_of_the_regret_covers(paper):
    true, inside, wide = float(paper.curvature(0.25, 0.2)), 0, []
    for seed in range(200):
        off, table = local_grid(paper, 0.25, 0.2, seed)
        regret = check(table, off, NOISE, 8)[0]["regret"]
        inside += regret["low"] <= true <= regret["high"]
        wide.append(regret["high"] - regret["low"])
    print(inside / 200, np.median(wide), true)
    assert inside >= 0.9 * 200
    assert np.median(wide) < 20 * NOISE  # and says something


def test_noise_known_from_repeats_replaces_the_luck_of_three_spare_cells(paper):
    spans = {
        freedom: [
            (r := check(local_grid(paper, 0.4, 0, seed)[1], paper, NOISE, freedom)[0]["regret"])["high"] - r["low"]
            for seed in range(30)
        ]
        for freedom in (0, 100)
    }
    assert np.std(spans[100]) < np.std(spans[0]) / 2
    assert np.mean(spans[100]) < np.mean(spans[0])


def test_a_row_of_cells_tells_distance_and_error_but_no_regret(paper):
    _, table = local_grid(paper, 0, 0, 0)
    one_batch = np.isclose(table.B, table.B.min())
    (entry,) = check(table.rows(one_batch), paper)
    assert entry["regret"] is None
    assert entry["steps"]["B"] > 0
    assert isinstance(entry["loss"]["measured"], float)


def test_repeats_on_other_samples_do_not_move_the_best_cell(paper):
    """The law's own cell again, on samples that are easier by ten steps' worth: the check is as without."""
    off, table = local_grid(paper, 0.5, 0.4, 0, noise=1e-9)
    shared = dataclasses.replace(table, stream=np.zeros(9, dtype=int))
    again = shared.rows(np.full(3, 4))
    again = dataclasses.replace(again, loss=0.9 * again.loss, stream=np.arange(1, 4), run_id=np.array(["a", "b", "c"]))
    both = {f.name: getattr(shared, f.name) for f in dataclasses.fields(shared)}
    both |= {
        name: np.concatenate([value, getattr(again, name)])
        for name, value in both.items()
        if isinstance(value, np.ndarray) and len(value) == 9
    }
    (alone,), (found,) = check(shared, off), check(dataclasses.replace(shared, **both), off)
    assert found == alone
    # Repeats of every cell count alike: nothing is dropped.
    twice = {
        name: np.concatenate([v, v]) if isinstance(v, np.ndarray) and len(v) == 9 else v
        for name, v in {f.name: getattr(shared, f.name) for f in dataclasses.fields(shared)}.items()
    }
    twice |= {"stream": np.repeat([0, 1], 9), "run_id": np.arange(18).astype(str)}
    (repeated,) = check(dataclasses.replace(shared, **twice), off)
    assert (repeated["cells"], alone["cells"]) == (18, 9)
    # Runs that share nothing are all kept.
    (unshared,) = check(dataclasses.replace(table, stream=np.arange(9)), off)
    assert unshared == alone


def test_nothing_held_out_is_said(paper):
    _, table = local_grid(paper, 0, 0, 0)
    with pytest.raises(UserError, match="no result of a held-out size"):
        check(dataclasses.replace(table, heldout=~table.heldout), paper)
