"""The tool that trains the shipped autoencoder: its resume, its refusals."""

from dataclasses import replace

import pytest
import torch

from videoscaling.data.sources.synthetic import render
from videoscaling.models.fidelity import squared_errors
from videoscaling.models.vae import load_vae
from videoscaling.tools import train_vae
from videoscaling.utils.errors import UserError

SETTINGS = train_vae.Settings(steps=3, batch=2, lr=1e-3, device="cpu")
SCORES = {name: {"pooled": 0, "per_clip": 0} for name in ("autoencoder", "pca_of_clips")}
RECORD = {"settings": {"size": (32, 32)}, "parameters": 0, "date": "", "command": "", "psnr": SCORES}


def test_psnr_is_of_a_peak_of_two():
    assert train_vae.psnr(4.0) == 0
    assert train_vae.psnr(0.04) == pytest.approx(20)


def test_resume_is_seamless(tmp_path, monkeypatch):
    narrow = {"block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 16)}
    monkeypatch.setattr(train_vae, "ARCHITECTURE", train_vae.ARCHITECTURE | narrow)
    wide = replace(SETTINGS, size=(16, 24))
    trained = train_vae.train(wide, tmp_path / "a.pt")
    assert trained.encode(train_vae.held_out(wide)[:1]).latent_dist.mode().shape == (1, 16, 5, 2, 3)
    whole = trained.state_dict()
    monkeypatch.setattr(train_vae, "SAVE_SECONDS", -1)

    def break_at_step_2(index, *args):
        if index[0] == 2 * SETTINGS.batch:
            raise KeyboardInterrupt
        return render(index, *args)

    monkeypatch.setattr(train_vae, "render", break_at_step_2)
    with pytest.raises(KeyboardInterrupt):
        train_vae.train(wide, tmp_path / "b.pt")
    monkeypatch.setattr(train_vae, "render", render)
    resumed = train_vae.train(wide, tmp_path / "b.pt").state_dict()
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=0, rtol=0, msg=name)
    with pytest.raises(UserError, match="other settings"):
        train_vae.train(replace(wide, lr=2e-3), tmp_path / "b.pt")


@pytest.mark.slow
def test_what_is_trained_here_is_loaded_as_any_other_and_knows_its_latents(tmp_path, monkeypatch):
    monkeypatch.setattr(train_vae, "WARM_UP", 5)
    monkeypatch.setattr(train_vae, "MEASURED", 128)
    made = train_vae.train(replace(SETTINGS, steps=40, batch=4, lr=3e-3), tmp_path / "state.pt")
    train_vae.write(train_vae.finish(made, SETTINGS), tmp_path / "vae", RECORD)
    vae = load_vae(str(tmp_path / "vae"))
    clips = render(torch.arange(24), seed=9)
    latents = vae.encode(clips)
    error = squared_errors(clips, vae.decode(latents)).mean()
    assert error < 0.9 * clips.var()  # better than any one colour: 40 steps distinguish clips
    assert latents.mean((0, 2, 3, 4)).abs().max() < 0.25
    assert (latents.std((0, 2, 3, 4)) - 1).abs().max() < 0.25


@pytest.mark.parametrize("content", [b"", b"x", b"[" * 100_000, bytes(1000)])
def test_a_damaged_state_is_one_line(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(UserError, match="a.pt: damaged .*; remove it to start anew"):
        train_vae.train(SETTINGS, tmp_path / "a.pt")


def test_refusals(tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    for arguments, message in (
        (["--steps", "0"], "--steps 0: must be a number from 1"),
        (["--lr", "nan"], "--lr nan: must be a number from 1e-12"),
        (["--size", "32x33"], "--size 32x33: must be multiples of 8"),
        ([], "folder of something else"),
    ):
        monkeypatch.setattr("sys.argv", ["train_vae.py", "--out", str(tmp_path), *arguments])
        with pytest.raises(UserError, match=message):
            train_vae.main()
    assert (tmp_path / "notes.txt").exists()
