"""Processes of the tests: started in sessions of their own, and ended with everything they started.

Killing a process group is not enough, as torchrun and sweeps start their workers in sessions of their own. A process
belongs to a test by a variable of its environment, which every descendant inherits. ``end_all`` looks for it in /proc
after each test. A watcher process does the same when pytest itself ends, even by SIGKILL: a training of 1e8 tokens
once ran on for 42 minutes after an interrupted test.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "TESTS_STARTED_BY"
# Bounds a hang. A machine with five such tests at once took 60 s for what takes 3 s alone.
PATIENCE = 600
_own = ""  # the value that this pytest process gives to all its descendants
_started: list[subprocess.Popen] = []
forked: list[BaseProcess] = []  # by multiprocessing's server, in its session and with its environment


def watch() -> None:
    """Mark all processes that this one starts from now on, and have them killed when it ends, however it ends."""
    global _own
    _own = uuid.uuid4().hex
    watcher = [sys.executable, "-I", "-S", __file__, str(os.getpid()), _own]
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    subprocess.Popen(  # in a session of its own: Ctrl-C does not reach it
        watcher,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.environ[VARIABLE] = _own
    # A shell starts a background job with SIGINT ignored, and processes started from it would ignore it too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def environment(**changes: str) -> dict[str, str]:
    """The tests' environment for a process on one thread and no GPU, with ``changes``."""
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | changes


def popen(command: list, *, env: dict[str, str] | None = None, **options) -> subprocess.Popen:
    """``subprocess.Popen`` in a session of its own, ended by ``end_all``; its output is dropped unless asked for."""
    silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    env = (environment() if env is None else env) | {VARIABLE: f"{_own}.{len(_started)}"}
    _started.append(subprocess.Popen([*map(str, command)], env=env, start_new_session=True, **silent | options))
    return _started[-1]


def run(
    command: list, *, env: dict[str, str] | None = None, timeout: float = PATIENCE, **options
) -> subprocess.CompletedProcess[str]:
    """``subprocess.run`` with its output as text, in a session of its own. ``timeout`` bounds a hang; no test is
    about it."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = popen(command, env=env, **pipes | options)
    out, err = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def python(*words: object, **options) -> subprocess.CompletedProcess[str]:
    """``run`` of this Python: a script of the repository by its path from the root, or ``-c`` and a program."""
    script = [ROOT / words[0]] if str(words[0]).endswith(".py") else [words[0]]
    return run([sys.executable, *script, *words[1:]], **options)


def end_all() -> None:
    """Kill what ``popen`` and ``run`` started and left, all that those started, and what is ``forked``."""
    for process in forked:
        process.kill()
        process.join()
    forked.clear()
    if not _started:
        return
    kill_marked(f"{_own}.")
    for process in _started:
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()
    _started.clear()


def marked(start: str) -> list[int]:
    """The other living processes whose environment has the variable with a value that begins with ``start``."""
    wanted, found = f"{VARIABLE}={start}".encode(), []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            values = (path / "environ").read_bytes().split(b"\0")  # a zombie's is empty
            if any(value.startswith(wanted) for value in values) and int(path.name) != os.getpid():
                found.append(int(path.name))
    return found


def kill_marked(start: str) -> None:
    """SIGKILL to all of them, again while some are there: one may have forked while the list was read."""
    for _ in range(200):
        if not (found := marked(start)):
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Poll until ``condition`` holds; AssertionError where it does not in time, which bounds a hang."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)


if __name__ == "__main__":
    with contextlib.suppress(ProcessLookupError):
        select.select([os.pidfd_open(int(sys.argv[1]))], [], [])  # returns when that process has ended
    kill_marked(sys.argv[2])
