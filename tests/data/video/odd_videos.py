"""Odd videos as they lie about in real folders: many codings, each with what tools and cameras do to them."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.data.video.videos import make_video, orient, picture
from videoscaling.data.video.decode import check_backend
from videoscaling.utils.errors import UserError

H264, B_FRAMES = {"coding": {"g": "10", "bf": "0"}}, {"coding": {"g": "10", "bf": "2", "b_strategy": "0"}}
RGB8, FULL = {"pix_fmt": "rgb8"}, {"pix_fmt": "yuvj420p"}
# File name -> arguments of ``make_video``: the codings that the containers usually hold.
CODINGS = {
    "h264.mp4": B_FRAMES,
    "h264_no_b.mp4": H264,
    "h264_open.mp4": {"coding": {"g": "10", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}},
    "h264_ten_bit.mp4": {"pix_fmt": "yuv420p10le"},
    "fragments.mp4": {"options": {"movflags": "frag_keyframe+empty_moov"}, **B_FRAMES},
    "hevc.mp4": {"codec": "libx265", "coding": {"x265-params": "log-level=none:keyint=10"}},
    "mpeg4.mp4": {"codec": "mpeg4", **B_FRAMES},
    "mjpeg.mp4": {"codec": "mjpeg", **FULL},
    "vp9.mp4": {"codec": "libvpx-vp9", "coding": {"cpu-used": "8", "deadline": "realtime", "g": "10"}},
    "h264.mov": B_FRAMES,
    "mjpeg.mov": {"codec": "mjpeg", **FULL},
    "png.mov": {"codec": "png", "pix_fmt": "rgb24"},
    "prores.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
    "qtrle.mov": {"codec": "qtrle", "pix_fmt": "rgb24"},
    "h264.m4v": B_FRAMES,
    "h264.mkv": B_FRAMES,
    "hevc.mkv": {"codec": "libx265", "coding": {"x265-params": "log-level=none:keyint=10"}},
    "mpeg2.mkv": {"codec": "mpeg2video", **B_FRAMES},
    "ffv1.mkv": {"codec": "ffv1"},
    "mjpeg.mkv": {"codec": "mjpeg", **FULL},
    "vp8.webm": {"codec": "libvpx", "coding": {"cpu-used": "8", "deadline": "realtime", "g": "10"}},
    "vp8_alt_ref.webm": {"codec": "libvpx", "coding": {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "20"}},
    "vp9.webm": {"codec": "libvpx-vp9", "coding": {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "20"}},
    "mpeg4.avi": {"codec": "mpeg4", "coding": {"g": "10"}},
    "mpeg4_b.avi": {"codec": "mpeg4", **B_FRAMES},
    "h264.avi": H264,
    "h264_b.avi": B_FRAMES,
    "mjpeg.avi": {"codec": "mjpeg", **FULL},
    "msmpeg4.avi": {"codec": "msmpeg4", "coding": {"g": "10"}},
    "huffyuv.avi": {"codec": "huffyuv", "pix_fmt": "yuv422p"},
    "raw.avi": {"codec": "rawvideo", "pix_fmt": "bgr24"},
    "h264.ts": B_FRAMES,
    "mpeg2.ts": {"codec": "mpeg2video", **B_FRAMES},
    "hevc.ts": {"codec": "libx265", "coding": {"x265-params": "log-level=none:keyint=10"}},
    "mpeg1.mpg": {"codec": "mpeg1video", **B_FRAMES},
    "mpeg2.mpg": {"codec": "mpeg2video", **B_FRAMES},
    "mpeg2.mpeg": {"codec": "mpeg2video", "coding": {"g": "10"}},
    "wmv1.wmv": {"codec": "wmv1", "coding": {"g": "10"}},
    "wmv2.wmv": {"codec": "wmv2", "coding": {"g": "10"}},
    "animation.gif": {"codec": "gif", **RGB8},
    "flash.flv": {"codec": "flv", "coding": {"g": "10"}},
}
# (a, b, c, d) of a display matrix: a pixel at column x, row y is shown at column a x + c y, row b x + d y.
MATRICES = [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)] + [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]
STAMPED = {".mkv", ".webm", ".flv"}  # whose muxers take equal time stamps


def write_odd_videos(folder: Path) -> Iterator[tuple[Path, str]]:
    """Odd videos of 30 frames, one after the other, each with its kind; a truncated one says so in its kind.

    A container whose name is no video's (.flv) is called .mp4: ffmpeg looks at what is inside.
    """
    chance = np.random.default_rng(7)
    for number, (name, video) in enumerate(CODINGS.items()):
        plain = make_video(folder / name, **video)
        kind = plain.suffix
        content, plain = plain.read_bytes(), plain.rename(folder / f"{name}{'.mp4' if kind == '.flv' else ''}")
        yield plain, "plain"

        def write(what: str, changed: bytes, plain: Path = plain) -> tuple[Path, str]:
            path = plain.with_name(f"{what}_{plain.name}")
            path.write_bytes(changed)
            return path, what

        tails = {"zeros": bytes(3000), "noise": chance.bytes(3000), "text": b"Dear diary, no video today.\n" * 50}
        what = list(tails)[number % 3]
        yield write(f"{what}_behind", content + tails[what])
        yield write("line_end_behind", content + b"\r\n")
        yield write("twice", content + content)
        if kind not in (".ts", ".mpg", ".mpeg", ".wmv", ".flv") and name != "fragments.mp4":
            yield write("truncated", content[: int(len(content) * chance.uniform(0.3, 0.9))])
        yield write("caf\udce9", content)[0], "name not UTF-8"
        if kind in STAMPED and not reorders(plain):
            yield (
                remux(plain, plain.with_name(f"equal_{plain.name}"), [n - n % 2 for n in range(30)], kind[1:]),
                "equal",
            )
    for video in ({}, H264, {"height": 50, "width": 66, "pix_fmt": "yuv444p"}):
        for matrix in MATRICES:
            width = video.get("width", 64)
            path = folder / f"matrix_{len(str(video))}_{width}_{'_'.join(map(str, matrix))}.mp4"
            yield orient(make_video(path, frames=12, **video), *matrix), "matrix"
    for frames in (11, 12, 25, 30, 39):
        yield packed(folder / f"packed_{frames}.avi", frames), "packed B-frames"


def reorders(path: Path) -> bool:
    """Whether a video's packets are in another order than its frames."""
    with av.open(str(path)) as container:
        times = [packet.pts for packet in container.demux(video=0) if packet.size]
    return None in times or times != sorted(times)


def remux(path: Path, out: Path, times: list[int], format: str) -> Path:
    """The video of ``path`` with the time stamps ``times`` / 24 s, its packets copied."""
    with av.open(str(path)) as old, av.open(str(out), "w", format={"mkv": "matroska"}.get(format, format)) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = (packet for packet in old.demux(video=0) if packet.size)
        for time, packet in zip(times, packets, strict=True):
            packet.stream, packet.time_base = stream, Fraction(1, 24)
            packet.pts = packet.dts = time
            new.mux(packet)
    return out


def packed(path: Path, frames: int = 39, height: int = 48, width: int = 64) -> Path:
    """An MPEG-4 in AVI as DivX and Xvid wrote it: a P-frame and the B-frame before it in one chunk, and an empty frame
    in the next, so that a container without time stamps need not know of either."""
    with av.open(str(path), "w") as container:
        coding = {"bf": "1", "g": "12", "b_strategy": "0", "sc_threshold": "1000000000"}
        stream = container.add_stream("mpeg4", rate=24, options=coding)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = height, width, "yuv420p", 4_000_000
        pictures = (av.VideoFrame.from_ndarray(picture(n, height, width), format="rgb24") for n in range(frames))
        packets = [packet for frame in (*pictures, None) for packet in stream.encode(frame)]
        chunks: list[tuple[bytes, bool]] = []
        for packet in packets:
            content = bytes(packet)
            if not chunks:  # by which decoders know that frames are packed
                at = content.index(b"\x00\x00\x01\xb6")
                content = content[:at] + b"\x00\x00\x01\xb2DivX503b1393p" + content[at:]
            if vop_type(content) == 2:  # a B-frame
                before, key = chunks[-1]
                chunks[-1] = before + content, key
                chunks.append((b"\x00\x00\x01\xb6\x50\x1f", False))  # a frame that is not coded
            else:
                chunks.append((content, packet.is_keyframe))
        for number, (content, key) in enumerate(chunks):
            packet = av.Packet(content)
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 24), number, number
            packet.is_keyframe = key
            container.mux(packet)
    return path


def vop_type(content: bytes) -> int:
    """0, 1 or 2 for an I-, P- or B-frame of MPEG-4."""
    return content[content.index(b"\x00\x00\x01\xb6") + 4] >> 6


def played(path) -> np.ndarray:
    """All frames in the order in which PyAV, which is ffmpeg's libraries, shows them, as they are stored."""
    frames = []
    with av.open(str(path), metadata_errors="ignore") as container:
        container.streams.video[0].thread_count = 1
        for packet in container.demux(video=0):
            frames += [frame.to_ndarray(format="rgb24") for frame in packet.decode()]
    return np.stack(frames)


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
