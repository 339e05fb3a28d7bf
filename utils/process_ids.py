"""Processes by machine and number, as files name their owners: which of them has certainly ended."""

import os
import socket
import zlib
from pathlib import Path


def this_machine() -> str:
    """The host's name and its process numbers' namespace: containers of one host name may number apart."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 (text that is no path)
    except OSError:
        namespace = ""
    return f"{socket.gethostname()} {namespace}".rstrip()


def machine_code() -> str:
    """``this_machine`` in eight hexadecimal digits, for names of files."""
    return f"{zlib.crc32(this_machine().encode()):08x}"


def start_time(pid: int) -> str | None:
    """When a process of this machine began, as boot and clock ticks since; None where /proc does not say.

    A process number is given again after some 4 million others, or after a restart; both together are not.
    """
    fields = _stat(pid)
    if fields is None:
        return None
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{boot} {fields[19]}".lstrip()


def has_ended(pid: int, started: str | None = None) -> bool:
    """Whether the process ``pid`` of this machine, which began at ``started`` where that is known, is gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    fields = _stat(pid)
    if fields is not None and fields[0] in "ZX":  # dead, and not yet waited for by its parent
        return True
    return started is not None and start_time(pid) not in (None, started)


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on: the name before them may hold blanks and parentheses."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
