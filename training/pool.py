"""A pool that trains a sweep's cells, each in a process of its own; what it knows of them is what lies on disk."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch

from training.config import config_from_dict, to_dict
from training.grid import Sweep
from training.records import finished_result
from training.resolve import Run
from utils.errors import run_cli
from utils.files import held, read_json, write_json

FAILURE = "failure.json"


def cell_state(run: Run) -> dict[str, Any]:
    """How a cell stands: {"state", "tokens", "loss"}.

    The state is "pending", "running" (a process holds its folder), "stopped" (begun, and interrupted), "done",
    "diverged" or "failed"; the loss is the last milestone's, of the averaged weights.
    """
    directory = run.config.run_dir
    if (directory / FAILURE).exists():
        return {"state": "failed", "tokens": 0, "loss": None, **read_json(directory / FAILURE)}
    final = finished_result(run)
    if final is None and not (directory / "config.yaml").exists():
        return {"state": "pending", "tokens": 0, "loss": None}
    path = directory / "result.json"
    result = final or (read_json(path) if path.exists() else {"tokens": 0, "milestones": []})
    loss = result["milestones"][-1]["ema_val_loss"] if result["milestones"] else None
    state = final["status"] if final else "running" if held(directory) else "stopped"
    return {"state": state, "tokens": result["tokens"], "loss": loss}


class _Share(NamedTuple):
    """What a cell may use of the machine: a GPU by name, or None; CPU threads."""

    gpu: str | None
    threads: int


@dataclass
class _Worker:
    process: BaseProcess
    run: Run
    slot: int
    told: bool = False


def run_cells(sweep: Sweep, report: Callable[[Run, str], None]) -> bool:
    """Train every cell that is not finished; ``report`` hears of each cell's end.

    A cell that crashes is tried again ``executor.retries`` times, then recorded as failed; the others go on. On
    SIGINT or SIGTERM the cells write checkpoints and stop, and so does the pool.

    Returns:
        False if a signal ended it before the last cell.
    """
    queue = []
    for run in sweep.cells:
        (run.config.run_dir / FAILURE).unlink(missing_ok=True)  # a failed cell is tried afresh
        if finished_result(run) is None:
            queue.append(run)
    gpus, cores = _gpus(), len(os.sched_getaffinity(0))
    workers = min(sweep.keys.executor.workers or len(gpus) or cores, max(len(queue), 1))
    free, busy = list(range(workers)), {}
    attempts: dict[str, int] = {}
    # Cells are forked from a server that has imported torch but run nothing: no import to wait for, no shared state.
    # The server finds our modules by PYTHONPATH alone, whatever the working directory.
    root = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.trainer"])
    with _Interrupt() as interrupt:
        while busy or (queue and not interrupt.caught):
            while queue and free and not interrupt.caught:
                slot = free.pop()
                share = _Share(gpus[slot % len(gpus)] if gpus else None, max(cores // workers, 1))
                worker = _start(context, queue.pop(0), slot, share)
                busy[worker.process.sentinel] = worker
            if interrupt.caught:
                for worker in busy.values():
                    if not worker.told:  # once: a second signal would fall on one that is writing its result
                        worker.told = True
                        worker.process.terminate()
            for sentinel in wait(list(busy), timeout=1):
                worker = busy.pop(sentinel)
                worker.process.join()
                free.append(worker.slot)
                outcome = _settle(worker, attempts, sweep.keys.executor.retries, interrupt.caught)
                if outcome == "again":
                    queue.append(worker.run)
                report(worker.run, outcome)
    return not interrupt.caught


def _settle(worker: _Worker, attempts: dict[str, int], retries: int, interrupted: bool) -> str:
    """What became of a cell whose process has ended: its final state, "again" or "stopped"."""
    run, code = worker.run, worker.process.exitcode
    final = finished_result(run)
    if final is not None:
        return final["status"]
    if interrupted:
        return "stopped"
    name = run.config.name
    attempts[name] = attempts.get(name, 0) + 1
    if code != 2 and attempts[name] <= retries:  # a user's error will not mend itself
        return "again"
    console = run.config.run_dir / "console.log"
    lines = console.read_text(errors="replace").strip().splitlines() if console.exists() else []
    reason = lines[-1] if lines else f"ended with status {code}"
    write_json(run.config.run_dir / FAILURE, {"attempts": attempts[name], "exit_status": code, "reason": reason})
    return "failed"


def _gpus() -> list[str]:
    """The names of the visible GPUs, as CUDA_VISIBLE_DEVICES wants them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]


def _start(context: Any, run: Run, slot: int, share: _Share) -> _Worker:
    run.config.run_dir.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_train_cell, args=(to_dict(run.config), share))
    process.start()
    return _Worker(process, run, slot)


def _train_cell(values: dict[str, Any], share: _Share) -> None:
    """The body of a cell's process: its share of the machine, its own console.log, then plain training."""
    config = config_from_dict(values)
    with (config.run_dir / "console.log").open("a") as console:
        os.dup2(console.fileno(), sys.stdout.fileno())
        os.dup2(console.fileno(), sys.stderr.fileno())
        # Ctrl-C reaches the whole group: it must not break a cell that is still starting. The loop catches it later.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _stop_with_parent()
        if share.gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = share.gpu
        torch.set_num_threads(share.threads)
        from training.trainer import train

        # A cell whose pool was killed may still be stopping: its successor waits for it.
        run_cli(lambda: train(config, wait=True))


def _stop_with_parent() -> None:
    """Have this process checkpoint and stop if the pool dies, so that none is left training alone."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


class _Interrupt:
    """Remembers SIGINT and SIGTERM while it is entered."""

    def __enter__(self) -> "_Interrupt":
        self.caught = False
        self._before = {s: signal.signal(s, self._catch) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.caught = True

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
