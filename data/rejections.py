"""Videos and clips that a cache leaves out: their list rejected.jsonl, their counts, and how many are too many."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mode

from videoscaling.data.clip_groups import SPLITS
from videoscaling.data.shards import Shard, is_whole, read_header
from videoscaling.utils.errors import OwnError, plural
from videoscaling.utils.files import write_text


class RejectionCount:
    """The number of videos rejected in the finished shards of all processes.

    Args:
        most: the fraction of ``videos`` that may be rejected.
    """

    def __init__(self, folder: Path, shards: dict[str, list[Shard]], most: float, videos: int) -> None:
        self._folder, self._most, self._videos = folder, most, videos
        self._waiting = [shard for split in SPLITS for shard in shards[split]]
        self._rows: list[dict[str, str]] = []

    def count(self) -> None:
        """Look at the shards that came since.

        Raises:
            UserError: too many were rejected; all that are known are named in rejected.jsonl.
        """
        there = {path.name for path in self._folder.glob("*.safetensors")}
        waiting, self._waiting = self._waiting, []
        for shard in waiting:
            if shard.path.name in there and is_whole(shard.path, shard.planned):
                self._rows = once([*self._rows, *read_header(shard.path)[1]["rejected"]])
            else:
                self._waiting.append(shard)
        if exceeds(self._rows, self._videos, self._most):
            where = write_rejected(self._folder, self._rows)
            raise OwnError(f"{too_many(self._rows, self._videos)}; each is named in {where}")


def once(rejected: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """Each row once, by source: a video that is parted is in the shards of both splits."""
    return sorted({tuple(row.values()): row for row in rejected}.values(), key=lambda row: row["source"])


def reason_counts(rejected: Sequence[dict[str, str]]) -> str:
    """The number rejected for each reason, as text."""
    return ", ".join(f"{n} {reason}" for reason, n in Counter(row["reason"] for row in rejected).most_common())


def example(rejected: Sequence[dict[str, str]]) -> str:
    """The first video that was rejected for the most common reason, with the detail of that."""
    reason = mode(row["reason"] for row in rejected)
    return next(f"{row['source']}: {row['detail']}" for row in rejected if row["reason"] == reason)


def whole_videos(rejected: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The rows of rejected.jsonl that are videos. The others are single clips of videos that are kept."""
    return [row for row in rejected if "clip" not in row]


def exceeds(rejected: Sequence[dict[str, str]], videos: int, most: float) -> bool:
    """Whether more than the fraction ``most`` of the videos are rejected."""
    lost = len(whole_videos(rejected))
    return lost > 0 and lost / videos > most  # not most * videos: 0.29 * 100 is less than 29


def too_many(rejected: Sequence[dict[str, str]], videos: int) -> str:
    """The error message if too many of the videos are rejected."""
    rejected = whole_videos(rejected)
    if len(rejected) == videos:  # which no --max-rejected would help
        return f"no video is left ({reason_counts(rejected)}; {example(rejected)})"
    enough = math.ceil(100 * len(rejected) / videos) / 100
    return (
        f"{len(rejected):,} of {plural(videos, 'video')} cannot be used ({reason_counts(rejected)}); --max-rejected "
        f"{enough:g} accepts so many"
    )


def write_rejected(folder: Path, rejected: Sequence[dict[str, str]]) -> Path:
    """Write every rejected source to rejected.jsonl; returns its path."""
    path = folder / "rejected.jsonl"
    write_text(path, b"".join(lines(once(rejected))).decode())
    return path


def by_reason(rejected: Sequence[dict[str, str]]) -> dict[str, int]:
    """How many were rejected, by reason."""
    return dict(sorted(Counter(row["reason"] for row in rejected).items()))


def lines(rows: Iterable[dict]) -> Iterator[bytes]:
    """Rows as the lines of a .jsonl file in UTF-8. A byte of a name that is not UTF-8 is written as the JSON escape of
    its surrogate, \\udc80 to \\udcff, which reads back as the same name."""
    return ((json.dumps(row, ensure_ascii=False) + "\n").encode(errors="backslashreplace") for row in rows)
