"""The tool that trains the shipped autoencoder: its baselines, its resume, its refusals."""

import pytest
import torch

from videoscaling.data.sources.synthetic import render
from videoscaling.models.fidelity import squared_errors
from videoscaling.models.vae import load_vae
from videoscaling.tools import train_vae
from videoscaling.utils.errors import UserError

SETTINGS = {"steps": 3, "batch": 2, "lr": 1e-3, "seed": 0, "device": "cpu"}
RECORD = {"parameters": 0, "date": "", "command": "", "psnr": {"autoencoder": {"pooled": 0, "per_clip": 0}}}
RECORD["psnr"]["pca_of_clips"] = RECORD["psnr"]["autoencoder"]


def test_psnr_is_of_a_peak_of_two():
    assert train_vae.psnr(4.0) == 0
    assert train_vae.psnr(0.04) == pytest.approx(20)


def test_components_are_those_of_svd():
    samples = torch.randn(40, 12, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 13)
    centred = samples - samples.mean(0)
    leading = torch.linalg.svd(centred, full_matrices=False)[2][:5]
    expected = centred @ leading.T @ leading + samples.mean(0)
    torch.testing.assert_close(
        train_vae._project(samples, *train_vae._components(samples, 5)), expected, atol=1e-3, rtol=0
    )
    # the other Gram matrix, where there are fewer samples than numbers
    wide = samples.T.contiguous()
    centred = wide - wide.mean(0)
    leading = torch.linalg.svd(centred, full_matrices=False)[2][:5]
    expected = centred @ leading.T @ leading + wide.mean(0)
    torch.testing.assert_close(train_vae._project(wide, *train_vae._components(wide, 5)), expected, atol=1e-3, rtol=0)


def test_baselines_see_whole_clips():
    clips = render(torch.arange(40), 0)
    # one component fewer than clips span all they were fitted on
    torch.testing.assert_close(train_vae.pca_of_clips(clips, clips, 39), clips, atol=1e-2, rtol=0)
    # a clip that is constant in each block needs one component per colour
    colours = torch.rand(60, 3, 5, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    frames = torch.tensor([0] + [1 + i // 4 for i in range(16)])
    flat = colours[:, :, frames].repeat_interleave(8, 3).repeat_interleave(8, 4)
    torch.testing.assert_close(train_vae.pca_of_blocks(flat, flat), flat, atol=1e-3, rtol=0)
    error = (train_vae.pca_of_blocks(clips, clips) - clips).pow(2).mean().item()
    assert 18 < train_vae.psnr(error) < 30  # blocks put back in their places: anything else is near 11 dB


def test_resume_is_seamless(tmp_path, monkeypatch):
    narrow = {"block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 16)}
    monkeypatch.setattr(train_vae, "ARCHITECTURE", train_vae.ARCHITECTURE | narrow)
    whole = train_vae.train(SETTINGS, tmp_path / "a.pt").state_dict()
    monkeypatch.setattr(train_vae, "SAVE_SECONDS", -1)

    def break_at_step_2(index, *args):
        if index[0] == 2 * SETTINGS["batch"]:
            raise KeyboardInterrupt
        return render(index, *args)

    monkeypatch.setattr(train_vae, "render", break_at_step_2)
    with pytest.raises(KeyboardInterrupt):
        train_vae.train(SETTINGS, tmp_path / "b.pt")
    monkeypatch.setattr(train_vae, "render", render)
    resumed = train_vae.train(SETTINGS, tmp_path / "b.pt").state_dict()
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=0, rtol=0, msg=name)
    with pytest.raises(UserError, match="other settings"):
        train_vae.train(SETTINGS | {"lr": 2e-3}, tmp_path / "b.pt")


@pytest.mark.slow
def test_what_is_trained_here_is_loaded_as_any_other_and_knows_its_latents(tmp_path, monkeypatch):
    monkeypatch.setattr(train_vae, "WARM_UP", 5)
    monkeypatch.setattr(train_vae, "MEASURED", 128)
    made = train_vae.train(SETTINGS | {"steps": 40, "batch": 4, "lr": 3e-3}, tmp_path / "state.pt")
    train_vae.write(train_vae.finish(made, 0), tmp_path / "vae", RECORD)
    vae = load_vae(str(tmp_path / "vae"))
    clips = render(torch.arange(24), seed=9)
    latents = vae.encode(clips)
    error = squared_errors(clips, vae.decode(latents)).mean()
    assert error < 0.9 * clips.var()  # better than any one colour: 40 steps tell clips apart
    assert latents.mean((0, 2, 3, 4)).abs().max() < 0.25
    assert (latents.std((0, 2, 3, 4)) - 1).abs().max() < 0.25


def test_refusals(tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    for arguments, message in (
        (["--steps", "0"], "--steps must be above 0"),
        (["--lr", "nan"], "--lr must be above 0"),
        ([], "folder of something else"),
    ):
        monkeypatch.setattr("sys.argv", ["train_vae.py", "--out", str(tmp_path), *arguments])
        with pytest.raises(UserError, match=message):
            train_vae.main()
    assert (tmp_path / "notes.txt").exists()
