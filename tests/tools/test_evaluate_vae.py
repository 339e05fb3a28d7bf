"""tools/evaluate_vae.py: the scores are those of the clips, and what cannot be read is named."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.video.videos import make_cut_video, make_video
from videoscaling.data import clip_groups
from videoscaling.data.sources import doom
from videoscaling.data.sources.source import Source
from videoscaling.data.sources.synthetic import render
from videoscaling.data.video import clips
from videoscaling.data.video.decode_workers import decoded
from videoscaling.models.fidelity import psnr
from videoscaling.models.vae import load_vae
from videoscaling.tools import evaluate_vae
from videoscaling.tools.quality import reconstructions
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
        (["--source", str(tmp_path), "--stride", "0"], "--stride must be at least 1"),
        (["--source", "doom", "--stride", "2"], "--stride: for videos; doom clips are rendered"),
        (["--picture", str(tmp_path)], "is a folder; name a file"),
        (["--vae", str(tmp_path)], "no config.json"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(monkeypatch, capsys, *options)


def test_held_out_levels_of_the_game_are_scored(monkeypatch, capsys):
    """The clips that a cache of the game validates on."""

    def play(walk, clips, seed, frames, validation):
        assert (seed, validation) == (0, True)
        pictures = np.random.default_rng(walk).integers(0, 256, (clips, frames, doom.HEIGHT, doom.WIDTH, 3), np.uint8)
        return [""] * clips, pictures

    monkeypatch.setattr(doom, "play", play)
    monkeypatch.setattr(doom, "game_version", lambda: "1")
    found, _ = evaluate(monkeypatch, capsys, "--source", "doom", "--clips", "34", "--frames", "1")
    assert [(row["source"], row["clips"]) for row in found["sources"]] == [("doom, held out", 34)]


def test_the_film_is_scored_within_its_shots(monkeypatch, capsys, tmp_path):
    """As one video: of shots of 12, 5 and 30 frames 1, none and 3 clips; a picture shows one of each."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    path = make_cut_video(tmp_path / "film.mp4", (12, 5, 30))
    film = [Source("film.mp4", path, "")]
    monkeypatch.setattr(reconstructions, "list_sources", lambda where, options: film)
    loaded = []
    load = clips.load_clips
    monkeypatch.setattr(
        clip_groups, "load_clips", lambda source, *rest: loaded.append(source.name) or load(source, *rest)
    )
    monkeypatch.setattr(reconstructions, "decoded", lambda units, workers: decoded(units, 0))
    shown = []
    monkeypatch.setattr(reconstructions, "picture", lambda path, *both: shown.append(both))
    found, _ = evaluate(monkeypatch, capsys, "--source", "film", "--frames", "9", "--picture", str(tmp_path / "p.png"))
    assert [(row["source"], row["clips"]) for row in found["sources"]] == [("film.mp4", 1 + 3)]
    assert loaded == ["film.mp4@0-0.5", "film.mp4@0.708333-1.958333"]
    ((clips_of, made_of),) = shown
    colours = clips_of["film.mp4"].mean(dim=(2, 3, 4)).argmax(dim=1)  # of make_cut_video: red, green, blue
    assert colours.tolist() == [0, 2]
    assert len(made_of[0]) == 2


def test_few_pixels_are_kept_of_many_videos(monkeypatch, capsys, tmp_path):
    """Of each video the pixels of as many clips as a picture shows, whatever was evaluated before it."""
    for number in range(3):
        make_video(tmp_path / f"{number}.mp4", frames=30)
    kept = []
    monkeypatch.setattr(reconstructions, "row", lambda name, parts: kept.append((name, parts)) or {"source": name})
    evaluate(monkeypatch, capsys, "--source", str(tmp_path), "--frames", "1", "--clips", "30")
    name, parts = kept[0]
    assert (name, len(parts)) == ("all", 3)
    for part in parts:
        assert len(part["error"]) == 30
        for pixels in (part["clips"], part["made"]):
            assert pixels.untyped_storage().nbytes() == 4 * reconstructions.SHOWN * 3 * 32 * 32
