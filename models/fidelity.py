"""Fidelity of clips: peak signal-to-noise ratio and structural similarity, of pixels in [-1, 1]."""

import math

import torch
from torch import Tensor
from torch.nn.functional import conv2d

WINDOW, SIGMA = 11, 1.5  # of SSIM, in pixels, as in its paper (Wang et al. 2004)


def psnr(squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error between clips in [-1, 1], whose peak is 2."""
    return 10 * math.log10(4 / squared_error) if squared_error else math.inf


def squared_errors(clips: Tensor, others: Tensor) -> Tensor:
    """Mean squared error of each clip, float64 [n]. Clips are [n, 3, F, H, W]."""
    return (clips.double() - others.double()).pow(2).flatten(1).mean(1)


def ssim(clips: Tensor, others: Tensor) -> Tensor:
    """Structural similarity of each clip, float64 [n]: its mean over frames, colours and places of the window.

    Windows lie wholly inside the picture, so a border of 5 pixels is seen but has no place of its own.

    Args:
        clips, others: [n, 3, F, H, W] in [-1, 1], H and W at least 11.
    """
    offsets = torch.arange(WINDOW, dtype=torch.float64, device=clips.device) - WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * SIGMA**2))
    weights /= weights.sum()

    def smoothed(pictures: Tensor) -> Tensor:
        return conv2d(conv2d(pictures, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))

    def one(a: Tensor, b: Tensor) -> Tensor:
        """Of a single clip, [3, F, H, W]."""
        a, b = (x.double().flatten(0, 1)[:, None] for x in (a, b))
        mean_a, mean_b = smoothed(a), smoothed(b)
        variance_a, variance_b = smoothed(a * a) - mean_a**2, smoothed(b * b) - mean_b**2
        covariance = smoothed(a * b) - mean_a * mean_b
        c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # the paper's, for a range of 2
        likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
        return (likeness / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))).mean()

    return torch.stack([one(a, b) for a, b in zip(clips, others)])
