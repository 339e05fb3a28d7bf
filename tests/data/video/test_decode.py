import functools
import json
import sys
import zlib
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch

from tests.data.video.videos import cut, damage, make_video, orient, picture, source, turn
from videoscaling.data.sources.source import Rejected, Source
from videoscaling.data.video.clips import ClipOptions, Shape, load_clips
from videoscaling.data.video.decode import BACKENDS, EXACT_FORMATS, check_backend, frame_reader
from videoscaling.data.video.probe import probe
from videoscaling.utils.errors import UserError

NAMES = ["decord", "pyav", "torchcodec"]


def backend_or_skip(name: str) -> None:
    try:
        check_backend(name)
    except UserError as error:
        pytest.skip(str(error))


def decoded(path, numbers, name="pyav", found=None):
    """Frames as one backend alone gives them."""
    with BACKENDS[name](source(path), found or probe(source(path))) as read:
        return read(numbers)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A video and all its frames, made once for all backends; for tests that leave it as it is."""
    folder = tmp_path_factory.mktemp("videos")

    @functools.cache
    def make(name: str, options: str) -> tuple[Path, np.ndarray]:
        place = folder / f"{zlib.crc32(options.encode())}"
        place.mkdir(exist_ok=True)
        path = make_video(place / name, **json.loads(options))
        return path, every_frame(path)

    def video(name: str, **options: Any) -> tuple[Path, np.ndarray]:
        return make(name, json.dumps(options))

    return video


def every_frame(path) -> np.ndarray:
    """The plain way: all frames from the first on, as they are stored."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize(
    ("name", "video"),
    [
        ("plain.mp4", {}),
        ("few_key_frames.mp4", {"coding": {"g": "250", "bf": "3"}}),
        ("fast_start.mp4", {"options": {"movflags": "faststart"}}),
        ("fragments.mp4", {"options": {"movflags": "frag_keyframe+empty_moov"}}),
        ("odd.mp4", {"height": 47, "width": 61, "pix_fmt": "yuv444p"}),
        ("tall.mkv", {"height": 90, "width": 34}),
        ("grey.mkv", {"codec": "ffv1", "pix_fmt": "gray"}),
        ("grey.mp4", {"pix_fmt": "gray"}),
        ("ten_bit.mkv", {"codec": "ffv1", "pix_fmt": "yuv420p10le"}),
        ("ten_bit.mp4", {"pix_fmt": "yuv420p10le"}),
        ("vp9.webm", {"codec": "libvpx-vp9"}),
        ("mpeg4.avi", {"codec": "mpeg4"}),
        ("photos.mov", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
        ("varying_rate.mp4", {"times": [i + i // 3 for i in range(30)]}),
        ("sound_first.mp4", {"sound_first": True}),
        ("sound_first.mkv", {"sound_first": True}),
    ],
)
def test_every_backend_gives_the_frames_asked_for(made, name, video, backend):
    backend_or_skip(backend)
    path, every = made(name, **video)
    found = probe(source(path))
    assert len(found.times) == len(every) == 30
    assert (found.height, found.width) == every.shape[1:3]
    numbers = [11, 13, 15, 28]
    pictures = decoded(path, numbers, backend)
    assert pictures.dtype == np.uint8
    # Other builds of ffmpeg: the same to the bit, but that they interpolate the colours of 10-bit video in other ways.
    tolerance = 10 if backend != "pyav" and "ten_bit" in name else 0
    assert np.abs(pictures.astype(int) - every[numbers]).max() <= tolerance
    # They are the frames asked for: brightness rises by 4 a frame; a neighbour's differs by more than a codec's error.
    brightness = [picture(n, *every.shape[1:3]).mean() for n in numbers]
    assert np.abs(pictures.mean((1, 2, 3)) - brightness).max() < (8 if name == "grey.mp4" else 2)  # coded coarsely


@pytest.mark.parametrize("backend", NAMES)
def test_a_part_of_a_tar_is_read_as_a_file_is(tmp_path, backend):
    backend_or_skip(backend)
    path = make_video(tmp_path / "x.mp4")
    whole = path.read_bytes()
    (tmp_path / "odd, name: {0}.tar").write_bytes(b"\x55" * 1536 + whole + b"\x66" * 700)
    part = Source("x.mp4", tmp_path / "odd, name: {0}.tar", "", offset=1536, size=len(whole))
    found = probe(part)
    assert found == probe(source(path))
    with BACKENDS[backend](part, found) as read:
        assert np.array_equal(read([3, 17]), decoded(path, [3, 17], backend))


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_rotated_videos_come_upright(tmp_path, turns, backend):
    backend_or_skip(backend)
    path = make_video(tmp_path / "x.mp4", height=64, width=96)  # decord fails on other sides, and PyAV takes over
    upright = decoded(path, [3, 4], backend)
    assert np.array_equal(decoded(turn(path, turns), [3, 4], backend), np.rot90(upright, -turns, axes=(1, 2)))


@pytest.mark.parametrize("backend", ["decord", "pyav"])
@pytest.mark.parametrize(("height", "width"), [(48, 64), (47, 61), (50, 66)])
def test_rotated_videos_of_any_size_are_read(tmp_path, height, width, backend):
    backend_or_skip(backend)
    path = make_video(tmp_path / "x.mp4", height=height, width=width, pix_fmt="yuv444p")
    upright = every_frame(path)[[3, 4]]
    turn(path, 1)
    with frame_reader(source(path), probe(source(path)), backend) as read:
        assert np.array_equal(read([3, 4]), np.rot90(upright, -1, axes=(1, 2)))


@pytest.mark.parametrize(
    ("name", "video"),
    [
        ("x.ts", {}),
        ("hevc.ts", {"codec": "libx265", "coding": {"x265-params": "log-level=none:keyint=12:bframes=0"}}),
        ("x.mpg", {"codec": "mpeg2video"}),
        ("one.mpg", {"codec": "mpeg1video"}),
        ("x.wmv", {"codec": "wmv2"}),
        ("x.avi", {"coding": {"bf": "0"}}),
        ("b_frames.avi", {"coding": {"bf": "2"}}),
        ("mpeg4.avi", {"codec": "mpeg4"}),
        ("x.gif", {"codec": "gif", "pix_fmt": "rgb8"}),
        ("x.webm", {"codec": "libvpx-vp9"}),
        ("x.mkv", {"coding": {"bf": "2"}}),
        ("x.mp4", {"coding": {"bf": "2"}}),
        ("x.mov", {"codec": "mpeg4"}),
    ],
)
@pytest.mark.parametrize("backend", NAMES)
def test_frames_after_a_seek_are_those_asked_for(made, name, video, backend):
    """decord lands elsewhere, and says nothing, in what is no MP4 or Matroska; torchcodec returns broken pictures of
    HEVC in MPEG-TS. Some frames of an MPEG-PS, or of H.264 in an AVI, have other time stamps than their packets: those
    are found by their number."""
    backend_or_skip(backend)
    video = {**video, "coding": {"g": "12", **video.get("coding", {})}}
    path, every = made(name, frames=150, **video)
    for numbers in ([100, 101, 140], [20], [64, 68], [13], [75, 79]):
        with frame_reader(source(path), probe(source(path)), backend) as read:
            for asked in (numbers, [46, 47, 48]):
                assert np.array_equal(read(asked), every[asked])


@pytest.mark.parametrize("fails", ["when opened", "when read"])
def test_pyav_takes_over_where_another_backend_fails(tmp_path, monkeypatch, fails):
    @contextmanager
    def failing(*_):
        if fails == "when opened":
            raise RuntimeError("no such stream")
        yield lambda numbers: 1 / 0

    monkeypatch.setitem(BACKENDS, "decord", failing)
    path = make_video(tmp_path / "x.mp4")
    with frame_reader(source(path), probe(source(path)), "decord") as read:
        assert np.array_equal(read([9, 11]), decoded(path, [9, 11]))


def test_a_backend_that_failed_is_not_asked_again(tmp_path, monkeypatch):
    """torchcodec's decoder continues after a packet that cannot be decoded, with pictures that refer to it."""
    calls = []

    @contextmanager
    def damaged(*_):
        def read(numbers):
            calls.append(numbers)
            if len(calls) == 1:
                raise RuntimeError("Could not push packet to decoder")
            return np.zeros((len(numbers), 48, 64, 3), np.uint8)

        yield read

    monkeypatch.setitem(BACKENDS, "torchcodec", damaged)
    path = make_video(tmp_path / "x.mp4")
    with frame_reader(source(path), probe(source(path)), "torchcodec") as read:
        read([9, 11])
        assert np.array_equal(read([15, 16]), decoded(path, [15, 16]))
    assert calls == [[9, 11]]


@pytest.mark.parametrize("backend", NAMES)
def test_frames_that_refer_to_a_damaged_one_are_undecodable(tmp_path, backend):
    backend_or_skip(backend)
    path = make_video(tmp_path / "x.mkv", frames=60, coding={"g": "60", "bf": "2", "sc_threshold": "0"})
    damage(path, [31])
    with frame_reader(source(path), probe(source(path)), backend) as read:
        for numbers in (range(first, first + 5) for first in (25, 30, 35, 40, 55)):
            with pytest.raises(Rejected, match="undecodable"):
                read(numbers)


def asked(monkeypatch, backend: str, path: Path) -> bool:
    """Whether the backend is asked for a video's frames; the reader returns them in any case."""
    calls = []

    @contextmanager
    def recorded(source, found, keep):
        calls.append(source)
        with BACKENDS["pyav"](source, found, keep) as read:
            yield read

    monkeypatch.setitem(BACKENDS, backend, recorded)
    with frame_reader(source(path), probe(source(path)), backend) as read:
        assert len(read([9, 11])) == 2
    return bool(calls)


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_backends_are_not_asked_for_what_they_cannot_open_seek_or_mirror(tmp_path, monkeypatch, backend):
    assert asked(monkeypatch, backend, make_video(tmp_path / "x.mp4"))
    assert asked(monkeypatch, backend, make_video(tmp_path / "x.webm", codec="libvpx-vp9"))
    assert not asked(monkeypatch, backend, make_video(tmp_path / "x.gif", codec="gif", pix_fmt="rgb8"))
    assert not asked(monkeypatch, backend, make_video(tmp_path / "x.ts"))
    assert not asked(monkeypatch, backend, make_video(tmp_path / "x.avi", codec="mpeg4"))
    assert not asked(monkeypatch, backend, orient(make_video(tmp_path / "x.mp4"), -1, 0, 0, 1))


@pytest.mark.parametrize(
    ("name", "video"),
    [
        ("x.mp4", {"pix_fmt": "yuv420p10le"}),
        ("x.mp4", {"pix_fmt": "yuv422p10le"}),
        ("odd.mkv", {"codec": "ffv1", "height": 47, "width": 61}),
        ("x.mkv", {"codec": "ffv1", "pix_fmt": "yuv411p"}),
    ],
)
def test_torchcodec_is_not_asked_where_its_colours_are_others(tmp_path, monkeypatch, name, video):
    assert not asked(monkeypatch, "torchcodec", make_video(tmp_path / name, **video))


@pytest.mark.parametrize("pixels", sorted(EXACT_FORMATS))
@pytest.mark.parametrize("space", [1, 5])  # BT.709 and BT.601
def test_torchcodec_gives_the_same_bits_of_saturated_colours(tmp_path, pixels, space):
    """Blocks of random colours, with an edge inside a chroma sample, show how colours are interpolated."""
    backend_or_skip("torchcodec")
    path = tmp_path / "x.mkv"
    blocks = np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8).repeat(5, 0).repeat(5, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg" if "j" in pixels else "ffv1", rate=24)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = 50, 70, pixels, 8_000_000
        stream.codec_context.colorspace = space
        for number in range(6):
            frame = av.VideoFrame.from_ndarray(np.roll(blocks, number, 1).copy(), format="rgb24")
            container.mux(stream.encode(frame.reformat(format=pixels, dst_colorspace=space)))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        first = next(container.decode(video=0))
    assert (first.format.name, int(first.colorspace)) == (pixels, 5 if "j" in pixels else space)
    assert np.array_equal(decoded(path, [1, 4], "torchcodec"), every_frame(path)[[1, 4]])


def test_torchcodec_is_not_believed_a_frame_too_late(tmp_path, monkeypatch):
    """A tick of the container's clock may be a whole frame."""
    path = make_video(tmp_path / "x.mp4", options={"video_track_timescale": "24"})
    found = probe(source(path))
    assert found.tick == Fraction(1, 24)
    late = 0

    class VideoDecoder:
        def __init__(self, *_, **__):
            pass

        def get_frames_at(self, numbers):
            times = torch.tensor(
                [float((found.times[number] + late) * found.tick) for number in numbers], dtype=torch.float64
            )
            return SimpleNamespace(data=torch.zeros(len(numbers), 48, 64, 3, dtype=torch.uint8), pts_seconds=times)

    package, decoders = ModuleType("torchcodec"), ModuleType("torchcodec.decoders")
    decoders.VideoDecoder = VideoDecoder
    monkeypatch.setitem(sys.modules, "torchcodec", package)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    assert decoded(path, [3], "torchcodec", found).shape == (1, 48, 64, 3)
    late = 1
    with pytest.raises(ValueError, match="other frames"):
        decoded(path, [3], "torchcodec", found)


@pytest.mark.parametrize("near", [0, 3, 64])
@pytest.mark.parametrize(
    "coding",
    [{"g": "7", "bf": "2"}, {"g": "250", "bf": "3"}, {"g": "10", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}],
)
def test_pyav_reads_on_where_the_next_frames_are_near(made, monkeypatch, coding, near):
    monkeypatch.setattr("videoscaling.data.video.decode.NEAR", near)
    monkeypatch.setattr("videoscaling.data.video.decode.FURTHER_BACK", 12)
    path, every = made("x.mp4", frames=60, coding=coding)
    asked = [[0, 1], [2, 4], [9, 10], [11], [11, 12], [3], [30, 31, 40], [42], [59], [0]]
    with BACKENDS["pyav"](source(path), probe(source(path))) as read:
        for numbers in asked:
            assert np.array_equal(read(numbers), every[numbers])


def test_frames_may_be_asked_for_twice(tmp_path):
    path = make_video(tmp_path / "x.mp4")
    for backend in ("decord", "pyav"):  # where there is no decord, PyAV takes over
        with frame_reader(source(path), probe(source(path)), backend) as read:
            assert np.array_equal(read([4, 4, 9, 9, 9]), decoded(path, [4, 9])[[0, 0, 1, 1, 1]])


@pytest.mark.parametrize("backend", NAMES)
def test_open_groups_of_pictures_come_whole(tmp_path, backend):
    """decord alone gives broken pictures about their key frames."""
    backend_or_skip(backend)
    coding = {"g": "10", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}
    path = make_video(tmp_path / "x.mp4", coding=coding)
    found, every = probe(source(path)), every_frame(path)
    assert not found.plain
    for number in range(30):
        with frame_reader(source(path), found, backend) as read:
            assert np.array_equal(read([number])[0], every[number])


def test_decord_does_not_read_long_videos_through(tmp_path, monkeypatch):
    path = make_video(tmp_path / "x.mp4")
    monkeypatch.setattr("videoscaling.data.video.probe.LONG", 20)
    assert not asked(monkeypatch, "decord", path)
    assert asked(monkeypatch, "torchcodec", path)


def test_damage_in_the_middle_is_seen_when_decoding(tmp_path):
    path = make_video(tmp_path / "x.mp4", frames=60)
    found = probe(source(path))
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][30]
    content = bytearray(path.read_bytes())
    start = content.index(bytes(packet))
    content[start : start + packet.size] = bytes(packet.size)
    path.write_bytes(content)
    assert probe(source(path)) == found
    with frame_reader(source(path), found) as read:
        assert read([0, 2, 4]).shape == (3, 48, 64, 3)
        with pytest.raises(Rejected) as caught:
            read([26, 28, 30, 32])
    assert caught.value.reason == "undecodable"


def test_a_file_cut_after_it_was_probed_is_undecodable(tmp_path):
    path = make_video(tmp_path / "x.mp4", frames=60, options={"movflags": "faststart"})
    found = probe(source(path))
    cut(path, 0.5)
    with frame_reader(source(path), found) as read, pytest.raises(Rejected) as caught:
        read([50, 55])
    assert caught.value.reason == "undecodable"


def test_an_unknown_or_absent_backend_is_a_users_error(monkeypatch):
    check_backend("pyav")
    with pytest.raises(UserError, match="choose among decord, pyav, torchcodec"):
        check_backend("opencv")
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(UserError, match="torchcodec cannot decode here .* pip install torchcodec, or use decord"):
        check_backend("torchcodec")


@pytest.mark.parametrize("backend", NAMES)
def test_no_open_files_remain(tmp_path, backend):
    backend_or_skip(backend)
    path = make_video(tmp_path / "x.mp4")
    (tmp_path / "bad.mp4").write_bytes(path.read_bytes()[:5000])
    handles = Path("/proc/self/fd")
    if not handles.exists():
        pytest.skip("needs /proc")
    clip_options = ClipOptions(Shape(3, 32), backend=backend)
    load_clips(source(path), clip_options)
    before = len(list(handles.iterdir()))
    for _ in range(10):
        load_clips(source(path), clip_options)
        with pytest.raises(Rejected):
            load_clips(source(tmp_path / "bad.mp4"), clip_options)
    assert len(list(handles.iterdir())) <= before
