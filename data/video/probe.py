"""What a video holds, by its headers: nothing is decoded where time stamps name the frames, and a file is read through
only where its index says too little.

A truncated video is one shorter than it says. That is seen here, before any decoder: decord repeats frames, or tries
for minutes, where a file ends early.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np

from videoscaling.data.sources.source import Rejected, Source
from videoscaling.data.video.container import (
    check_no_playlist,
    check_regular,
    container_names,
    frames_as_played,
    message,
    open_video,
    stamp,
)
from videoscaling.data.video.file_length import declared_bytes
from videoscaling.utils.errors import plural

# Containers whose index names every frame; a Matroska's names key frames alone.
INDEXED = {"mov", "mp4", "avi"}
# Those in which decord and torchcodec were measured to find the frame they are asked for, in
# tests/data/video/test_decode.py. decord seeks to wrong ones in MPEG-TS, MPEG, WMV and AVI, and opens no GIF;
# torchcodec fails in MPEG-TS, and gives broken pictures of HEVC there.
SOUGHT = {"mov", "mp4", "matroska", "webm"}
# Those whose stamps were measured to be the frames' own (tests/processes/data/test_odd_videos.py), an AVI's where no
# frames are reordered. Frames of others are counted.
STAMPED = {"mov", "matroska", "mpegts", "gif", "asf", "flv", "avi"}
# From so many frames on, times are taken from the index where they can be; reading 2000 packets takes 10 ms.
LONG = 2000


@dataclass(frozen=True)
class Probe:
    """The contents of a video.

    Attributes:
        times: its frames' time stamps, in order, in units of ``tick`` seconds.
        fps: frames a second, by the header where its frames' times agree; 0 where neither says it.
        plain: whether the container is one of ``SOUGHT``, the packets were read, all are shown, and none that follows
            a key frame is shown before it (as in open groups of pictures). Of others, decord counts or decodes frames
            wrongly.
        counted: whether frames are known by their number alone, as players show them from the first on. Packets of
            such a video have no stamps, equal ones, or ones that go back or that its frames do not have.
    """

    times: Sequence[int]
    fps: float
    height: int
    width: int
    tick: Fraction = Fraction(1, 24)
    plain: bool = True
    counted: bool = False

    @property
    def seconds(self) -> float:
        """From the first frame to the end of the last."""
        return float((self.times[-1] - self.times[0]) * self.tick) + (1 / self.fps if self.fps else 0.0)


@dataclass(frozen=True)
class _Stamps:
    """The time stamps of the packets that are to be shown, in order; the rest as in ``Probe``."""

    times: Sequence[int]
    plain: bool
    counted: bool


def probe(source: Source) -> Probe:
    """A video's frames and their times, and whether all that it declares is there.

    Raises:
        Rejected: missing, not a file, playlist, unreadable, no video stream, too large, truncated.
    """
    try:
        size, declared = _sizes(source)
        if declared > size:
            raise Rejected("truncated", f"{size} of at least {declared} bytes are there")
        with open_video(source) as (container, stream):
            stamps = _indexed_times(container, stream) or _packet_times(container, stream)
            tick, rate = Fraction(stream.time_base), stream.average_rate
            height, width = stream.height, stream.width
        times = stamps.times
        if stamps.counted:
            times, tick = _played_times(source, tick, rate)
        fps = _frames_per_second(float(rate or 0), times, tick)
        return Probe(times, fps, height, width, tick, stamps.plain and not stamps.counted, stamps.counted)
    except FileNotFoundError:
        raise Rejected("missing", "no such file") from None
    except Rejected:
        raise
    except Exception as error:  # a damaged header may raise anything
        raise Rejected("unreadable", message(error)) from None


def _indexed_times(container: av.container.InputContainer, stream: av.VideoStream) -> _Stamps | None:
    """The times in the index of a long video whose frames follow each other evenly; None where they must be read.

    The index has the times of decoding, which B-frames shuffle; at an even rate both are the same series.
    """
    entries = stream.index_entries if _is_indexed(container) and not _is_unstamped(container, stream) else ()
    # Fragments are indexed one by one, and an edit list leaves frames out: then the header counts others.
    if not LONG <= len(entries) == stream.frames or stream.start_time is None:
        return None
    times = [entry.timestamp for entry in entries if not entry.is_discard]
    step = times[1] - times[0]
    if len(times) < len(entries) or step <= 0 or times != list(range(times[0], times[-1] + 1, step)):
        return None
    times = range(stream.start_time, stream.start_time + step * len(times), step)
    return _Stamps(times, plain=False, counted=False)


def _packet_times(container: av.container.InputContainer, stream: av.VideoStream) -> _Stamps:
    """The times of all packets that are to be shown."""
    kinds, indexed = container_names(container), _is_indexed(container)
    times, keys, decoded, packets = [], [], [], 0
    whole, plain, counted = True, bool(SOUGHT & kinds), _is_unstamped(container, stream)
    # An edit list, by which tools cut without coding anew, leaves out of the index what the header counts; so do
    # dropped frames, which are empty.
    frames = stream.frames
    if frames and indexed:
        frames = sum(bool(entry.size) and not entry.is_discard for entry in stream.index_entries)
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue
            time = stamp(packet)
            packets += not packet.is_discard
            # A transport stream marks packets so where two recordings are joined.
            whole = whole and not (packet.is_corrupt and "mpegts" not in kinds)
            if time is None:
                counted = True
                continue
            if packet.is_keyframe:
                keys.append(time)
            if packet.dts is not None:
                decoded.append(packet.dts)
            plain = plain and not packet.is_discard and (not keys or time >= keys[-1])
            if not packet.is_discard:
                times.append(time)
    except av.FFmpegError:
        whole = False
    if not whole or not packets or packets < frames:
        after = f"{packets} of {plural(frames, 'frame')}" if frames else plural(packets, "frame")
        raise Rejected("truncated", f"the file ends after {after}")
    ordered = sorted(times)
    counted = counted or len(set(times)) < len(times) or keys != sorted(keys) or decoded != sorted(decoded)
    # Without reordering, frames come as their packets do. An index names all frames of one file, and not those of
    # another behind it.
    counted = counted or (times != ordered and not stream.codec_context.has_b_frames)
    counted = counted or bool(indexed and frames and packets > frames)
    return _Stamps(tuple(ordered), plain, counted)


def _is_indexed(container: av.container.InputContainer) -> bool:
    return bool(INDEXED & container_names(container))


def _is_unstamped(container: av.container.InputContainer, stream: av.VideoStream) -> bool:
    """Whether packets' stamps may not be those of their frames: an AVI has none, so that B-frames get made-up ones; an
    MPEG program stream stamps some, and gives the others different ones after a seek; a bare stream has none."""
    kinds = container_names(container)
    return not STAMPED & kinds or ("avi" in kinds and stream.codec_context.has_b_frames)


def _played_times(source: Source, tick: Fraction, rate: Fraction | None) -> tuple[Sequence[int], Fraction]:
    """The times of a counted video's frames, in the order in which they are shown, and their unit in seconds.

    The video is decoded once, to count its frames. Where their own stamps go back, they are taken as evenly spaced.
    """
    with open_video(source) as (container, stream):
        stream.thread_count = 1
        times = [stamp(frame) for frame, _ in frames_as_played(container, stream)]
    if not times:
        raise Rejected("undecodable", "no frame can be decoded")
    if None not in times and all(a <= b for a, b in pairwise(times)):
        return tuple(times), tick
    return range(len(times)), 1 / (Fraction(rate) if rate else Fraction(24))


def _frames_per_second(declared: float, times: Sequence[int], tick: Fraction) -> float:
    """The rate that a header declares, or that of the frames' ``times`` where most follow each other in other steps.

    A WebM that a browser recorded declares 1000 a second, and a Matroska of a varying rate any. Steps far from the
    usual one are pauses, as where two recordings are joined.
    """
    steps = np.diff(np.asarray(times)) * float(tick)
    usual = np.median(steps) if len(steps) else 0.0
    if usual <= 0:
        return declared
    step = steps[np.abs(steps - usual) <= usual / 2].mean()
    # Half a tick: a Matroska's milliseconds make 16 and 17 of a sixtieth of a second.
    is_right = abs(step * declared - 1) <= 0.01 + 0.5 * float(tick) * declared
    return declared if is_right else float(1 / step)


def _sizes(source: Source) -> tuple[int, int]:
    """The number of bytes in the file, and the number it declares (0: none)."""
    check_regular(source.path)
    there = source.path.stat().st_size
    with source.path.open("rb") as file:
        file.seek(source.offset)
        check_no_playlist(file.read(256 if source.size is None else min(256, source.size)))
        if source.size is None:
            return there, declared_bytes(file, 0, there)
        if source.offset + source.size > there:
            return max(there - source.offset, 0), source.size
        return source.size, declared_bytes(file, source.offset, source.size)
