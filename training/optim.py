"""AdamW with its time constants in tokens, and the learning rate as a function of tokens seen."""

import math

import torch
from torch import nn

from training.config import OptimKeys


def build_optimizer(model: nn.Module, keys: OptimKeys, batch_tokens: int) -> torch.optim.AdamW:
    """AdamW, fused; weight decay on matrices only, not on biases, norms and modulation tables.

    beta2 = 2^(-B / half-life), so that the second moment looks back over the same tokens at every batch size. The
    moments are there from the start, as the first step would make them: what fits before it fits after it.
    """
    named = list(model.named_parameters())
    groups = [
        {"params": [p for name, p in named if name.endswith(".weight")], "weight_decay": keys.weight_decay},
        {"params": [p for name, p in named if not name.endswith(".weight")], "weight_decay": 0.0},
    ]
    beta2 = 2.0 ** (-batch_tokens / keys.beta2_half_life)
    optimizer = torch.optim.AdamW(groups, lr=keys.lr, betas=(keys.beta1, beta2), eps=keys.eps, fused=True)
    for _, parameter in named:
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }
    return optimizer


def learning_rate(keys: OptimKeys, tokens: float, end: int) -> float:
    """The rate of a step whose middle lies ``tokens`` tokens into a run that ends at ``end`` tokens.

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
