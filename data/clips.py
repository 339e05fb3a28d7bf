"""Videos to clips: a folder or a manifest, decoded with decord (PyAV where decord fails), cropped and resized.

Nothing is swallowed: a video that cannot be used raises ``Rejected`` with a reason, and a video is used whole or not
at all, so that what a cache holds follows from the list of sources and of rejections.
"""

import csv
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError, nearest

SUFFIXES = {".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}


class Rejected(Exception):
    """A source that cannot be used.

    Attributes:
        reason: one of few words, to count by ("truncated", "too short", ...).
        detail: what was seen.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # as they are, so that it can be pickled
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"

    def row(self, source: str) -> dict[str, str]:
        """A line of ``rejected.jsonl``."""
        return {"source": source, "reason": self.reason, "detail": self.detail}


@dataclass(frozen=True)
class Shape:
    """A clip's shape: ``frames`` frames, every ``stride``-th of the video, of ``size`` x ``size`` pixels."""

    frames: int = 17
    size: int = 32
    stride: int = 1

    @property
    def span(self) -> int:
        """Frames of the video from a clip's first to its last."""
        return (self.frames - 1) * self.stride + 1


@dataclass(frozen=True)
class Source:
    """A video to read. ``name`` is its path as the folder or manifest knows it: its identity everywhere."""

    name: str
    path: Path
    caption: str


@dataclass(frozen=True)
class Reading:
    """How videos are read: what, besides the list of sources, a cache's clips follow from.

    ``clips`` is how many are taken of one video at most.
    """

    shape: Shape
    clips: int = 16


class Clips(NamedTuple):
    """The n clips of one source: their keys, captions, and pixels as ``to_float`` takes them, [n, 3, F, H, W].

    ``fps`` is the clips' frames per second (0: unknown), ``seconds`` the length of what the source holds.
    """

    keys: list[str]
    captions: list[str]
    pixels: Tensor
    fps: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Probe:
    """What a video holds: ``times`` are its frames' time stamps in order, in units of the stream's clock."""

    times: tuple[int, ...]
    fps: float
    height: int
    width: int


def list_sources(where: str | Path) -> list[Source]:
    """The videos of a folder (searched recursively, captions in ``x.txt`` beside ``x.mp4``) or of a manifest (CSV or
    JSONL with ``path``, relative to the manifest's folder, and ``caption``), sorted by name.

    Raises:
        UserError: a missing or empty folder; a manifest without a path column, with a row that names no existing
            file, the same file twice, or a file outside the manifest's folder; text that is not UTF-8.
    """
    where = Path(where)
    if where.is_dir():
        sources = _list_folder(where)
    elif where.suffix.lower() in (".csv", ".jsonl") and where.is_file():
        sources = _list_manifest(where)
    elif where.exists():
        raise UserError(f"{where}: neither a folder of videos nor a .csv or .jsonl manifest")
    else:
        raise UserError(f"{where}: no such folder or manifest")
    return sorted(sources, key=lambda source: source.name)


def _list_folder(folder: Path) -> list[Source]:
    videos = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.is_dir()]
    if not videos:
        raise UserError(f"{folder}: no videos in this folder ({', '.join(sorted(SUFFIXES))})")
    sources = []
    for path in videos:
        text = path.with_suffix(".txt")
        caption = " ".join(_read_text(text).split()) if text.is_file() else ""
        sources.append(Source(path.relative_to(folder).as_posix(), path, caption))
    return sources


def _list_manifest(manifest: Path) -> list[Source]:
    text = _read_text(manifest)
    if manifest.suffix.lower() == ".csv":
        lines = csv.DictReader(text.splitlines())
        rows = [(lines.line_num, row) for row in lines]
        columns = list(lines.fieldnames or [])
    else:
        rows = []
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                rows.append((number, _json_object(manifest, number, line)))
        columns = list(rows[0][1]) if rows else []
    if rows and "path" not in columns:
        raise UserError(f"{manifest}: no column 'path' (there are: {', '.join(columns)}{nearest('path', columns)})")
    if not rows:
        raise UserError(f"{manifest}: the manifest lists no videos")
    root, sources = manifest.parent, {}
    for number, row in rows:
        name = row.get("path")
        if not name or not isinstance(name, str):
            raise UserError(f"{manifest}, line {number}: no path in this row")
        # Lexical on purpose: a link inside the folder to a disk elsewhere is the owner's decision, "../" is not.
        name = Path(os.path.relpath(root / name, root)).as_posix()
        if name.startswith("../"):
            raise UserError(f"{manifest}, line {number}: {row['path']} lies outside the manifest's folder")
        if name in sources:
            raise UserError(f"{manifest}, line {number}: {name} is listed twice")
        if not (root / name).is_file():
            raise UserError(f"{manifest}, line {number}: no such file: {root / name}")
        sources[name] = Source(name, root / name, " ".join(str(row.get("caption") or "").split()))
    return list(sources.values())


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def _json_object(manifest: Path, number: int, line: str) -> dict:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{manifest}, line {number}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{manifest}, line {number}: not a JSON object with 'path' and 'caption'")
    return value


def probe(path: Path) -> Probe:
    """Read a video's packets, without decoding them, and see whether all that it declares is there.

    decord repeats frames, or tries for minutes, where a file ends early; so whole files alone are handed to it.

    Raises:
        Rejected: missing, unreadable, no video stream, truncated.
    """
    try:
        size, declared = path.stat().st_size, _declared_bytes(path)
        if declared > size:
            raise Rejected("truncated", f"{size} of at least {declared} bytes are there")
        with av.open(str(path)) as container:
            return _probe_stream(container, _video_stream(container))
    except FileNotFoundError:
        raise Rejected("missing", "no such file") from None
    except (av.FFmpegError, OSError) as error:
        raise Rejected("unreadable", _message(error)) from None


def _declared_bytes(path: Path) -> int:
    """How long an MP4, MOV, AVI, Matroska, WebM or GIF file must be by its own account; 0 where it gives none.

    ffmpeg calls a file without its table of frames invalid data like any other, and reads one that lacks its tail in
    silence; the outermost boxes tell.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(128)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
            position = 0
            while position + 8 <= size:
                file.seek(position)
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
            file.seek(-1, os.SEEK_END)
            return 0 if file.read() == b";" else size + 1  # its trailer
    return 0


def _ebml_length(head: bytes, at: int) -> tuple[int, int]:
    """The variable-length number at ``at`` (0 for "unknown", as live recordings say) and where it ends."""
    if at >= len(head) or not head[at]:
        return 0, at
    width = 9 - head[at].bit_length()
    value = int.from_bytes(head[at : at + width]) & (1 << 7 * width) - 1
    return (0 if value == (1 << 7 * width) - 1 else value), at + width


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The first video stream that is no cover picture."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    raise Rejected("no video stream", f"streams: {', '.join(s.type for s in container.streams) or 'none'}")


def _probe_stream(container: av.container.InputContainer, stream: av.VideoStream) -> Probe:
    times, whole = [], True
    try:
        for packet in container.demux(stream):
            time = packet.dts if packet.pts is None else packet.pts
            if time is not None and packet.size:
                times.append(time)
                whole = whole and not packet.is_corrupt
    except av.FFmpegError:
        whole = False
    if not whole or len(times) < stream.frames:
        of = f" of {stream.frames}" if stream.frames else ""
        raise Rejected("truncated", f"the file ends after {len(times)}{of} frames")
    return Probe(tuple(sorted(times)), float(stream.average_rate or 0), stream.height, stream.width)


def windows(found: Probe, shape: Shape, limit: int) -> list[int]:
    """First frames of the clips to take from a video: windows that do not overlap; where there are more than
    ``limit``, those spread evenly over the video.

    Raises:
        Rejected: too short, or too small (enlarged pictures would teach a model to blur).
    """
    fit = len(found.times) // shape.span
    if not fit:
        raise Rejected("too short", f"{len(found.times)} frames; a clip spans {shape.span}")
    if min(found.height, found.width) < shape.size:
        raise Rejected("too small", f"{found.width}x{found.height} pixels; clips are {shape.size}x{shape.size}")
    return [i * max(fit, limit) // limit * shape.span for i in range(min(fit, limit))]


def read_clip(path: Path, found: Probe, start: int, shape: Shape) -> Tensor:
    """The clip that begins with frame ``start``, the shorter side resized to ``size`` and the centre cropped.

    Returns:
        float32 [3, frames, size, size] in [-1, 1].

    Raises:
        Rejected: undecodable.
    """
    numbers = [start + i * shape.stride for i in range(shape.frames)]
    try:
        pictures = decode_decord(path, numbers)
    except Exception:  # decord has no exception class of its own for all that it throws
        pictures = decode_pyav(path, numbers, found.times)
    return resize_and_crop(torch.from_numpy(pictures), shape.size)


def load_clips(source: Source, reading: Reading, starts: tuple[int, ...] | None, decode: bool) -> Clips:
    """The clips of a video, or those that begin with ``starts``; pixels are empty, [n, 0], unless ``decode``.

    Raises:
        Rejected: see docs/data.md for the reasons.
    """
    found, shape = probe(source.path), reading.shape
    starts = tuple(windows(found, shape, reading.clips)) if starts is None else starts
    if starts and max(starts) + shape.span > len(found.times):
        raise Rejected("too short", f"{len(found.times)} frames; a clip from frame {max(starts)} spans {shape.span}")
    pixels = torch.empty(len(starts), 0, dtype=torch.uint8)
    if decode:
        clips = [read_clip(source.path, found, start, shape) for start in starts]
        pixels = ((torch.stack(clips) + 1) * 127.5).round().byte()
    keys = [f"{source.name}#{start}" for start in starts]
    seconds = len(found.times) / found.fps if found.fps else 0.0
    return Clips(keys, [source.caption] * len(keys), pixels, found.fps / shape.stride, seconds)


def to_float(pixels: Tensor) -> Tensor:
    """uint8 pixels -> float32 in [-1, 1], on their device; floats as they are (rendered clips)."""
    return pixels if pixels.is_floating_point() else pixels.float().div_(127.5).sub_(1)


def resize_and_crop(pictures: Tensor, size: int) -> Tensor:
    """uint8 [F, H, W, 3] -> float32 [3, F, size, size] in [-1, 1]: antialiased resize, centre crop."""
    # A second and a half to import, which reading a cache does without.
    from torchvision.transforms.v2 import functional as transforms

    pictures = transforms.resize(pictures.permute(0, 3, 1, 2).contiguous(), [size], antialias=True)
    pictures = transforms.center_crop(pictures, [size, size])
    return pictures.permute(1, 0, 2, 3).float().div_(127.5).sub_(1)


def decode_decord(path: Path, numbers: list[int]) -> np.ndarray:
    """Frames by number, uint8 [n, H, W, 3]; whatever decord raises where it cannot."""
    # How often decord asks again at a premature end of file; its own default takes minutes.
    os.environ.setdefault("DECORD_EOF_RETRY_MAX", "256")
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    return reader.get_batch(numbers).asnumpy()


def decode_pyav(path: Path, numbers: list[int], times: tuple[int, ...]) -> np.ndarray:
    """Frames by number, uint8 [n, H, W, 3], found by their time stamps.

    Raises:
        Rejected: undecodable.
    """
    wanted = [times[number] for number in numbers]
    asked = f"frames {numbers[0]} to {numbers[-1]}"
    try:
        pictures = _pictures_at(path, wanted, seek=True)
        if len(pictures) < len(wanted):  # some containers seek past the key frame that they were asked for
            pictures = _pictures_at(path, wanted, seek=False)
    except av.FFmpegError as error:
        raise Rejected("undecodable", f"{asked}: {_message(error)}") from None
    if len(pictures) < len(wanted):
        raise Rejected("undecodable", f"{asked}: {len(wanted) - len(pictures)} cannot be decoded")
    if len({picture.shape for picture in pictures.values()}) > 1:
        raise Rejected("undecodable", f"{asked}: the picture's size changes")
    return np.stack([pictures[time] for time in wanted])


def _pictures_at(path: Path, wanted: list[int], seek: bool) -> dict[int, np.ndarray]:
    """Those of the frames with time stamps ``wanted`` (ascending) that can be had, decoding from the key frame before
    the first of them, or from the start."""
    pictures: dict[int, np.ndarray] = {}
    with av.open(str(path)) as container:
        stream = _video_stream(container)
        stream.thread_count = 1
        if seek:
            container.seek(wanted[0], stream=stream)
        for frame in container.decode(stream):
            time = frame.dts if frame.pts is None else frame.pts
            if time in wanted:
                # decord turns upright what a phone filmed on its side; PyAV leaves that to its user.
                pictures[time] = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            if len(pictures) == len(wanted):
                break
    return pictures


def _message(error: Exception) -> str:
    """ffmpeg's words without the error number and the path."""
    return getattr(error, "strerror", None) or str(error)
