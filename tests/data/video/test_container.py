"""What is refused before anything is decoded: other files by name, devices, pictures of gigabytes."""

import os
import struct
import tracemalloc

import av
import numpy as np
import pytest
from PIL import Image

from tests.data.video.odd_videos import packed
from tests.data.video.videos import make_video, source
from videoscaling.data.sources.source import Rejected, Source
from videoscaling.data.video import container, pictures
from videoscaling.data.video.clips import ClipOptions, Shape, load_clips
from videoscaling.data.video.container import MAX_PIXELS, open_video
from videoscaling.data.video.decode import frame_reader
from videoscaling.data.video.pictures import read_picture
from videoscaling.data.video.probe import probe


def rejected(path) -> Rejected:
    with pytest.raises(Rejected) as caught:
        probe(source(path))
    return caught.value


def gif(width: int, height: int, pictures: int) -> bytes:
    """An animation of 2x2 pixels on a canvas of any size, 23 bytes a picture."""
    content = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    control, place = b"\x21\xf9\x04\x00\x0a\x00\x00\x00", b"\x2c" + struct.pack("<HHHHB", 0, 0, 2, 2, 0)
    return content + pictures * (control + place + b"\x02\x02\x4c\x01\x00") + b";"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("ffconcat version 1.0\nfile 'x.mp4'\n", "an ffconcat list"),
        ("#EXTM3U\n#EXTINF:1,\nx.mp4\n", "an HLS or M3U playlist"),
        ("\ufeff#EXTM3U\nx.mp4\n", "an HLS or M3U playlist"),
        ('<?xml version="1.0"?>\n<MPD type="static"></MPD>\n', "a DASH manifest"),
        ("v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nm=video 5004 RTP/AVP 96\r\n", "an SDP session"),
    ],
)
def test_texts_that_name_other_files_are_refused_by_name(tmp_path, text, kind):
    make_video(tmp_path / "x.mp4")
    (tmp_path / "list.mp4").write_text(text)
    error = rejected(tmp_path / "list.mp4")
    assert error.reason == "playlist"
    assert kind in error.detail
    (tmp_path / "x.tar").write_bytes(bytes(512) + text.encode() + bytes(1000))
    with pytest.raises(Rejected, match=kind):
        probe(Source("list.mp4", tmp_path / "x.tar", "", offset=512, size=len(text.encode())))


def test_ffmpeg_itself_opens_no_other_file(tmp_path):
    """Whatever the first bytes are: the demuxers that do are not in its list."""
    make_video(tmp_path / "x.mp4")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile 'x.mp4'\n")
    with pytest.raises(Rejected, match="no container that is read here"), open_video(source(tmp_path / "list.mp4")):
        pass


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.mp4")
    (tmp_path / "y.mp4").symlink_to("/dev/zero")
    (tmp_path / "z.mp4").mkdir()
    found = {name: rejected(tmp_path / name) for name in ("x.mp4", "y.mp4", "z.mp4")}
    assert {error.reason for error in found.values()} == {"not a file"}
    assert [error.detail for error in found.values()] == ["a named pipe", "a device", "a folder"]
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(Rejected, match="not a file: a named pipe"):
        read_picture(source(tmp_path / "x.png"))


def test_a_picture_is_no_program_and_of_bounded_size(tmp_path, monkeypatch):
    """Pillow hands PostScript of any name to Ghostscript, and a sparse file of terabytes is written in no time."""
    path = tmp_path / "x.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(Rejected, match="unreadable: no kind of picture that is known"):
        read_picture(source(path))
    Image.new("RGB", (9, 9)).save(path)
    assert read_picture(source(path)).shape == (9, 9, 3)
    monkeypatch.setattr(pictures, "MAX_BYTES", path.stat().st_size - 1)
    with pytest.raises(Rejected, match="too large: more than"):
        read_picture(source(path))


def test_pictures_of_gigabytes_are_refused_by_their_header(tmp_path):
    path = tmp_path / "x.gif"
    path.write_bytes(gif(16000, 16000, 40))
    assert path.stat().st_size == 940
    error = rejected(path)
    assert (error.reason, error.detail) == ("too large", f"16000x16000 pixels; at most {MAX_PIXELS} are decoded")
    path.write_bytes(gif(64, 48, 40))
    assert len(probe(source(path)).times) == 40
    assert load_clips(source(path), ClipOptions(Shape(5, 32), clips=2)).pixels.shape == (2, 3, 5, 32, 32)


@pytest.mark.parametrize(
    ("name", "video"), [("x.mov", {"codec": "png", "pix_fmt": "rgb24"}), ("x.avi", {"codec": "mpeg4"}), ("x.mp4", {})]
)
def test_every_container_names_its_size_where_it_is_too_large(tmp_path, monkeypatch, name, video):
    path = make_video(tmp_path / name, frames=3, **video)
    assert len(probe(source(path)).times) == 3
    monkeypatch.setattr("videoscaling.data.video.container.MAX_PIXELS", 1000)
    monkeypatch.setitem(container.OPTIONS, "max_pixels", "1000")
    assert str(rejected(path)) == "too large: 64x48 pixels; at most 1000 are decoded"


def test_a_picture_that_grows_on_the_way_is_not_decoded(tmp_path, monkeypatch):
    """Its header says 64x48; a frame within says more than is allowed."""
    monkeypatch.setitem(container.OPTIONS, "max_pixels", "5000")
    small = make_video(tmp_path / "small.avi", frames=20, codec="mjpeg", pix_fmt="yuvj420p")
    large = make_video(tmp_path / "large.avi", frames=20, height=96, width=128, codec="mjpeg", pix_fmt="yuvj420p")
    with av.open(str(small)) as one, av.open(str(large)) as other, av.open(str(tmp_path / "x.avi"), "w") as out:
        stream = out.add_stream_from_template(one.streams.video[0])
        pairs = zip(one.demux(video=0), other.demux(video=0))
        for number, packets in enumerate(pair for pair in pairs if pair[0].size):
            packet = packets[number >= 10]
            packet.stream, packet.pts, packet.dts = stream, number, number
            out.mux(packet)
    found = probe(source(tmp_path / "x.avi"))
    with frame_reader(source(tmp_path / "x.avi"), found) as read:
        assert read([0, 9]).shape == (2, 48, 64, 3)
        with pytest.raises(Rejected, match="undecodable"):
            read([12])


@pytest.mark.parametrize("backend", ["pyav", "decord"])
@pytest.mark.parametrize("kind", ["x.mp4", "packed.avi"])
def test_memory_holds_a_few_frames_of_full_size_however_many_a_clip_has(tmp_path, monkeypatch, backend, kind):
    if backend == "decord":
        pytest.importorskip("decord")
    height, width, frames = 480, 640, 33
    path = tmp_path / kind
    if kind == "x.mp4":
        make_video(path, frames=frames, height=height, width=width, coding={"preset": "ultrafast"})
    else:
        packed(path, frames, height, width)
    monkeypatch.setattr("videoscaling.data.video.decode.AT_ONCE_BYTES", 2 * 3 * height * width)
    clip_options = ClipOptions(Shape(frames, 32), backend=backend)
    load_clips(source(path), clip_options)  # what is loaded once
    tracemalloc.start()
    try:
        clips = load_clips(source(path), clip_options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert clips.pixels.shape == (1, 3, frames, 32, 32)
    picture = np.zeros((height, width, 3), np.uint8).nbytes
    assert peak < 8 * picture  # of 33; all of them at once took 2.2 times 33
