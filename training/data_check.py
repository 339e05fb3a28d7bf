"""The check, by all processes together, that a run has trained on undamaged data, and the record of damage in its
directory."""

import contextlib
from collections.abc import Iterator, Sequence

import torch

from videoscaling.training.batches import BatchLoader
from videoscaling.training.config import Config
from videoscaling.training.distributed.parallel import raise_together
from videoscaling.utils.errors import DataFault
from videoscaling.utils.messages import is_first_process
from videoscaling.utils.results import DATA_FAULT, Failure, write_failure


class DataCheck:
    """Stops all processes if one read damaged clips, before weights trained on them are saved or logged.

    Clips are checked when they are first read. If steps were skipped, the clips of all steps since the last check are
    verified again: a gradient that is not finite is a result of the run only if its data are undamaged.

    Args:
        loader, device: of this process.
        step, skipped: the run's first step, and its skipped steps until then.
    """

    def __init__(self, loader: BatchLoader, device: torch.device, step: int, skipped: int) -> None:
        self._loader, self._device, self._step, self._skipped = loader, device, step, skipped

    def __call__(self, step: int, skipped: int) -> None:
        """Check the steps up to ``step``; every process must call, with the same ``skipped``.

        Raises:
            DataFault: on all processes.
        """
        if skipped > self._skipped:
            self._loader.check(self._step, step)
        self._step, self._skipped = step, skipped
        raise_together(self._loader.fault, self._device)


@contextlib.contextmanager
def data_faults_recorded(configs: Sequence[Config]) -> Iterator[None]:
    """Write the data fault that ends the runs ``configs`` into their existing directories."""
    try:
        yield
    except DataFault as fault:
        for config in configs:
            if config.run_dir.is_dir() and is_first_process():
                write_failure(config.run_dir / DATA_FAULT, Failure(str(fault)))
        raise
