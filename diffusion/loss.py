"""The objective: mean squared error on the process's target, the same function in training and validation."""

import torch
from torch import Tensor, nn

from videoscaling.diffusion.process import Process
from videoscaling.utils.random import uniform


def denoising_loss(
    model: nn.Module, process: Process, x0: Tensor, noise: Tensor, t: Tensor, context: Tensor, mask: Tensor
) -> Tensor:
    """Unweighted MSE of each sample, summed in float32.

    Args:
        model: called as model(x_t, t, context, mask).
        x0, noise: float32 [batch, channels, frames, height, width].
        t: float32 [batch] in [0, 1].
        context: float32 [batch, text_tokens, text_dim]; mask: bool [batch, text_tokens].

    Returns:
        float32 [batch].
    """
    prediction = model(process.add_noise(x0, noise, t), t, context, mask)
    return (prediction.float() - process.target_of(x0, noise, t)).square().flatten(1).mean(1)


def drop_captions(
    context: Tensor, mask: Tensor, null: tuple[Tensor, Tensor], index: Tensor, seed: int, rate: float
) -> tuple[Tensor, Tensor]:
    """Replace each caption, with probability ``rate``, by the empty prompt's (embedding, mask), for guidance.

    Which ones is a function of (seed, global sample index). Shapes as in ``denoising_loss``; ``null`` has no batch.
    """
    dropped = uniform(seed, "caption", index)[:, 0] < rate
    return (
        torch.where(dropped[:, None, None], null[0], context),
        torch.where(dropped[:, None], null[1], mask),
    )
