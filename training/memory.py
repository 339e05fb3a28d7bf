"""Micro-batches and validation passes that fit in GPU memory, found by trial: the fastest, and the largest."""

import sys
import time
from collections.abc import Callable, Sequence

import torch

from videoscaling.training.batches import Samples
from videoscaling.training.distributed.parallel import all_reduce, from_first
from videoscaling.training.planning.layout import MAX_MICRO_BATCH_TOKENS
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

# A smaller micro-batch is taken only if it saves more than this share of the time: less is noise, by which the next
# start would choose another.
LEAST_GAIN, TIMED_PASSES = 0.03, 2


def find_micro_batch(
    train_step: TrainStep,
    samples: Samples,
    *,
    n_ctx: int,
    verbose: bool,
    collective: bool = False,
    others: Sequence[Samples] = (),
) -> None:
    """Set ``train_step.micro_batch`` to how many of this process's ``samples`` fit in its memory.

    A number that is set already is halved until it fits. Otherwise the first process times ``candidates`` too, and all
    take the fastest; but a collective pass is not timed, since in shards a smaller one may need more memory. The
    optimiser's state is there already, so that what fits now fits later. The attempts leave no gradients behind.

    Args:
        n_ctx: tokens of a sample.
        verbose: whether this process reports a micro-batch that did not fit.
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

    count, given = samples.t.shape[-1], train_step.micro_batch
    size = even_size(count, given)
    largest = largest_that_fits(attempt, size, on_any_process(samples.t.device), collective, verbose)
    sizes = candidates(count, largest, n_ctx)
    if given is None and not collective and len(sizes) > 1:
        train_step.micro_batch = from_first(lambda: fastest(count, sizes, pass_timer(train_step, samples)))
    train_step.zero_grad()
    train_step.by_t.zero_()


def candidates(count: int, largest: int, n_ctx: int) -> list[int]:
    """``largest``, and at most two smaller micro-batches to compare it with, from large to small.

    They divide ``count`` samples evenly, so that none is repeated, and have at least a quarter of ``largest`` and
    ``MAX_MICRO_BATCH_TOKENS``, which fill every kernel: below, a pass waits for weights and launches.
    """
    least = max(largest // 4, -(-MAX_MICRO_BATCH_TOKENS // n_ctx))
    return [largest, *[size for size in range(largest - 1, least - 1, -1) if count % size == 0][:2]]


def fastest(count: int, sizes: list[int], seconds: Callable[[int], float]) -> int:
    """The micro-batch in ``sizes``, the largest first, whose passes over ``count`` samples take the least time.

    ``seconds`` times one pass. The largest stays unless another saves ``LEAST_GAIN``.
    """
    times = {size: seconds(size) * -(-count // size) for size in sizes}
    best, largest = min(sizes, key=times.__getitem__), sizes[0]
    chosen = best if times[best] < (1 - LEAST_GAIN) * times[largest] else largest
    found = ", ".join(f"{taken:.3g} s at {size}" for size, taken in times.items())
    print(f"train.micro_batch={chosen}, the fastest that fits: a step's passes take {found}", flush=True)
    return chosen


def pass_timer(train_step: TrainStep, samples: Samples) -> Callable[[int], float]:
    """A function that returns the seconds of a pass, forward and backward, with so many of ``samples``."""

    def seconds(size: int) -> float:
        piece = Samples(*(value.narrow(samples.t.dim() - 1, 0, size) for value in samples))
        train_step.micro_batch = size

        def one_pass() -> None:
            train_step.backward(piece, share=False).sum().item()  # waits for the device

        one_pass()  # compiles
        begun = time.perf_counter()
        for _ in range(TIMED_PASSES):
            one_pass()
        return (time.perf_counter() - begun) / TIMED_PASSES

    return seconds


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
