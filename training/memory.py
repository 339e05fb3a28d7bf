"""What fits into a GPU's memory: the micro-batch, found by trying."""

from collections.abc import Callable

import torch

from utils.errors import UserError


def fit_micro_batch(
    attempt: Callable[[int], None], size: int, agree: Callable[[bool], bool] = bool, speak: bool = True
) -> int:
    """The largest of ``size``, ``size`` / 2, ... clips whose forward and backward pass fit.

    Args:
        attempt: one pass with that many clips at a time, without the other processes.
        agree: whether a flag is set on any process.
        speak: whether this process says what it changed.

    Raises:
        UserError: a single clip does not fit.
    """
    while True:
        try:
            attempt(size)
            failed = False
        except torch.OutOfMemoryError:
            failed = True
        # Outside the handler, which would keep the failed pass's activations alive.
        if not agree(failed):
            return size
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if size == 1:
            raise UserError(
                "out of GPU memory with one clip at a time; try train.activation_checkpointing=true, then "
                "train.parallel=fsdp on more GPUs, then a smaller model.size"
            )
        size = -(-size // 2)
        if speak:
            print(f"out of GPU memory: going on with train.micro_batch={size}; the batch stays what it is", flush=True)
