"""A disk that fails once: at an opening, a write, a rename, a sync, a removal, a listing, at what safetensors does."""

import builtins
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from tests.commands import Done
from videoscaling.training.checkpoints import checkpoint
from videoscaling.training.checkpoints.writer import CheckpointWriter

ERRORS = ("EIO", "ESTALE", "EMFILE", "ENOMEM", "EBUSY", "ENAMETOOLONG", "ENOSPC", "EROFS", "EACCES")
CALLS = ("replace", "rename", "fsync", "mkdir", "listdir", "scandir", "unlink", "rmdir")


class Disk:
    """Counts the file events below ``folder``, TensorBoard's excepted, whose thread has its own order; the event
    numbered ``fails`` raises an OSError. A write that fails has written half, and so do all later ones to its file."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, fails: int = -1, code: int = errno.EIO) -> None:
        self.folder, self.fails, self.code = str(folder), fails, code
        self.events: list[str] = []
        for module, name in [(builtins, "open"), (io, "open"), *((os, name) for name in CALLS)]:
            monkeypatch.setattr(module, name, self._watched(getattr(module, name), name))
        # In the thread that trains, so that events have one order.
        monkeypatch.setattr(CheckpointWriter, "start", lambda writer, write: writer._run(write))
        monkeypatch.setattr(checkpoint, "save_file", self._watched(checkpoint.save_file, "save_file"))

    def meet(self, name: str, path: str) -> bool:
        """Count an event, and say whether it fails."""
        if not path.startswith(self.folder) or "/tensorboard" in path:
            return False
        self.events.append(f"{name} {path.removeprefix(self.folder)}")
        return len(self.events) - 1 == self.fails

    def error(self, *path: str) -> OSError:
        return OSError(self.code, os.strerror(self.code), *path)

    def _watched(self, real: Callable, name: str) -> Callable:
        def event(*args: Any, **named: Any) -> Any:
            path = self._path(args[-1] if name == "save_file" else args[0], named.get("dir_fd"))
            if self.meet(name, path):
                if name == "save_file":
                    real(*args)
                    os.truncate(path, Path(path).stat().st_size // 2)
                    text = f"Error while serializing: I/O error: {os.strerror(self.code)} (os error {self.code})"
                    raise SafetensorError(text)
                raise self.error(*([] if name == "fsync" else [path]))  # a descriptor has no name
            file = real(*args, **named)
            return self._writable(file, path) if name == "open" and path.startswith(self.folder) else file

        return event

    def _writable(self, file: Any, path: str) -> Any:
        """The same file whose writes are events, where it is open for writing in the usual way."""
        text = isinstance(file, io.TextIOWrapper)
        plain = file.buffer if text else file
        if type(plain) is not io.BufferedWriter:
            return file
        writer = io.BufferedWriter(_Writes(os.dup(file.fileno()), self, path))
        wrapped = io.TextIOWrapper(writer, file.encoding, file.errors, newline="") if text else writer
        file.close()
        return wrapped

    def _path(self, given: Any, folder: int | None) -> str:
        if isinstance(given, int):
            return str(Path(f"/proc/self/fd/{given}").readlink())
        path = os.fspath(given) if isinstance(given, str | os.PathLike) else ""
        return path if folder is None else f"{Path(f'/proc/self/fd/{folder}').readlink()}/{path}"


class _Writes(io.FileIO):
    """A file whose first write is an event of ``disk``."""

    def __init__(self, handle: int, disk: Disk, path: str) -> None:
        super().__init__(handle, "wb")
        self._disk, self._path, self._begun, self._failed = disk, path, False, False

    def write(self, data: Any) -> int:
        if self._failed:
            raise self._disk.error()
        if not self._begun:
            self._begun = True
            self._failed = self._disk.meet("write", self._path)
            if self._failed:
                super().write(memoryview(data)[: len(data) // 2])
                raise self._disk.error()
        return super().write(data)


def check_answer(done: Done, what: str) -> None:
    """A command whose disk failed ends with one line and status 2, or continues."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr, what
    assert (done.returncode, len(errors)) in ((0, 0), (2, 1)), what
