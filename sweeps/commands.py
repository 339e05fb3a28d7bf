"""Cells as lines of shell, for any scheduler: ``run --print-commands`` prints them, executor.kind=command runs them.

A cell's own command trains it by ``train.py``, which locks its folder, resumes, and leaves its result there. The
states are read from disk as for every executor. ``executor.command`` starts that command or submits it to a queue: if
it ends without an error before the cell, the cell was submitted. No torch here.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from videoscaling import ROOT
from videoscaling.sweeps.config import PLACEHOLDERS, ExecutorKeys
from videoscaling.sweeps.state import forget_failure
from videoscaling.training.config import Config, to_dict
from videoscaling.training.result import finished_result
from videoscaling.training.run import Run, label
from videoscaling.utils.errors import plural
from videoscaling.utils.files import atomic_write
from videoscaling.utils.locks import is_locked
from videoscaling.utils.messages import warn
from videoscaling.utils.results import CONSOLE

# What executor.command printed, in the cell's folder until the cell begins: its own command removes the file first, so
# that a cell with it has been submitted and waits.
SUBMITTED = "submitted.log"
# torchrun hands these on to its processes; by itself it would die of the last.
HANDED_ON = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2"


def training_command(config: Config, torchrun: Sequence[str] | None) -> list[str]:
    """The words that train ``config``'s run, with torchrun's options ``torchrun`` if it takes several processes.

    Writes the configuration that they name into the run's folder.
    """
    path = config.run_dir / "cell.yaml"
    with atomic_write(path) as tmp:
        OmegaConf.save(OmegaConf.create(to_dict(config)), tmp)
    launch = [] if torchrun is None else ["-m", "torch.distributed.run", "--signals-to-handle", HANDED_ON, *torchrun]
    return [sys.executable, *launch, str(ROOT / "train.py"), "--config", str(path)]


def cell_command(run: Run, keys: ExecutorKeys) -> str:
    """One line of shell that trains ``run`` in any folder, and by ``executor.command`` where that is to start it."""
    torchrun = ["--standalone", "--nproc_per_node", str(keys.processes)] if keys.processes > 1 else None
    words = shlex.join(training_command(run.config, torchrun))
    folder = shlex.quote(str(run.config.run_dir))
    # exec: a scheduler's signal may reach the first process only, which must be the one that writes checkpoints.
    line = (
        f"cd {shlex.quote(str(Path.cwd()))} && rm -f {folder}/{SUBMITTED} && exec {words} >> {folder}/{CONSOLE} 2>&1"
    )
    if keys.kind != "command":
        return line
    values = {"command": line, "run_id": run.config.run_dir.name, "name": label(run.config)}
    return re.sub(PLACEHOLDERS, lambda found: shlex.quote(values[found[1]]), keys.command)


def startable(cells: Sequence[Run]) -> list[Run]:
    """The cells that are neither finished nor in training nor submitted; those that failed are tried again."""
    found, training, waiting = [], [], []
    for run in cells:
        if finished_result(run) is None:
            submitted = (run.config.run_dir / SUBMITTED).exists()
            (training if is_locked(run.config.run_dir) else waiting if submitted else found).append(run)
    if training:
        warn(f"{plural(len(training), 'cell')} of other commands in training; left to them")
    if waiting:
        warn(
            f"{plural(len(waiting), 'cell')} submitted and not begun, such as {waiting[0].config.run_dir}; to submit "
            f"one again whose job is gone, remove {SUBMITTED} there"
        )
    for run in found:
        forget_failure(run)
    return found


class CommandProcess:
    """``executor.command`` of one cell as a process of the pool, which asks as it does of multiprocessing's."""

    def __init__(self, run: Run, keys: ExecutorKeys) -> None:
        with (run.config.run_dir / SUBMITTED).open("w") as log:
            self._process = subprocess.Popen(
                f"trap : TERM\n{cell_command(run, keys)}",  # the shell waits for the cell, which writes a checkpoint
                shell=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a terminal's Ctrl-C reaches it through the pool, once
            )
        self.sentinel = os.pidfd_open(self._process.pid)

    @property
    def exitcode(self) -> int | None:
        return self._process.returncode

    def join(self) -> None:
        """Wait for its end."""
        self._process.wait()
        os.close(self.sentinel)

    def terminate(self) -> None:
        """SIGTERM to it and to what it started here; a job that it submitted continues."""
        os.killpg(self._process.pid, signal.SIGTERM)
