"""Attention: one layout for all kernels; the kernel is chosen once, by probing."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy

from videoscaling.utils.errors import UserError, first_line, nearest

BACKENDS = ("auto", "sdpa", "xformers", "plain")


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, backend: str = "sdpa") -> Tensor:
    """Softmax attention.

    Args:
        q: [batch, queries, heads, head_dim].
        k, v: [batch, keys, heads, head_dim].
        mask: bool [batch, keys], true where a key may be attended to; at least one per row. None: all.
        backend: "sdpa", "xformers" or "plain", as ``choose_backend`` resolved it.

    Returns:
        [batch, queries, heads, head_dim], in the dtype of ``q``.
    """
    if backend == "xformers":
        return _xformers(q, k, v, mask)
    if mask is not None:
        mask = mask[:, None, None, :]
    if backend == "plain":
        return _plain(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask).transpose(1, 2)
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    return out.transpose(1, 2)


def keep_attention(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Policy of selective activation checkpointing: kernels' outputs are kept, everything else is computed again.

    Attention is half of a block's FLOPs where a clip has 7 times as many tokens as the width has units (C_token).
    """
    kernel = str(operation).startswith(("aten._scaled_dot_product_", "xformers"))
    return CheckpointPolicy.MUST_SAVE if kernel else CheckpointPolicy.PREFER_RECOMPUTE


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The definition: two matrix products and a softmax (float32 inside), with every score in memory."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ v


def _xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    from xformers.ops import memory_efficient_attention

    bias = None
    if mask is not None:
        batch, keys = mask.shape
        # The kernels want the bias spelled out per head and query, on rows padded to a multiple of 8.
        padded = q.new_zeros(batch, q.shape[2], q.shape[1], keys + -keys % 8)
        padded[..., :keys].masked_fill_(~mask[:, None, None, :], float("-inf"))
        bias = padded[..., :keys]
    return memory_efficient_attention(q, k, v, attn_bias=bias)


@functools.lru_cache
def choose_backend(name: str, device_type: str, dtype: torch.dtype) -> str:
    """The backend that will run: "sdpa", "xformers" or "plain".

    "auto" is SDPA, whose flash and cuDNN kernels are the fastest in reach; but in bfloat16 on the CPU, where the
    backward pass of its kernel is slower than the plain definition, 1.6 times at 1280 tokens and 4 at 80. "xformers"
    is probed with a real operation, since the package imports on builds for which it has no kernels.

    Raises:
        UserError: ``name`` is unknown, or is "xformers" and no kernel of it runs here.
    """
    if name not in BACKENDS:
        raise UserError(f"model.attention: unknown backend {name!r}{nearest(name, list(BACKENDS))}")
    if name == "auto":
        return "plain" if device_type == "cpu" and dtype == torch.bfloat16 else "sdpa"
    if name != "xformers":
        return name
    q = torch.zeros(1, 8, 1, 32, device=device_type, dtype=dtype, requires_grad=True)
    try:
        _xformers(q, q, q, torch.ones(1, 8, dtype=torch.bool, device=device_type)).sum().backward()
    except (ImportError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"model.attention=xformers: no kernel runs on {device_type} in {dtype} ({first_line(error)}); use sdpa"
        ) from None
    return "xformers"
