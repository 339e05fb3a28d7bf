"""Patches, 3-D rotary positions and timestep features."""

import functools
import math

import torch
from einops import rearrange
from torch import Tensor

Grid = tuple[int, int, int]  # numbers of patches, or a patch's sides, along frames, rows and columns


def patchify(x: Tensor, patch: Grid) -> Tensor:
    """Latents [batch, channels, frames, height, width] to tokens [batch, n_ctx, channels * patch volume]."""
    pt, ph, pw = patch
    return rearrange(x, "b c (f pt) (h ph) (w pw) -> b (f h w) (c pt ph pw)", pt=pt, ph=ph, pw=pw)


def unpatchify(tokens: Tensor, patch: Grid, grid: Grid) -> Tensor:
    """The inverse of ``patchify``; ``grid`` is the number of patches along frames, height and width."""
    (pt, ph, pw), (f, h, w) = patch, grid
    x = rearrange(tokens, "b (f h w) (c pt ph pw) -> b c (f pt) (h ph) (w pw)", f=f, h=h, w=w, pt=pt, ph=ph, pw=pw)
    return x.contiguous()  # a view would be FSDP2's to complain about


def rotary_table(grid: Grid, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines of the rotary angles: float32 [n_ctx, 1, 1, head_dim] each, as ``rotate`` wants them.

    The rotated pairs are shared among the axes: a third each to height and width, the rest to frames.

    A compiler must take the result as a constant, or it traces through the cache and computes the angles anew at
    every call. ``training.model`` marks the function so; a decorator here would load torch._dynamo, 0.6 s, everywhere.
    """
    return _rotary_table(grid, head_dim, device)


@functools.lru_cache
def _rotary_table(grid: Grid, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    space = 2 * (head_dim // 6)
    angles = []
    for axis, size in enumerate((head_dim - 2 * space, space, space)):
        frequency = 10_000 ** (-torch.arange(0, size, 2, device=device, dtype=torch.float32) / size)
        position = torch.arange(grid[axis], device=device, dtype=torch.float32)
        shape = [1, 1, 1, size // 2]
        shape[axis] = grid[axis]
        angles.append((position[:, None] * frequency).view(shape).expand(*grid, size // 2))
    angle = torch.cat(angles, dim=-1).reshape(-1, 1, 1, head_dim // 2)
    return angle.cos().repeat(1, 1, 1, 2), torch.cat((-angle.sin(), angle.sin()), dim=-1)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (i, i + head_dim / 2) of x [batch, n_ctx, any, heads, head_dim] by the table's angles."""
    cos, sin = table
    swapped = x.float().roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * cos, swapped, sin).to(x.dtype)


def timestep_features(t: Tensor, size: int) -> Tensor:
    """Sinusoids of t [batch] in [0, 1], with periods from 2 pi / 1000 to nearly 20 pi: float32 [batch, size]."""
    frequency = torch.exp(-math.log(10_000) * torch.arange(size // 2, device=t.device).float() / (size // 2))
    angle = 1000 * t.float()[:, None] * frequency
    return torch.cat((angle.cos(), angle.sin()), dim=-1)
