"""The check that what a run learned since the last one is of data as they were written, by all processes together; and
the record of damage in a run's directory."""

import contextlib
import os
from collections.abc import Iterator, Sequence

import torch

from videoscaling.training.batches import Feed
from videoscaling.training.config import Config
from videoscaling.training.parallel import raise_together
from videoscaling.utils.errors import DataFault
from videoscaling.utils.results import DATA_FAULT, write_record


class DataCheck:
    """Stops all processes where one read damaged clips: before what was learned of them is saved or logged.

    Clips are checked when they are first read. Where steps were skipped, those of all steps since the last look are
    looked at again: a gradient that is not finite is a result of the run only if its data are as they were written.

    Args:
        feed: of this process; device: its own.
        step, skipped: where the run begins, and the steps that were skipped until then.
    """

    def __init__(self, feed: Feed, device: torch.device, step: int, skipped: int) -> None:
        self._feed, self._device, self._step, self._skipped = feed, device, step, skipped

    def __call__(self, step: int, skipped: int) -> None:
        """Look at the steps up to ``step``; every process must call, with the same ``skipped``.

        Raises:
            DataFault: on all processes.
        """
        if skipped > self._skipped:
            self._feed.check(self._step, step)
        self._step, self._skipped = step, skipped
        raise_together(self._feed.fault, self._device)


@contextlib.contextmanager
def data_faults_recorded(configs: Sequence[Config]) -> Iterator[None]:
    """Write a fault of the data, by which the runs ``configs`` end, into their directories where they are there."""
    try:
        yield
    except DataFault as fault:
        for config in configs:
            if config.run_dir.is_dir() and os.environ.get("RANK", "0") == "0":
                write_record(config.run_dir / DATA_FAULT, str(fault))
        raise
