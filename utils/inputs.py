"""Paths of commands: what each option reads, one check of all of these, and one of what is written.

A command calls ``check_paths`` when its options are parsed, before it imports or writes anything. Without it each
reader answered in its own words: some had the text of an errno, most did not name the option.
"""

import argparse
import codecs
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from videoscaling.utils.errors import UserError, nearest, nearest_path
from videoscaling.utils.files import pickles
from videoscaling.utils.os_errors import describe

CHECKED_BYTES = 1 << 20  # of a text, for UTF-8: a table may have gigabytes, which its reader decodes


def is_text(path: Path) -> bool:
    """Whether a file is text, by its name: neither gzipped nor Parquet."""
    return path.suffix.lower() not in (".gz", ".parquet")


class Input(NamedTuple):
    """What an option reads.

    Attributes:
        what: ends the message, after "give": what is wanted, with an example.
        noun: in "no such ...".
        file, folder: whether it may be a file, and a folder.
        is_text: whether such a file is read as text.
        names: values that are taken although no such path exists, such as ``embedded``.
        of_file: what ends the message about a file where only a folder is read, if there is more to say than ``what``.
        is_other: whether a value is of another kind than a path or a name, such as a number or a hub id.
        others: paths that may have been meant, by their names.
    """

    what: str
    noun: str = "file"
    file: bool = True
    folder: bool = False
    is_text: Callable[[Path], bool] = is_text
    names: tuple[str, ...] = ()
    of_file: Callable[[Path], str] = pickles
    is_other: Callable[[str], bool] = lambda text: False
    others: Callable[[], Iterable[Path]] = tuple


def check_paths(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Check the paths of the options of ``parser`` that were added with ``reads``, and of those with ``writes``.

    Raises:
        UserError: as ``check_input`` and ``check_output``.
    """
    for action in parser._actions:
        if (writes := getattr(action, "writes", None)) and (path := getattr(arguments, action.dest)):
            check_output(f"{action.option_strings[0]} {path}", path, folder=writes == "folder")
        kind, given = getattr(action, "reads", None), getattr(arguments, action.dest, None)
        if kind is None or given is None or given == action.default:
            continue
        option = f"{action.option_strings[0]} " if action.option_strings else ""
        for path in given if isinstance(given, list) else [given]:
            check_input(f"{option}{path}", path, kind)


def check_input(name: str, path: str | Path, kind: Input) -> None:
    """Check one path.

    Args:
        name: begins the message: the option and the path.

    Raises:
        UserError: it is missing, of the wrong kind, empty, not readable, or no UTF-8 where text is read.
    """
    if str(path) in kind.names or kind.is_other(str(path)):
        return
    give = f"; give {kind.what}"
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 (Path.exists takes a loop of links for nothing)
        if stat.S_ISDIR(mode):
            if not kind.folder:
                raise UserError(f"{name}: a folder{give}")
            with os.scandir(path):
                return
        if not kind.file:
            raise UserError(f"{name}: a file{kind.of_file(Path(path)) or give}")
        if stat.S_ISREG(mode):  # the bytes of a pipe are there once
            _check_content(name, Path(path), kind)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        near = nearest(str(path), list(kind.names), 0.8) or nearest_path(path, kind.others())
        raise UserError(f"{name}: no such {kind.noun}{near or give}") from None
    except OSError as error:
        _, _, why = (describe(error) or str(error)).partition(f"{path}: ")
        raise UserError(f"{name}: {why}") from None


def check_output(name: str, path: str | Path, folder: bool = False) -> None:
    """Check that a file, or a ``folder``, can be written at ``path``, before the hours whose result it is to hold.

    Args:
        name: begins the message: the option and the path.

    Raises:
        UserError: the other kind of thing is there, or a part of the path is a file, or may not be written to.
    """
    path = Path(path)
    if path.is_dir() and not folder:
        raise UserError(f"{name}: is a folder; name a file")
    if path.exists() and folder and not path.is_dir():
        raise UserError(f"{name}: is a file; name a folder")
    if path.exists() and not folder and not path.is_file():  # a device or a pipe
        return
    # What is written is renamed into its place, from a name next to it; of a link into that of its target.
    place = path if folder else Path(os.path.realpath(path)).parent
    above = next(part for part in (place, *place.parents) if part.exists())
    if not above.is_dir():
        raise UserError(f"{name}: {above} is a file; choose another path")
    if not os.access(above, os.W_OK):
        raise UserError(f"{name}: {above} may not be written to; choose another path")


def _check_content(name: str, path: Path, kind: Input) -> None:
    with path.open("rb") as file:
        content = file.read(CHECKED_BYTES)
    if not content:
        raise UserError(f"{name}: an empty file; give {kind.what}")
    if not kind.is_text(path):
        return
    try:
        codecs.getincrementaldecoder("utf-8")().decode(content)
    except UnicodeDecodeError as error:
        fix = f"save it as UTF-8, or give {kind.what}"
        raise UserError(f"{name}: not UTF-8 text (byte {error.start}); {fix}") from None
