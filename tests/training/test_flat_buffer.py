"""Merged parameters are the parameters: same values, same gradients, same steps."""

import pytest
import torch

from tests.models.test_dit import build, inputs, trained
from videoscaling.training.checkpoints.pieces import optimizer_tensors
from videoscaling.training.distributed.flat_buffer import ALIGNMENT, merge
from videoscaling.training.optim import build_optimizer, weight_groups
from videoscaling.training.schema import OptimKeys


def test_merged_parameters_keep_values_and_collect_gradients() -> None:
    apart, merged = trained(build()), trained(build())
    flats = [merge(group) for group in weight_groups(merged)]
    assert sum(p.numel() for p in merged.parameters()) <= sum(flat.numel() for flat in flats)
    for model in (apart, merged):
        for _ in range(2):  # the second adds to the first
            model(*inputs()).square().sum().backward()
    for (name, theirs), ours in zip(apart.named_parameters(), merged.parameters()):
        assert torch.equal(ours, theirs), name
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)
        assert ours.storage_offset() % ALIGNMENT == 0
    for flat in flats:
        collected = sum(float(p.grad.sum()) for p in merged.parameters() if shares(p, flat))
        assert float(flat.grad.sum()) == pytest.approx(collected, rel=1e-4, abs=1e-3)
        flat.grad.zero_()
    assert not any(p.grad.any() for p in merged.parameters())


def shares(parameter: torch.Tensor, flat: torch.Tensor) -> bool:
    return parameter.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()


def test_an_optimiser_of_buffers_takes_the_same_steps_and_its_state_fits_both() -> None:
    apart, merged = trained(build()), trained(build())
    keys = OptimKeys(lr=1e-2, weight_decay=0.1)
    plain = build_optimizer(weight_groups(apart), keys, 128)
    flat = build_optimizer(tuple([merge(group)] for group in weight_groups(merged)), keys, 128)
    for number in range(4):
        for model, optimizer in ((apart, plain), (merged, flat)):
            model(*inputs()).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        if number == 1:  # what one of them saves, the other continues from
            saved = optimizer_tensors(merged, flat)
            for name, tensor in optimizer_tensors(apart, plain).items():
                tensor.copy_(saved[name])
    for (name, theirs), ours in zip(apart.named_parameters(), merged.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)
    ours, theirs = optimizer_tensors(merged, flat), optimizer_tensors(apart, plain)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.shape == theirs[name].shape
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-6)
