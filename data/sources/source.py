"""One video or picture: its name, the place of its bytes, its caption, and the reason if it is rejected."""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from videoscaling.utils.errors import UserError, shown

VIDEOS = {".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
PICTURES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
COMPANION = "._"  # prefix of macOS's files for metadata that a file system cannot keep, such as ._x.mp4 next to x.mp4


class Rejected(Exception):
    """A source that cannot be used.

    Attributes:
        reason: one of few words, to count by ("truncated", "too short", ...); docs/data.md lists them.
        detail: the finding, as text.
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
class Source:
    """A video or picture to read.

    ``name`` is its identity everywhere: its path in the folder, manifest or shard, with the range if a manifest gives
    one. ``start`` and ``end`` are that range in seconds. In a tar, ``offset`` and ``size`` locate its bytes in
    ``path``. ``fault`` describes what makes it a rejected source, such as a damaged part of a tar, for ``reason``.
    ``rank`` comes before the name where the sources of one video are drawn: shots count from its middle outwards.
    """

    name: str
    path: Path
    caption: str
    start: float | None = None
    end: float | None = None
    offset: int = 0
    size: int | None = None
    fault: str = ""
    reason: str = "damaged archive"
    rank: int = 0

    @property
    def video(self) -> str:
        """The name without the range."""
        return self.name if self.start is None and self.end is None else self.name.rpartition("@")[0]

    @property
    def file(self) -> Hashable:
        """What is the same for all ranges and names (links) of a file, or of a tar's member: they are never split
        between training and validation either."""
        try:
            found = self.path.stat()
        except OSError:
            return self.video
        return found.st_dev, found.st_ino, self.offset

    @property
    def is_picture(self) -> bool:
        return Path(self.video).suffix.lower() in PICTURES

    @property
    def url(self) -> str:
        """The path for ffmpeg. Absolute, so that no name is taken for a protocol."""
        path = self.path.absolute()
        return (
            str(path) if self.size is None else f"subfile,,start,{self.offset},end,{self.offset + self.size},,:{path}"
        )


class Listing(NamedTuple):
    """The sources of a folder, table or tars, sorted by name, and the skipped files.

    ``skipped`` counts the files that are neither sources nor captions, by kind (".srt", "._*"); ``unread`` names the
    columns of a table that nothing is read from.
    """

    sources: list[Source]
    skipped: dict[str, int]
    unread: list[str]


def in_hidden_folder(name: str) -> bool:
    """Whether a folder in a relative name is hidden, such as .ipynb_checkpoints, which holds copies."""
    return any(part.startswith(".") for part in Path(name).parts[:-1])


def skipped_kind(name: str) -> str:
    """The kind of a skipped file, as it is counted: its extension, "._*", "no extension" or "hidden folder"."""
    path = Path(name)
    if in_hidden_folder(name):
        return "hidden folder"
    return f"{COMPANION}*" if path.name.startswith(COMPANION) else path.suffix.lower() or "no extension"


def identity(source: Source) -> str:
    """A source's identity in the fingerprint of a cache: its name, bytes and caption, in one line."""
    size = source.size
    if size is None:
        size = source.path.stat().st_size if source.path.exists() else None
    return f"{source.name}\t{size}\t{source.caption}"


def one_line(caption: Any, what: str) -> str:
    """A caption with each run of white space as one space; of nothing (None or NaN), the empty one.

    Raises:
        UserError: it is no text, or has half a character; ``what`` names its place.
    """
    if caption is None or (isinstance(caption, float) and math.isnan(caption)):
        return ""
    if not isinstance(caption, str):
        raise UserError(f"{what}: the caption is {shown(caption)}, which is no text")
    if not is_unicode(caption):  # from a JSON escape such as \ud83d; encoders and files cannot take it
        raise UserError(f"{what}: the caption {ascii(caption)[:60]} has half of a surrogate pair; write it anew")
    return " ".join(caption.split())


def is_unicode(text: str) -> bool:
    """Whether a string can be written as UTF-8: it has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
