"""Files that are either whole or absent: everything is written aside and renamed, but onto devices and pipes."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.errors import UserError

PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is synced and renamed over ``path``, else removed.

    What a link leads to is replaced, not the link; a device or a pipe is written to once the whole is there.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        # A file renamed over it would take its place.
        with tempfile.TemporaryDirectory() as folder:
            aside = Path(folder) / path.name
            yield aside
            with aside.open("rb") as source, path.open("wb") as sink:
                shutil.copyfileobj(source, sink)
        return
    if path.is_symlink():
        path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield aside
        with aside.open("rb") as handle:
            os.fsync(handle.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all. Infinity and NaN must be encoded by the caller."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """What ``write_json`` writes."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def read_json(path: str | Path) -> Any:
    """The JSON value in ``path``.

    Raises:
        UserError: the file is missing, or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path}: not a JSON file ({error})") from None


def pickles(path: Path) -> str:
    """Why the pickles in a folder, or a file that is one, are not loaded, to append to a message; "" without any."""
    found = sorted(p.name for p in ([path] if path.is_file() else path.glob("*")) if p.suffix in PICKLES)
    if not found:
        return ""
    return (
        f"; {found[0]} is a pickle, which can run anything when it is read, so it is not loaded: where you trust it, "
        "load it with the library that wrote it and save it as safetensors"
    )


def held(directory: Path) -> bool:
    """Whether a living process holds ``directory`` (``exclusive``); a hold on another machine's disk may not show."""
    try:
        with (directory / ".lock").open() as handle:
            # Shared, so that askers do not see each other; let go at once, and cells wait for a hold.
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


@contextmanager
def exclusive(directory: Path, wait: bool = False) -> Iterator[None]:
    """Hold ``directory`` for this process alone; the hold of a process that died is gone with it.

    Processes of one torchrun share the directory: only the first of them takes the hold.

    Raises:
        UserError: another living process holds it, and this one is not to ``wait``.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with hold(directory, wait):
        yield


@contextmanager
def hold(directory: Path, wait: bool = False) -> Iterator[None]:
    """As ``exclusive``, each process for itself."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise UserError(f"{directory}: another process is working in it; wait for it or end it") from None
        yield
