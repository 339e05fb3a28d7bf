"""Errors of the operating system as one line with the fix; and work whose failure costs a warning, not the run."""

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from videoscaling.utils.messages import warn

ELSEWHERE = "choose another path"
AGAIN = "run the same command again"
# The user's fix, by error number. The numbers of a path that was given wrongly lead to another path.
FIXES = {
    errno.ENOSPC: f"free some space or files (df -h, df -i) and {AGAIN}",
    errno.EDQUOT: f"free some of your quota and {AGAIN}",
    errno.EIO: f"the disk or its network failed: check it, and {AGAIN}",
    errno.ESTALE: f"the network disk was mounted anew or the file replaced on another machine: {AGAIN}",
    errno.EMFILE: f"allow more open files (ulimit -n) and {AGAIN}",
    errno.ENFILE: f"the machine has too many open files: close some and {AGAIN}",
    errno.ENOMEM: f"free some memory and {AGAIN}",
    errno.EAGAIN: f"the machine allows no more processes or memory now (ulimit -u): {AGAIN} later",
    errno.EBUSY: f"another program uses it: end that and {AGAIN}",
    errno.ETXTBSY: f"another program uses it: end that and {AGAIN}",
    errno.EINTR: AGAIN,
    errno.ETIMEDOUT: f"check the disk's network and {AGAIN}",
    errno.ESHUTDOWN: f"check the disk's network and {AGAIN}",  # of Lustre
    errno.EREMOTEIO: f"check the disk's network and {AGAIN}",
    errno.ENODEV: f"check that the disk is mounted and {AGAIN}",
    errno.ENXIO: f"check that the disk is mounted and {AGAIN}",
    errno.ENOLCK: f"the disk allows no more locks: {AGAIN} later, or choose a path on another disk",
    errno.EFBIG: f"allow larger files (ulimit -f) and {AGAIN}",
    errno.ENAMETOOLONG: "choose a shorter path or name",
}
FULL = (errno.ENOSPC, errno.EDQUOT)
# Met by one process of several, as a disk may fail on one machine only: that process reports it.
PATHS = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)


def describe(error: OSError) -> str | None:
    """What happened to which file, and the fix, in one line.

    None where the error has neither a file's name nor a number in ``FIXES``: it is a fault of the program.
    """
    if error.errno is None or (error.filename is None and error.errno not in FIXES):
        return None
    words = error.strerror or os.strerror(error.errno)
    words = "disk full" if error.errno in FULL else words.lower()
    what = f"{words}: " if error.filename is None else f"{_text(error.filename)}: {words}; "
    return " ".join((what + FIXES.get(error.errno, ELSEWHERE)).split())


def concerns_one_process(error: OSError) -> bool:
    """Whether other processes of the same command need not have met ``error``."""
    return error.errno not in PATHS


def _text(name: object) -> str:
    return os.fsdecode(name) if isinstance(name, bytes | str | os.PathLike) else str(name)


@contextmanager
def with_filename(path: str | Path, tmp: str | Path | None = None) -> Iterator[None]:
    """Give ``path`` as the file of OSErrors that have none, as those of read, write and fsync, or have ``tmp``."""
    try:
        yield
    except OSError as error:
        if error.errno in errno.errorcode and error.filename in (None, tmp and str(tmp)):
            # A new one, as the name of PyAV's cannot be set.
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


class _Log(io.FileIO):
    def write(self, data: bytes) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def open_log(path: str | Path) -> TextIO:
    """Append messages to ``path``. No result is made of them: those that a full disk refuses are lost, without an
    error."""
    return io.TextIOWrapper(io.BufferedWriter(_Log(path, "a")), "utf-8", "backslashreplace", line_buffering=True)


@contextmanager
def warn_of_os_error(what: str) -> Iterator[None]:
    """Print a warning that begins with ``what`` in place of an OSError. Also a decorator of functions."""
    try:
        yield
    except OSError as error:
        warn(f"{what}: {describe(error) or error}")
