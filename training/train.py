"""One run from its configuration to its result: prepared, locked, resumed, trained, and left in order."""

import os
import sys

import torch.distributed as dist

from videoscaling.data.mixture import Data, open_data
from videoscaling.training.checkpoints.leftovers import clean_finished
from videoscaling.training.checks import check_directory
from videoscaling.training.config import Config, cache_folders
from videoscaling.training.data_check import data_faults_recorded
from videoscaling.training.distributed.parallel import from_first, lost_process
from videoscaling.training.result import earlier_milestones, finished_result
from videoscaling.training.run import Run, resolve
from videoscaling.training.trainer import Trainer
from videoscaling.utils.devices import has_bfloat16
from videoscaling.utils.errors import PREEMPTED
from videoscaling.utils.locks import lock_run_dir
from videoscaling.utils.messages import is_first_process


def train(config: Config, wait: bool = False) -> int:
    """Train ``config``'s run to its end or to a signal, resuming it if possible. A finished run is left as it is.

    Args:
        wait: if another process is working in the run's directory, wait for it instead of refusing.

    Returns:
        The exit status: 0 done, or diverged, which is a result; ``PREEMPTED`` stopped on a signal.

    Raises:
        UserError: the configuration, the cache or the run directory is at fault.
    """
    with data_faults_recorded([config]):
        return _train(config, wait)


def _train(config: Config, wait: bool) -> int:
    run, cache = prepare(config)
    finished = finished_result(run)
    if finished is not None:
        if is_first_process():
            clean_finished(run, finished["status"])
            print(f"{config.run_dir}: already {finished['status']} at {finished['tokens']:,} tokens", flush=True)
        return 0
    rank, lost = os.environ.get("RANK", "0"), False
    try:
        trainer = Trainer(run, cache)  # everything that can be refused is refused before the directory is touched
        with lock_run_dir(config.run_dir, wait):
            if from_first(lambda: finished_result(run)) is not None:  # by the process that held the lock
                return 0
            check_directory(run.config)
            trainer.restore()
            trainer.claim_directory()
            status = trainer.fit()
    except OSError as error:
        lost = error.__cause__ is not None and lost_process(error.__cause__)
        raise
    except RuntimeError as error:
        lost = lost_process(error)
        if not lost:
            raise
        print(
            f"rank {rank}: another process hangs or died (waited at most "
            f"train.timeout_minutes={config.train.timeout_minutes:g}): {' '.join(str(error).split())}",
            file=sys.stderr,
            flush=True,
        )
        return 1
    finally:
        # A group that is left open aborts the process at its end, and one that waits for a lost process never closes.
        if dist.is_initialized() and not lost:
            dist.destroy_process_group()
    return PREEMPTED if status == "preempted" else 0


def prepare(config: Config) -> tuple[Run, Data]:
    """The resolved run of ``config``, and its data; UserError if they do not fit together."""
    cache = open_data(cache_folders(config), config.data.weights)
    return resolve(config, cache.meta, earlier_milestones(config), has_bfloat16), cache
