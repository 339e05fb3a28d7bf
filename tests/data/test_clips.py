import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torchvision

from data import clips
from data.clips import Rejected, Shape, list_sources, probe, read_clip, windows
from data.sources import Survey, read_frozen, split_videos, survey, video_units
from utils.errors import UserError

SHAPE = Shape(frames=5, size=32, stride=2)
FAST_START = {"movflags": "faststart"}


def picture(number: int, height: int, width: int) -> np.ndarray:
    """A frame that says which it is by its brightness, with detail that does not compress away: uint8 [H, W, 3]."""
    noise = np.random.default_rng(number).integers(0, 40, (height, width, 3))
    return (noise + 4 * number + np.linspace(0, 60, width, dtype=int)[:, None]).clip(0, 255).astype(np.uint8)


def make_video(path, frames=30, height=48, width=64, codec="libx264", pix_fmt="yuv420p", options=None, times=None):
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=24)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = height, width, pix_fmt, 4_000_000
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, height, width), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def cut(path, part: float):
    """Leave the first ``part`` of a file."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    return path


def reason(path) -> str:
    """Why ``probe`` rejects the file."""
    with pytest.raises(Rejected) as caught:
        probe(path)
    assert caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize(
    ("name", "video"),
    [
        ("plain.mp4", {}),
        ("key_frames.mp4", {"options": {"g": "250", "bf": "3"}}),
        ("fast_start.mp4", {"options": FAST_START}),
        ("odd.mp4", {"height": 47, "width": 61, "pix_fmt": "yuv444p"}),
        ("tall.mkv", {"height": 90, "width": 34}),
        ("grey.mkv", {"codec": "ffv1", "pix_fmt": "gray"}),
        ("ten_bit.mkv", {"codec": "ffv1", "pix_fmt": "yuv420p10le"}),
        ("vp9.webm", {"codec": "libvpx-vp9"}),
        ("mpeg4.avi", {"codec": "mpeg4"}),
        ("photos.mov", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
        ("varying_rate.mp4", {"times": [i + i // 3 for i in range(30)]}),
    ],
)
def test_decord_and_pyav_see_the_same_frames(tmp_path, name, video):
    path = make_video(tmp_path / name, **video)
    found = probe(path)
    with av.open(str(path)) as container:
        every = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert len(found.times) == len(every) == 30
    assert (found.height, found.width) == every.shape[1:3]
    numbers = [11, 13, 15, 28]
    slow = clips.decode_pyav(path, numbers, found.times)
    assert np.array_equal(slow, every[numbers])
    # Another build of ffmpeg: the same to the bit, but that it dithers 10 bits to 8 its own way.
    tolerance = 10 if "ten_bit" in name else 0
    assert np.abs(clips.decode_decord(path, numbers).astype(int) - slow).max() <= tolerance
    # They are the frames asked for: brightness rises by 4 a frame; a neighbour's differs by more than a codec's error.
    brightness = [picture(n, *every.shape[1:3]).mean() for n in numbers]
    assert np.abs(slow.mean((1, 2, 3)) - brightness).max() < 2


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_both_decoders_turn_a_rotated_video_upright(tmp_path, turns):
    path = make_video(tmp_path / "x.mp4", height=64, width=96)  # decord fails on other sides, and PyAV takes over
    upright = clips.decode_pyav(path, [3, 4], probe(path).times)
    # The display matrix of the track's header: 16.16 fixed-point numbers after version, times, ids and layers.
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[turns]
    matrix = [cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30]
    content[start : start + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(content)
    slow = clips.decode_pyav(path, [3, 4], probe(path).times)
    assert np.array_equal(slow, np.rot90(upright, -turns, axes=(1, 2)))
    assert np.array_equal(slow, clips.decode_decord(path, [3, 4]))


def test_pyav_takes_over_where_decord_fails(tmp_path):
    path = make_video(tmp_path / "x.gif", codec="gif", pix_fmt="rgb8")
    found = probe(path)
    with pytest.raises(Exception, match=r"x\.gif|decord|duration"):
        clips.decode_decord(path, [0])
    clip = read_clip(path, found, 9, SHAPE)
    direct = clips.resize_and_crop(torch.from_numpy(clips.decode_pyav(path, [9, 11, 13, 15, 17], found.times)), 32)
    assert torch.equal(clip, direct)


def test_a_clip_is_resized_cropped_and_scaled(tmp_path):
    path = make_video(tmp_path / "x.mp4", height=48, width=80)
    clip = read_clip(path, probe(path), 3, SHAPE)
    assert clip.shape == (3, 5, 32, 32)
    assert clip.dtype == torch.float32
    assert -1 <= clip.min() < clip.max() <= 1
    frames = torch.from_numpy(clips.decode_decord(path, [3, 5, 7, 9, 11])).permute(0, 3, 1, 2)
    other = torchvision.transforms.Resize(32, antialias=True)(frames.float() / 127.5 - 1)  # 32 x 53
    # Resized as float there, as 8-bit here: half a level of rounding, and as much again in two passes.
    torch.testing.assert_close(clip, other[:, :, :, 10:42].permute(1, 0, 2, 3), atol=2.5 / 127.5, rtol=0)


def test_windows_do_not_overlap_and_spread_over_the_video():
    def found(frames):
        return clips.Probe(tuple(range(frames)), 24.0, 48, 64)

    assert windows(found(9), SHAPE, 4) == [0]  # 5 frames, 2 apart, span 9
    assert windows(found(35), SHAPE, 4) == [0, 9, 18]
    for frames in (90, 200, 1001):
        starts = windows(found(frames), SHAPE, 4)
        assert len(starts) == 4
        assert starts[0] == 0
        assert min(np.diff(starts)) >= SHAPE.span
        assert frames * 0.7 < starts[-1] + SHAPE.span <= frames
    for bad, why in ((found(8), "too short"), (clips.Probe(tuple(range(90)), 24.0, 31, 64), "too small")):
        with pytest.raises(Rejected) as caught:
            windows(bad, SHAPE, 4)
        assert caught.value.reason == why


@pytest.mark.parametrize("part", [0.1, 0.3, 0.5, 0.8, 0.97, 0.995])
@pytest.mark.parametrize(
    ("name", "video"),
    [
        ("x.mp4", {}),
        ("fast_start.mp4", {"options": FAST_START}),
        ("x.mov", {"codec": "mpeg4"}),
        ("x.mkv", {}),
        ("x.webm", {"codec": "libvpx-vp9"}),
        ("x.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
        ("x.gif", {"codec": "gif", "pix_fmt": "rgb8"}),
    ],
)
def test_a_truncated_video_is_rejected_as_truncated(tmp_path, name, video, part):
    path = make_video(tmp_path / name, **video)
    assert len(probe(path).times) == 30
    assert reason(cut(path, part)) == "truncated"


def test_a_transport_stream_declares_no_length_and_gives_what_it_has(tmp_path):
    path = make_video(tmp_path / "x.ts", options={"mpegts_flags": "resend_headers"})
    assert len(probe(path).times) == 30
    found = probe(cut(path, 0.5))
    assert 5 <= len(found.times) < 30
    assert read_clip(path, found, 0, Shape(3, 32)).shape == (3, 3, 32, 32)


def test_what_is_no_video_is_rejected_with_the_reason(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("Dear diary, no video today.\n" * 50)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        for packet in [*stream.encode(sound), *stream.encode()]:
            container.mux(packet)
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    make_video(tmp_path / "short.mp4", frames=8)
    make_video(tmp_path / "one_frame.gif", frames=1, codec="gif", pix_fmt="rgb8")
    make_video(tmp_path / "narrow.mov", width=1, codec="png", pix_fmt="rgb24")
    make_video(tmp_path / "good.mp4")
    found = survey(list_sources(tmp_path), SHAPE, 4)
    assert list(found.starts) == ["good.mp4"]
    assert {row["source"]: row["reason"] for row in found.rejected} == {
        "empty.mp4": "unreadable",
        "gone.mp4": "missing",
        "narrow.mov": "too small",
        "noise.mp4": "unreadable",
        "one_frame.gif": "too short",
        "short.mp4": "too short",
        "sound.mp4": "no video stream",
        "text.mp4": "unreadable",
    }
    assert sum(found.reasons.values()) == len(found.rejected) == 8


def test_damage_in_the_middle_is_seen_when_decoding(tmp_path):
    path = make_video(tmp_path / "x.mp4", frames=60)
    found = probe(path)
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][30]
    content = bytearray(path.read_bytes())
    start = content.index(bytes(packet))
    content[start : start + packet.size] = bytes(packet.size)
    path.write_bytes(content)
    assert probe(path) == found
    assert read_clip(path, found, 0, SHAPE).isfinite().all()
    with pytest.raises(Rejected) as caught:
        read_clip(path, found, 26, SHAPE)
    assert caught.value.reason == "undecodable"


def test_folder_and_manifests_list_the_same(tmp_path):
    for name in ("b.mp4", "deep/er/a.mp4", "c.MKV", "notes.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b.txt").write_text("a red ball,\n  rolling \n")
    (tmp_path / "deep/er/a.txt").write_text("\ufeffein Hündchen", encoding="utf-8")
    folder = list_sources(tmp_path)
    assert [(s.name, s.caption) for s in folder] == [
        ("b.mp4", "a red ball, rolling"),
        ("c.MKV", ""),
        ("deep/er/a.mp4", "ein Hündchen"),
    ]
    table = tmp_path / "table.csv"
    table.write_text('caption,path\n"a red ball, rolling",b.mp4\nein Hündchen,./deep/er/a.mp4\n,c.MKV\n')
    lines = tmp_path / "lines.jsonl"
    lines.write_text(
        '{"path": "b.mp4", "caption": "a red ball, rolling", "views": 3}\n\n{"path": "c.MKV"}\n'
        + f'{{"path": "{tmp_path}/deep/er/a.mp4", "caption": "ein Hündchen"}}\n'
    )
    assert list_sources(table) == list_sources(lines) == folder


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", "file,caption\na.mp4,x\n", "no column 'path' .*file, caption"),
        ("m.csv", "paths,caption\na.mp4,x\n", "did you mean 'paths'"),
        ("m.csv", "path,caption\n", "lists no videos"),
        ("m.csv", "", "lists no videos"),
        ("m.csv", "path,caption\na.mp4,x\n,y\n", "line 3: no path"),
        ("m.csv", "path,caption\na.mp4,x\nb.mp4,y\n", r"line 3: no such file: .*b\.mp4"),
        ("m.csv", "path,caption\na.mp4,x\n./a.mp4,y\n", "line 3: a.mp4 is listed twice"),
        ("m.csv", "path,caption\n../a.mp4,x\n", r"line 2: \.\./a\.mp4 lies outside"),
        ("m.csv", "path,caption\ndeep/../../a.mp4,x\n", "lies outside"),
        ("m.csv", "path,caption\n/etc/hostname,x\n", "lies outside"),
        ("m.csv", b"path,caption\na.mp4,caf\xe9\n", r"m\.csv: not UTF-8 .* at byte 22"),
        ("m.jsonl", '{"path": "a.mp4"}\n{"path": \n', "line 2: not JSON"),
        ("m.jsonl", '["a.mp4"]\n', "line 1: not a JSON object"),
        ("m.jsonl", '{"path": "a.mp4"}\n{"caption": "x"}\n', "line 2: no path"),
        ("m.jsonl", '{"caption": "x"}\n', "no column 'path'"),
        ("m.txt", "a.mp4\n", "neither a folder"),
    ],
)
def test_a_bad_manifest_is_a_users_error(tmp_path, name, content, message):
    (tmp_path / "a.mp4").touch()
    (tmp_path.parent / "a.mp4").touch()
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        list_sources(tmp_path / name)


def test_a_missing_or_empty_folder_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        list_sources(tmp_path / "absent")
    (tmp_path / "readme.md").touch()
    with pytest.raises(UserError, match="no videos in this folder"):
        list_sources(tmp_path)
    (tmp_path / "x.mp4").touch()
    (tmp_path / "x.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"x\.txt: not UTF-8"):
        list_sources(tmp_path)


def surveyed(names, frames=40):
    """A survey of videos that need not exist."""
    probes = {name: clips.Probe(tuple(range(frames)), 24.0, 48, 64) for name in names}
    return Survey(probes, {name: windows(found, SHAPE, 4) for name, found in probes.items()}, [])


def keys(videos):
    return [f"{name}#{start}" for name, starts in videos.items() for start in starts]


def test_a_video_is_in_one_split_and_the_frozen_list_stays(tmp_path):
    first = surveyed([f"{i}.mp4" for i in range(20)])
    split = split_videos(first, SHAPE)
    assert not set(split["train"]) & set(split["validation"])
    assert set(split["train"]) | set(split["validation"]) == set(first.starts)
    assert len(keys(split["validation"])) == 8  # a tenth of the 80 clips
    backwards = split_videos(surveyed(reversed(first.starts)), SHAPE)
    assert backwards["validation"] == split["validation"]  # drawn by name, not by place
    frozen = keys(split["validation"])
    larger = surveyed([f"{i}.mp4" for i in range(200)])
    grown = split_videos(larger, SHAPE, frozen=frozen)
    assert keys(grown["validation"]) == frozen
    assert set(grown["train"]) == set(larger.starts) - set(split["validation"])
    with pytest.raises(UserError, match="frozen validation list cannot be had"):
        split_videos(surveyed(["0.mp4", "new.mp4"]), SHAPE, frozen=frozen)


def test_the_number_of_clips_is_kept():
    some = surveyed([f"{i}.mp4" for i in range(9)])
    for train, validation in ((1, 1), (7, 6), (None, 5), (30, 0)):
        split = split_videos(some, SHAPE, train, validation)
        assert len(keys(split["validation"])) == validation
        left = sum(len(some.starts[name]) for name in set(some.starts) - set(split["validation"]))
        assert len(keys(split["train"])) == min(left, left if train is None else train)
    # A longer list begins with the shorter one.
    longer, shorter = (keys(split_videos(some, SHAPE, validation=n)["validation"]) for n in (9, 5))
    assert longer[:5] == shorter
    with pytest.raises(UserError, match="no video is left for training"):
        split_videos(surveyed(["one.mp4"]), SHAPE)
    assert split_videos(surveyed(["one.mp4"]), SHAPE, validation=0)["train"] == {"one.mp4": [0, 9, 18, 27]}


def test_units_load_the_clips_of_their_keys(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        make_video(tmp_path / name, frames=40)
    (tmp_path / "a.txt").write_text("a fog")
    sources = list_sources(tmp_path)
    found = survey(sources, SHAPE, 4)
    units = video_units(sources, found, split_videos(found, SHAPE), SHAPE)
    for unit in [*units["train"], *units["validation"]]:
        captions, loaded = unit.load()
        assert captions == ["a fog" if unit.source == "a.mp4" else ""] * len(unit.keys)
        for key, clip in zip(unit.keys, loaded):
            name, start = key.split("#")
            assert torch.equal(clip, read_clip(tmp_path / name, found.probes[name], int(start), SHAPE))
    # A video that vanishes between the survey and its turn is rejected, not fatal.
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(Rejected):
        next(u for part in units.values() for u in part if u.source == "a.mp4").load()


def test_no_open_files_remain(tmp_path):
    path = make_video(tmp_path / "x.mp4")
    found = probe(path)
    handles = Path("/proc/self/fd")
    if not handles.exists():
        pytest.skip("needs /proc")
    before = len(list(handles.iterdir()))
    for start in range(10):
        read_clip(path, found, start, SHAPE)
        clips.decode_pyav(path, [start], found.times)
    assert len(list(handles.iterdir())) <= before


def test_an_altered_frozen_list_is_refused(tmp_path):
    (tmp_path / "validation.json").write_text('{"hash": "0", "keys": ["a#0"]}')
    with pytest.raises(UserError, match="altered"):
        read_frozen(tmp_path)
    (tmp_path / "validation.json").write_text("[]")
    with pytest.raises(UserError, match="not a validation list"):
        read_frozen(tmp_path / "validation.json")
