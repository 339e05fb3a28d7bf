"""Features of motion, against clips whose motion is known."""

import pytest
import torch

from videoscaling.data.sources.synthetic import render
from videoscaling.tools.quality.corruptions import corrupted
from videoscaling.tools.quality.kernel_distance import kernel_distance
from videoscaling.tools.quality.motion import LEAST, motion_features
from videoscaling.utils.errors import UserError


def test_by_hand() -> None:
    """A grey level that rises by 0.02 a frame: differences grow with the lag; a still clip has the least of all."""
    rising = (0.02 * torch.arange(9.0)).view(1, 1, 9, 1, 1).expand(1, 3, 9, 4, 6)
    levels = torch.tensor([0.02, 0.04, 0.08, 0.16]) + LEAST
    wanted = torch.cat([levels[:1].log10(), (levels[1:] / levels[:-1]).log2()])
    torch.testing.assert_close(motion_features(rising), wanted.view(1, 1, 4), rtol=1e-5, atol=1e-6)
    still = motion_features(torch.ones(2, 3, 9, 4, 6))
    torch.testing.assert_close(still[1, 0], torch.tensor([LEAST, 1, 1, 1]).log10(), rtol=1e-5, atol=1e-6)
    assert motion_features(rising[:, :, :3]).shape == (1, 1, 2)  # lags 1 and 2 alone


def test_independent_of_look_and_of_direction() -> None:
    clips = 0.5 * render(torch.arange(6), 1)
    for same in (-clips, clips.flip(-1), clips.flip(2), clips + 0.3):
        torch.testing.assert_close(motion_features(same), motion_features(clips), rtol=1e-4, atol=1e-5)


def test_damaged_time_is_far_from_real() -> None:
    """Each corruption of time is beyond any distance of real clips."""
    reference, others = render(torch.arange(80), 1).split(40)
    real = kernel_distance(motion_features(reference), motion_features(others))
    assert real.low < 0 < real.high
    damaged = corrupted(others, seed=0)
    for name in ("shuffled", "repeated", "noise"):
        assert kernel_distance(motion_features(reference), motion_features(damaged[name])).low > 3 * real.high, name


def test_pictures_have_no_motion() -> None:
    with pytest.raises(UserError, match="clips of one frame"):
        motion_features(torch.zeros(4, 3, 1, 8, 8))
