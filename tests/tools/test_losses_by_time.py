"""Losses by diffusion time, from planted validation losses."""

import json
from pathlib import Path

import numpy as np
import pytest

from videoscaling.diffusion.validation import validation_times
from videoscaling.tools.benchmarks.losses_by_time import losses_by_time, slopes_in_N
from videoscaling.utils.errors import UserError


def plant(folder: Path, name: str, N: int, T: int, seed: int) -> None:
    """A run whose loss at time t is N^-(0.1 t), to a few per cent between seeds."""
    (folder / name / "validation").mkdir(parents=True)
    milestone = {"nominal": T, "tokens": T + 80}
    recipe = {"validation": "86cd14b34a196f1f, 256 clips, 2 times, seed 3"}
    result = {"N": N, "B": 320, "lr": 1e-3, "recipe": recipe, "milestones": [milestone]}
    (folder / name / "result.json").write_text(json.dumps(result))
    losses = N ** (-0.1 * validation_times(256, 2, 3).numpy()) * (1 + 0.03 * seed)
    np.save(folder / name / "validation" / f"{T + 80}.npy", np.stack([np.full_like(losses, np.nan), losses]))


def test_planted_slopes_are_found(tmp_path: Path) -> None:
    for N in (1000, 8000):
        for seed in (-1, 0, 1):
            plant(tmp_path, f"{N}-{seed}", N, 500, seed)
    plant(tmp_path, "longer", 8000, 1000, 0)  # of one seed: no repeated cell
    last, pairs, slopes = slopes_in_N(losses_by_time(tmp_path))
    assert (last, pairs) == (500, [(1000, 8000)])
    np.testing.assert_allclose(slopes[0], -0.1 * (np.arange(10) + 0.5) / 10, atol=4e-4)


def test_single_runs_say_nothing(tmp_path: Path) -> None:
    plant(tmp_path, "alone", 1000, 500, 0)
    with pytest.raises(UserError, match="no cell has 3 seeds"):
        losses_by_time(tmp_path)
