"""Speed of each decoding backend, and the time of a clip from the end of a long video and of a short one."""

import argparse
import functools
import itertools
import statistics
from pathlib import Path

import av
import numpy as np
import torch

from videoscaling.data.sources.source import Source
from videoscaling.data.video.clips import ClipOptions, Shape, load_clips
from videoscaling.data.video.decode import BACKENDS, check_backend
from videoscaling.data.video.probe import probe
from videoscaling.tools.benchmarks.common import Row, spread, timed
from videoscaling.utils.errors import UserError

FRAMES = 17
LONGER = 60


def decode_rows(args: argparse.Namespace, device: torch.device, folder: Path, video: Path) -> list[Row]:
    """Rows "decode" and "seek".

    Args:
        args: ``rounds``.
        device: of no consequence; decoding is the CPU's.
        folder: to write into.
        video: of about ten seconds.
    """
    source = Source(video.name, video, "")
    return [speed_row(args.rounds, device, source), seek_row(args.rounds, device, folder, source)]


def speed_row(rounds: int, device: torch.device, source: Source) -> Row:
    """Frames a second of consecutive clips, opened once, on one thread, and of a plain PyAV loop."""
    found = probe(source)
    clips = len(found.times) // FRAMES
    frames = clips * FRAMES

    def read_clips(backend: str) -> None:
        with BACKENDS[backend](source, found) as read:
            for clip in range(clips):
                read(list(range(clip * FRAMES, (clip + 1) * FRAMES)))

    def loop() -> list[np.ndarray]:
        with av.open(str(source.path)) as container:
            container.streams.video[0].thread_count = 1
            decoded = itertools.islice(container.decode(video=0), frames)
            return [frame.to_ndarray(format="rgb24") for frame in decoded]

    things = {"plain loop": loop} | {name: functools.partial(read_clips, name) for name in BACKENDS if usable(name)}
    seconds = timed(things, rounds, device)
    speeds = {name: spread([frames / value for value in values]) for name, values in seconds.items()}
    about = f"{found.width}x{found.height}, {len(found.times)} frames"
    return {"what": "decode", "video": about, "frames_per_second": speeds}


def seek_row(rounds: int, device: torch.device, folder: Path, source: Source) -> Row:
    """A clip from the end of a video, and of one sixty times as long: probed, opened, sought, decoded and resized."""
    long = Source("long.mp4", lengthened(source.path, folder / "long.mp4", LONGER), "")
    seconds = timed({"short": clip_from_the_end(source), "long": clip_from_the_end(long)}, rounds, device)
    length = probe(source).seconds
    ratio = [a / b for a, b in zip(seconds["long"], seconds["short"])]
    return {
        "what": "seek",
        "seconds": [length, length * LONGER],
        "milliseconds": {name: spread(values, 1e3) for name, values in seconds.items()},
        "ratio": statistics.median(ratio),
        "ratio_spread": spread(ratio),
    }


def clip_from_the_end(source: Source) -> functools.partial:
    start = len(probe(source).times) - FRAMES - 3
    return functools.partial(load_clips, source, ClipOptions(Shape(FRAMES, 32)), [start])


def usable(backend: str) -> bool:
    try:
        check_backend(backend)
    except UserError:
        return False
    return True


def lengthened(path: Path, out: Path, times: int) -> Path:
    """The video of ``path`` so many times over, its packets copied."""
    with av.open(str(out), "w") as long:
        stream, offset = None, 0
        for _ in range(times):
            with av.open(str(path)) as short:
                source = short.streams.video[0]
                stream = stream or long.add_stream_from_template(source)
                for packet in short.demux(source):
                    if packet.size:
                        packet.stream = stream
                        packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                        long.mux(packet)
                offset += source.duration
    return out
