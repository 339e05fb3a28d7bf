"""Captions: the column, key or file with the caption of a source, by one rule for folders, tables and tars.

A caption that is there under a name that is not read would be an empty caption, and a model trained on empty captions
looks like any other. So common names are recognised, two of them are an error, and so is a table or a set of JSON
files in which none is found. ``--no-captions`` says that there are none.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from videoscaling.data.sources.source import one_line
from videoscaling.utils.errors import UserError, listed, nearest
from videoscaling.utils.files import parse_json
from videoscaling.utils.tables import text_of

CAPTION_NAMES = ("caption", "captions", "cap", "text", "prompt")
TEXT_KINDS = (".caption", ".captions", ".text", ".prompt")  # where there is no .txt; .cap is a kind of subtitles
CAPTION_KINDS = {".txt", *TEXT_KINDS, ".json"}
LIMIT_BYTES = 1 << 24  # of one source's caption file; a JSON of a video's metadata is about a thousandth of that
File = TypeVar("File")
FIX = "name it with --caption-column NAME, or give --no-captions"


@dataclass(frozen=True)
class ListingOptions:
    """Options for finding sources and captions.

    Attributes:
        caption_column: a table's column, a key of JSON files, or the extension of text files that holds captions; None
            recognises ``CAPTION_NAMES`` (and ``.txt`` files).
        path_column: a table's column of paths; None is "path".
        root: the folder that a table's paths are relative to; None is the table's own.
        captions: whether captions are read; without, all are empty.
    """

    caption_column: str | None = None
    path_column: str | None = None
    root: Path | None = None
    captions: bool = True


def find_name(
    present: Iterable[str], known: Sequence[str], place: str, *, given: str | None = None, option: str | None = None
) -> str | None:
    """The one of the column or key names ``present`` that is ``given`` or else among ``known``.

    Upper and lower case and blanks around a name make no difference. The first of ``known``, spelled exactly, is the
    documented name and needs no choice: tables that have it next to another were always read by it.

    Args:
        place: the file or folder with these names, for messages.
        given: the name from the command line, if any; an exact spelling chooses between two names.
        option: the command line's option that chooses one.

    Returns:
        the name as it is spelled in ``present``; None where none of ``known`` is there.

    Raises:
        UserError: two are there (both are named), or ``given`` is not.
    """
    present = list(present)
    wanted = known if given is None else (given.strip().casefold(),)
    found = [name for name in present if name == (known[0] if given is None else given)]
    found = found or [name for name in present if name.strip().casefold() in wanted]
    if len(found) > 1:
        choose = f"; choose one with {option} NAME" if option and len(set(found)) > 1 else "; rename one of them"
        raise UserError(f"{place}: {found[0]!r} and {found[1]!r} may both be the {known[0]}{choose}")
    if given is not None and not found:
        raise UserError(f"{place}: no {option} {given!r} (there are: {listed(present)}{nearest(given, present)})")
    return found[0] if found else None


class CaptionFiles:
    """Reads captions from files next to videos, or from members of the same name in a tar.

    Of several the first is taken: a ``.txt``, one of ``TEXT_KINDS``, or a recognised key of a ``.json``.

    Args:
        place: the folder or tar, for messages.
    """

    def __init__(self, place: str | Path, options: ListingOptions) -> None:
        self._place, self._options = place, options
        self._found = False  # a caption, perhaps an empty one
        self._unknown = 0  # JSON files without a recognised key, and their keys
        self._keys: dict[str, None] = {}

    def read(
        self, files: Mapping[str, File], prefixes: Sequence[str], load: Callable[[File], tuple[bytes, str]]
    ) -> tuple[str, File | None]:
        """A source's caption, and the file that it is from.

        Args:
            files: what shares the source's name, by what follows it, in lower case (".txt", ".left.txt").
            prefixes: what may stand before the kind ("", ".left"); the first is preferred.
            load: returns a file's content and its name for messages.

        Raises:
            UserError: two files or keys may be the caption; one is not UTF-8, not JSON, or no text.
        """
        options = self._options
        if not options.captions:
            return "", None
        if options.caption_column is None:
            groups: list[tuple[str, ...]] = [(".txt",), TEXT_KINDS]
        else:
            groups = [(f".{options.caption_column.strip().lower()}",)]
        for kinds in groups:
            for prefix in prefixes:
                found = [files[prefix + kind] for kind in kinds if prefix + kind in files]
                if len(found) > 1:
                    one, other = (load(file)[1] for file in found[:2])
                    raise UserError(
                        f"{one} and {other} may both be the caption; remove one, or choose by its "
                        "extension: --caption-column EXTENSION"
                    )
                if found:
                    content, what = load(found[0])
                    self._found = True
                    return one_line(text_of(content, what), what), found[0]
        for prefix in prefixes:
            if prefix + ".json" in files:
                file = files[prefix + ".json"]
                return self._from_json(*load(file)), file
        return "", None

    def _from_json(self, content: bytes, what: str) -> str:
        about = parse_json(text_of(content, what), f"{what}: not JSON", allow_nan=True)
        if not isinstance(about, dict):
            raise UserError(f"{what}: not a JSON object with 'caption'; --no-captions leaves such files unread")
        given = self._options.caption_column
        if given is not None:
            key = given if given in about else None
        else:
            key = find_name(about, CAPTION_NAMES, what, option="--caption-column")
        if key is None:
            self._unknown += 1
            self._keys.update(dict.fromkeys(about))
            return ""
        self._found = True
        return one_line(about[key], what)

    def check(self) -> None:
        """Raise if there are captions under names that were not read."""
        given = self._options.caption_column
        keys = f" (their keys: {listed(list(self._keys))})" if self._keys else ""
        if given is not None and not self._found:
            raise UserError(
                f"{self._place}: --caption-column {given!r} is neither a key of a .json{keys} nor the "
                "extension of a file next to a video"
            )
        if self._unknown and not self._found:
            raise UserError(f"{self._place}: no caption in any of the {self._unknown} .json{keys}; {FIX}")


def read_caption(file: BinaryIO, what: str) -> bytes:
    """A caption file's content.

    Raises:
        UserError: it is longer than ``LIMIT_BYTES``.
    """
    content = file.read(LIMIT_BYTES + 1)
    if len(content) > LIMIT_BYTES:
        raise UserError(f"{what}: longer than {LIMIT_BYTES >> 20} MiB, which is no caption")
    return content
