"""Files divided by time between training and validation: a film alone, or one that outweighs the others.

Validation on another video says more than on another part of the same video. So a file is divided only if a cache
would otherwise waste too many clips, or have none to train on.
"""

from collections.abc import Hashable
from typing import TYPE_CHECKING, NamedTuple

from videoscaling.data.guard import frames_per_second, guard_gap, keys_apart, seconds_between
from videoscaling.data.sources.source import Source
from videoscaling.data.video.clips import ClipOptions

if TYPE_CHECKING:
    from videoscaling.data.splits import VideoScan


class Parts(NamedTuple):
    """The divided files.

    Attributes:
        validation_keys: validation clips by source.
        training: clips that may be trained on, by source, of files that are validated on; None for all of one.
        videos: those that are in both splits.
        gap_seconds: the smallest between the two.
    """

    validation_keys: dict[str, list[str]]
    training: dict[str, list[str] | None]
    videos: list[str]
    gap_seconds: float


def part_files(
    scan: "VideoScan",
    file_of: dict[str, Hashable],
    validation_keys: dict[str, list[str]],
    clip_options: ClipOptions,
    most_unused: int,
    movable: bool,
) -> Parts | None:
    """Divide the files of the validation clips between the splits; None keeps each file in one split.

    Args:
        file_of: a key that all sources of one file share, by source.
        validation_keys: the validation clips by source.
        most_unused: files stay whole if other files have clips and at most this many clips would be lost.
        movable: whether a source's validation clips may be replaced by other clips of the same source.
    """
    validated_files = {file_of[name] for name in validation_keys}
    sources: dict[Hashable, list[Source]] = {}
    for source in scan.order:
        if file_of[source.name] in validated_files:
            sources.setdefault(file_of[source.name], []).append(source)
    # One that was not opened may have clips; one that was rejected has none.
    others = any(
        file_of[source.name] not in validated_files and scan.look_up(source.name) != [] for source in scan.order
    )
    if others and sum(map(len, sources.values())) * clip_options.clips <= most_unused:
        return None
    parts = Parts(dict(validation_keys), {}, [], 0.0)
    gained, gaps = 0.0, []
    for group in sources.values():
        gap, training = _part_file(scan, group, parts.validation_keys, clip_options, movable)
        if training:
            parts.training.update(training)
            parts.videos.extend(sorted({source.video for source in group}))
            gaps.append(gap)
        for name, keys in training.items():
            known = scan.look_up(name) if keys is None else keys
            gained += scan.clips_per_video if known is None else len(known)
    if not gained or (others and gained <= most_unused):
        return None
    return parts._replace(gap_seconds=min(gaps))


def _part_file(
    scan: "VideoScan",
    group: list[Source],
    validation_keys: dict[str, list[str]],
    clip_options: ClipOptions,
    movable: bool,
) -> tuple[float, dict[str, list[str] | None]]:
    """The gap in seconds, and the training clips of each source of one file.

    ``validation_keys`` moves to the middle of a source where that leaves clips to train on.
    """
    validated = [source for source in group if source.name in validation_keys]
    clips = {source.name: scan.clips_of(source) for source in validated}
    known = [(source.start or 0.0) + clips[source.name].seconds for source in validated]
    ends = [*known, *(source.end for source in group if source.end is not None)]
    fps = frames_per_second(clips[validated[0].name], clip_options)
    gap = guard_gap(max(ends) - min(source.start or 0.0 for source in group), fps, clip_options)
    training: dict[str, list[str] | None] = {}
    for source in group:
        if any(seconds_between(source, other) < gap for other in validated if other is not source):
            continue
        if source.name not in validation_keys:
            training[source.name] = None
            continue
        keys, chosen = clips[source.name].keys, validation_keys[source.name]
        rest = keys_apart(keys, chosen, gap, fps, clip_options)
        if movable and len(chosen) < len(keys):
            # A film opens with titles, so its middle is better, unless the gap on either side takes too much.
            first = (len(keys) - len(chosen)) // 2
            middle = keys[first : first + len(chosen)]
            around = keys_apart(keys, middle, gap, fps, clip_options)
            if 2 * len(around) >= len(keys):
                chosen, rest = middle, around
        if rest:
            validation_keys[source.name], training[source.name] = chosen, rest
    return gap, training
