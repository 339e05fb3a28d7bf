"""Commands that are killed at one of their file events, and what they leave.

A file event is an open for writing, mkdir, rename, link, remove, rmdir, chmod, truncate or fsync below a folder, and
half of a safetensors file. The process gets SIGKILL just before the event, so that each event is also the moment after
the one before. Of threads the one that writes checkpoints is counted, whose events come in no fixed order among the
others; TensorBoard's is not.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.processes.trainings import train_it
from videoscaling.training.checkpoints.writer import THREAD

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
NAMES = {"os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.chmod", "os.truncate"}


class Events:
    """Counts the file events below ``folder`` in this process, and kills it before event ``last`` (from 0; None: it
    lives, and each event is a line of ``log``)."""

    def __init__(self, folder: Path, last: int | None, log: Path) -> None:
        self.folder, self.last, self.log, self.count = str(folder), last, log, 0
        self.lock = threading.RLock()
        sys.addaudithook(self._audit)
        plain = os.fsync

        def fsync(handle: int) -> None:
            self.meet("fsync", str(Path(f"/proc/self/fd/{handle}").readlink()))
            plain(handle)

        os.fsync = fsync

    def meet(self, name: str, path: str) -> None:
        thread = threading.current_thread()
        if not (thread is threading.main_thread() or thread.name == THREAD) or not path.startswith(self.folder):
            return
        with self.lock:
            if self.last == self.count:
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1
        if self.last is None:
            line = f"{name} {path.removeprefix(self.folder)}\n"
            handle = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(handle, line.encode())
            os.close(handle)

    def _audit(self, name: str, args: tuple) -> None:
        if name == "open" and isinstance(args[0], str | bytes) and (args[2] or 0) & WRITING:
            self.meet(name, os.fsdecode(args[0]))
        elif name in NAMES:
            # Paths relative to an open folder, as rmtree has them: it removes nothing but what is below ours.
            path = os.fsdecode(args[0])
            relative = not path.startswith("/") and -1 not in args[1:]
            self.meet(name, f"{self.folder}/{path}" if relative else path)


def train_until(overrides: list[str], folder: Path, last: int | None, log: Path) -> int:
    """A training that is killed before its event ``last``."""
    from videoscaling.training.checkpoints import checkpoint

    events, plain = Events(folder, last, log), checkpoint.save_file

    def save_file(tensors: dict[str, Any], path: Path) -> None:
        events.meet("open", str(path))
        plain(tensors, path)
        content = path.read_bytes()
        os.truncate(path, len(content) // 2)  # an event of its own, before which the file is whole
        events.meet("half", str(path))
        plain(tensors, path)

    checkpoint.save_file = save_file
    return train_it(overrides)


def call_until(words: list[str], folder: Path, last: int | None, log: Path, prepare: Callable[[], None]) -> int:
    """A command that is killed before its event ``last``."""
    from tests.commands import call

    prepare()
    Events(folder, last, log)
    done = call(*words)
    print(done.stdout, done.stderr)
    return done.returncode


def small_shards() -> None:
    """Have a cache of few clips consist of several shards."""
    from videoscaling.data import writer

    writer.SHARD_CLIPS = 64
