"""Units loaded in processes of their own: in order, each within a time limit, and none can take the job with it.

A decoder may crash on a damaged file, or never come back; so it runs where it can be killed. A worker that did either
costs its one unit, which is rejected, and another takes its place. Pixels come back in memory that both processes map.

Workers are forked from a process of this one's, which has imported torch, 2 s, once for all of them.
"""

import atexit
import ctypes
import mmap
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler, recv_handle, send_handle
from pathlib import Path

import torch
from torch import Tensor

from videoscaling import IMPORT_PATH
from videoscaling.data.choices import LIMIT_SECONDS
from videoscaling.data.clip_groups import ClipGroup
from videoscaling.data.video.clips import Clips, Rejected

PR_SET_PDEATHSIG = 1
# Ctrl-C is for the parent, which ends its workers; said before the imports, which take two seconds.
SERVER = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "from videoscaling.data.video.decode_workers import fork_workers; fork_workers(int(sys.argv[1]))"
)


def decoded(
    units: Iterable[ClipGroup], workers: int, limit_seconds: float = LIMIT_SECONDS, ahead: int | None = None
) -> Iterator[Clips | Rejected]:
    """The clips or the rejection of each unit (``unit.load()``), in the order of the units.

    Workers continue while the caller processes earlier units. They end when the iterator is closed or dropped, and
    when this process ends for any reason.

    Args:
        units: read as they are needed. With workers, ``load`` must be picklable (a partial of a module's function) and
            its pixels must be on the CPU.
        workers: processes; 0 loads in this one, where nothing can be killed: there is no time limit then.
        limit_seconds: wall-clock limit for one unit, from its start.
        ahead: units begun before the caller has taken the first of them (default: two a worker). With the largest
            unit it bounds memory.

    Yields:
        the clips, or ``Rejected``: what ``load`` raised, "too slow", or "crashed".

    Raises:
        RuntimeError: ``load`` raised something else, or workers do not start.
    """
    if not workers:
        yield from map(_load, units)
        return
    units, pool = iter(units), _Pool(workers, limit_seconds)
    try:
        begun = deque(map(pool.submit, islice(units, ahead or 2 * workers)))
        while begun:
            answer = begun.popleft().result()
            begun.extend(map(pool.submit, islice(units, 1)))
            yield answer
    finally:
        pool.close()


def _load(unit: ClipGroup) -> Clips | Rejected:
    try:
        return unit.load()
    except Rejected as error:
        return error


class _Pool:
    """Threads that have one worker process each, started for its first unit and again after each that died."""

    def __init__(self, workers: int, limit_seconds: float) -> None:
        self._limit, self._jobs, self._closed = limit_seconds, queue.SimpleQueue(), False
        self._lock, self._running = threading.Lock(), set()
        # Daemons: an interpreter that ends without closing the pool does not wait for them, and takes their workers.
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, unit: ClipGroup) -> Future:
        future: Future = Future()
        self._jobs.put((unit.source, ForkingPickler.dumps(unit), future))
        return future

    def close(self) -> None:
        """Kill the workers and wait until they are gone."""
        with self._lock:
            self._closed = True
            for worker in self._running:
                worker.kill()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        worker = None
        while (job := self._jobs.get()) and not self._closed:
            source, content, future = job
            try:
                if worker is None:
                    worker = self._start()
                answer = worker.load(source, content, self._limit)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(answer)
            if worker is not None and not worker.alive:
                worker = self._end(worker)
        if worker is not None:
            self._end(worker)

    def _start(self) -> "_Worker":
        server = _running_server()
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool is closed")
            worker = _Worker(server)
            self._running.add(worker)
        try:
            worker.wait_until_ready()
        except BaseException:
            self._end(worker)
            raise
        return worker

    def _end(self, worker: "_Worker") -> None:
        worker.end()
        with self._lock:
            self._running.discard(worker)


class _Server:
    """A process that forks workers and reports their ends. It ends with this process, which closes its socket."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        # Not multiprocessing's server: its children import the main module again, and with that a tool's models.
        paths = os.pathsep.join([str(IMPORT_PATH), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", SERVER, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
        theirs.close()
        self._connection, self._lock, self._owner = Connection(ours.detach()), threading.Lock(), os.getpid()
        atexit.register(self._end)
        with suppress(EOFError, OSError):  # a request for a worker reports that it ended
            self._connection.recv()

    @property
    def usable(self) -> bool:
        """Whether it still lives, and is this process's: not that of one which this was forked from."""
        return self._owner == os.getpid() and self._process.poll() is None

    def fork(self) -> tuple[int, Connection]:
        """A new worker in the present working directory: its process's number, and the way to it."""
        ours, theirs = socket.socketpair()
        with ours, theirs, self._lock:
            self._connection.send(str(Path.cwd()))
            send_handle(self._connection, theirs.fileno(), None)
            return self._connection.recv(), Connection(ours.detach())

    def wait(self, pid: int) -> int:
        """The exit status of a worker that ends or was killed, negative for a signal; asked once."""
        with self._lock:
            self._connection.send(pid)
            return self._connection.recv()

    def _end(self) -> None:
        if self._owner == os.getpid():
            self._connection.close()
            self._process.wait()


_server: _Server | None = None
_starting = threading.Lock()


def _running_server() -> _Server:
    global _server
    with _starting:
        if _server is None or not _server.usable:
            _server = _Server()
        return _server


class _Worker:
    """A process that loads units, and the way to it."""

    def __init__(self, server: _Server) -> None:
        self._server, self._ended, self._lock = server, None, threading.Lock()
        try:
            self._pid, self._connection = self._server.fork()
        except (EOFError, OSError) as error:
            raise RuntimeError(f"decoding workers do not start ({error or 'their server ended'})") from None
        self.alive = True

    def wait_until_ready(self) -> None:
        try:
            self._connection.recv()
        except (EOFError, OSError):
            self.alive = False
            raise RuntimeError(f"a decoding worker ended before its first video ({self._status()})") from None

    def load(self, source: str, unit: memoryview, limit_seconds: float) -> Clips | Rejected:
        """Load the pickled ``unit``."""
        try:
            self._connection.send_bytes(unit)
            if not self._connection.poll(limit_seconds):
                self.alive = False
                return Rejected("too slow", f"not decoded within {limit_seconds:g} s")
            answer = self._connection.recv()
            if isinstance(answer, Rejected):
                return answer
            if isinstance(answer, str):
                raise RuntimeError(f"{source}: {answer}")
            clips, shape, dtype = answer
            return clips._replace(pixels=_mapped(recv_handle(self._connection), shape, dtype))
        except (EOFError, ConnectionError):
            self.alive = False
            return Rejected("crashed", f"the decoder's process ended ({self._status()})")

    def kill(self) -> None:
        with self._lock:
            if self._ended is None:  # until its status has been asked for, no other process gets its number
                with suppress(ProcessLookupError):
                    os.kill(self._pid, signal.SIGKILL)

    def end(self) -> None:
        self.alive = False
        self.kill()
        self._connection.close()
        self._status()

    def _status(self) -> str:
        with self._lock:
            if self._ended is None:
                try:
                    self._ended = self._server.wait(self._pid)
                except (EOFError, OSError):  # the server was killed, and its workers with it
                    self._ended = -signal.SIGKILL
        return signal.Signals(-self._ended).name if self._ended < 0 else f"exit status {self._ended}"


def _mapped(handle: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The tensor in a file that another process filled; the memory is given back with the tensor."""
    try:
        size = shape.numel() * dtype.itemsize
        return (
            torch.frombuffer(mmap.mmap(handle, size), dtype=dtype).reshape(shape)
            if size
            else torch.empty(shape, dtype=dtype)
        )
    finally:
        os.close(handle)


def fork_workers(handle: int) -> None:
    """The server's life: over the socket ``handle`` come a folder, for a new worker there, and its socket; or the
    number of a worker whose exit status is wanted."""
    connection, own = Connection(handle), os.getpid()
    connection.send("ready")
    while True:
        try:
            asked = connection.recv()
            if isinstance(asked, int):
                connection.send(os.waitstatus_to_exitcode(os.waitpid(asked, 0)[1]))
                continue
            worker = recv_handle(connection)
        except (EOFError, ConnectionError):
            return
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                connection.close()
                os.chdir(asked)
                serve(worker, own)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(worker)
        connection.send(pid)


def serve(handle: int, parent: int) -> None:
    """A worker's life: units come in over the socket ``handle``, clips or reasons go back."""
    if sys.platform == "linux":  # elsewhere a worker notices its parent's death when it has decoded its unit
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    torch.set_num_threads(1)

    connection = Connection(handle)
    connection.send("ready")
    while True:
        try:
            answer = _load(connection.recv())
        except EOFError:
            return
        except Exception:
            connection.send(traceback.format_exc())
            continue
        if isinstance(answer, Rejected):
            connection.send(answer)
            continue
        pixels = answer.pixels.contiguous()
        with _anonymous_file() as file:
            file.write(pixels.numpy().data)
            file.flush()
            connection.send((answer._replace(pixels=None), pixels.shape, pixels.dtype))
            send_handle(connection, file.fileno(), None)


def _anonymous_file():
    """A file without a name, in memory if the system supports it; not in /dev/shm, which has 64 MB in containers."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("clips"), "wb+")
    return tempfile.TemporaryFile()
