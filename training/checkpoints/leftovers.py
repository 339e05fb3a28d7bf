"""Removal of a killed process's files, at the next start of its run and under the lock of its directory."""

from contextlib import suppress
from pathlib import Path

from videoscaling.training.checkpoints import checkpoint as ckpt
from videoscaling.training.config import CONFIG, config_of_run
from videoscaling.training.run import Run
from videoscaling.utils.errors import UserError
from videoscaling.utils.files import remove_abandoned, remove_leftovers
from videoscaling.utils.locks import lock

# Written by the run's own processes alone, under its lock.
OWN = ("cell.yaml", CONFIG, "lock-holder", "metrics.jsonl", "result.json")
# Written by a sweep's process, which may be writing one now.
OF_SWEEP = "failure.json"


def clean_run(directory: Path) -> None:
    """Remove half-written and half-removed files and checkpoints; the caller has locked ``directory``."""
    remove_leftovers(directory, *OWN)
    remove_abandoned(directory / OF_SWEEP)
    remove_leftovers(directory / "validation", "*.npy")
    ckpt.recover(directory / "checkpoints")


def clean_finished(run: Run, status: str) -> None:
    """As ``clean_run``, for a run that ended with ``status`` and is not started again.

    If it is done, checkpoints that its keys do not keep are removed too: its process may have been killed after it
    wrote the result. A directory that cannot be written, or that is locked, is left as it is.
    """
    directory = run.config.run_dir
    checkpoints = directory / "checkpoints"
    with suppress(OSError, UserError), lock(directory):
        clean_run(directory)
        # Its own configuration, since this command may have been given another checkpoint.final.
        unfinished = status == "done" and not ckpt.is_final(checkpoints)
        own = config_of_run(directory) if unfinished else None
        if own is not None and own.checkpoint.final == "ema":
            ckpt.keep_final(checkpoints)
