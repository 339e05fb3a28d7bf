"""Stop on a signal: every process leaves the loop after the same step."""

import os
import signal
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)  # the last is what Slurm can send before it preempts


class StopRequest:
    """Catches ``SIGNALS`` while it is entered; ``agreed`` says whether any process caught one, or lost its torchrun.

    Over several processes the answer is one step old: the flags travel by gloo while the next step runs, so that
    the GPU is never waited for.
    """

    def __init__(self, world: int, timeout_minutes: float) -> None:
        self._caught = False
        # A torchrun that is killed, as by a signal it does not know (SIGUSR2), leaves its processes training alone.
        self._torchrun = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self._group = dist.new_group(backend="gloo", timeout=timedelta(minutes=timeout_minutes)) if world > 1 else None
        self._sent: tuple[torch.Tensor, dist.Work] | None = None

    def _catch(self, signum: int, frame: FrameType | None) -> None:
        if self._caught and signum == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C stops at once, without a checkpoint
        self._caught = True

    def __enter__(self) -> "StopRequest":
        self._before = {s: signal.signal(s, self._catch) for s in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """Called once per step by every process; returns the same value on all of them."""
        if self._torchrun not in (None, os.getppid()):
            self._caught = True
        if self._group is None:
            return self._caught
        stop = False
        if self._sent is not None:
            flag, work = self._sent
            work.wait()
            stop = bool(flag.item())
        flag = torch.tensor(float(self._caught))
        self._sent = (flag, dist.all_reduce(flag, group=self._group, async_op=True))
        return stop
