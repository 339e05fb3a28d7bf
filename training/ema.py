"""The power-function EMA of the weights (EDM2, Karras et al., arXiv 2312.02696, section 3.1)."""

import numpy as np
import torch
from torch import Tensor


def power_of_width(width: float) -> float:
    """The exponent gamma whose averaging profile, t^gamma, has the relative width ``width`` (below 0.28).

    Solves width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), EDM2's equation 126.
    """
    # (gamma + 2)^2 (gamma + 3) width^2 - (gamma + 1) = 0, whose largest root is the one that falls with the width.
    s = width**2
    roots = np.roots([s, 7 * s, 16 * s - 1, 12 * s - 1])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9))


def decay(power: float, batch: int, tokens: int) -> float:
    """The share of a power-function average that a step keeps; the rest is the new weights'.

    It depends on the tokens seen and not on the run's length, and is 0 at the first step.

    Args:
        power: gamma, the exponent of the averaging profile.
        batch: tokens of the step.
        tokens: that the run has seen after it.
    """
    return (1 - batch / tokens) ** (power + 1)


@torch.no_grad()
def update_ema(ema: list[Tensor], weights: list[Tensor], towards: float) -> None:
    """Move ``ema`` in place towards ``weights``; by 1, as after the first step, it becomes the weights themselves."""
    torch._foreach_lerp_(ema, weights, towards)
