"""Losses by diffusion time, from planted validation losses."""

import json
from pathlib import Path

import numpy as np
import pytest

from videoscaling.diffusion.validation import validation_times
from videoscaling.tools.benchmarks.losses_by_time import losses_by_time, slopes_in_N
from videoscaling.utils.errors import UserError


def plant(folder: Path, name: str, *, N: int, T: int = 500, seed: int = 0, lr=1e-3, worse=1.0, times: int = 2) -> None:
    """A run whose loss at time t is N^-(0.1 t), to a few per cent between seeds, times ``worse``."""
    (folder / name / "validation").mkdir(parents=True)
    losses = worse * N ** (-0.1 * validation_times(256, times, 3).numpy()) * (1 + 0.03 * seed)
    milestone = {"nominal": T, "tokens": T + 80, **dict.fromkeys(("val_loss", "ema_val_loss"), float(losses.mean()))}
    result = {"status": "done", "N": N, "n_ctx": 80, "B": 320, "lr": lr, "seed": seed, "milestones": [milestone]}
    result["recipe"] = {"validation": f"86cd14b34a196f1f, all clips, {times} times, seed 3"}
    (folder / name / "result.json").write_text(json.dumps(result))
    np.save(folder / name / "validation" / f"{T + 80}.npy", np.stack([np.full_like(losses, np.nan), losses]))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    for N in (1000, 8000):
        for seed in (0, 1, 2):
            plant(tmp_path, f"{N}-{seed}", N=N, seed=seed)
    return tmp_path


def test_planted_slopes_are_found(study: Path) -> None:
    plant(study, "longer", N=8000, T=1000)  # of one seed: no repeated cell
    last, pairs, slopes = slopes_in_N(losses_by_time(study))
    assert (last, pairs) == (500, [(1000, 8000)])
    np.testing.assert_allclose(slopes[0], -0.1 * (np.arange(10) + 0.5) / 10, atol=4e-4)


@pytest.mark.parametrize("name", ["0", "9"])  # read before and after the best cell's
def test_the_best_of_a_sizes_repeated_cells_counts(study: Path, name: str) -> None:
    best = losses_by_time(study)
    for seed in (0, 1, 2):
        plant(study, f"{name}-{seed}", N=8000, seed=seed, lr=1e-2, worse=1.5)
    np.testing.assert_array_equal(losses_by_time(study)[8000, 500], best[8000, 500])


def test_what_has_no_answer_is_one_line(study: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"no result.json below it"):
        losses_by_time(tmp_path / "none")
    with pytest.raises(UserError, match="a slope needs two sizes"):
        slopes_in_N({(1000, 500): np.ones(10), (8000, 400): np.ones(10)})
    file = study / "1000-0" / "validation" / "580.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:200])
    with pytest.raises(UserError, match="580.npy: not the losses of each validation clip"):
        losses_by_time(study)
    file.unlink()
    with pytest.raises(UserError, match="1000-0 has no losses in validation/ at T 580"):
        losses_by_time(study)
    file.write_bytes(whole)
    plant(study, "other", N=1000, seed=5, times=4)
    with pytest.raises(UserError, match="different validation sets or times"):
        losses_by_time(study)


def test_single_runs_say_nothing(tmp_path: Path) -> None:
    plant(tmp_path, "alone", N=1000)
    with pytest.raises(UserError, match="no cell has 3 seeds"):
        losses_by_time(tmp_path)
