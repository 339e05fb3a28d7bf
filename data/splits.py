"""Training and validation splits of a list of videos, and sizes of shards, decided from a few opened videos.

Every process of a job decides this for itself, alike, without opening a million videos: they are put in the order of
their names' hashes, and no more are opened than a decision needs. The others are opened when they are encoded.

The validation list is drawn once and written with the cache. A later cache of more videos is given that list: what is
in it stays, and what was added goes to training. A video is in one split alone, unless that would waste too many of
its clips: a film is then parted by time (``data.parts``).
"""

import hashlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from videoscaling.data.clip_groups import ClipGroup, video_group
from videoscaling.data.guard import first_frame
from videoscaling.data.parts import part_files
from videoscaling.data.sources.source import Rejected, Source
from videoscaling.data.video.clips import ClipOptions, Clips
from videoscaling.data.video.decode_workers import decoded
from videoscaling.utils.errors import UserError

SAMPLE = 64  # videos from which the size of all is judged
VALIDATION_SHARE = 10  # one clip in so many is validated on, where no number is asked for,
VALIDATION_CLIPS = 512  # and no more than this: it is scored at every milestone
LEAST_CLIPS = 2  # where a tenth is one: training needs two, whose losses have a standard error
ORDINARY = 16  # clips of a video that is taken whole where fewer are missing: more would be no tenth any more
SKEWED = 4  # a video with more than one in so many of the clips seen says nothing about those not opened


@dataclass(frozen=True)
class Split:
    """The clip groups of each split, and the rule that separated them.

    Attributes:
        units: of each split.
        wanted: how many clips were to be validated on, if that is no whole number of videos somewhat more; None with
            the list of an earlier cache.
        rule: how the draw differs from the one before the cap held always, for the cache's fingerprint; None where it
            does not.
        parted: videos that are validated on in one part and trained on in another.
        gap_seconds: least gap between training and validation clips of one file; 0 if none is divided.
        unused: clips of the videos validated on that are in neither split, as far as they were opened.
    """

    units: dict[str, list[ClipGroup]]
    wanted: int | None
    rule: str | None
    parted: list[str]
    gap_seconds: float
    unused: int

    @property
    def about(self) -> dict[str, Any]:
        """For the index and the reports."""
        by = "time" if self.parted else "video"
        return {
            "by": by,
            "wanted": self.wanted,
            "gap_seconds": self.gap_seconds,
            "parted": self.parted,
            "unused": self.unused,
        }


def hash_order(sources: Sequence[Source]) -> list[Source]:
    """The sources in the order in which they are drawn: by the hashes of their videos' names."""

    def place(source: Source) -> tuple[bytes, int, str]:
        return hashlib.sha256(source.video.encode(errors="surrogateescape")).digest(), source.rank, source.name

    return sorted(sources, key=place)


class VideoScan:
    """The clips of videos, opened in ``hash_order`` as far as needed; pixels are not decoded.

    Args:
        workers, limit_seconds: as ``data.video.decode_workers.decoded``.
    """

    def __init__(
        self, sources: Sequence[Source], clip_options: ClipOptions, workers: int, limit_seconds: float
    ) -> None:
        self.order = hash_order(sources)
        self._reading = clip_options
        self.found: dict[str, Clips] = {}
        self.rejected: list[dict[str, str]] = []
        units = (video_group(source, clip_options, decode=False) for source in self.order)
        self._answers = decoded(units, workers, limit_seconds)
        self.opened = 0
        self._rejected_names: set[str] = set()

    def open(self, count: int) -> None:
        """Open the first ``count`` videos."""
        for source in self.order[self.opened : count]:
            answer = next(self._answers)
            if isinstance(answer, Rejected):
                self.rejected.append(answer.row(source.name))
                self._rejected_names.add(source.name)
            else:
                self.found[source.name] = answer
            self.opened += 1

    def walk(self) -> Iterator[tuple[Source, list[str]]]:
        """Each video and its clips' keys (none if it was rejected); videos are opened as needed."""
        for number, source in enumerate(self.order):
            self.open(number + 1)
            yield source, self.look_up(source.name)

    def look_up(self, name: str) -> list[str] | None:
        """A video's clips' keys: none where it was rejected; None where it was not opened."""
        if name in self.found:
            return self.found[name].keys
        return [] if name in self._rejected_names else None

    def clips_of(self, source: Source) -> Clips:
        """A video's clips without pixels, none of one that is rejected. One that was not opened is opened alone."""
        if source.name in self.found:
            return self.found[source.name]
        try:
            return video_group(source, self._reading, decode=False).load()
        except Rejected:
            return Clips([], [], torch.empty(0))

    def close(self) -> None:
        """End the workers."""
        self._answers.close()

    @property
    def clips_per_video(self) -> float:
        """The mean over the videos opened, rejected ones included."""
        return sum(len(clips.keys) for clips in self.found.values()) / max(self.opened, 1)

    def is_ordinary(self, clips: int) -> bool:
        """Whether a video of so many clips is no longer than the others opened: at most twice their median."""
        counts = sorted(len(found.keys) for found in self.found.values() if found.keys)
        counts.remove(clips)
        return clips <= ORDINARY and bool(counts) and clips <= 2 * median(counts)

    @property
    def expected_clips(self) -> int:
        """Of all videos: those of the ones opened, and as many for each of the others as theirs are on average. A
        single one that has most of them does not count for the others."""
        counts = [len(clips.keys) for clips in self.found.values()]
        known, largest, videos = sum(counts), max(counts, default=0), len(self.order)
        if SKEWED * largest <= known:
            return int(self.clips_per_video * videos)
        return int(known + (known - largest) / max(self.opened - 1, 1) * (videos - self.opened))

    @property
    def fps(self) -> float | None:
        """Frames per second of the clips: the median of the videos opened."""
        known = [clips.fps for clips in self.found.values() if clips.fps]
        return median(known) if known else None


def draw(
    scan: VideoScan,
    clip_options: ClipOptions,
    train: int | None = None,
    validation: int | None = None,
    frozen: Sequence[str] | None = None,
    as_before: bool = False,
) -> Split:
    """The units of each split. A video is in one split alone, or is parted by time with a gap between the splits.

    Args:
        scan: ``SAMPLE`` of its videos are opened, and as many more as the numbers below need.
        train: at most so many training clips, of the first videos drawn; None is all.
        validation: so many validation clips, from as few videos as hold them; None is a tenth of the clips, in whole
            videos where those are ordinary, at most ``VALIDATION_CLIPS``, and of ten clips or more ``LEAST_CLIPS``.
        frozen: the validation keys of an earlier cache, taken instead of drawing any.
        as_before: by the rule of caches that say none: without a number, whole videos until it is reached or passed;
            no video is ever parted.

    Raises:
        UserError: a frozen clip is not in these videos, or nothing is left for training.
    """
    scan.open(SAMPLE)
    by_name = {source.name: source for source in scan.order}
    if frozen is None:
        validation_keys, cap, rule = _draw_validation(scan, validation, as_before)
    else:
        validation_keys, cap, rule = _by_source(frozen), None, None
        _check_frozen(validation_keys, by_name, clip_options)
    file_of = {source.name: source.file for source in scan.order}
    parts = None
    if validation_keys and not as_before:
        # Where the rule before kept to its number, its caches stay as they are unless half of all would be wasted.
        most_unused = cap if rule else scan.expected_clips // 2
        parts = part_files(scan, file_of, validation_keys, clip_options, most_unused, movable=frozen is None)
    allowed: dict[str, list[str] | None] = parts.training if parts else {}
    validation_keys = parts.validation_keys if parts else validation_keys
    training = _training(scan, file_of, validation_keys, allowed, train)
    every = scan.opened == len(scan.order)
    if not training or (every and not any(name in scan.found for name in training)):
        raise UserError(
            "no video is left for training, and no part of one that is far enough from the validation "
            "clips. Add videos, or longer ones; a cache can also have fewer of those (--validation 0 for none)"
        )
    return Split(
        {
            # On disk in the order of names: neighbours there are neighbours in their folder or tar.
            "train": [_group(by_name[name], clip_options, training[name]) for name in sorted(training)],
            "validation": [_group(by_name[name], clip_options, keys) for name, keys in validation_keys.items()],
        },
        wanted=cap,
        rule="parted" if parts else rule,
        parted=parts.videos if parts else [],
        gap_seconds=parts.gap_seconds if parts else 0.0,
        unused=_count_unused(scan, file_of, validation_keys, training),
    )


def _draw_validation(
    scan: VideoScan, validation: int | None, as_before: bool
) -> tuple[dict[str, list[str]], int, str | None]:
    """The validation clips by source, from the first videos; how many were wanted; and ``Split.rule``.

    Arguments as ``draw``'s.
    """
    before = min(max(1, int(scan.clips_per_video * len(scan.order)) // VALIDATION_SHARE), VALIDATION_CLIPS)
    cap, rule = validation, None
    if validation is None:
        cap = before if as_before else max(1, min(before, scan.expected_clips // VALIDATION_SHARE))
        rule = "capped" if cap < before else None
    drawn: dict[str, list[str]] = {}
    missing = cap
    for source, keys in scan.walk() if missing else ():
        most = len(keys)
        if validation is not None:
            most = min(most, missing)
        elif most > missing and not as_before:
            fits = cap - missing + most <= VALIDATION_CLIPS and scan.is_ordinary(most)
            most, rule = (most, rule) if fits else (missing, "capped")
        if keys:
            drawn[source.name] = keys[:most]
            missing -= most
        if missing <= 0:
            break
    one = validation is None and sum(map(len, drawn.values())) == 1
    if one and scan.expected_clips >= VALIDATION_SHARE and not as_before:
        return *_draw_validation(scan, LEAST_CLIPS, as_before)[:2], "two"
    return drawn, cap, rule


def _by_source(keys: Sequence[str]) -> dict[str, list[str]]:
    """The clips' keys by the name of their source, in their order."""
    found: dict[str, list[str]] = {}
    for key in keys:
        found.setdefault(key.rpartition("#")[0], []).append(key)
    return found


def _count_unused(
    scan: VideoScan,
    file_of: dict[str, Hashable],
    validation_keys: dict[str, list[str]],
    training: dict[str, list[str] | None],
) -> int:
    """``Split.unused``: the clips of validated files, as far as they were opened, that are in neither split."""
    taken = {file_of[name] for name in validation_keys}
    seen = {name: scan.look_up(name) or [] for name, file in file_of.items() if file in taken}
    trained = sum(len(seen[name] if (keys := training[name]) is None else keys) for name in seen if name in training)
    unused = sum(map(len, seen.values())) - trained - sum(map(len, validation_keys.values()))
    return max(unused, 0)  # a list's videos need not be among those opened


def _training(
    scan: VideoScan,
    file_of: dict[str, Hashable],
    validation_keys: dict[str, list[str]],
    allowed: dict[str, list[str] | None],
    most: int | None,
) -> dict[str, list[str] | None]:
    """The training clips by source; None stands for all clips of a source.

    They come from the files without validation clips, and from the ``allowed`` clips of the other files.
    """
    taken = {file_of[name] for name in validation_keys}

    def is_free(name: str) -> bool:
        return file_of[name] not in taken or name in allowed

    if most is None:
        return {source.name: allowed.get(source.name) for source in scan.order if is_free(source.name)}
    training: dict[str, list[str] | None] = {}
    left = most
    for source, every in scan.walk():
        if is_free(source.name):
            part = allowed.get(source.name)
            keys = every if part is None else part
            training[source.name] = keys[:left] if len(keys) > left else part
            left -= len(keys)
        if left <= 0:
            break
    return training


def _group(source: Source, clip_options: ClipOptions, keys: list[str] | None) -> ClipGroup:
    """The video's clips ``keys``, or all that ``clip_options`` allows where they are None."""
    if keys is None:
        return video_group(source, clip_options)
    starts = [first_frame(key) for key in keys]
    return video_group(source, clip_options, starts)


def _check_frozen(
    validation_keys: dict[str, list[str]], by_name: dict[str, Source], clip_options: ClipOptions
) -> None:
    """Check that all frozen clips are in these videos; raises UserError."""
    for name, keys in validation_keys.items():
        try:
            if name not in by_name:
                raise Rejected("missing", "not among these videos")
            starts = [first_frame(key) for key in keys]
            video_group(by_name[name], clip_options, starts, decode=False).load()
        except Rejected as error:
            raise UserError(
                f"clip {keys[-1]} of the frozen validation list cannot be read from these videos ({error})"
            ) from None
