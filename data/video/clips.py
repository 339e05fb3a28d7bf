"""Clips of a source: choice of frames and windows, cropping and resizing.

Nothing is swallowed: a source that cannot be used raises ``Rejected`` with a reason. A window that cannot be decoded
costs its clip alone, which is named with its reason. So the lists of sources and of rejections determine the content
of a cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from videoscaling.data.sources.source import Rejected, Source
from videoscaling.data.video.decode import Read, frame_reader
from videoscaling.data.video.pictures import read_picture
from videoscaling.data.video.probe import Probe, probe
from videoscaling.utils.errors import plural
from videoscaling.utils.options import pixels_text

# A video may have this part fewer frames than are asked for: 24 a second for 25, 29.97 for 30.
SLOWER = 0.95
# Seconds by which a range's end may differ from its frame's: shots' are in microseconds, and clocks of 100 ns exist.
RANGE_ERROR = 1e-6
TOO_SMALL = "too small"


@dataclass(frozen=True)
class Shape:
    """A clip's shape: ``frames`` frames, every ``stride``-th of the video, of ``size`` pixels.

    ``size`` is the side of a square, or (height, width).
    """

    frames: int = 17
    size: int | tuple[int, int] = 32
    stride: int = 1

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def span(self) -> int:
        """Frames of the video from a clip's first to its last."""
        return (self.frames - 1) * self.stride + 1


@dataclass(frozen=True)
class ClipOptions:
    """Options that, with the list of sources, determine the clips.

    Attributes:
        clips: at most so many of one source.
        fps: frames per second that videos are resampled to, by time stamps; None takes frames as they come.
        window_step: frames (of the resampled video) from one clip's first to the next's; None: a clip's span, so that
            clips do not overlap.
        backend: one of ``data.video.decode.BACKENDS``.
    """

    shape: Shape
    clips: int = 16
    fps: float | None = None
    window_step: int | None = None
    backend: str = "pyav"


class Clips(NamedTuple):
    """The n clips of one source: their keys, captions, and pixels as ``to_float`` takes them, [n, 3, F, H, W].

    ``fps`` is the clips' frames per second (0: unknown), ``seconds`` the length of what the source holds. ``rejected``
    has the other clips of the source, which could not be decoded, as rows of ``rejected.jsonl``.
    """

    keys: list[str]
    captions: list[str]
    pixels: Tensor
    fps: float = 0.0
    seconds: float = 0.0
    rejected: Sequence[dict[str, str]] = ()


def load_clips(
    source: Source, clip_options: ClipOptions, starts: Sequence[int] | None = None, decode: bool = True
) -> Clips:
    """The clips of a source, or those of its windows that begin with ``starts``; pixels are uint8 [n, 3, F, H, W], or
    empty, [n, 0], unless ``decode``.

    Raises:
        Rejected: see docs/data.md for the reasons.
    """
    if source.fault:
        raise Rejected(source.reason, source.fault)
    return (_picture if source.is_picture else _video)(source, clip_options, starts, decode)


def _video(source: Source, clip_options: ClipOptions, starts: Sequence[int] | None, decode: bool) -> Clips:
    found, shape = probe(source), clip_options.shape
    numbers = shown(found, source, clip_options.fps)
    starts = _chosen(starts, windows(len(numbers), found.height, found.width, clip_options), len(numbers), shape)
    fps = clip_options.fps or found.fps
    seconds = len(numbers) / fps if fps else 0.0
    if not decode:
        _check_upright(source, found, clip_options, numbers)
        pixels = torch.empty(len(starts), 0, dtype=torch.uint8)
        return _clips(source, starts, pixels, fps / shape.stride, seconds)
    clips: dict[int, Tensor] = {}
    lost: dict[int, Rejected] = {}
    with frame_reader(source, found, clip_options.backend, partial(_resized, sides=shape.sides)) as read_frames:
        read = _each_once(read_frames)
        for start in starts:
            try:
                pictures = read(numbers[start : start + shape.span : shape.stride])
            except Rejected as error:
                lost[start] = error
            else:
                clips[start] = torch.from_numpy(pictures).permute(1, 0, 2, 3).contiguous()
    if lost and not clips:
        raise next(iter(lost.values()))
    pixels = torch.stack(list(clips.values())) if clips else torch.empty(0, 0, dtype=torch.uint8)
    rejected = [error.row(source.name) | {"clip": f"{source.name}#{start}"} for start, error in lost.items()]
    return _clips(source, list(clips), pixels, fps / shape.stride, seconds)._replace(rejected=rejected)


def _check_upright(source: Source, found: Probe, clip_options: ClipOptions, numbers: Sequence[int]) -> None:
    """Reject a video too small for a rectangle, which only a frame says where the video covers it turned or unturned.

    Found when it is decoded, it would be missing from the split that was drawn: a portrait, drawn to validate on.
    """
    sides = clip_options.shape.sides
    if min(found.height, found.width) >= max(sides) or not len(numbers):
        return
    try:
        with frame_reader(source, found, clip_options.backend, partial(_resized, sides=sides)) as read_frames:
            read_frames(numbers[:1])
    except Rejected as error:  # of a frame that cannot be decoded others may be
        if error.reason == TOO_SMALL:
            raise


def _each_once(read: Read) -> Read:
    """``read`` for clips in order, which may overlap: frames are kept until a clip begins after them, so that each is
    decoded once. At a hop of one frame that is a 17th of the work."""
    kept: dict[int, np.ndarray] = {}

    def read_clip(numbers: Sequence[int]) -> np.ndarray:
        for passed in [number for number in kept if number < numbers[0]]:
            del kept[passed]
        missing = [int(number) for number in dict.fromkeys(numbers) if number not in kept]
        if missing:
            kept.update(zip(missing, read(missing)))
        return np.stack([kept[number] for number in numbers])

    return read_clip


def _resized(picture: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    """A frame [H, W, 3] as ``resize_and_crop`` leaves it, [3, height, width]."""
    _check_covers(picture, sides)  # its size changes, or the header has another
    return resize_and_crop(picture[None], sides)[:, 0].numpy()


def _check_covers(picture: np.ndarray, sides: tuple[int, int]) -> None:
    if any(side < wanted for side, wanted in zip(picture.shape, sides)):
        raise _too_small(*picture.shape[:2], sides)


def _too_small(height: int, width: int, sides: tuple[int, int]) -> Rejected:
    return Rejected(TOO_SMALL, f"{pixels_text(height, width)}; clips are {sides[0]}x{sides[1]}")


def _picture(source: Source, clip_options: ClipOptions, starts: Sequence[int] | None, decode: bool) -> Clips:
    picture = read_picture(source)
    starts = _chosen(starts, windows(1, *picture.shape[:2], clip_options), 1, clip_options.shape)
    _check_covers(picture, clip_options.shape.sides)  # ``windows`` does not know that it is upright
    pixels = resize_and_crop(picture[None], clip_options.shape.sides)[None] if decode else torch.empty(1, 0).byte()
    return _clips(source, starts, pixels[: len(starts)], 0.0, 0.0)


def _clips(source: Source, starts: Sequence[int], pixels: Tensor, fps: float, seconds: float) -> Clips:
    return Clips([f"{source.name}#{start}" for start in starts], [source.caption] * len(starts), pixels, fps, seconds)


def _chosen(starts: Sequence[int] | None, every: list[int], frames: int, shape: Shape) -> list[int]:
    if starts is None:
        return every
    if starts and max(starts) + shape.span > frames:
        raise Rejected("too short", f"{plural(frames, 'frame')}; a clip from frame {max(starts)} spans {shape.span}")
    return list(starts)


def shown(found: Probe, source: Source, fps: float | None) -> np.ndarray:
    """The numbers of the frames that clips are cut from: those in the source's range, at ``fps`` where that is given
    (at each moment the frame nearest to it).

    Raises:
        Rejected: the video has fewer frames a second.
    """
    seconds = (np.asarray(found.times) - found.times[0]) * float(found.tick)
    ends = [source.start or 0.0, np.inf if source.end is None else source.end]
    # Half a tick, as manifests' seconds are rounded to ticks.
    begin, end = np.searchsorted(seconds + max(float(found.tick) / 2, RANGE_ERROR), ends)
    numbers, here = np.arange(begin, end), seconds[begin:end]
    if fps is None or len(here) < 2:
        return numbers
    length = here[-1] - here[0]
    if length * fps * SLOWER > len(here) - 1:
        raise Rejected("too few frames", f"{(len(here) - 1) / length:.4g} a second; {fps:g} are asked for")
    # Moments half way between two frames, and the last one, do not hang on rounding.
    moments = here[0] + np.arange(int((length + float(found.tick)) * fps) + 1) / fps
    later = np.searchsorted(here, moments).clip(1, len(here) - 1)
    return numbers[later - (moments - here[later - 1] <= here[later] - moments + float(found.tick) / 2)]


def windows(frames: int, height: int, width: int, clip_options: ClipOptions) -> list[int]:
    """First frames of the clips to take from ``frames`` frames; if there are more than ``clip_options.clips``, these
    are spread evenly.

    Raises:
        Rejected: too short, or too small (enlarged pictures would teach a model to blur).
    """
    shape, limit, window_step = (
        clip_options.shape,
        clip_options.clips,
        clip_options.window_step or clip_options.shape.span,
    )
    if frames < shape.span:
        raise Rejected("too short", f"{plural(frames, 'frame')}; a clip spans {shape.span}")
    # A header does not know which side is up.
    if any(side < wanted for side, wanted in zip(sorted((height, width)), sorted(shape.sides))):
        raise _too_small(height, width, shape.sides)
    fit = (frames - shape.span) // window_step + 1
    return [i * max(fit, limit) // limit * window_step for i in range(min(fit, limit))]


def to_float(pixels: Tensor) -> Tensor:
    """uint8 pixels -> float32 in [-1, 1], on their device; floats as they are (rendered clips)."""
    return pixels if pixels.is_floating_point() else pixels.float().div_(127.5).sub_(1)


def resize_and_crop(pictures: np.ndarray, sides: tuple[int, int]) -> Tensor:
    """uint8 [F, H, W, 3] -> uint8 [3, F, *sides]: resized (antialiased) until one side fits, the other one's centre
    cropped."""
    height, width = pictures.shape[1:3]
    if sides[0] * width >= sides[1] * height:
        resized = [sides[0], max(sides[1], int(sides[0] * width / height))]
    else:
        resized = [max(sides[0], int(sides[1] * height / width)), sides[1]]
    # Colours last in memory, as they come: eight times as fast as one plane after the other, and the same to the bit.
    tensor = torch.from_numpy(np.require(pictures, requirements="W")).permute(0, 3, 1, 2)
    tensor = torch.nn.functional.interpolate(tensor, resized, mode="bilinear", antialias=True)
    top, left = (round((side - wanted) / 2) for side, wanted in zip(resized, sides))
    return tensor[:, :, top : top + sides[0], left : left + sides[1]].permute(1, 0, 2, 3).contiguous()
