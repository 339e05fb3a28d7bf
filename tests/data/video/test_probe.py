from fractions import Fraction

import av
import numpy as np
import pytest

from tests.data.video.videos import cut, make_sound, make_video, source
from videoscaling.data.sources.listing import list_sources
from videoscaling.data.sources.source import Rejected, Source
from videoscaling.data.video.clips import ClipOptions, Shape, load_clips
from videoscaling.data.video.probe import probe


def reason(path) -> str:
    """Why ``probe`` rejects the file."""
    with pytest.raises(Rejected) as caught:
        probe(source(path))
    assert caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("part", [0.1, 0.3, 0.5, 0.8, 0.97, 0.995])
@pytest.mark.parametrize(
    ("name", "video"),
    [
        ("x.mp4", {}),
        ("fast_start.mp4", {"options": {"movflags": "faststart"}}),
        ("x.mov", {"codec": "mpeg4"}),
        ("x.mkv", {}),
        ("x.webm", {"codec": "libvpx-vp9"}),
        ("x.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
        ("x.gif", {"codec": "gif", "pix_fmt": "rgb8"}),
    ],
)
def test_a_truncated_video_is_rejected_as_truncated(tmp_path, name, video, part):
    path = make_video(tmp_path / name, **video)
    assert len(probe(source(path)).times) == 30
    in_a_tar = tmp_path / "x.tar"
    in_a_tar.write_bytes(bytes(512) + cut(path, part).read_bytes() + bytes(10000))
    assert reason(path) == "truncated"
    with pytest.raises(Rejected) as caught:
        probe(Source(name, in_a_tar, "", offset=512, size=path.stat().st_size))
    assert caught.value.reason == "truncated"


def test_a_member_that_its_tar_does_not_hold_whole_is_truncated(tmp_path):
    path = make_video(tmp_path / "x.mp4")
    (tmp_path / "x.tar").write_bytes(bytes(512) + path.read_bytes()[:-1])
    with pytest.raises(Rejected) as caught:
        probe(Source("x.mp4", tmp_path / "x.tar", "", offset=512, size=path.stat().st_size))
    assert caught.value.reason == "truncated"


def test_a_transport_stream_declares_no_length_and_gives_what_it_has(tmp_path):
    path = make_video(tmp_path / "x.ts", options={"mpegts_flags": "resend_headers"})
    assert len(probe(source(path)).times) == 30
    assert 5 <= len(probe(source(cut(path, 0.5))).times) < 30
    assert load_clips(source(path), ClipOptions(Shape(3, 32), clips=1)).pixels.shape == (1, 3, 3, 32, 32)


@pytest.mark.parametrize("name", ["x.mp4", "x.mov", "x.avi", "x.mkv", "fragments.mp4"])
@pytest.mark.parametrize("long", [20, 40])
def test_times_are_those_of_the_frames(tmp_path, monkeypatch, name, long):
    """Whether they come from the container's index or from its packets."""
    monkeypatch.setattr("videoscaling.data.video.probe.LONG", long)
    options = {"movflags": "frag_keyframe+empty_moov"} if name == "fragments.mp4" else {}
    codec = {"codec": "mpeg4"} if name == "x.avi" else {"coding": {"g": "12", "bf": "3"}}
    path = make_video(tmp_path / name, options=options, **codec)
    found = probe(source(path))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert list(found.times) == [frame.pts for frame in container.decode(stream)]
        assert found.tick == stream.time_base
    assert isinstance(found.times, range) == (long == 20 and name in ("x.mp4", "x.mov", "x.avi"))
    assert found.fps == 24
    assert found.seconds == pytest.approx(30 / 24, abs=0.002)


def stamped_video(path, rate, milliseconds):
    """A WebM that declares ``rate``, with frames at these times."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx", rate=rate)
        stream.height = stream.width = 32
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 1000)
        for time in milliseconds:
            frame = av.VideoFrame(32, 32, "yuv420p")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("declared", "milliseconds", "fps"),
    [
        (1000, [round(n / 0.03) for n in range(90)], 30),  # as browsers record
        (24, [*(round(n / 0.06) for n in range(60)), *range(1150, 6000, 150)], 60),  # quick, then slow
        (25, [*range(0, 1200, 40), *range(90_000_000, 90_001_200, 40)], 25),  # two recordings, 25 hours apart
        (50, [*range(0, 1200, 40)], 25),
        (60, [round(n / 0.06) for n in range(3)], 60),  # 0, 17 and 33 ms
        (30000 / 1001, [round(n * 1001 / 30) for n in range(60)], 30000 / 1001),
        (24, [0], 24),
    ],
)
def test_the_rate_is_that_of_the_frames(tmp_path, declared, milliseconds, fps):
    path = stamped_video(tmp_path / "x.webm", Fraction(declared).limit_denominator(1001), milliseconds)
    found = probe(source(path))
    assert len(found.times) == len(milliseconds)
    assert found.fps == pytest.approx(fps, rel=0.002)


@pytest.mark.parametrize("skipped", [6, 7, 9])
def test_frames_that_are_not_shown_are_not_counted(tmp_path, skipped):
    """An edit list that begins later in the media, as cutting tools write it."""
    path = make_video(tmp_path / "x.mp4", coding={"bf": "0", "g": "6", "sc_threshold": "0"})
    content = bytearray(path.read_bytes())
    at = content.index(b"elst") + 4 + 4 + 4 + 4  # version, count, duration; then the media's first time
    content[at : at + 4] = (skipped * 512).to_bytes(4)
    path.write_bytes(content)
    with av.open(str(path)) as container:
        shown = [(frame.pts, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert len(shown) == 30 - skipped
    found = probe(source(path))
    assert list(found.times) == [time for time, _ in shown]
    clip = load_clips(source(path), ClipOptions(Shape(5, 48), clips=1)).pixels[0]
    expected = np.stack([pixels for _, pixels in shown[:5]])[:, :, 8:56]
    assert np.array_equal(clip.permute(1, 2, 3, 0).numpy(), expected)


def test_what_is_no_video_is_rejected_with_the_reason(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("Dear diary, no video today.\n" * 50)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    make_sound(tmp_path / "sound.mp4")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    make_video(tmp_path / "short.mp4", frames=8)
    make_video(tmp_path / "one_frame.gif", frames=1, codec="gif", pix_fmt="rgb8")
    make_video(tmp_path / "narrow.mov", width=1, codec="png", pix_fmt="rgb24")
    make_video(tmp_path / "good.mp4")
    found = {}
    for each in list_sources(tmp_path):
        try:
            load_clips(each, ClipOptions(Shape(frames=5, size=32, stride=2)))
            found[each.name] = None
        except Rejected as error:
            found[each.name] = error.reason if error.detail else "no detail"
    assert found == {
        "empty.mp4": "unreadable",
        "gone.mp4": "missing",
        "good.mp4": None,
        "narrow.mov": "too small",
        "noise.mp4": "unreadable",
        "one_frame.gif": "too short",
        "short.mp4": "too short",
        "sound.mp4": "no video stream",
        "text.mp4": "unreadable",
    }


def test_a_probe_compares_and_prints(tmp_path):
    found = probe(source(make_video(tmp_path / "x.mp4")))
    assert found.tick == Fraction(1, 12288)
