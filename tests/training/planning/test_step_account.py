"""The account of a step: its bytes against those that PyTorch's operations read and write, and its layouts."""

import dataclasses
import logging

import pytest
import torch
from torch._inductor import metrics
from torch._inductor.utils import fresh_cache
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.training.test_step import trainer_of
from videoscaling.models.sizes import exact_flops
from videoscaling.training.planning.memory_formula import ClipShape, Layout, ModelShape, parameter_groups
from videoscaling.training.planning.step_account import ONE_PASS, OPTIMIZER, step_account

SHAPE, CLIP = ModelShape(4, 128, 2, 16, 64), ClipShape(80, (16, 5, 4, 4), 24, 64)
ALONE = Layout(1, "ddp", 8, False)


class Moved(TorchDispatchMode):
    """Sums the bytes of whole buffers that operations read, and that they write in place or return."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.bytes = least, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        schema = operation._schema.arguments
        for argument, value in zip(schema, args):
            each = [t for t in tree_leaves(value) if isinstance(t, torch.Tensor) and t.numel() >= self.least]
            written = argument.alias_info is not None and argument.alias_info.is_write
            overwritten = operation._schema.name in ("aten::zero_", "aten::fill_")
            # Fused AdamW lists the gradients among what it may write, and writes them under a loss scale alone.
            gradients = argument.name == "grads"
            times = 1 if gradients or overwritten else 2 if written else 1
            self.bytes += times * sum(t.numel() * t.element_size() for t in each)
        return out


def test_the_end_of_a_step_moves_the_bytes_of_the_account(cache, tmp_path) -> None:
    trainer = trainer_of(cache, tmp_path, "model.size=2x64")
    step = trainer.train_step
    step.run(trainer.loader.batch(0), 0)
    loss = step.backward(trainer.loader.batch(1))
    size = sum(weight.numel() for weight in step.weights)
    with Moved(min(weight.numel() for weight in step.weights)) as moved:
        step.apply_gradients(loss, 128)
    assert moved.bytes == OPTIMIZER * size


@pytest.mark.slow
def test_the_compiled_end_of_a_step_is_one_pass_over_memory(cache, tmp_path) -> None:
    """As the compiler counts what its kernels move; not the norm's pass, nor setting gradients to zero."""
    step = trainer_of(cache, tmp_path, "model.size=2x64", "train.compile=true").train_step
    size = sum(weight.numel() for weight in step.weights)
    metrics.reset()
    log = logging.getLogger("torch._inductor.compile_fx.__inductor_metrics")
    log.setLevel(logging.INFO)  # by which it counts at all
    torch.compiler.reset()
    try:
        with fresh_cache():  # what is found in a cache, another test's, is not compiled and not counted
            step.apply_gradients(torch.zeros(()), 0)
    finally:
        log.setLevel(logging.NOTSET)
    rest = metrics.num_bytes_accessed - (ONE_PASS - 4 * (1 + 1)) * size
    assert 0 < rest < 1000  # of factors and counts


def test_layouts_of_whole_buffers_take_one_pass_where_they_are_compiled() -> None:
    count = sum(parameter_groups(SHAPE).values())

    def compiled(*layout: object) -> int:
        account = step_account(SHAPE, CLIP, Layout(*layout), clips=8, dtype="bfloat16", compiled=True)
        return account.optimizer * (1 if layout[:2] == (4, "ddp") else layout[0]) // count

    assert [compiled(1, "fsdp", 1, False), compiled(4, "ddp", 1, False), compiled(4, "zero1", 1, False)] == [44] * 3
    assert compiled(4, "fsdp", 1, False) == OPTIMIZER == 56


def test_flops_are_the_exact_ones_and_recomputing_adds_a_forward_pass() -> None:
    found = step_account(SHAPE, CLIP, ALONE, clips=8, dtype="float32")
    exact = 8 * exact_flops(4, 128, 80, 16, 24, 64)
    assert found.products + found.attention == exact
    whole, selective = (
        step_account(SHAPE, CLIP, ALONE._replace(activation_checkpointing=how), clips=8, dtype="float32")
        for how in (True, "selective")
    )
    assert whole.products + whole.attention == pytest.approx(4 / 3 * exact)
    assert (selective.products, selective.attention) == (whole.products, found.attention)
    assert whole.activations == 1.5 * found.activations
    assert sum(found.seconds(1e9, 1e9).values()) == pytest.approx(
        (exact + found.optimizer + found.gradients + found.activations) / 1e9
    )
    assert found.gathers == 0


def test_layouts_divide_the_optimiser_and_gather_weights() -> None:
    count = sum(parameter_groups(SHAPE).values())
    of = {
        parallel: step_account(SHAPE, CLIP, Layout(4, parallel, 1, False), clips=8, dtype="bfloat16")
        for parallel in ("ddp", "zero1", "fsdp")
    }
    assert [of[name].optimizer * 4 // (OPTIMIZER * count) for name in of] == [4, 1, 1]
    matrices = parameter_groups(SHAPE)["blocks' matrices"]
    assert [of[name].gathers for name in of][:2] == [8 * count, 8 * count - 2 * matrices]
    assert of["fsdp"].gathers == 6 * count  # once for two micro-batches
    one = step_account(SHAPE, CLIP, Layout(4, "fsdp", 2, False), clips=8, dtype="bfloat16")
    assert one.gathers == 8 * count
    assert of["ddp"].gradients == 2 * one.gradients
    assert dataclasses.astuple(one)[:2] == pytest.approx(dataclasses.astuple(of["fsdp"])[:2])


def test_processes_that_divide_clips_share_their_work_and_exchange_activations() -> None:
    """Each has half of the tokens of twice as many clips, and gets half of those that it attends to from the other."""
    apart, divided = (
        step_account(SHAPE, CLIP, Layout(4, "ddp", 8, False, context=context), clips=8, dtype="bfloat16")
        for context in (1, 2)
    )
    assert (divided.products, divided.attention) == (apart.products, apart.attention)
    forward = 4 * 2 * 4 * 128 * (4 * 80 // 2) // 2  # queries, keys, values and outputs of 2 bytes in 4 blocks
    assert divided.gathers - apart.gathers == 2 * forward
    assert step_account(SHAPE, CLIP, Layout(4, "ddp", 8, False, context=2), clips=2, dtype="bfloat16").products > 0
