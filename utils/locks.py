"""Folder locks: one process works in a folder at a time, and a process that died holds no lock.

A lock is flock(2) on the file ``.lock`` in the folder. The inode is compared after the lock is taken: if ``.lock``
was removed, the next process creates another file, and both would hold "the" lock. Some disks have no flock (Lustre
mounted without it, some NFS). There the lock is the file ``.lock-holder`` with the machine, id and start time of its
process. It is taken over only from a process of this machine that has ended; for any other machine the user decides
(``release_abandoned``, the option --take-over).
"""

import errno
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from videoscaling.utils.errors import UserError
from videoscaling.utils.files import parse_json
from videoscaling.utils.messages import is_first_process, warn
from videoscaling.utils.process_ids import has_ended, machine_code, start_time, this_machine

LOCK, HOLDER = ".lock", ".lock-holder"
NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
POLL_SECONDS = 0.2
WRITING_SECONDS = 1.0  # how long a holder file may stay empty while its process writes it
# How long to wait for a process of another machine: a cell that checkpoints on a signal takes seconds, and one whose
# machine was lost never leaves.
FOREIGN_SECONDS = 300.0
OPTION = "--take-over"


@dataclass(frozen=True)
class Holder:
    """The process that locks a folder on a disk without flock. ``started`` comes from ``process_ids.start_time``."""

    machine: str
    pid: int
    started: str | None

    @property
    def has_ended(self) -> bool:
        """Whether the process has certainly ended: only processes of this machine can be seen."""
        return self.machine == this_machine() and has_ended(self.pid, self.started)


@dataclass
class Lock:
    """A lock of this process: an open file with flock, or the holder file that it wrote."""

    folder: Path
    handle: int | None = None
    holder: Holder | None = None

    @property
    def is_intact(self) -> bool:
        """Whether another process would still find the folder locked."""
        if self.handle is not None:
            return _same_file(self.handle, self.folder / LOCK)
        return _read_holder(self.folder / HOLDER) == self.holder

    def release(self) -> None:
        if self.handle is not None:
            os.close(self.handle)
        elif self.is_intact:
            (self.folder / HOLDER).unlink(missing_ok=True)


_own: dict[Path, Lock] = {}  # the locks of this process, by absolute folder


def is_locked(directory: Path) -> bool:
    """Whether a living process has locked ``directory``; a lock taken on another machine may not be visible."""
    try:
        with (directory / LOCK).open() as handle:
            # A shared lock, so that two checks do not see each other; released at once, and cells wait for a lock.
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
        holder = _read_holder(directory / HOLDER)
        return holder is not None and not holder.has_ended
    return False


@contextmanager
def lock_run_dir(directory: Path, wait: bool = False) -> Iterator[None]:
    """Lock ``directory`` for this process; the lock of a process that died is released with it.

    The processes of one torchrun share the directory, and only rank 0 takes the lock.

    Raises:
        UserError: another process has locked it, and ``wait`` is False.
    """
    if not is_first_process():
        yield
        return
    with lock(directory, wait):
        yield


@contextmanager
def lock(directory: Path, wait: bool = False) -> Iterator[None]:
    """As ``lock_run_dir``, but every process takes a lock of its own."""
    own = _acquire(directory, wait)
    key = directory.absolute()
    _own[key] = own
    try:
        yield
    finally:
        if _own.get(key) is own:
            del _own[key]
        own.release()


def check_lock(directory: Path) -> None:
    """Check that this process's lock of ``directory`` is still there; without one, another process may be writing.

    Raises:
        UserError: the lock was removed or replaced.
    """
    own = _own.get(directory.absolute())
    if own is not None and not own.is_intact:
        name = HOLDER if own.handle is None else LOCK
        raise UserError(
            f"{directory}: its lock {name} was removed or replaced while this process worked in it, so another may "
            "have begun; nothing more is written. Run the same command again"
        )


def release_abandoned(directory: Path) -> None:
    """Remove the holder file of ``directory`` on a disk without flock: the user says that its process has ended.

    A lock by flock never needs this.
    """
    with suppress(FileNotFoundError):
        holder = _read_holder(directory / HOLDER)
        (directory / HOLDER).unlink()
        print(f"{directory}: taken over from {_named(holder)}", file=sys.stderr)


def _acquire(directory: Path, wait: bool) -> Lock:
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # the last process removed the folder, as cache jobs do
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            intact = _same_file(handle, directory / LOCK)
        except BaseException as error:
            os.close(handle)
            if isinstance(error, BlockingIOError):
                raise UserError(f"{directory}: another process is working in it; wait for it or end it") from None
            if isinstance(error, OSError) and error.errno in NO_FLOCK:
                lock = _acquire_by_file(directory, wait)
                warn(
                    f"{directory}: this disk has no flock ({error.strerror}); the lock is the file {HOLDER}, "
                    "and only processes of this machine are seen to end"
                )
                return lock
            raise
        if intact:
            return Lock(directory, handle)
        os.close(handle)  # removed since it was opened: the next process locks another file


def _acquire_by_file(directory: Path, wait: bool) -> Lock:
    path, mine = directory / HOLDER, Holder(this_machine(), os.getpid(), start_time(os.getpid()))
    end = time.monotonic() + FOREIGN_SECONDS
    while True:
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            holder = _read_holder(path)
            if holder is None:
                continue
            if holder.has_ended:
                _displace(path, holder)
            elif wait and (holder.machine == this_machine() or time.monotonic() < end):
                time.sleep(POLL_SECONDS)
            else:
                raise UserError(
                    f"{directory}: {_named(holder)} is working in it; wait for it or end it, and where it has ended "
                    f"already, {OPTION} takes the folder over"
                ) from None
            continue
        with os.fdopen(handle, "w") as file:
            file.write(json.dumps(asdict(mine)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return Lock(directory, holder=mine)


def _displace(path: Path, dead: Holder) -> None:
    """Remove the holder ``dead``, but no holder that has replaced it meanwhile."""
    tmp = path.with_name(f"{HOLDER}.{machine_code()}-{os.getpid()}.tmp")
    try:
        path.rename(tmp)
    except FileNotFoundError:
        return
    if _read_holder(tmp) != dead:
        with suppress(FileExistsError):
            path.hardlink_to(tmp)
    tmp.unlink()


def _read_holder(path: Path) -> Holder | None:
    """The holder; None without a file. A file that was never completed belongs to no known process."""
    end = time.monotonic() + WRITING_SECONDS
    while True:
        try:
            return Holder(**parse_json(path.read_bytes(), str(path), dict))
        except FileNotFoundError:
            return None
        except (UserError, TypeError):
            if time.monotonic() > end:
                return Holder("", 0, None)
            time.sleep(0.05)


def _named(holder: Holder | None) -> str:
    if holder is None or not holder.machine:
        return "a process that did not write its name"
    return f"process {holder.pid} of {holder.machine.partition(' ')[0]}"


def _same_file(handle: int, path: Path) -> bool:
    """Whether the open file ``handle`` is still the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
