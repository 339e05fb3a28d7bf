"""A cell is stopped only where nothing speaks for it."""

import json
from pathlib import Path

import numpy as np
import pytest

from scaling.hopeless import hopeless

CLIPS = 30


@pytest.fixture
def make(tmp_path: Path):
    """Writes a run's folder; clips differ by much, and alike in all runs."""
    clips = np.random.default_rng(0).normal(0, 0.1, (CLIPS, 1))

    def write(name: str, loss: float, own: float = 0.001, nominal: int = 100, N: int = 7, paired: bool = True) -> Path:
        folder = tmp_path / name
        (folder / "validation").mkdir(parents=True)
        noise = np.random.default_rng(len(name)).normal(0, own, (CLIPS, 1))
        losses = clips - clips.mean() + noise - noise.mean() + loss
        scores = {"nominal": nominal, "tokens": nominal, "ema_val_loss": loss, "ema_val_se": 0.1}
        (folder / "result.json").write_text(json.dumps({"N": N, "milestones": [scores] if nominal else []}))
        if paired:
            np.save(folder / "validation" / f"{nominal}.npy", np.stack([losses * np.nan, losses]))
        return folder

    return write


def test_behind_by_the_margin_and_by_the_error_of_the_pair(make) -> None:
    best = make("best", 1.0)
    assert "26% above the best" in hopeless(make("behind", 1.26), [make("middling", 1.1), best])
    assert hopeless(make("near", 1.24), [best]) is None  # within the margin
    assert hopeless(make("unsure", 1.3, own=0.35), [best]) is None  # within six standard errors of the pair
    assert hopeless(make("alone", 1.3, paired=False), [best]) is None  # 0.3 is two standard errors unpaired
    assert hopeless(make("far", 2.0, paired=False), [best]) is not None
    damaged = make("damaged", 1.3)
    (damaged / "validation" / "100.npy").write_bytes(b"no samples")
    assert hopeless(damaged, [best]) is None  # as unpaired


def test_only_its_own_size_at_its_own_tokens(make) -> None:
    mine = make("mine", 2.0)
    assert hopeless(mine, [make("later", 1.0, nominal=200), make("larger", 1.0, N=8)]) is None
    assert hopeless(mine, []) is None
    assert hopeless(make("begun", 2.0, nominal=0), [mine]) is None
