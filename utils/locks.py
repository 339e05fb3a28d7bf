"""Locks of folders: one process works in a folder at a time, and a process that died holds nothing.

A lock is flock(2) on the file ``.lock`` in the folder. The file is compared by inode after the lock is taken, since a
``.lock`` that was removed is another file for the next process: both would hold "the" lock. Some disks have no flock
(Lustre mounted without it, some NFS). There the lock is the file ``.lock-holder`` with the machine, number and start
of its process. It is taken over only from a process of this machine that has ended; for any other the user decides
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
from videoscaling.utils.process_ids import has_ended, machine_code, start_time, this_machine

LOCK, HOLDER = ".lock", ".lock-holder"
NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
POLL_SECONDS = 0.2
WRITING_SECONDS = 1.0  # a holder that was created and is still empty is given so long to be written
# A process of another machine is waited for so long: a cell that checkpoints on a signal takes seconds, and one whose
# machine was lost never leaves.
FOREIGN_SECONDS = 300.0
OPTION = "--take-over"


@dataclass(frozen=True)
class Holder:
    """The process that holds a folder on a disk without flock. ``started`` is ``process_ids.start_time``'s."""

    machine: str
    pid: int
    started: str | None

    @property
    def has_ended(self) -> bool:
        """Whether it certainly has: only this machine's processes can be seen."""
        return self.machine == this_machine() and has_ended(self.pid, self.started)


@dataclass
class Lock:
    """A lock that this process holds: an open file with flock, or the holder that was written."""

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


def held(directory: Path) -> bool:
    """Whether a living process holds ``directory`` (``exclusive``); a hold on another machine's disk may not show."""
    try:
        with (directory / LOCK).open() as handle:
            # Shared, so that askers do not see each other; let go at once, and cells wait for a hold.
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
def exclusive(directory: Path, wait: bool = False) -> Iterator[None]:
    """Hold ``directory`` for this process alone; the hold of a process that died is gone with it.

    Processes of one torchrun share the directory: only the first of them takes the hold.

    Raises:
        UserError: another process holds it, and this one is not to ``wait``.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with hold(directory, wait):
        yield


@contextmanager
def hold(directory: Path, wait: bool = False) -> Iterator[None]:
    """As ``exclusive``, each process for itself."""
    lock = _lock(directory, wait)
    key = directory.absolute()
    _own[key] = lock
    try:
        yield
    finally:
        if _own.get(key) is lock:
            del _own[key]
        lock.release()


def check_held(directory: Path) -> None:
    """Raise where this process held ``directory`` and its lock was removed meanwhile: another may be writing there.

    Raises:
        UserError: so it is.
    """
    lock = _own.get(directory.absolute())
    if lock is not None and not lock.is_intact:
        name = HOLDER if lock.handle is None else LOCK
        raise UserError(
            f"{directory}: its lock {name} was removed or replaced while this process worked in it, so another may "
            "have begun; nothing more is written. Run the same command again"
        )


def release_abandoned(directory: Path) -> None:
    """Remove the holder of ``directory``, on a disk without flock, whatever process it names: the user says that it
    has ended. A lock by flock needs this never."""
    with suppress(FileNotFoundError):
        holder = _read_holder(directory / HOLDER)
        (directory / HOLDER).unlink()
        print(f"{directory}: taken over from {_named(holder)}", file=sys.stderr)


def _lock(directory: Path, wait: bool) -> Lock:
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # its last holder removed the folder, as caches' shares do
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            intact = _same_file(handle, directory / LOCK)
        except BaseException as error:
            os.close(handle)
            if isinstance(error, BlockingIOError):
                raise UserError(f"{directory}: another process is working in it; wait for it or end it") from None
            if isinstance(error, OSError) and error.errno in NO_FLOCK:
                lock = _lock_by_file(directory, wait)
                print(
                    f"warning: {directory}: this disk has no flock ({error.strerror}); the lock is the file {HOLDER}, "
                    "and only processes of this machine are seen to end",
                    file=sys.stderr,
                )
                return lock
            raise
        if intact:
            return Lock(directory, handle)
        os.close(handle)  # removed since it was opened: the next one is another file


def _lock_by_file(directory: Path, wait: bool) -> Lock:
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
    """Remove the holder ``dead``, and none that took its place meanwhile."""
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
    """Who holds; None where there is no such file. One that nobody finished writing is of no known process."""
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
