"""Counter-based random numbers: every draw is a function of (seed, stream, index), of nothing else.

No generator carries a history, so resume needs no random state, and a batch draws the same numbers whether one
process or eight make it. The function is SplitMix64 (Steele, Lea and Flood, 2014) with one state per sample; it
runs vectorised on the tensor's device. Normal variates are computed in float64 and rounded to float32, so that the
CPU's and the GPU's differing last bits of log and cos vanish in the rounding.
"""

import math

import torch
from torch import Tensor

from videoscaling.utils.seeds import derive_seed as derive_seed


def _signed(value: int) -> int:
    """The int64 with the bit pattern of the unsigned 64-bit ``value``."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MULTIPLY_1 = _signed(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = _signed(0x94D049BB133111EB)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser. int64 products wrap; masks make the arithmetic right shifts logical."""
    x = (x >> 30).bitwise_and_((1 << 34) - 1).bitwise_xor_(x).mul_(_MULTIPLY_1)
    x = (x >> 27).bitwise_and_((1 << 37) - 1).bitwise_xor_(x).mul_(_MULTIPLY_2)
    return (x >> 31).bitwise_and_((1 << 33) - 1).bitwise_xor_(x)


def bits(seed: int, stream: str, index: Tensor, count: int) -> Tensor:
    """``count`` random 64-bit words for each sample.

    Args:
        seed: the run's seed.
        stream: the purpose of the numbers; different streams are independent.
        index: int64 [n], global sample indices.
        count: words per sample.

    Returns:
        int64 [n, count] on the device of ``index``.
    """
    state = _mix(index * _GOLDEN + derive_seed(seed, stream))
    counter = torch.arange(1, count + 1, device=index.device, dtype=torch.int64)
    return _mix(state[:, None] + counter * _GOLDEN)


def uniform(seed: int, stream: str, index: Tensor, count: int = 1) -> Tensor:
    """Uniform variates in the open interval (0, 1): float64 [n, count], on the device of ``index`` [n]."""
    words = (bits(seed, stream, index, count) >> 12) & (1 << 52) - 1
    return (words.double() + 0.5) * 2.0**-52


def normal(seed: int, stream: str, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal variates (Box-Muller): float32 [n, *shape], on the device of ``index`` [n]."""
    count = math.prod(shape)
    words = bits(seed, stream, index, (count + 1) // 2)
    low_32 = (1 << 32) - 1
    # In place: these arrays dominate a small model's data time, and every new one leaves the CPU's cache.
    angle = (words & low_32).double().add_(0.5).mul_(2 * math.pi * 2.0**-32)
    radius = (words >> 32).bitwise_and_(low_32).double().add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    pairs = torch.empty(*radius.shape, 2, dtype=torch.float32, device=index.device)
    torch.mul(radius, torch.cos(angle), out=pairs[..., 0])
    torch.mul(radius, angle.sin_(), out=pairs[..., 1])
    return pairs.flatten(1)[:, :count].reshape(-1, *shape)
