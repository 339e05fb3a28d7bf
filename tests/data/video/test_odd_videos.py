"""Odd videos, kind by kind: kept with the frames that ffmpeg plays."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.data.video.odd_videos import MATRICES, backends, packed, played, remux, reorders, shown_by
from tests.data.video.videos import make_video, orient, source
from videoscaling.data.sources.source import Rejected
from videoscaling.data.video.clips import ClipOptions, Shape, load_clips
from videoscaling.data.video.decode import frame_reader
from videoscaling.data.video.probe import probe


def every_backend(path, numbers) -> list[np.ndarray]:
    frames = []
    for backend in backends():
        with frame_reader(source(path), probe(source(path)), backend) as read:
            frames.append(read(numbers))
    return frames


@pytest.mark.parametrize("matrix", MATRICES)
def test_all_display_matrices_are_applied(tmp_path, matrix):
    path = make_video(tmp_path / "x.mp4", frames=4, height=48, width=64)
    expected = shown_by(matrix, played(path)[[1, 3]])
    for frames in every_backend(orient(path, *matrix), [1, 3]):
        assert np.array_equal(frames, expected)


def test_a_matrix_of_no_quarter_turn_is_rejected_and_one_that_is_nearly_none_is_read(tmp_path):
    path = make_video(tmp_path / "x.mp4", frames=4)
    stored = played(path)[[1]]
    orient(path, 0.7, 0.7, -0.7, 0.7)
    for backend in backends():
        with frame_reader(source(path), probe(source(path)), backend) as read, pytest.raises(Rejected) as caught:
            read([1])
        assert caught.value.reason == "tilted"
    for matrix, expected in (
        ((2, 0, 0, -1), stored[:, ::-1]),
        ((0, 0, 0, 0), stored),
        ((-1, 0.01, 0, 1), stored[:, :, ::-1]),
    ):
        for frames in every_backend(orient(path, *matrix), [1]):
            assert np.array_equal(frames, expected)


@pytest.mark.parametrize("frames", [39, 30])
def test_packed_b_frames_are_read(tmp_path, frames):
    path = packed(tmp_path / "x.avi", frames)
    found, expected = probe(source(path)), played(path)
    assert len(found.times) == len(expected) >= frames - 1
    assert found.counted
    assert np.diff(found.times).tolist() == [1] * (len(expected) - 1)
    assert found.tick == Fraction(1, 24)
    for numbers in ([0, 1, 2], [20], [len(expected) - 1]):
        for pictures in every_backend(path, numbers):
            assert np.array_equal(pictures, expected[numbers])
    clips = load_clips(source(path), ClipOptions(Shape(13, 48)))
    assert len(clips.keys) == len(expected) // 13
    assert not clips.rejected


def test_equal_time_stamps_reject_nothing(tmp_path):
    plain = make_video(tmp_path / "plain.mkv", coding={"bf": "0", "g": "10"})
    assert not reorders(plain)
    path = remux(plain, tmp_path / "x.mkv", [n - n % 2 for n in range(30)], "mkv")
    found, expected = probe(source(path)), played(plain)
    assert len(found.times) == 30
    assert found.times[2] == found.times[3] < found.times[4]
    for numbers in ([3], [2, 3, 17, 29]):
        for pictures in every_backend(path, numbers):
            assert np.array_equal(pictures, expected[numbers])


@pytest.mark.parametrize("name", ["x.ts", "x.mkv"])
def test_time_stamps_that_go_back_keep_the_order_in_which_frames_are_played(tmp_path, name):
    path = make_video(tmp_path / name, coding={"bf": "2", "g": "10"})
    once = played(path)
    path.write_bytes(path.read_bytes() * 2)
    found = probe(source(path))
    assert len(found.times) == 60
    assert list(found.times) == sorted(found.times)
    assert found.seconds == pytest.approx(60 / 24, abs=0.1)
    for pictures in every_backend(path, [28, 29, 31, 59]):
        assert np.array_equal(pictures[1:], once[[29, 1, 29]])


@pytest.mark.parametrize("tail", [b"\r\n", bytes(3000), b"Dear diary, no video today.\n" * 50])
@pytest.mark.parametrize(
    ("name", "video"),
    [
        ("x.mp4", {}),
        ("fast_start.mp4", {"options": {"movflags": "faststart"}}),
        ("x.gif", {"codec": "gif", "pix_fmt": "rgb8"}),
        ("x.mkv", {}),
        ("x.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    ],
)
def test_bytes_behind_the_end_are_no_truncation(tmp_path, name, video, tail):
    path = make_video(tmp_path / name, frames=12, **video)
    found, content = probe(source(path)), path.read_bytes()
    path.write_bytes(content + tail)
    assert probe(source(path)) == found
    assert np.array_equal(every_backend(path, [11])[0], played(path)[[11]])
    # In the file itself a byte is missing, which what lies behind does not replace.
    path.write_bytes(content[:-1])
    if name != "x.avi":  # its last bytes are padding that its length counts
        with pytest.raises(Rejected, match="truncated"):
            probe(source(path))


@pytest.mark.parametrize("name", ["é", "\udce9"])
def test_packed_videos_of_any_name_are_read(tmp_path, name):
    path = packed(Path(f"{tmp_path}/{name}.avi"), 20)
    assert len(load_clips(source(path), ClipOptions(Shape(5, 32))).keys) == len(played(path)) // 5
