"""Attention's kernels against its definition, forward and backward; tolerances are a few roundings of the dtype."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from videoscaling.models.attention import attention

# Relative to the largest number of what is compared: float32 has 24 bits, bfloat16 8, of which sums of 80 lose some.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
KERNELS = {"math": SDPBackend.MATH, "flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}


def inputs(dtype: torch.dtype, queries: int = 80, keys: int = 80) -> tuple[Tensor, ...]:
    """q, k, v and the gradient of what comes of them."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, queries, 3, 32), (2, keys, 3, 32), (2, keys, 3, 32), (2, queries, 3, 32))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def definition(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v in float64."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], float("-inf"))
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def with_gradients(function, values: tuple[Tensor, ...], upstream: Tensor) -> list[Tensor]:
    leaves = [value.clone().requires_grad_() for value in values]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]


def agree(ours: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for name, mine, theirs in zip(("out", "dq", "dk", "dv"), ours, wanted):
        error = (mine.double() - theirs).abs().max() / theirs.abs().max()
        assert error < tolerance, (name, error)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kernel", ["plain", "sdpa", *KERNELS])
def test_kernels_agree_with_the_definition(kernel: str, masked: bool, dtype: torch.dtype) -> None:
    keys = 24 if masked else 80  # as text, and as the clip itself
    *values, upstream = inputs(dtype, keys=keys)
    mask = torch.arange(keys) < torch.tensor([keys, 5])[:, None] if masked else None
    exact = tuple(value.double() for value in values)
    wanted = with_gradients(lambda q, k, v: definition(q, k, v, mask), exact, upstream)
    if kernel in KERNELS:
        try:
            with sdpa_kernel(KERNELS[kernel]):
                ours = with_gradients(lambda q, k, v: attention(q, k, v, mask), tuple(values), upstream)
        except RuntimeError as error:
            assert kernel == "efficient"  # has no kernel for the CPU; the others must run
            pytest.skip(str(error))
    else:
        ours = with_gradients(lambda q, k, v: attention(q, k, v, mask, kernel), tuple(values), upstream)
    agree(ours, wanted, TOLERANCE[dtype])


def test_a_wrong_scale_would_be_seen() -> None:
    *values, upstream = inputs(torch.float32)
    exact = tuple(value.double() for value in values)
    wanted = with_gradients(lambda q, k, v: definition(q, k, v, None), exact, upstream)
    wrong = with_gradients(lambda q, k, v: attention(q * 1.001, k, v), tuple(values), upstream)
    with pytest.raises(AssertionError, match="out"):
        agree(wrong, wanted, TOLERANCE[torch.float32])
