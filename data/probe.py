"""What a video holds, by its headers: nothing is decoded, and a file is read through only where its
index says too little.

A truncated video is one shorter than it says. That is seen here, before any decoder: decord repeats frames, or tries
for minutes, where a file ends early.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO

import av

from data.media import Rejected, Source

# Containers whose index names every frame; a Matroska's names key frames alone.
INDEXED = {"mov", "mp4", "avi"}
# Those in which decord finds the frame it is asked for; in others, MPEG-TS and AVI among them, it seeks to wrong ones.
SOUGHT = {"mov", "mp4", "matroska", "webm", "gif"}
# From so many frames on, times are taken from the index where they can be; reading 2000 packets takes 10 ms.
LONG = 2000


@dataclass(frozen=True)
class Probe:
    """What a video holds.

    Attributes:
        times: its frames' time stamps, in order, in units of ``tick`` seconds.
        fps: frames a second on average, by the header; 0 where it says nothing.
        plain: whether the container is one of ``SOUGHT``, the packets were read, all are shown, and none that follows
            a key frame is shown before it (as in open groups of pictures). Of others, decord counts or decodes frames
            wrongly.
    """

    times: Sequence[int]
    fps: float
    height: int
    width: int
    tick: Fraction = Fraction(1, 24)
    plain: bool = True

    @property
    def seconds(self) -> float:
        """From the first frame to the end of the last."""
        return float((self.times[-1] - self.times[0]) * self.tick) + (1 / self.fps if self.fps else 0.0)


def probe(source: Source) -> Probe:
    """A video's frames and their times, and whether all that it declares is there.

    Raises:
        Rejected: missing, unreadable, no video stream, truncated.
    """
    try:
        size, declared = _sizes(source)
        if declared > size:
            raise Rejected("truncated", f"{size} of at least {declared} bytes are there")
        with av.open(source.url, metadata_errors="ignore") as container:
            return _probe_stream(container, video_stream(container))
    except FileNotFoundError:
        raise Rejected("missing", "no such file") from None
    except Rejected:
        raise
    except Exception as error:  # whatever a damaged header makes of itself
        raise Rejected("unreadable", message(error)) from None


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The stream that ffmpeg's players, and decord, choose; a cover picture is none.

    Raises:
        Rejected: there is none.
    """
    stream = container.streams.best("video")
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
        raise Rejected("no video stream", f"streams: {', '.join(s.type for s in container.streams) or 'none'}")
    return stream


def message(error: Exception) -> str:
    """ffmpeg's words without the error number and the path; the kind of error where it has no words."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _probe_stream(container: av.container.InputContainer, stream: av.VideoStream) -> Probe:
    times, plain = _indexed_times(container, stream), False
    if times is None:
        times, plain = _packet_times(container, stream)
    fps = float(stream.average_rate or 0)
    return Probe(times, fps, stream.height, stream.width, Fraction(stream.time_base), plain)


def _indexed_times(container: av.container.InputContainer, stream: av.VideoStream) -> range | None:
    """The times in the index of a long video whose frames follow each other evenly; None where they must be read.

    The index has the times of decoding, which B-frames shuffle; at an even rate both are the same series.
    """
    entries = stream.index_entries if INDEXED & set(container.format.name.split(",")) else ()
    # Fragments are indexed one by one, and an edit list leaves frames out: then the header counts others.
    if not LONG <= len(entries) == stream.frames or stream.start_time is None:
        return None
    times = [entry.timestamp for entry in entries if not entry.is_discard]
    step = times[1] - times[0]
    if len(times) < len(entries) or step <= 0 or times != list(range(times[0], times[-1] + 1, step)):
        return None
    return range(stream.start_time, stream.start_time + step * len(times), step)


def _packet_times(container: av.container.InputContainer, stream: av.VideoStream) -> tuple[tuple[int, ...], bool]:
    """The times of all packets that are to be shown, and whether they are plain."""
    kinds = set(container.format.name.split(","))
    times, whole, plain, key, frames = [], True, bool(SOUGHT & kinds), None, stream.frames
    if frames and INDEXED & kinds:
        # An edit list, by which tools cut without coding anew, leaves out of the index what the header counts.
        frames = sum(not entry.is_discard for entry in stream.index_entries)
    try:
        for packet in container.demux(stream):
            time = packet.dts if packet.pts is None else packet.pts
            if time is None or not packet.size:
                continue
            whole = whole and not packet.is_corrupt
            key = time if packet.is_keyframe else key
            plain = plain and not packet.is_discard and (key is None or time >= key)
            if not packet.is_discard:
                times.append(time)
    except av.FFmpegError:
        whole = False
    if not whole or not times or len(times) < frames:
        of = f" of {frames}" if frames else ""
        raise Rejected("truncated", f"the file ends after {len(times)}{of} frames")
    return tuple(sorted(times)), plain


def _sizes(source: Source) -> tuple[int, int]:
    """How many bytes are there, and how many there must be; the latter 0 where nothing says so."""
    there = source.path.stat().st_size
    if source.size is None:
        with source.path.open("rb") as file:
            return there, _declared_bytes(file, 0, there)
    if source.offset + source.size > there:
        return max(there - source.offset, 0), source.size
    with source.path.open("rb") as file:
        return source.size, _declared_bytes(file, source.offset, source.size)


def _declared_bytes(file: BinaryIO, offset: int, size: int) -> int:
    """How long an MP4, MOV, AVI, Matroska, WebM or GIF of ``size`` bytes at ``offset`` must be by its own account; 0
    where it gives none.

    ffmpeg calls a file without its table of frames invalid data like any other, and reads one that lacks its tail in
    silence; the outermost boxes tell.
    """
    file.seek(offset)
    head = file.read(min(128, size))
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
        position = 0
        while position + 8 <= size:
            file.seek(offset + position)
            box = file.read(16)
            length = int.from_bytes(box[:4])
            if length == 1:  # a 64-bit length follows the box's name
                length = int.from_bytes(box[8:])
            if length < 8:  # 0: to the end of the file
                return 0
            position += length
        return position
    if head[:4] == b"RIFF":
        return 8 + int.from_bytes(head[4:8], "little")
    if head[:4] == b"\x1a\x45\xdf\xa3":  # EBML: a header, then one segment with everything
        length, begin = _ebml_length(head, 4)
        length, content = _ebml_length(head, begin + length + 4)
        return content + length
    if head[:3] == b"GIF":
        file.seek(offset + size - 1, os.SEEK_SET)
        return 0 if file.read(1) == b";" else size + 1  # its trailer
    return 0


def _ebml_length(head: bytes, at: int) -> tuple[int, int]:
    """The variable-length number at ``at`` (0 for "unknown", as live recordings say) and where it ends."""
    if at >= len(head) or not head[at]:
        return 0, at
    width = 9 - head[at].bit_length()
    value = int.from_bytes(head[at : at + width]) & (1 << 7 * width) - 1
    return (0 if value == (1 << 7 * width) - 1 else value), at + width
