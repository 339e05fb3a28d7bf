"""The check that a run has trained on undamaged data since the last check, by all processes together."""

import torch

from videoscaling.training.batches import BatchLoader
from videoscaling.training.parallel import raise_together


class DataCheck:
    """Stops all processes where one read damaged clips, before weights trained on them are saved or logged.

    Clips are checked when they are first read. Where steps were skipped, those of all steps since the last check are
    verified again: a gradient that is not finite is a result of the run only if its data are as they were written.

    Args:
        loader: of this process; device: its own.
        step, skipped: where the run begins, and the steps that were skipped until then.
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
