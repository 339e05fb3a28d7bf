"""The frozen validation loss: one number per set of weights.

A fixed list of clips; for each, K times stratified over (0, 1); noise a function of (seed, clip, k). Uniform in t,
unweighted, captions on. Nothing depends on world size, batch size, order or earlier training.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from videoscaling.utils.random import normal, uniform

T_BINS = 10

# Reads latents, context and mask of the validation clips with the given indices.
ReadClips = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class ValidationResult:
    """The frozen validation of one set of weights.

    Attributes:
        losses: float32 [clips, K], each sample's loss.
        loss: their mean.
        standard_error: of ``loss``, clustered by clip.
        bins: the mean loss in ``T_BINS`` equal bins of t; NaN where a bin is empty.
        by_shape: of clips of several shapes each one's result, by its name; ``losses`` is empty then.
    """

    losses: np.ndarray
    loss: float
    standard_error: float
    bins: list[float]
    by_shape: Mapping[str, "ValidationResult"] = field(default_factory=dict)


def validation_times(clips: int, per_clip: int, seed: int) -> Tensor:
    """Stratified times, float32 [clips, K] in (0, 1).

    Each clip has one time in each of K equal intervals; across the set, each interval is in turn cut into as many
    strata as there are clips, dealt out at random, with one uniform draw in each.
    """
    clip = torch.arange(clips)
    strata = [torch.argsort(uniform(seed, f"validation strata {k}", clip)[:, 0]) for k in range(per_clip)]
    offset = (torch.stack(strata, dim=1) + uniform(seed, "validation t", clip, per_clip)) / clips
    return ((torch.arange(per_clip) + offset) / per_clip).float().clamp(1e-6, 1 - 1e-6)


@torch.no_grad()
def validate_rows(
    score: Callable[..., Tensor],
    rows: int,
    read: ReadClips,
    clips: int,
    per_clip: int,
    seed: int,
    batch: int,
    device: torch.device,
    gather: Callable[[Tensor], Tensor] | None = None,
    rank: int = 0,
    world: int = 1,
    scored_clips: int | None = None,
) -> list[ValidationResult]:
    """Score ``rows`` sets of weights on the frozen set.

    Args:
        score: each sample's loss of each set, float32 [rows, batch] (or [batch] of a single one), from x0, noise, t,
            context and mask as ``denoising_loss`` takes them.
        read: reads (latents, context, mask) of validation clips by index, on the CPU.
        clips, per_clip, seed: the set's size, K, and the validation seed common to all runs.
        batch: samples per forward pass; it changes no loss beyond float32's rounding. The last pass is filled up with
            repeats, whose losses are dropped: torch.compile would compile anew for another size.
        gather: sums float64 [rows, scored clips * K] over the processes; with rank and world, shares the work. Every
            process makes the same number of forward passes, since a sharded model needs all of them for each.
        scored_clips: how many of the set's clips to score, its first ones; None: all. Their times and noise are those
            that they have in the whole set.

    Returns:
        A result for each set of weights, the same on every process.
    """
    scored = scored_clips or clips
    times = validation_times(clips, per_clip, seed)[:scored]
    total = scored * per_clip
    losses = torch.zeros(rows, total, dtype=torch.float64, device=device)
    mine = torch.arange(total)[rank::world]  # none where there are more processes than samples
    for number in range(forward_passes(total, batch, world)):
        part = mine[number * batch : (number + 1) * batch]
        here = torch.cat((part, part.new_zeros(batch - len(part))))  # filled up with the first sample
        clip = here // per_clip
        x0, context, mask = (value.to(device) for value in read(clip))
        # Every (clip, k) has its own index, whatever K is.
        index = (clip << 20 | here % per_clip).to(device)
        noise = normal(seed, "validation noise", index, tuple(x0.shape[1:]))
        loss = score(x0, noise, times.flatten()[here].to(device), context, mask)
        losses[:, part.to(device)] = loss[..., : len(part)].double()
    if gather is not None:
        losses = gather(losses)
    return [summarise(row.reshape(scored, per_clip), times) for row in losses.cpu()]


def forward_passes(samples: int, batch: int, world: int = 1) -> int:
    """The forward passes that each of ``world`` processes makes for ``samples`` in all, ``batch`` at a time."""
    return math.ceil(math.ceil(samples / world) / batch)


def summarise(losses: Tensor, times: Tensor) -> ValidationResult:
    """Mean, standard error clustered by clip, and bins of t, from losses and times [clips, K]."""
    by_clip = losses.mean(1)
    which = (times * T_BINS).long().clamp(max=T_BINS - 1)
    bins = [losses[which == b].mean().item() for b in range(T_BINS)]
    error = (by_clip.std() / len(by_clip) ** 0.5).item()
    return ValidationResult(losses.float().numpy(), by_clip.mean().item(), error, bins)


def pool(by_shape: Mapping[str, ValidationResult], tokens: Mapping[str, int]) -> ValidationResult:
    """The result over clips of several shapes: the mean of their losses, weighted by the ``tokens`` of their sets."""
    share = {name: count / sum(tokens.values()) for name, count in tokens.items()}
    loss = sum(share[name] * one.loss for name, one in by_shape.items())
    error = math.hypot(*(share[name] * one.standard_error for name, one in by_shape.items()))
    bins = [sum(share[name] * one.bins[number] for name, one in by_shape.items()) for number in range(T_BINS)]
    return ValidationResult(np.empty((0, 0), np.float32), loss, error, bins, by_shape)
