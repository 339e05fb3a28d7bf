"""Layout of a planned run on GPUs: how many, train.parallel, micro-batch and activation checkpointing, by memory.

All by the memory formula, without torch and without a GPU; no rule here has been timed on several GPUs.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, TypedDict

from videoscaling.training.planning.memory_formula import (
    GPUS_PER_NODE,
    ClipShape,
    Layout,
    ModelShape,
    even_size,
    training_memory,
)
from videoscaling.utils.errors import UserError

# The share of a GPU's memory that a layout may fill. The formula leaves out the rest: temporaries of single
# operations, the allocator's gaps, CUDA's context.
MAX_MEMORY_SHARE = 0.9
# Tokens of a micro-batch. With fewer than about 1,200 an H100 spends longer on moving a weight than on its products:
# to cast and read it takes 8 bytes of 3.35e12 a second, and a token's product 2 FLOPs of 989e12. fsdp's two gathers of
# 4 bytes at 450e9 a second, against 6 FLOPs a token at 40 % of the peak, give the same. More than 16,384 fill every
# kernel already, and memory is all that they take.
MIN_GPU_TOKENS, MAX_MICRO_BATCH_TOKENS = 1024, 16_384
DEFAULT_GPUS = GPUS_PER_NODE
# How far the batch may move, relative, to be shared evenly. By the paper's curvature the loss at half a per cent from
# the best batch is 5e-8 higher, relative.
BATCH_TOLERANCE = 0.005
MOST_GPUS, MOST_MEMORY_GB = 65_536, 1e6


class LayoutKeys(TypedDict, total=False):
    """Arguments of ``choose_layout`` that a configuration decides."""

    parallel: str
    micro_batch: int | None
    activation_checkpointing: bool | str
    context: int
    plain_attention: bool


class Choice(NamedTuple):
    """A layout, the bytes of each of its processes by part, and whether they fit."""

    layout: Layout
    memory: dict[str, int]
    fits: bool


def check_machine(gpus: int | None, memory_gb: float | None) -> None:
    """UserError for a number of GPUs, or a memory, that no machine has; None is not checked."""
    if gpus is not None and not 1 <= gpus <= MOST_GPUS:
        raise UserError(f"--gpus {gpus}: must be a whole number from 1 to {MOST_GPUS}")
    if memory_gb is not None and not 0 < memory_gb <= MOST_MEMORY_GB:
        raise UserError(f"--gpu-memory {memory_gb:g}: GB of one GPU, a positive number up to {MOST_MEMORY_GB:g}")


def shared_clips(clips: int, gpus: int) -> int:
    """The batch in clips nearest to ``clips`` that ``gpus`` share evenly: a multiple of ``gpus``, at least one."""
    return max(round(clips / gpus), 1) * gpus


def default_gpus(clips: int, n_ctx: int) -> int:
    """The most GPUs of one node that share ``clips`` evenly, with ``MIN_GPU_TOKENS`` each or more; else one GPU.

    The batch may move by ``BATCH_TOLERANCE``.
    """
    counts = range(min(DEFAULT_GPUS, clips * n_ctx // MIN_GPU_TOKENS), 1, -1)
    return next((count for count in counts if abs(shared_clips(clips, count) / clips - 1) <= BATCH_TOLERANCE), 1)


def choose_layout(
    shape: ModelShape,
    clip: ClipShape,
    *,
    clips: int,
    gpus: int,
    dtype: str,
    memory: float,
    parallel: str | None = None,
    micro_batch: int | None = None,
    activation_checkpointing: bool | str | None = None,
    context: int = 1,
    plain_attention: bool = False,
) -> Choice:
    """The cheapest layout that fits, or the smallest of all where none does.

    In this order: ddp, fsdp (each GPU holds a shard and gathers the blocks), then both with activation checkpointing
    (a third more FLOPs). Within each, the largest micro-batch of at most ``MAX_MICRO_BATCH_TOKENS`` tokens. It need
    not divide the share of a process (``training.step.micro_batches``). A micro-batch of fewer than
    ``MIN_GPU_TOKENS`` tokens is the last choice.

    Args:
        clips: the global batch in clips, a multiple of ``gpus`` / ``context``.
        memory: bytes of one GPU; a layout may use ``MAX_MEMORY_SHARE`` of them.
        parallel, micro_batch, activation_checkpointing: as a configuration sets them already; None where it is free.
        context: GPUs among which a clip's tokens are divided.
        plain_attention: attention without a kernel, which keeps every score.
    """
    share, tokens = clips * context // gpus, clip.n_ctx // context
    sharing = [parallel] if parallel else ["ddp", "fsdp"] if gpus > 1 else ["ddp"]
    recomputing = [False, True] if activation_checkpointing is None else [activation_checkpointing]
    sizes = [even_size(share, micro_batch)] if micro_batch else _micro_batches(share, tokens)
    found: list[Choice] = []
    for recompute in recomputing:
        for kind in sharing:
            for size in sizes:
                layout = Layout(gpus, kind, size, recompute, context=context)
                parts = training_memory(shape, clip, layout, clips=clips, dtype=dtype, plain_attention=plain_attention)
                found.append(Choice(layout, parts, parts["total"] <= MAX_MEMORY_SHARE * memory))
    fitting = [choice for choice in found if choice.fits]
    if not fitting:
        return min(found, key=lambda choice: choice.memory["total"])
    busy = [c for c in fitting if c.layout.micro_batch == share or c.layout.micro_batch * tokens >= MIN_GPU_TOKENS]
    return (busy or fitting)[0]


def add_layout(
    planned: Any,
    shape: ModelShape,
    clip: ClipShape,
    *,
    gpus: int,
    memory_gb: float,
    assumed: list[str],
    fixed: LayoutKeys,
    unwritten: LayoutKeys,
    batch_moves: bool = True,
) -> None:
    """Give a plan its ``layout``, what it assumes, and warnings.

    The keys are ``gpus``, ``parallel``, ``micro_batch``, ``activation_checkpointing``, ``memory_gb`` (of each GPU),
    ``fits_memory`` and ``hours``.

    Args:
        planned: a ``scaling.planning.plan.Plan``, its batch a multiple of ``gpus`` clips.
        memory_gb: of one GPU, in 1e9 bytes.
        assumed: of the clips, as text.
        fixed: arguments of ``choose_layout`` that the base decides.
        unwritten: layout keys of a run whose YAML holds no layout; empty where the plan writes it.
        batch_moves: whether another number of GPUs may move the batch; false for a batch that the user gave.
    """
    clips, memory, dtype = planned.B // planned.n_ctx, 1e9 * memory_gb, planned.assumptions["dtype"]
    choice = choose_layout(shape, clip, clips=clips, gpus=gpus, dtype=dtype, memory=memory, **unwritten | fixed)
    layout, used, warnings = choice.layout, planned.assumptions, planned.warnings
    planned.layout = {
        "gpus": gpus,
        "parallel": layout.parallel,
        "micro_batch": layout.micro_batch,
        "activation_checkpointing": layout.activation_checkpointing,
        "memory_gb": round(choice.memory["total"] / 1e9, 3),
        "fits_memory": choice.fits,
        "hours": planned.gpu_hours / gpus,
    }
    used |= {"gpu_memory_gb": memory_gb, "memory": assumed}
    if layout.activation_checkpointing:
        warnings.append(
            "activation checkpointing computes each forward pass twice: the run takes up to a third more GPU-hours, "
            f"unless the GPUs reach {4 / 3 * used['mfu']:.0%} of their peak"
        )
    if layout.micro_batch * planned.n_ctx < MIN_GPU_TOKENS:
        warnings.append(
            f"{layout.micro_batch * planned.n_ctx} tokens at a time keep the GPU waiting: expect more "
            f"GPU-hours than at MFU {used['mfu']:g}, which takes some {MIN_GPU_TOKENS} or more"
        )
    if not choice.fits:
        least = gpus - 1 if unwritten else gpus  # --gpus has the layout written: the same number may be enough
        needed = {"clips": clips, "gpus": least, "batch_moves": batch_moves, "dtype": dtype, "memory": memory}
        more = gpus_needed(shape, clip, **needed, **fixed)
        instead = f"--gpus {more.processes} would" if more else "no number of such GPUs would"
        warnings.append(
            f"does not fit: {planned.layout['memory_gb']:.4g} GB on each of {gpus} x {used['gpu']}, of whose "
            f"{memory_gb:g} GB a plan fills {MAX_MEMORY_SHARE:.0%}; {instead}"
        )


def gpus_needed(
    shape: ModelShape,
    clip: ClipShape,
    *,
    clips: int,
    gpus: int,
    context: int = 1,
    batch_moves: bool = True,
    **keys: Any,
) -> Layout | None:
    """The layout with the fewest GPUs above ``gpus`` that fits; None where no number of them does.

    Args:
        batch_moves: whether the batch of ``clips`` may become the nearest that the GPUs share evenly. A batch that
            may not is shared by its divisors alone.
        keys: the other arguments of ``choose_layout``.
    """
    most = clips * context
    last = min(most, MOST_GPUS)
    counts = _doublings(gpus, last) if batch_moves else (n for n in range(gpus + 1, last + 1) if most % n == 0)
    for count in (count for count in counts if count % context == 0):
        batch = shared_clips(clips, count // context)
        choice = choose_layout(shape, clip, clips=batch, gpus=count, context=context, **keys)
        if choice.fits:
            return choice.layout
    return None


def _doublings(first: int, last: int) -> Iterable[int]:
    """All counts up to 8, then multiples of 8 doubled: nodes are whole."""
    counts = [*range(1, DEFAULT_GPUS + 1), *(DEFAULT_GPUS * 2**power for power in range(1, 14))]
    return (count for count in counts if first < count <= last)


def _micro_batches(share: int, n_ctx: int) -> list[int]:
    """Micro-batches of up to ``MAX_MICRO_BATCH_TOKENS`` tokens that ``share`` is trained in, from large to small."""
    most = min(max(MAX_MICRO_BATCH_TOKENS // n_ctx, 1), share)
    return sorted({even_size(share, size) for size in range(1, most + 1)}, reverse=True)
