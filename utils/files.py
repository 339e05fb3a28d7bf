"""Files and folders that are either whole or absent: everything is written under a temporary
name and renamed, but onto devices and pipes.

A killed process leaves its unfinished file under the name ``.NAME.MACHINE-PID.tmp``. The next process that writes
the same file removes it, and so does the next one that locks its folder (``remove_leftovers``).
"""

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from videoscaling.utils.errors import UserError, first_line, nearest_path, shown
from videoscaling.utils.os_errors import warn_of_os_error, with_filename
from videoscaling.utils.process_ids import has_ended, machine_code

T = TypeVar("T")
MAX_JSON_BYTES = 1 << 30  # the index of ten million clips is within it; /dev/zero is not
JSON_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}
# Older versions wrote no machine.
LEFTOVER = re.compile(r"\.(?P<name>.+?)\.(?:(?P<machine>[0-9a-f]{8})-)?(?P<pid>\d+)\.tmp")
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; on success it is synced and renamed over ``path``, else removed.

    A link's target is replaced, not the link; a device or a pipe is written to at the end.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        # A file renamed over it would take its place.
        with tempfile.TemporaryDirectory() as folder:
            tmp = Path(folder) / path.name
            yield tmp
            with with_filename(path), tmp.open("rb") as source, path.open("wb") as sink:
                shutil.copyfileobj(source, sink)
        return
    if path.is_symlink():
        path = Path(os.path.realpath(path))  # resolve() ends in a traceback at a loop of links
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    tmp = temporary(path)
    try:
        with with_filename(path, tmp):
            yield tmp
            with tmp.open("rb") as handle:
                os.fsync(handle.fileno())
            tmp.replace(path)
    except BaseException:
        with suppress(OSError):  # the error that led here is the one to report
            tmp.unlink(missing_ok=True)
        raise


def temporary(path: Path) -> Path:
    """This process's temporary name for ``path``: next to it, so that a rename puts it in place."""
    return path.with_name(f".{path.name}.{machine_code()}-{os.getpid()}.tmp")


def replace_folder(tmp: Path, path: Path) -> None:
    """Put the folder ``tmp`` in the place of ``path``. A folder cannot be replaced in one step: a process killed
    between the two leaves the old one under ``before(path)``, and ``recover_folder`` puts it back."""
    recover_folder(path)
    if path.exists():
        path.rename(before(path))
        tmp.rename(path)
        shutil.rmtree(before(path))
    else:
        tmp.rename(path)


def before(path: Path) -> Path:
    """Where ``replace_folder`` keeps the folder ``path`` until its successor is in place."""
    return path.with_name(f".{path.name}.old.tmp")


def recover_folder(path: Path) -> None:
    """Undo or finish a ``replace_folder`` that was killed."""
    if before(path).exists() and not path.exists():
        before(path).rename(path)
    shutil.rmtree(before(path), ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder that is whole or absent at every moment: it is renamed first."""
    tmp = temporary(path)
    shutil.rmtree(tmp, ignore_errors=True)
    path.rename(tmp)
    shutil.rmtree(tmp)


def remove_leftovers(folder: Path, *names: str) -> None:
    """Remove temporary files and folders in ``folder``, of any machine, whose final names match one of the glob
    patterns ``names``. The caller holds the lock under which these are written."""
    for path in _leftovers(folder):
        if any(Path(LEFTOVER.fullmatch(path.name)["name"]).match(name) for name in names):
            _remove(path)


def remove_abandoned(path: Path) -> None:
    """Remove temporary files for ``path`` of processes of this machine that have ended; it needs no lock."""
    for left in _leftovers(path.parent):
        match = LEFTOVER.fullmatch(left.name)
        if match["name"] == path.name and match["machine"] == machine_code() and has_ended(int(match["pid"])):
            _remove(left)


def _leftovers(folder: Path) -> list[Path]:
    """Temporary names in ``folder``; none where it does not exist, or may be written and not read."""
    found = []
    with (
        warn_of_os_error("files of killed processes may stay"),
        suppress(FileNotFoundError, PermissionError),
        os.scandir(folder) as entries,
    ):
        found += [Path(entry.path) for entry in entries if LEFTOVER.fullmatch(entry.name)]
    return found


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path``, atomically."""
    with atomic_write(path) as tmp:
        tmp.write_text(text, encoding="utf-8")


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write ``content`` to ``path``, atomically."""
    with atomic_write(path) as tmp:
        tmp.write_bytes(content)


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. Infinity and NaN must be encoded by the caller."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """The text that ``write_json`` writes."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def read_json(path: str | Path, kind: type[T] = object, what: str = "a JSON file") -> T:
    """The JSON value in ``path``, of the Python type ``kind``, such as ``dict`` for an object.

    Args:
        what: the expected kind of file, for the error.

    Raises:
        UserError: the file is missing, or holds another value than one of ``kind`` (``parse_json``).
    """
    try:
        content = read_bounded(path, MAX_JSON_BYTES, what)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{nearest_path(path)}") from None
    return parse_json(content, f"{path}: not {what}", kind)


def read_bounded(path: str | Path, limit: int, what: str) -> bytes:
    """The content of ``path``, at most ``limit`` bytes: /dev/zero has no end.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is longer, or a folder.
    """
    try:
        with with_filename(path), Path(path).open("rb") as file:
            content = file.read(limit + 1)
    except IsADirectoryError:
        raise UserError(f"{path}: not {what} (a folder)") from None
    if len(content) > limit:
        raise UserError(f"{path}: not {what} (longer than {limit >> 20} MiB)")
    return content


def parse_json(text: str | bytes, what: str, kind: type[T] = object, *, allow_nan: bool = False) -> T:
    """The JSON value of a text, of the Python type ``kind``. All JSON that the project reads is read here.

    Args:
        text: as bytes it is UTF-8.
        what: begins the message of the error.
        allow_nan: take NaN and Infinity, which are no JSON, from files of other programs.

    Raises:
        UserError: it is no JSON value of ``kind``; it is nested too deep; an object has a key twice (Python would take
            the last one); or a number is beyond the range of floats or not finite.
    """
    constants = {} if allow_nan else {"parse_constant": _refuse_constant, "parse_float": _finite_float}
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8")
        value = json.loads(decoded, object_pairs_hook=_object_once, **constants)
    except ValueError as error:  # also text that is not UTF-8, and integers of thousands of digits
        raise UserError(f"{what} ({first_line(error)})") from None
    except RecursionError:
        raise UserError(f"{what} (nested too deep)") from None
    if not isinstance(value, kind):
        raise UserError(f"{what} ({JSON_NAMES[kind]} is needed, not {JSON_NAMES[type(value)]})")
    return value


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is no JSON number")


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.40} is beyond the range of numbers")
    return number


def _object_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {shown(twice)} is there twice")
    return found


def file_size(path: Path) -> int | None:
    """A file's bytes; None where there is none."""
    return path.stat().st_size if path.is_file() else None


def sha256_of(path: Path) -> str:
    """A file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def user_cache() -> Path:
    """This program's folder for files that can be made again: in ``$XDG_CACHE_HOME``, or else in ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "videoscaling"


def find_files(folder: Path, name: str) -> list[Path]:
    """The files called ``name`` anywhere below ``folder``, sorted.

    Raises:
        OSError: a folder cannot be listed, which rglob takes for an empty one.
    """

    def refuse(error: OSError) -> None:
        raise error

    walk = os.walk(folder, onerror=refuse)
    return sorted(Path(place) / name for place, _, files in walk if name in files)


def pickles(path: Path) -> str:
    """Why the pickles in a folder, or a file that is one, are not loaded, to append to a message; "" without any."""
    found = sorted(p.name for p in ([path] if path.is_file() else path.glob("*")) if p.suffix in PICKLES)
    if not found:
        return ""
    return (
        f"; {found[0]} is a pickle, which can run anything when it is read, so it is not loaded: where you trust it, "
        "load it with the library that wrote it and save it as safetensors"
    )
