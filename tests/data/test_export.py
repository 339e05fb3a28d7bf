"""Clips as files: every writer refuses NaN and infinity, which as bytes would be black."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from videoscaling.data.export import WRITERS, gif_bytes, to_bytes, write_grid
from videoscaling.utils.finiteness import NotFinite


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_writer_takes_what_is_not_finite(value: float, tmp_path: Path) -> None:
    clip = torch.zeros(3, 2, 16, 16)
    clip[1, 1, 3, 4] = value
    for name, write in WRITERS.items():
        with pytest.raises(NotFinite, match="NaN or infinite"):
            write(tmp_path / f"clip.{name}", clip, 8, "")
    with pytest.raises(NotFinite):
        write_grid(tmp_path / "grid.gif", [torch.zeros(3, 2, 16, 16), clip], ["a", "b"], 2, 8)
    with pytest.raises(NotFinite):
        gif_bytes(clip, 8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fps", "milliseconds"), [(8, 120), (15, 70), (17.5, 60), (24, 40), (30, 30), (50, 20), (60, 20), (120, 20)]
)
def test_a_gifs_frames_last_as_long_as_they_can_be_nearest(fps: float, milliseconds: int) -> None:
    clip = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert Image.open(io.BytesIO(gif_bytes(clip, fps))).info["duration"] == milliseconds


def test_bytes_are_the_colours() -> None:
    clip = torch.tensor([-2.0, -1.0, 0.0, 1.0]).expand(3, 1, 1, 4)
    np.testing.assert_array_equal(to_bytes(clip)[0, 0, :, 0], [0, 0, 128, 255])
