"""AdamW with its time constants in tokens, and the learning rate as a function of tokens seen."""

import math

import torch
from torch import nn

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
