"""Checkpoints written beside training: a step waits for a copy in host memory, and a thread writes the files.

By account, at 1.1e9 parameters a checkpoint has 18 GB: 18 s of writing at 1 GB/s, and 0.7 s of copying at 25 GB/s.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from videoscaling.training.checkpoints import checkpoint
from videoscaling.training.checkpoints.pieces import (
    Named,
    optimizer_pieces,
    optimizer_tensors,
    part_of_process,
    pieces_of,
)
from videoscaling.training.config import Config
from videoscaling.training.distributed.parallel import gather_full, lost_process
from videoscaling.utils.messages import warn
from videoscaling.utils.os_errors import describe

THREAD = "checkpoint"


class CheckpointWriter:
    """Copies tensors to host memory, and writes them in a thread; at most one save at a time.

    A process that is killed meanwhile leaves what one leaves that is killed while it writes: a checkpoint is a folder
    that is renamed when it is whole.
    """

    _one_at_a_time = threading.Lock()  # of stacked runs, too: their files would be synced all at once

    def __init__(self, parallel: str = "ddp", timeout_minutes: float = 30.0) -> None:
        """``parallel`` and ``timeout_minutes`` are keys of ``train``; every process must call."""
        self.part, self._group = part_of_process(parallel), None
        if self.part is not None:  # of its own, for the thread
            self._group = dist.new_group(backend="gloo", timeout=timedelta(minutes=timeout_minutes))
        self._pinned: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def copy(self, tensors: Named, keep: bool) -> dict[str, dict[str, Tensor]]:
        """Full tensors in host memory, by kind and name. A GPU's are pinned, and the next copy overwrites them.

        Every process must call it, and gets empty dicts without ``keep``. It waits for the save before.
        """
        self.wait()
        copies: dict[str, dict[str, Tensor]] = {kind: {} for kind in tensors}
        for kind, named in tensors.items():
            for name, tensor in named.items():
                full = gather_full(tensor.detach())
                if keep:
                    copies[kind][name] = self._to_host(f"{kind}/{name}", full)
        if self._pinned:
            torch.cuda.synchronize()
        return copies

    def copy_run(
        self, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer, *, main: bool, whole_ema: bool
    ) -> Named:
        """What this process writes of a run, by the names of its files. Every process must call it.

        Args:
            main: whether this is the first process, which writes what is whole.
            whole_ema: write the EMA whole, as at milestones, whose weights are for readers of safetensors.
        """
        part, weights = self.part, {"ema": ema.state_dict(), "model": model.state_dict()}
        if part is None:
            return self.copy(weights | {"optimizer": optimizer_tensors(model, optimizer)}, main)
        whole = {"ema": weights.pop("ema")} if whole_ema else {}
        pieces = {part.file(kind): pieces_of(named, part) for kind, named in weights.items()}
        moments = optimizer_pieces(model, optimizer, part)
        pieces[part.file("optimizer")] = {name: piece.numbers for name, piece in moments.items()}
        copies = self.copy(pieces, part.writes) | self.copy(whole, main)
        return {name: named for name, named in copies.items() if named}

    def _to_host(self, key: str, tensor: Tensor) -> Tensor:
        if not tensor.is_cuda:
            return tensor.clone()  # views of one buffer would be saved as one
        if key not in self._pinned:
            self._pinned[key] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return self._pinned[key].copy_(tensor, non_blocking=True)

    def write(self, directory: Path, step: int, tensors: Named, state: dict[str, Any], config: Config) -> None:
        """Write a checkpoint, as ``checkpoint.save_checkpoint``; with parts every process must call."""
        if self._group is None:
            checkpoint.save_checkpoint(directory, step, tensors, state, config)
        else:
            checkpoint.save_pieces(directory, step, tensors, state, config, group=self._group)

    def start(self, write: Callable[[], None]) -> None:
        """Call ``write`` in the thread. Its error is raised by ``check`` or ``wait``."""
        self.wait()
        # A daemon: a second Ctrl-C ends the process at once.
        self._thread = threading.Thread(target=self._run, args=(write,), name=THREAD, daemon=True)
        self._thread.start()

    def _run(self, write: Callable[[], None]) -> None:
        try:
            with self._one_at_a_time:
                write()
        except BaseException as error:  # raised in the thread that trains
            self._error = error

    def check(self) -> None:
        """Raise the error of a save that failed."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def wait(self) -> None:
        """Wait for the save that is under way; raise its error."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()


@contextmanager
def finished_after_errors(writers: Iterable[CheckpointWriter]) -> Iterator[None]:
    """On an error wait for the saves that are under way, but not on a second Ctrl-C; their own errors are warnings.

    Where the error is that another process ended, the error of a save is its cause, and is raised instead.
    """
    try:
        yield
    except Exception as error:
        for writer in writers:
            try:
                writer.wait()
            except OSError as own:
                if lost_process(error):
                    raise own from error
                warn(f"the last checkpoint was not written: {describe(own)}")
            except RuntimeError as own:  # the last of a process that was lost
                warn(f"the last checkpoint was not written: {own}")
        raise
