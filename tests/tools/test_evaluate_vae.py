"""tools/evaluate_vae.py: the scores are those of the clips, and what cannot be read is named."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.video.videos import make_video
from videoscaling.data.sources.synthetic import render
from videoscaling.models.fidelity import psnr
from videoscaling.models.vae import load_vae
from videoscaling.tools import evaluate_vae
from videoscaling.tools.quality.reconstructions import HELD_OUT
from videoscaling.utils.errors import UserError


def evaluate(monkeypatch, capsys, *options: str) -> tuple[dict, str]:
    monkeypatch.setattr(sys, "argv", ["evaluate_vae.py", *options, "--json"])
    evaluate_vae.main()
    printed = capsys.readouterr()
    return json.loads(printed.out), printed.err


def test_synthetic_clips_score_as_the_vae_does(monkeypatch, capsys, tmp_path):
    found, _ = evaluate(monkeypatch, capsys, "--clips", "6", "--picture", str(tmp_path / "p.png"))
    clips, vae = render(torch.arange(6), HELD_OUT), load_vae("embedded")
    latents = vae.encode(clips)
    error = (vae.decode(latents) - clips).pow(2).mean().item()
    assert found["all"]["psnr"] == pytest.approx(psnr(error), abs=0.01)
    assert found["all"]["clips"] == 6
    assert 0.7 < found["all"]["ssim"] < 1
    assert found["latents"]["std"] == pytest.approx(latents.std((0, 2, 3, 4)).tolist(), abs=1e-3)
    # Four clips of four frames above what became of them, each pixel three wide.
    picture = Image.open(tmp_path / "p.png")
    assert picture.width > 16 * 3 * 32
    assert picture.height > 2 * 3 * 32
    # Both rows and each clip are named on white: at the left and above.
    left, above = (np.asarray(part) for part in (picture.crop((0, 20, 40, 216)), picture.crop((60, 0, 1600, 14))))
    rows = np.flatnonzero((left < 128).any(axis=(1, 2)))
    assert rows.min() < 98 < rows.max()
    columns = np.flatnonzero((above < 128).any(axis=(0, 2)))
    assert np.sum(np.diff(columns) > 100) == 3  # gaps between four names


def test_a_folder_is_scored_by_video_and_the_unreadable_named(monkeypatch, capsys, tmp_path):
    for number, height in enumerate((48, 64)):
        make_video(tmp_path / f"{number}.mp4", height=height)
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    found, reported = evaluate(monkeypatch, capsys, "--source", str(tmp_path), "--size", "32x40")
    assert [row["source"] for row in found["sources"]] == ["0.mp4", "1.mp4"]
    assert "broken.mp4: " in reported
    scores = [row["psnr"] for row in found["sources"]]
    assert all(10 < score < 40 for score in scores)
    assert min(scores) < found["all"]["psnr"] < max(scores)


def test_what_cannot_be_scored_is_said_before_any_work(monkeypatch, capsys, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    for options, message in (
        (["--size", "8"], "--size at least 11"),
        (["--size", "32x36"], "width 36: this VAE takes multiples of 8"),
        (["--frames", "16"], "16 frames: this VAE takes 4k"),
        (["--source", str(tmp_path)], "no video in it can be used"),
        (["--vae", str(tmp_path)], "no config.json"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(monkeypatch, capsys, *options)
