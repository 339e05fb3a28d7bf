"""The configurations that are there to start from: each plans the run, or the grid, that its comments name."""

from pathlib import Path

import pytest

from tests.commands import call
from videoscaling import ROOT
from videoscaling.scaling import law_file
from videoscaling.sweeps.grid import load_sweep
from videoscaling.tools.sweep import prediction

# (Frames, height, width) of pixels, and tokens per clip by autoencoders of 4 frames and 8 x 8 pixels a latent.
CLIPS = {"cogvideox-256": (17, 256, 256, 1280), "wan-480p": (81, 480, 480, 18900)}


@pytest.mark.parametrize("name", CLIPS)
def test_a_configuration_is_a_run_on_the_clips_that_it_names(name: str) -> None:
    frames, height, width, n_ctx = CLIPS[name]
    assert ((frames - 1) // 4 + 1) * (height // 16) * (width // 16) == n_ctx  # patches of 1 x 2 x 2 latents
    path = ROOT / "configs" / "train" / f"{name}.yaml"
    text = path.read_text()
    assert f"--size {height} --frames {frames} --out caches/{name}" in text
    done = call("train.py", "--config", path, "--dry-run", "--account", "--n-ctx", n_ctx, "--gpus", 8)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stdout
    assert f"clips of {n_ctx:,} tokens" in done.stdout


def test_the_papers_ladder_holds_its_largest_sizes_out(tmp_path: Path) -> None:
    meta = {"latent_shape": [16, 5, 32, 32], "fingerprint": "f00d"}
    path = ROOT / "configs" / "sweep" / "paper.yaml"
    sweep = load_sweep(path, [f"out={tmp_path}"], lambda config: meta, prediction)
    fitted, held = ([cell for cell in sweep.cells if cell.config.heldout == out] for out in (False, True))
    assert (len(fitted), len(held)) == (4 * 15, 2)
    assert {cell.N for cell in fitted} == {16 * 16 * 256**2, 16 * 14 * 512**2, 16 * 16 * 704**2, 16 * 16 * 1024**2}
    law = law_file.load(ROOT / "configs" / "laws" / "paper.json")
    for cell in held:  # at the law's pair, the batch a whole number of clips
        lr, batch = law.best_pair(cell.N, 4e9)
        assert cell.config.optim.lr == pytest.approx(lr, rel=0.01)
        assert cell.config.train.batch_tokens == pytest.approx(batch, rel=0.02)
