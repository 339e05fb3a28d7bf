"""Local executor: trains cells on one machine, each in its own process; their state is on disk."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from videoscaling import IMPORT_PATH
from videoscaling.sweeps.commands import SUBMITTED, CommandProcess, training_command
from videoscaling.sweeps.config import COMMANDS_AT_ONCE, ExecutorKeys
from videoscaling.sweeps.stacking import stacks
from videoscaling.sweeps.state import FAILURE, data_fault, fault_of_sweep, forget_failure
from videoscaling.training.config import Config
from videoscaling.training.result import finished_result
from videoscaling.training.run import Run
from videoscaling.utils.errors import PREEMPTED, run_cli
from videoscaling.utils.locks import check_lock, is_locked
from videoscaling.utils.os_errors import open_log, warn_of_os_error
from videoscaling.utils.results import CONSOLE, DATA_FAULT, Failure, write_failure

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # without one of these, torch finds no GPU
GPU_BYTES = 16 << 30  # taken to be there on any GPU; asking it would take memory of it
TAIL_BYTES = 1 << 16  # of a console.log, with the last line of a cell that failed
LOOK_SECONDS = 1.0  # between two calls of ``look``
MAX_EXIT_SECONDS = 120.0  # that processes may take to write a checkpoint after their torchrun has ended
PR_SET_PDEATHSIG = 1  # of Linux's prctl
# Modules that training imports while it runs, imported once for all cells: AdamW loads torch._dynamo, 0.6 s, and the
# log TensorBoard, 0.3 s.
PRELOADED = [
    "videoscaling.training.stacked.loop",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "tensorboard.plugins.hparams.api_pb2",
]


class CpuShare(NamedTuple):
    """A cell's share of the machine: GPUs by name, cores by number (none: all cores), threads."""

    gpus: tuple[str, ...]
    cores: tuple[int, ...]
    threads: int


@dataclass
class _Worker:
    """Cells in training, mostly one; the process is torchrun's where a cell takes several, or executor.command's."""

    runs: list[Run]
    slot: int
    process: BaseProcess | CommandProcess
    stopping: bool = False

    def stop(self) -> None:
        """Ask the process to checkpoint and exit. Once: a second signal could hit it while it writes its result."""
        if not self.stopping:
            self.stopping = True
            self.process.terminate()


class Interrupt:
    """Context manager that records the first of ``SIGNALS`` in ``caught``; None until then.

    Later signals are ignored to the end of the process: terminals and Slurm send a second one, which must not change
    the exit status.
    """

    def __enter__(self) -> "Interrupt":
        self.caught: int | None = None
        self._before = {s: signal.signal(s, self._catch) for s in SIGNALS}
        return self

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.caught = self.caught or number

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self.caught else handler)


def run_cells(
    cells: Sequence[Run],
    keys: ExecutorKeys,
    report: Callable[[Run, str], None],
    interrupt: Interrupt,
    *,
    rendezvous: Sequence[str] = (),
    look: Callable[[list[Run]], None] | None = None,
) -> None:
    """Train every cell that is not finished.

    A cell that crashes is tried again ``retries`` times, then recorded as failed; the others continue. On SIGINT,
    SIGTERM or SIGUSR2 the cells write checkpoints and stop, and so does the pool. A fault of the data, which all
    cells read, is not tried again: the cell is recorded as failed, and the others stop as on a signal.

    Args:
        report: called with each cell that ended and its outcome.
        interrupt: entered; if it has caught a signal, the pool ended before the last cell.
        rendezvous: torchrun's options if the pools of several nodes train one cell together. The submitting process
            then decides about a cell that crashes: its outcome is "crashed".
        look: called with the running cells, at least every ``LOOK_SECONDS``.

    Raises:
        DataFault: data that a cell read are damaged.
    """
    queue = []
    for run in cells:
        forget_failure(run)
        if finished_result(run) is None:
            queue.append(run)
    if not queue:
        return
    queue = _stacked(queue, keys)
    shares = machine(keys, len(queue))
    torchrun = list(rendezvous) or (["--standalone"] if keys.processes > 1 and keys.kind != "command" else None)
    if torchrun is not None:
        torchrun += ["--nproc_per_node", str(keys.processes)]
    free, busy = list(range(len(shares)))[::-1], {}
    attempts: dict[str, int] = {}
    context, fault = None if keys.kind == "command" else _server(), ""

    def ending() -> bool:
        return interrupt.caught is not None or bool(fault)

    while busy or (queue and not ending()):
        while queue and free and not ending():
            slot = free.pop()
            worker = _start(context, queue.pop(0), slot, shares[slot], keys, torchrun)
            busy[worker.process.sentinel] = worker
        if ending():
            for worker in busy.values():
                worker.stop()
        for sentinel in wait(list(busy), timeout=LOOK_SECONDS):
            worker = busy.pop(sentinel)
            worker.process.join()
            if torchrun is not None:
                _wait_for_processes(worker.runs[0].config.run_dir)
            free.append(worker.slot)
            for run in worker.runs:
                outcome = _outcome(run, worker, attempts, keys, ending(), bool(rendezvous))
                fault = fault or data_fault(run)
                if outcome in ("again", "continued"):
                    queue.append([run])  # alone, so that none fails for another's fault
                report(run, outcome)
        if look is not None:
            look([run for worker in busy.values() for run in worker.runs])
    if fault:
        raise fault_of_sweep(fault)


def _outcome(
    run: Run, worker: _Worker, attempts: dict[str, int], keys: ExecutorKeys, interrupted: bool, several_nodes: bool
) -> str:
    """The outcome of a cell whose process has ended: its final state, "again", "continued", "stopped", "submitted" or
    "crashed"."""
    code = worker.process.exitcode
    final = finished_result(run)
    if final is not None:
        return final["status"]
    if fault := data_fault(run):
        count = attempts.get(run.config.name, 0) + 1
        write_failure(run.config.run_dir / FAILURE, Failure(fault, count, exit_status=2, data_fault=True))
        return "failed"
    if interrupted:
        return "stopped"
    if several_nodes:
        return "crashed"
    if keys.kind == "command" and (code == 0 or is_locked(run.config.run_dir)):
        return "submitted"
    begun = not (submitted := run.config.run_dir / SUBMITTED).exists()
    if code == PREEMPTED and begun:  # stopped from outside, as its job's time ended: it wrote a checkpoint
        return "continued"
    if len(worker.runs) > 1:
        return "again"  # alone, which shows the cell that crashed
    name = run.config.name
    attempts[name] = attempts.get(name, 0) + 1
    if code != 2 and attempts[name] <= keys.retries:  # a user's error (2) would happen again
        return "again"
    console, lines = run.config.run_dir / CONSOLE, []
    if not begun:  # executor.command itself failed
        with console.open("ab") as file:
            file.write(submitted.read_bytes())
        submitted.unlink()
    with warn_of_os_error("the reason of a failure is not known"):
        if console.exists():
            with console.open("rb") as file:
                file.seek(max(console.stat().st_size - TAIL_BYTES, 0))
                lines = file.read(TAIL_BYTES).decode(errors="replace").strip().splitlines()
    silent = f"ended with status {code} and wrote no console.log; see what this command printed"
    reason = lines[-1] if lines else silent
    write_failure(run.config.run_dir / FAILURE, Failure(reason, attempts[name], code))
    return "failed"


def _stacked(queue: list[Run], keys: ExecutorKeys) -> list[list[Run]]:
    """The cells in groups; one process trains each group in lock-step."""
    if keys.processes > 1 or keys.kind == "command":
        return [[run] for run in queue]
    shares = machine(keys, len(queue))
    gpu = bool(shares[0].gpus)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / len(shares)
    return stacks(queue, keys.stack, gpu, len(shares), GPU_BYTES / keys.runs_per_gpu if gpu else memory)


def machine(keys: ExecutorKeys, cells: int) -> list[CpuShare]:
    """The shares of this machine, or of this job's part of it: one for each cell that is trained at once."""
    if keys.kind == "command":
        return [CpuShare((), (), 1)] * min(keys.workers or COMMANDS_AT_ONCE, cells)
    gpus, cores = visible_gpus(), sorted(os.sched_getaffinity(0))
    threads = min(len(cores), int(os.environ.get("SLURM_CPUS_PER_TASK", len(cores))))
    groups = [tuple(gpus[i : i + keys.processes]) for i in range(0, len(gpus), keys.processes)]
    groups = [group for group in groups if len(group) == keys.processes]
    slots = len(groups) * keys.runs_per_gpu if groups else max(threads // keys.processes, 1)
    workers = max(min(keys.workers or slots, cells), 1)
    each = max(threads // workers, 1)
    # A job that was given some of the cores, without their numbers, does not choose among them.
    pinned = len(cores) if threads == len(cores) and len(cores) >= workers else 0
    return [
        CpuShare(
            groups[slot % len(groups)] if groups else (),
            tuple(cores[slot * pinned // workers : (slot + 1) * pinned // workers]),
            max(each // keys.processes, 1),
        )
        for slot in range(workers)
    ]


def visible_gpus() -> list[str]:
    """The names of the visible GPUs, in CUDA_VISIBLE_DEVICES' form."""
    if not any(Path(path).exists() for path in DRIVERS):
        return []
    import torch  # two seconds of every job, which one without GPUs need not wait

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]


# -- starting and ending a cell ------------------------------------------------------------------------------------


def _server() -> Any:
    """The server that forks cells: it has imported torch but run nothing. No import to wait for, no shared
    state."""
    # The server finds our modules by PYTHONPATH alone, in any working directory.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(IMPORT_PATH), os.environ.get("PYTHONPATH"))))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # Slurm, and a terminal, signal every process there is: a server that died of it would take the exit statuses of
    # its cells with it, and the pool would leave before they have written their checkpoints.
    for start in (resource_tracker.ensure_running, forkserver.ensure_running):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return context


def _start(
    context: Any, runs: list[Run], slot: int, share: CpuShare, keys: ExecutorKeys, torchrun: list[str] | None
) -> _Worker:
    for run in runs:
        check_lock(run.config.run_dir.parent)  # the sweep's folder, where this process holds that
        run.config.run_dir.mkdir(parents=True, exist_ok=True)
        (run.config.run_dir / DATA_FAULT).unlink(missing_ok=True)
    configs = [run.config for run in runs]
    if keys.kind == "command":
        return _Worker(runs, slot, CommandProcess(runs[0], keys))
    if torchrun is not None:
        process = context.Process(target=_launch_cell, args=(configs[0], share, torchrun))
    elif len(runs) > 1:
        process = context.Process(target=_train_stack, args=(configs, share))
    else:
        process = context.Process(target=_train_cell, args=(configs[0], share))
    process.start()
    return _Worker(runs, slot, process)


def _wait_for_processes(directory: Path) -> None:
    """Wait until torchrun's processes have released the cell: after a second signal torchrun ends before them."""
    deadline = time.monotonic() + MAX_EXIT_SECONDS
    while is_locked(directory) and time.monotonic() < deadline:
        time.sleep(0.2)


def _train_cell(config: Config, share: CpuShare) -> None:
    """The body of a cell's process: its share of the machine, its own console.log, then plain training."""

    def main() -> int:
        _init_worker(config, share)
        from videoscaling.training.train import train

        # A cell whose pool was killed may still be stopping: its successor waits for it.
        return train(config, wait=True)

    run_cli(main)


def _train_stack(configs: list[Config], share: CpuShare) -> None:
    """The body of a process of several cells, each with its own console.log; other output goes to the first's."""

    def main() -> int:
        _init_worker(configs[0], share)
        from videoscaling.training.stacked.loop import train_stacked

        return train_stacked(configs, wait=True, consoles=True)

    run_cli(main)


def _init_worker(config: Config, share: CpuShare) -> None:
    """Set up a pool's process that trains without torchrun."""
    _apply_limits(config, share)
    sys.stdout = sys.stderr = open_log(config.run_dir / CONSOLE)
    _stop_with_parent()
    import torch

    torch.set_num_threads(share.threads)


def _launch_cell(config: Config, share: CpuShare, options: list[str]) -> None:
    """The body of the process of a cell with several processes: it becomes torchrun with ``options``."""
    _apply_limits(config, share)
    words = training_command(config, options)
    os.environ["OMP_NUM_THREADS"] = str(share.threads)
    os.setsid()  # a terminal's Ctrl-C reaches it through the pool, once
    # If the pool dies, the server that forked this process dies too, and torchrun gets SIGTERM.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execv(words[0], words)


def _apply_limits(config: Config, share: CpuShare) -> None:
    """Give this process its console.log and its share of the machine, and unblock signals."""
    console = os.open(config.run_dir / CONSOLE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(console, 1)
    os.dup2(console, 2)
    # Ctrl-C and Slurm's warning reach the whole group. They must not break a cell that is still starting; the pool
    # sends it SIGTERM. The loop catches them later.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if share.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(share.gpus)
    if share.cores:
        os.sched_setaffinity(0, share.cores)


def _stop_with_parent() -> None:
    """Checkpoint and stop this process if the pool dies, so that no cell trains on alone."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
