"""The largest micro-batches and validation passes that fit in GPU memory, found by trial."""

import sys
from collections.abc import Callable, Sequence

import torch

from videoscaling.training.batches import Samples
from videoscaling.training.distributed.parallel import all_reduce
from videoscaling.training.planning.memory_formula import even_size
from videoscaling.training.step import TrainStep
from videoscaling.utils.errors import OwnError, UserError

# By the key of the size that is tried: its unit, and what to try where a single one does not fit. Validation keeps no
# activations, so that checkpointing them does not help it.
ADVICE = {
    "train.micro_batch": (
        "clip",
        "train.activation_checkpointing=true, then train.parallel=fsdp on more GPUs, then train.context_parallel=2 to "
        "divide the clip, then a smaller model.size",
    ),
    "validation.batch": (
        "validation sample",
        "train.parallel=fsdp on more GPUs, then train.context_parallel=2 to divide the clip, then a "
        "smaller model.size",
    ),
}


def find_micro_batch(
    train_step: TrainStep,
    samples: Samples,
    verbose: bool,
    collective: bool = False,
    others: Sequence[Samples] = (),
) -> None:
    """Set ``train_step.micro_batch`` to the largest number of this process's ``samples`` that fits in its memory.

    The optimiser's state is there already, so that what fits now fits later. The attempts leave no gradients behind.

    Args:
        verbose: whether this process reports its change.
        collective: whether a pass is made by several processes together.
        others: a step's samples of each smaller shape of clips, which must fit too.

    Raises:
        UserError: a single clip does not fit, or the micro-batch of a collective pass does not.
    """

    def attempt(size: int) -> None:
        train_step.micro_batch = size
        for each in (samples, *others):
            # A shard's gradients that are not shared would enter the first step.
            train_step.backward(each, share=collective)

    size = even_size(samples.t.shape[-1], train_step.micro_batch)
    largest_that_fits(attempt, size, on_any_process(samples.t.device), collective, verbose)
    train_step.zero_grad()
    train_step.by_t.zero_()


def on_any_process(device: torch.device) -> Callable[[bool], bool]:
    """A function that returns whether a flag is set on any process; all processes must call it."""

    def on_any(flag: bool) -> bool:
        return bool(all_reduce(torch.full((), float(flag), device=device), "sum").item())

    return on_any


def largest_that_fits(
    attempt: Callable[[int], None],
    size: int,
    on_any: Callable[[bool], bool] = bool,
    sharded: bool = False,
    verbose: bool = True,
    key: str = "train.micro_batch",
    rows: int = 1,
) -> int:
    """The largest of ``size``, ``size`` / 2, ... samples whose pass fits.

    Args:
        attempt: one pass with that many samples at a time.
        on_any: whether a flag is set on any process.
        sharded: a pass is made by all processes together, so one that failed has left the others: no second attempt.
        verbose: whether this process reports its change.
        key: the configuration key of the size, for messages; one of ``ADVICE``. It changes no result.
        rows: sets of weights in a pass, where the key counts the samples of all of them.

    Raises:
        UserError: a single sample does not fit, or a sharded model's pass does not.
    """
    while True:
        try:
            attempt(size)
            failed = False
        except torch.OutOfMemoryError:
            failed = True
        # Outside the handler, which would keep the failed pass's activations alive.
        if not (failed if sharded else on_any(failed)):
            return size
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()  # drop the code compiled for this size; after eight sizes it would compile no more
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if size == 1:
            unit, advice = ADVICE[key]
            stacked = f" of each of {rows} stacked runs" if rows > 1 else ""
            fewer = "a smaller executor.stack, then " if rows > 1 else ""
            raise UserError(f"out of GPU memory with one {unit} at a time{stacked}; try {fewer}{advice}")
        size = -(-size // 2)
        if sharded:
            raise OwnError(f"out of GPU memory; try {key}={size * rows}, which changes no result")
        if verbose:
            print(f"out of GPU memory: continuing with {key}={size * rows}, which changes no result", flush=True)
