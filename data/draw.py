"""Which clips of a list of videos go where, decided from a few of them: training and validation, and shards' sizes.

Every process of a job decides this for itself, alike, without opening a million videos: they are put in the order of
their names' hashes, and no more are opened than a decision needs. What the rest hold is seen when they are encoded.

The validation list is drawn once and written with the cache. A later cache of more videos is given that list: what is
in it stays, what was added goes to training, and no video is ever in both.
"""

import hashlib
from collections.abc import Iterator, Sequence
from statistics import median

from data.clips import Clips, Reading
from data.media import Rejected, Source
from data.sources import Unit, video_unit
from data.workers import decoded
from utils.errors import UserError

SAMPLE = 64  # videos from which the size of all is judged
VALIDATION_SHARE = 10  # one clip in so many is validated on, where no number is asked for,
VALIDATION_CLIPS = 512  # and no more than this: it is scored at every milestone


def hash_order(sources: Sequence[Source]) -> list[Source]:
    """The sources in the order in which they are drawn: by the hashes of their videos' names."""

    def place(source: Source) -> tuple[bytes, str]:
        return hashlib.sha256(source.video.encode(errors="surrogateescape")).digest(), source.name

    return sorted(sources, key=place)


class Headers:
    """What videos hold, opened in ``hash_order`` as far as is asked; pixels are not decoded.

    Args:
        workers, limit_seconds: as ``data.workers.decoded``.
    """

    def __init__(self, sources: Sequence[Source], reading: Reading, workers: int, limit_seconds: float) -> None:
        self.order = hash_order(sources)
        self.found: dict[str, Clips] = {}
        self.rejected: list[dict[str, str]] = []
        units = (video_unit(source, reading, decode=False) for source in self.order)
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
        """Each video and its clips' keys (none where it was rejected), opened as they are asked for."""
        for number, source in enumerate(self.order):
            self.open(number + 1)
            yield source, self.look_up(source.name)

    def look_up(self, name: str) -> list[str] | None:
        """A video's clips' keys: none where it was rejected; None where it was not opened."""
        if name in self.found:
            return self.found[name].keys
        return [] if name in self._rejected_names else None

    def close(self) -> None:
        """End the workers."""
        self._answers.close()

    @property
    def clips_per_video(self) -> float:
        """The mean over the videos opened, rejected ones included."""
        return sum(len(clips.keys) for clips in self.found.values()) / max(self.opened, 1)

    @property
    def fps(self) -> float | None:
        """Frames per second of the clips: the median of the videos opened."""
        known = [clips.fps for clips in self.found.values() if clips.fps]
        return median(known) if known else None


def draw(
    headers: Headers,
    reading: Reading,
    train: int | None = None,
    validation: int | None = None,
    frozen: Sequence[str] | None = None,
) -> dict[str, list[Unit]]:
    """The units of each split; a video is in one split alone.

    Args:
        headers: ``SAMPLE`` of its videos are opened, and as many more as the numbers below need.
        train: at most so many training clips, of the first videos drawn; None is all.
        validation: so many validation clips, from as few videos as hold them; None is whole videos, until a tenth
            of the clips are there, or ``VALIDATION_CLIPS``.
        frozen: the validation keys of an earlier cache, taken instead of drawing any.

    Raises:
        UserError: a frozen clip cannot be had, or nothing is left for training.
    """
    headers.open(SAMPLE)
    by_name = {source.name: source for source in headers.order}
    held: dict[str, list[str]] = {}
    if frozen is not None:
        for key in frozen:
            held.setdefault(key.rpartition("#")[0], []).append(key)
        _check_frozen(held, by_name, reading)
    else:
        expected = int(headers.clips_per_video * len(headers.order))
        missing = validation
        if validation is None:
            missing = min(max(1, expected // VALIDATION_SHARE), VALIDATION_CLIPS)
        for source, keys in headers.walk() if missing else ():
            if keys:
                held[source.name] = keys if validation is None else keys[:missing]
                missing -= len(held[source.name])
            if missing <= 0:
                break
    taken = {by_name[name].file for name in held}  # of which other ranges and names are not trained on
    training: dict[str, list[str] | None] = {}
    if train is None:
        training = {source.name: None for source in headers.order if source.file not in taken}
    else:
        left = train
        for source, keys in headers.walk():
            if source.file not in taken:
                training[source.name] = keys[:left] if len(keys) > left else None
                left -= len(keys)
            if left <= 0:
                break
    every = headers.opened == len(headers.order)
    if not training or (every and not any(name in headers.found for name in training)):
        raise UserError("no video is left for training: one is never in both training and validation. Add videos, or "
                        "ask for fewer validation clips (--validation 0 for none)")  # fmt: skip
    return {
        # On disk in the order of names: neighbours there are neighbours in their folder or tar.
        "train": [_unit(by_name[name], reading, training[name]) for name in sorted(training)],
        "validation": [_unit(by_name[name], reading, keys) for name, keys in held.items()],
    }


def _unit(source: Source, reading: Reading, keys: list[str] | None) -> Unit:
    """The video's clips ``keys``, or all that ``reading`` allows where they are None."""
    if keys is None:
        return video_unit(source, reading)
    starts = [int(key.rpartition("#")[2]) for key in keys]
    return video_unit(source, reading, starts)


def _check_frozen(held: dict[str, list[str]], by_name: dict[str, Source], reading: Reading) -> None:
    """Raise where a frozen clip cannot be had."""
    for name, keys in held.items():
        try:
            if name not in by_name:
                raise Rejected("missing", "not among these videos")
            starts = [int(key.rpartition("#")[2]) for key in keys]
            video_unit(by_name[name], reading, starts, decode=False).load()
        except Rejected as error:
            raise UserError(
                f"clip {keys[-1]} of the frozen validation list cannot be had from these videos ({error})"
            ) from None
