"""Two hundred odd videos and more: kept with the frames that ffmpeg plays, or rejected as truncated."""

import os
import shutil
import subprocess
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data.clips import Reading, Shape, load_clips
from data.decode import check_backend, frame_reader
from data.listing import list_sources
from data.media import Rejected
from data.probe import probe
from tests.data.odd_videos import MATRICES, packed, remux, reorders, write_odd_videos
from tests.data.videos import make_video, orient, source
from utils.errors import UserError


def played(path) -> np.ndarray:
    """All frames in the order in which PyAV, which is ffmpeg's libraries, shows them, as they are stored."""
    frames = []
    with av.open(str(path), metadata_errors="ignore") as container:
        container.streams.video[0].thread_count = 1
        for packet in container.demux(video=0):
            frames += [frame.to_ndarray(format="rgb24") for frame in packet.decode()]
    return np.stack(frames)


def played_by_the_binary(path) -> bytes:
    """The same from the program ffmpeg, turned as it turns them, as the bytes of RGB."""
    words = [
        "ffmpeg",
        "-v",
        "error",
        "-nostdin",
        "-i",
        path,
        "-map",
        "0:v:0",
        "-vsync",
        "passthrough",
        "-f",
        "rawvideo",
    ]
    found = subprocess.run([*map(os.fsencode, words), b"-pix_fmt", b"rgb24", b"-"], capture_output=True, check=False)
    return found.stdout


def shown_by(matrix: tuple[int, int, int, int], frames: np.ndarray) -> np.ndarray:
    """Frames [n, H, W, 3] with every pixel moved where the matrix says."""
    a, b, c, d = matrix
    rows, columns = np.indices(frames.shape[1:3])
    to_column, to_row = a * columns + c * rows, b * columns + d * rows
    to_column, to_row = to_column - to_column.min(), to_row - to_row.min()
    turned = np.zeros((len(frames), to_row.max() + 1, to_column.max() + 1, 3), np.uint8)
    turned[:, to_row, to_column] = frames
    return turned


def backends() -> list[str]:
    usable = []
    for name in ("pyav", "decord", "torchcodec"):
        try:
            check_backend(name)
        except UserError:
            continue
        usable.append(name)
    return usable


@pytest.mark.slow
def test_odd_videos_are_kept_and_rejected_as_ffmpeg_plays_them(tmp_path):
    kinds = {path.name: kind for path, kind in write_odd_videos(tmp_path)}
    sources, table, wrong = list_sources(tmp_path), Counter(), []
    assert len(sources) == len(kinds) > 200
    usable = backends()
    for each in sources:
        kind = kinds[each.name]
        try:
            found = probe(each)
        except Rejected as error:
            table[kind, error.reason] += 1
            if (kind, error.reason) != ("truncated", "truncated"):
                wrong.append((each.name, str(error)))
            continue
        table[kind, "kept"] += 1
        if kind == "truncated":
            wrong.append((each.name, "kept"))
            continue
        expected = played(each.path)
        if kind == "matrix":
            expected = shown_by(tuple(map(int, each.path.stem.split("_")[3:])), expected)
        count, middle = len(expected), len(expected) // 2
        if len(found.times) != count:
            wrong.append((each.name, f"{len(found.times)} frames of {count}"))
            continue
        for backend in usable:
            exact = backend != "torchcodec" and (backend == "pyav" or "ten_bit" not in each.name)
            for numbers in (range(count), [count - 1], [middle, middle + 2], [count // 3], [0]):
                with frame_reader(each, found, backend) as read:
                    for asked in (numbers, [middle + 1]):
                        error = np.abs(read(asked).astype(int) - expected[list(asked)]).max()
                        if error > (0 if exact else 11):
                            wrong.append((each.name, backend, f"frames {asked} differ by up to {error}"))
        if shutil.which("ffmpeg"):
            # Another version, which interpolates colours otherwise: 3 levels on average.
            binary = np.frombuffer(played_by_the_binary(each.path), np.uint8)
            if binary.size != expected.size:
                wrong.append((each.name, f"the program ffmpeg plays {binary.size / expected[0].size:g} of {count}"))
            elif np.abs(binary.reshape(expected.shape) - expected.astype(int)).mean((1, 2, 3)).max() > 3:
                wrong.append((each.name, "the program ffmpeg plays other frames"))
    for (kind, became), count in sorted(table.items()):
        print(f"{kind:<16} {became:<12} {count:>4}")
    print(
        f"{len(sources)} videos; backends: {', '.join(usable)}; program ffmpeg: {shutil.which('ffmpeg') is not None}"
    )
    assert not wrong


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
    clips = load_clips(source(path), Reading(Shape(13, 48)))
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
    assert len(load_clips(source(path), Reading(Shape(5, 32))).keys) == len(played(path)) // 5
