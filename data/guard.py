"""Training clips from a file that is validated on: those that keep a distance, the guard gap, from every validation
clip, so that no frame is in both splits and none has a near-duplicate in the other."""

import math
from collections.abc import Sequence

from videoscaling.data.sources.source import Source
from videoscaling.data.video.clips import ClipOptions, Clips

# About two shots of a film, which last 4 to 5 s on average. At most a twentieth of what there is, so that both sides
# of a validation segment cost a tenth of a short video.
GUARD_SECONDS, GUARD_SHARE = 10.0, 20
UNKNOWN_FPS = 24.0


def frames_per_second(clips: Clips, clip_options: ClipOptions) -> float:
    """Rate of the frames that clips are cut from; a clip takes every ``stride``-th of them."""
    return clips.fps * clip_options.shape.stride or UNKNOWN_FPS


def guard_gap(seconds: float, fps: float, clip_options: ClipOptions) -> float:
    """The gap in a file of ``seconds``, in seconds: at least the span of a clip."""
    return max(clip_options.shape.span / fps, min(GUARD_SECONDS, seconds / GUARD_SHARE))


def seconds_between(one: Source, other: Source) -> float:
    """From the end of one range of a file to the start of the other; negative where they overlap."""
    (a, b), (c, d) = _range(one), _range(other)
    return max(a - d, c - b)


def _range(source: Source) -> tuple[float, float]:
    return source.start or 0.0, math.inf if source.end is None else source.end


def keys_apart(
    keys: Sequence[str], validated: Sequence[str], gap: float, fps: float, clip_options: ClipOptions
) -> list[str]:
    """Those clips of one source that begin after or end before every validated one by ``gap`` seconds."""
    distance = clip_options.shape.span + math.ceil(gap * fps)
    starts = [first_frame(key) for key in validated]
    return [key for key in keys if all(abs(first_frame(key) - start) >= distance for start in starts)]


def first_frame(key: str) -> int:
    """The number of a clip's first frame, after the last # of its key."""
    return int(key.rpartition("#")[2])
