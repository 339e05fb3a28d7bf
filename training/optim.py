"""AdamW with its time constants in tokens, fused or in one pass with the EMA, and the learning rate by tokens seen."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from videoscaling.training.schema import OptimKeys


def weight_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The model's matrices, which weight decay is for; and its biases, norms and tables, which it spares."""
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, parameter in model.named_parameters():
        groups[0 if name.endswith(".weight") else 1].append(parameter)
    return groups


def build_optimizer(
    groups: tuple[list[nn.Parameter], list[nn.Parameter]], keys: OptimKeys, batch_tokens: int
) -> torch.optim.AdamW:
    """AdamW, fused, for ``weight_groups``.

    The moments are there from the start, as the first step would make them: what fits before it fits after it.
    """
    matrices, others = groups
    decayed = [{"params": matrices, "weight_decay": keys.weight_decay}, {"params": others, "weight_decay": 0.0}]
    betas = keys.beta1, keys.beta2(batch_tokens)
    optimizer = torch.optim.AdamW(decayed, lr=keys.lr, betas=betas, eps=keys.eps, fused=True)
    for parameter in [*matrices, *others]:
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }
    return optimizer


def learning_rate(keys: OptimKeys, tokens: float, end: int) -> float:
    """The rate of a step whose middle is ``tokens`` tokens into a run that ends at ``end`` tokens.

    The middle makes the warm-up's mean rate the same at every batch size. Warm-up counts tokens; only the decays of
    cosine and wsd are fractions of the run.
    """
    warmup = keys.warmup_tokens or 0
    if tokens < warmup:
        return keys.lr * tokens / warmup
    if keys.schedule == "cosine":
        return keys.lr * 0.5 * (1 + math.cos(math.pi * min((tokens - warmup) / max(end - warmup, 1), 1.0)))
    if keys.schedule == "wsd":
        return keys.lr * max(min(1.0, (end - tokens) / (keys.decay_fraction * end)), 0.0)
    return keys.lr


class Buffers(NamedTuple):
    """One kind of parameters: float32 [numbers], or [rows, numbers] of several runs; AdamW's steps, [] or [rows]."""

    weights: Tensor
    gradients: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    ema: Tensor
    steps: Tensor


def gradient_norm(kinds: list[Buffers]) -> Tensor:
    """The norm of the gradients of all kinds, float32 [] or [rows]."""
    norms = torch.stack([torch.linalg.vector_norm(buffers.gradients, dim=-1) for buffers in kinds])
    return torch.linalg.vector_norm(norms, dim=0)


def update_factors(norm: Tensor, steps: Tensor, settings: Tensor) -> Tensor:
    """What ``update_buffers`` multiplies by, float32 [10, 1] or [10, rows, 1].

    It is a function of its own, since the compiler would take these powers in float64 again for every number.

    Args:
        norm: ``gradient_norm``; where it is not finite, nothing moves but the EMA.
        steps: that AdamW has taken, [] or [rows].
        settings: ``training.step.TrainStep.settings``, float64 [8] or [8, rows].
    """
    rate, beta1, beta2, epsilon, decay, clip, active, towards = settings
    moves = norm.isfinite() & active.bool()
    count = steps.double() + moves
    scale = (clip / (norm.double() + 1e-6)).clamp(max=1.0)
    step_size, root = rate / (1 - beta1**count), (1 - beta2**count).sqrt()
    factors = (scale, 1 - beta1, beta2, 1 - beta2, step_size, root, epsilon, 1 - rate * decay, active * towards, moves)
    return torch.stack([factor.float() for factor in factors]).unsqueeze(-1)


def update_buffers(kinds: list[Buffers], factors: Tensor) -> None:
    """AdamW and the EMA in place. Compiled it reads each buffer once, and writes it once but for the gradients.

    Args:
        kinds: the last of them is spared by weight decay.
        factors: ``update_factors``.
    """
    scale, new1, old2, new2, step_size, root, epsilon, keep, towards, moves = factors
    moved = moves.bool()
    for number, (weights, gradients, exp_avg, exp_avg_sq, ema, steps) in enumerate(kinds, 1):
        gradient = gradients * scale
        first = torch.lerp(exp_avg, gradient, new1)
        second = exp_avg_sq * old2 + gradient * gradient * new2
        kept = weights if number == len(kinds) else weights * keep
        after = kept - step_size * first / (second.sqrt() / root + epsilon)
        after = torch.where(moved, after, weights)
        exp_avg.copy_(torch.where(moved, first, exp_avg))
        exp_avg_sq.copy_(torch.where(moved, second, exp_avg_sq))
        ema.copy_(torch.lerp(ema, after, towards))
        weights.copy_(after)
        steps += moves.view(steps.shape)
