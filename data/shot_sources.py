"""Videos split into their shots before a cache is planned: each shot becomes a source with a range of its own.

So no clip crosses a cut, shots are the units that processes share, and validation takes whole shots. All processes of
a job need all shots. They are kept in the user's cache, and each process begins at its own place in the list, so that
processes with the same home folder share the work, and a job that was killed continues.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from videoscaling.data.clip_groups import ClipGroup
from videoscaling.data.sources.source import Rejected, Source
from videoscaling.data.video.clips import ClipOptions, Clips
from videoscaling.data.video.decode_workers import decoded
from videoscaling.data.video.shots import VERSION, Shot, check_rule, find_shots
from videoscaling.data.work_share import WorkShare
from videoscaling.utils.errors import UserError, plural
from videoscaling.utils.files import read_json, user_cache, write_json
from videoscaling.utils.progress import Progress

# Shots need every frame of a video, clips at most a few hundred: so many times the limit for a video's clips.
LIMIT_RATIO = 100


@dataclass(frozen=True)
class ShotOptions:
    """How shots are found, and by which part of a job.

    ``rule`` is one of ``data.video.shots.RULES``; the other options are those for decoding clips.
    """

    rule: str
    share: WorkShare
    workers: int
    limit_seconds: float


@dataclass
class ShotCounts:
    """Shots found, for the report.

    Attributes:
        videos, shots: whose shots were found, and how many those are.
        too_short: shots without a clip.
        clips_left_out: how many more clips there would be if they could cross cuts.
    """

    rule: str
    videos: int = 0
    shots: int = 0
    too_short: int = 0
    clips_left_out: int = 0


def split_into_shots(
    sources: Sequence[Source], options: ShotOptions, clip_options: ClipOptions, numbered: bool = False
) -> tuple[list[Source], ShotCounts]:
    """The shots of all videos that are long enough for a clip, sorted by name, and counts for the report.

    Pictures stay as they are. A video whose shots cannot be found becomes a rejected source, and so does one without
    a shot that is long enough.

    Args:
        numbered: whether captions say which of the video's shots it is.

    Raises:
        UserError: as ``whole_videos``.
    """
    videos = whole_videos(sources, options)
    found = _all_shots(videos, options)
    listed = [source for source in sources if source.is_picture or source.fault]
    counts = ShotCounts(options.rule)
    for source in videos:
        shots = found[source.name]
        if isinstance(shots, Rejected):
            listed.append(replace(source, fault=shots.detail, reason=shots.reason))
            continue
        clips = [_most_clips(shot, clip_options) for shot in shots]
        whole = Shot(0.0, sum(shot.end - shot.start for shot in shots), sum(shot.frames for shot in shots))
        counts.videos += 1
        counts.shots += len(shots)
        counts.too_short += clips.count(0)
        counts.clips_left_out += max(0, _most_clips(whole, clip_options) - sum(clips))
        for number, (shot, count) in enumerate(zip(shots, clips)):
            if count:
                listed.append(_shot_source(source, shot, number, len(shots), numbered))
        if not any(clips):
            longest = plural(max((shot.frames for shot in shots), default=0), "frame")
            detail = f"{plural(len(shots), 'shot')} of at most {longest}; a clip spans {clip_options.shape.span}"
            listed.append(replace(source, fault=detail, reason="too short"))
    return sorted(listed, key=lambda source: source.name), counts


def whole_videos(sources: Sequence[Source], options: ShotOptions) -> list[Source]:
    """The videos whose shots are to be found.

    Raises:
        UserError: the rule needs a package that is missing, or a video has a range already.
    """
    check_rule(options.rule)
    videos = [source for source in sources if not (source.is_picture or source.fault)]
    for source in videos:
        if source.video != source.name:
            raise UserError(f"--shots finds the ranges of whole videos, and {source.name} has one; leave --shots out")
    return videos


def _shot_source(source: Source, shot: Shot, number: int, count: int, numbered: bool) -> Source:
    after = number - count // 2  # of the middle shot: the validated stretch grows from it on both sides
    caption = f"{source.caption}, shot {number + 1} of {count}" if numbered and source.caption else source.caption
    return replace(
        source,
        name=f"{source.name}@{shot.start:.12g}-{shot.end:.12g}",
        caption=caption,
        start=shot.start,
        end=shot.end,
        rank=2 * after if after >= 0 else -2 * after - 1,
    )


def _most_clips(shot: Shot, clip_options: ClipOptions) -> int:
    """How many clips fit into a shot, if not limited otherwise."""
    frames, span = shot.frames, clip_options.shape.span
    if clip_options.fps is not None and frames:
        length = (shot.end - shot.start) * (frames - 1) / frames  # from the first frame to the last
        frames = int(length * clip_options.fps + 1e-3) + 1
    return max(0, (frames - span) // (clip_options.window_step or span) + 1)


def _all_shots(videos: Sequence[Source], options: ShotOptions) -> dict[str, list[Shot] | Rejected]:
    """The shots of each video by its name, found or kept from before."""
    found: dict[str, list[Shot] | Rejected] = {}
    asked: deque[Source] = deque()
    first = options.share.rank * len(videos) // options.share.world

    def missing() -> Iterator[ClipGroup]:
        for source in (*videos[first:], *videos[:first]):
            kept = _read_kept(_place(source, options.rule))
            if kept is None:
                asked.append(source)
                yield ClipGroup(source.name, [], partial(_load, source, options.rule))
            else:
                found[source.name] = kept
                bar.update(1)

    with Progress(len(videos), "finding shots", "videos") as bar:
        for answer in decoded(missing(), options.workers, LIMIT_RATIO * options.limit_seconds):
            source = asked.popleft()
            shots = (
                answer if isinstance(answer, Rejected) else [Shot(a, b, int(n)) for a, b, n in answer.pixels.tolist()]
            )
            found[source.name] = shots
            if not isinstance(shots, Rejected):
                _keep(_place(source, options.rule), shots)
            bar.update(1)
    return found


def _load(source: Source, rule: str) -> Clips:
    """The shots as ``pixels``, float64 [n, 3]: a worker returns a tensor."""
    shots = [astuple(shot) for shot in find_shots(source, rule)]
    return Clips([], [], torch.tensor(shots, dtype=torch.float64).reshape(-1, 3))


def _place(source: Source, rule: str) -> Path | None:
    """Where a video's shots are kept; None where it cannot be read."""
    try:
        about = source.path.stat()
    except OSError:
        return None
    what = [VERSION, rule, str(source.path.resolve()), about.st_size, about.st_mtime_ns, source.offset, source.size]
    name = hashlib.sha256(json.dumps(what).encode(errors="surrogateescape")).hexdigest()
    return user_cache() / "shots" / name[:2] / f"{name}.json"


def _read_kept(path: Path | None) -> list[Shot] | None:
    if path is None or not path.is_file():
        return None
    try:
        return [Shot(float(start), float(end), int(frames)) for start, end, frames in read_json(path, list)]
    except (UserError, TypeError, ValueError):  # damaged: they are found again
        return None


def _keep(path: Path | None, shots: list[Shot]) -> None:
    """Shots are found again where they cannot be kept, as on a full disk."""
    if path is not None:
        with suppress(OSError, UserError):
            write_json(path, [astuple(shot) for shot in shots])
