"""Training timesteps: a function of (seed, global sample index), independent of the batch's layout."""

import torch
from torch import Tensor

from videoscaling.utils.errors import UserError, nearest
from videoscaling.utils.random import normal, uniform

DISTRIBUTIONS = ("logit_normal", "uniform")


def draw_timesteps(
    index: Tensor, seed: int, distribution: str = "logit_normal", mean: float = 0.0, std: float = 1.0
) -> Tensor:
    """Training times for the global sample indices ``index`` int64 [n].

    "logit_normal" is sigmoid(mean + std z) (Stable Diffusion 3, arXiv 2403.03206); "uniform" ignores mean and std.

    Returns:
        float32 [n] between 0 and 1. Draws lie inside, but float32 rounds the last of them to 1: one of 2^25 uniform
        ones, none of logit_normal's by default, and 5 % of its at a std of 10.

    Raises:
        UserError: an unknown distribution.
    """
    if distribution == "uniform":
        return uniform(seed, "t", index)[:, 0].float()
    if distribution == "logit_normal":
        return torch.sigmoid(mean + std * normal(seed, "t", index, (1,))[:, 0])
    hint = nearest(distribution, list(DISTRIBUTIONS))
    raise UserError(f"diffusion.timesteps: unknown {distribution!r}; one of {', '.join(DISTRIBUTIONS)}{hint}")
