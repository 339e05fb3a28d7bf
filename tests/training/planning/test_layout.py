"""The layout of a planned run: the cheapest that the memory formula says fits."""

import pytest

from videoscaling.training.planning.layout import (
    MAX_MEMORY_SHARE,
    MAX_MICRO_BATCH_TOKENS,
    MIN_GPU_TOKENS,
    choose_layout,
    default_gpus,
    gpus_needed,
    shared_clips,
)
from videoscaling.training.planning.memory_formula import Layout, ModelShape, assumed_clip, even_size, training_memory

LARGE = ModelShape(16, 3072, 48, 16, 4096)  # 2.4e9
CLIP, _ = assumed_clip(1280)


def chosen(
    shape: ModelShape = LARGE, clips: int = 4192, gpus: int = 8, memory: float = 80e9, n_ctx: int = 1280, **more
):
    clip, _ = assumed_clip(n_ctx)
    return choose_layout(
        shape, clip, clips=clips, gpus=gpus, dtype=more.pop("dtype", "bfloat16"), memory=memory, **more
    )


def test_a_small_model_takes_ddp_and_the_largest_useful_micro_batch() -> None:
    small = ModelShape(4, 128, 4, 16, 4096)
    choice = chosen(small, clips=64, gpus=8)
    assert choice.layout == Layout(8, "ddp", 8, False)
    assert choice.fits
    # 1,024 clips of 80 tokens a process: 204 are 16,320 tokens, so that six passes of 171 are the fewest.
    assert chosen(small, clips=8192, n_ctx=80).layout.micro_batch == 171
    assert 204 * 80 <= MAX_MICRO_BATCH_TOKENS < 205 * 80


@pytest.mark.parametrize("gpus", [2, 4, 8, 64])
def test_16x3072_is_trainable_on_80_gb(gpus: int) -> None:
    choice = chosen(clips=shared_clips(4191, gpus), gpus=gpus)
    assert choice.fits
    assert choice.memory["total"] < MAX_MEMORY_SHARE * 80e9
    assert choice.layout.micro_batch * 1280 >= MIN_GPU_TOKENS


def test_the_order_is_ddp_then_fsdp_then_checkpointing() -> None:
    assert chosen(memory=141e9).layout == Layout(8, "ddp", 10, False)
    assert chosen(memory=80e9).layout == Layout(8, "fsdp", 11, False)
    tight = chosen(memory=18e9)
    assert (tight.layout.parallel, tight.layout.activation_checkpointing, tight.fits) == ("fsdp", True, True)


def test_no_layout_is_passed_over_for_a_dearer_one() -> None:
    """Everything before the chosen one is too large for the memory."""
    for memory in (16e9, 24e9, 40e9, 80e9, 94e9):
        choice = chosen(memory=memory)
        if choice.layout.activation_checkpointing:
            cheaper = [Layout(8, kind, 1, False) for kind in ("ddp", "fsdp")]
        else:
            cheaper = [Layout(8, "ddp", 1, False)] * (choice.layout.parallel == "fsdp")
        for layout in cheaper:
            parts = training_memory(LARGE, CLIP, layout, clips=4192, dtype="bfloat16")
            assert parts["total"] > MAX_MEMORY_SHARE * memory


def test_where_nothing_fits_the_smallest_is_named_with_the_gpus_that_are_needed() -> None:
    choice = chosen(gpus=1)
    assert (choice.layout, choice.fits) == (Layout(1, "ddp", 1, True), False)
    need = {"clips": 4192, "dtype": "bfloat16", "memory": 80e9}
    assert gpus_needed(LARGE, CLIP, gpus=1, **need).processes == 2
    assert chosen(clips=4192, gpus=2).fits
    # Held to ddp: 24 bytes a parameter are 60.6 GB, activations 10.2, which leaves 1.2 GB for 8.6 MB a clip.
    assert gpus_needed(LARGE, CLIP, gpus=1, parallel="ddp", activation_checkpointing=False, **need).processes == 32
    # A batch that may not move is shared by its divisors alone: 4,191 is 3 times 11 times 127.
    assert gpus_needed(LARGE, CLIP, gpus=2, batch_moves=False, **need | {"clips": 4191}).processes == 3
    assert gpus_needed(LARGE, CLIP, gpus=3, batch_moves=False, **need | {"clips": 4191}).processes == 11
    assert gpus_needed(LARGE, CLIP, gpus=1, batch_moves=False, **need | {"clips": 4191, "memory": 1e9}) is None
    # A clip's activations alone are more than this.
    assert gpus_needed(LARGE, CLIP, gpus=1, **need | {"memory": 1e9}) is None


def test_what_a_configuration_sets_is_kept() -> None:
    choice = chosen(parallel="ddp", micro_batch=2, activation_checkpointing=True, memory=141e9)
    assert choice.layout == Layout(8, "ddp", 2, True)
    assert chosen(activation_checkpointing=False, memory=20e9).layout.activation_checkpointing is False


@pytest.mark.parametrize(
    ("clips", "gpus", "size"),
    [(111, 3, 10), (37, 1, 10), (8 * 523, 8, 12), (13, 1, 7), (7, 7, 1), (12, 1, 12)],
)
def test_the_micro_batch_need_not_divide_the_share(clips: int, gpus: int, size: int) -> None:
    """37 and 523 are prime. The last micro-batch is filled up, so that all have one size and at most 12 clips."""
    choice = chosen(ModelShape(4, 128, 4, 16, 4096), clips=clips, gpus=gpus)
    assert choice.layout == Layout(gpus, "ddp", size, False)
    assert even_size(clips // gpus, MAX_MICRO_BATCH_TOKENS // 1280) == size


def test_a_micro_batch_of_too_few_tokens_is_the_last_choice() -> None:
    """Thirteen clips of 80 tokens are the fewest that keep a GPU busy. Eight fit without activation checkpointing."""
    shape, (clip, _) = ModelShape(16, 1024, 16, 16, 4096), assumed_clip(80)
    parts = training_memory(shape, clip, Layout(8, "fsdp", 8, False), clips=8 * 523, dtype="bfloat16")
    assert parts["total"] < MAX_MEMORY_SHARE * 10e9
    assert chosen(shape, clips=8 * 523, n_ctx=80, memory=10e9).layout == Layout(8, "fsdp", 105, True)
    kept = chosen(shape, clips=8 * 523, n_ctx=80, memory=10e9, activation_checkpointing=False)
    assert kept.fits
    assert 8 <= kept.layout.micro_batch < 13


def test_the_scores_of_plain_attention_are_counted() -> None:
    free, plain = (chosen(memory=141e9, plain_attention=plain) for plain in (False, True))
    assert plain.memory["attention scores"] > 0 == free.memory["attention scores"]
    assert plain.layout.micro_batch < free.layout.micro_batch


@pytest.mark.parametrize(
    ("clips", "gpus", "shared"),
    [
        (4191, 8, 4192),
        (111, 8, 112),
        (111, 1, 111),
        (12, 8, 16),
        (8, 8, 8),
        (3, 2, 4),
        (1000, 8, 1000),
        (1009, 1, 1009),
    ],
)
def test_a_batch_moves_to_the_nearest_that_is_shared_evenly(clips: int, gpus: int, shared: int) -> None:
    assert shared_clips(clips, gpus) == shared
    assert shared % gpus == 0


@pytest.mark.parametrize(
    ("clips", "gpus"), [(4191, 8), (111, 3), (113, 1), (7, 7), (1, 1), (64, 8), (200, 8), (210, 7)]
)
def test_without_a_number_of_gpus_the_batch_hardly_moves(clips: int, gpus: int) -> None:
    assert default_gpus(clips, 1280) == gpus
    assert abs(shared_clips(clips, gpus) / clips - 1) <= 0.005


@pytest.mark.parametrize(("clips", "gpus"), [(1, 1), (6, 1), (26, 2), (52, 4), (128, 8)])
def test_without_a_number_of_gpus_none_has_too_few_tokens(clips: int, gpus: int) -> None:
    """Clips of 80 tokens: 13 of them are the fewest that keep a GPU busy."""
    assert default_gpus(clips, 80) == gpus
    assert gpus == 1 or clips // gpus * 80 >= MIN_GPU_TOKENS
