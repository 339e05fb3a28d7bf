"""Known corruptions of real clips: the scale on which a distance between generated and real clips is read."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

NOISE = 10 / 127.5  # deviation of the noise: 10 of 255 levels
SHRUNK = 4  # blurred clips have lost the detail of so many pixels along a side


def corrupted(clips: Tensor, seed: int) -> dict[str, Tensor]:
    """Clips float32 [n, 3, F, H, W] in [-1, 1], damaged in four ways.

    shuffled: the frames of each clip in random order. repeated: the middle frame in place of all. noise: of 10 levels,
    independent between pixels and frames. blur: each frame shrunk by ``SHRUNK`` and enlarged again.
    """
    generator = torch.Generator().manual_seed(seed)
    frames = clips.shape[2]
    order = torch.stack([torch.randperm(frames, generator=generator) for _ in clips])
    noise = NOISE * torch.randn(clips.shape, generator=generator)
    sides = clips.shape[-2:]
    small = interpolate(clips.flatten(1, 2), [max(1, side // SHRUNK) for side in sides], mode="area")
    blurred = interpolate(small, sides, mode="bilinear").view_as(clips)
    return {
        "shuffled": torch.stack([clip[:, places] for clip, places in zip(clips, order)]),
        "repeated": clips[:, :, frames // 2, None].expand_as(clips).contiguous(),
        "noise": (clips + noise).clamp(-1, 1),
        "blur": blurred,
    }
