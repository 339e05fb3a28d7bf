"""Videos made on the spot, whole and otherwise."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from videoscaling.data.sources.source import Source


def picture(number: int, height: int, width: int) -> np.ndarray:
    """A frame that says which it is by its brightness, with detail that does not compress away: uint8 [H, W, 3]."""
    noise = np.random.default_rng(number).integers(0, 40, (height, width, 3))
    return (noise + 4 * number + np.linspace(0, 60, width, dtype=int)[:, None]).clip(0, 255).astype(np.uint8)


def make_video(
    path,
    frames=30,
    height=48,
    width=64,
    codec="libx264",
    pix_fmt="yuv420p",
    options=None,
    times=None,
    coding=None,
    sound_first=False,
):
    """A video of ``picture(0)``, ``picture(1)``, ... at 24 frames a second, or at ``times`` / 24 s;
    ``sound_first`` puts a stream of silence before it."""
    with av.open(str(path), "w", options=options or {}) as container:
        silence = container.add_stream("aac", rate=16000) if sound_first else None
        stream = container.add_stream(codec, rate=24, options=coding or {})
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = height, width, pix_fmt, 4_000_000
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, height, width), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if silence:
            mux_silence(container, silence)
    return path


def make_cut_video(path, lengths, height=48, width=64):
    """A video of as many shots as ``lengths``, of so many frames each, at 24 a second. A shot has a colour, and a bar
    moves through it."""
    colours = [(200, 40, 40), (40, 200, 60), (50, 60, 210), (220, 210, 60), (60, 200, 210), (180, 60, 190)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for shot, length in enumerate(lengths):
            for number in range(length):
                pixels = np.full((height, width, 3), colours[shot % len(colours)], np.uint8)
                pixels[:, number % width : number % width + 4] //= 2
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def mux_silence(container, stream) -> None:
    sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
    sound.sample_rate = 16000
    for packet in [*stream.encode(sound), *stream.encode()]:
        container.mux(packet)


def make_sound(path):
    with av.open(str(path), "w") as container:
        mux_silence(container, container.add_stream("aac", rate=16000))
    return path


def cut(path, part: float):
    """Leave the first ``part`` of a file."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    return path


def damage(path, numbers):
    """Overwrite the packets ``numbers`` with zeros: the headers stay, and a decoder fails on them."""
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    content = path.read_bytes()
    for number in numbers:
        assert content.count(packets[number]) == 1
        content = content.replace(packets[number], bytes(len(packets[number])))
    path.write_bytes(content)
    return path


def turn(path, turns: int):
    """Have an MP4 shown ``turns`` quarter turns clockwise."""
    cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[turns]
    return orient(path, cos, sin, -sin, cos)


def orient(path, a: float, b: float, c: float, d: float):
    """Have an MP4 shown by a display matrix: a pixel at column x and row y at column a x + c y and row b x + d y."""
    # In the track's header: 16.16 fixed-point numbers after version, times, ids and layers.
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (round(value * 65536) for value in (a, b, c, d))
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def source(path) -> Source:
    return Source(Path(path).name, Path(path), "")
