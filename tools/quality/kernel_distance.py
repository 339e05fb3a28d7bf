"""Kernel distance between two sets of clips: the squared maximum mean discrepancy (MMD) of their features.

A Fréchet distance needs more clips than features: below that its bias exceeds what it measures. This estimator is
unbiased from two clips on (Gretton et al. 2012, JMLR 13, equation 3), so that 40 clips give an honest figure. It may
be negative where the distance is small. The kernel between vectors is that of the kernel inception distance
(arXiv 1801.01401), (a.b / d + 1)^3. A clip has several vectors, one for each frame, say, and the kernel between clips
is its mean over their pairs. So clips stay the independent units, and a clip's frames are never compared with each
other.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from videoscaling.utils.errors import UserError, plural
from videoscaling.utils.finiteness import check_finite

DEGREE = 3
MIN_CLIPS = 10  # of a set: with fewer, a resample may hold a single clip, which has no pairs
DRAWS, COVERAGE = 1000, 0.95  # of the bootstrap


@dataclass(frozen=True)
class Distance:
    """A squared MMD with its bootstrap interval over clips."""

    value: float
    low: float
    high: float


def kernel_distance(x: Tensor, y: Tensor, seed: int = 0) -> Distance:
    """The squared MMD between two sets of clips.

    Both sets are resampled for the interval. A clip that was drawn twice is not compared with itself: such pairs would
    raise every resample's distance by what the diagonal exceeds the other pairs.

    Args:
        x, y: features [clips, vectors, width]; the number of clips and of vectors may differ.
        seed: of the bootstrap.

    Raises:
        UserError: widths differ, or a set has fewer than ``MIN_CLIPS``.
        NotFinite: a feature is NaN or infinite.
    """
    if x.shape[-1] != y.shape[-1]:
        raise UserError(f"features of {x.shape[-1]} and of {y.shape[-1]} numbers; both sets need the same network")
    for features in (x, y):
        if len(features) < MIN_CLIPS:
            raise UserError(
                f"{plural(len(features), 'clip')}; a distance with an interval needs {MIN_CLIPS} on each side"
            )
        check_finite(features, "features of clips", "look for the cause in the clips or in the network")
    kernels = mean_kernel(x, x), mean_kernel(y, y), mean_kernel(x, y)
    generator = torch.Generator().manual_seed(seed)
    drawn = squared_mmd(*kernels, _resamples(len(x), generator), _resamples(len(y), generator))
    tail = (1 - COVERAGE) / 2
    low, high = torch.quantile(drawn, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    value = squared_mmd(*kernels, *(torch.ones(1, len(features), dtype=torch.float64) for features in (x, y)))
    return Distance(value.item(), low, high)


def relative_change(before: Tensor, after: Tensor) -> float:
    """How far the features of the same clips moved: the median over clips of |after - before| / |before|.

    Args:
        before, after: features [clips, vectors, width].
    """
    moved, size = (values.double().flatten(1).norm(dim=1) for values in (after - before, before))
    return (moved / size).median().item()


def mean_kernel(x: Tensor, y: Tensor) -> Tensor:
    """The kernel between each clip of ``x`` [m, k, d] and each of ``y`` [n, l, d]: float64 [m, n]."""
    n, per_clip, width = y.shape
    others = y.double().flatten(0, 1).T / width
    return torch.stack([((clip.double() @ others) + 1).pow(DEGREE).mean(0).view(n, per_clip).mean(1) for clip in x])


def squared_mmd(within_x: Tensor, within_y: Tensor, between: Tensor, weights_x: Tensor, weights_y: Tensor) -> Tensor:
    """The unbiased squared MMD of weighted clips, over pairs of different clips: float64 [draws].

    Args:
        within_x, within_y, between: kernels [m, m], [n, n] and [m, n].
        weights_x, weights_y: how often each clip counts, [draws, m] and [draws, n].
    """

    def within(kernel: Tensor, weights: Tensor) -> Tensor:
        pairs = ((weights @ kernel) * weights).sum(1) - weights.square() @ kernel.diagonal()
        return pairs / (weights.sum(1).square() - weights.square().sum(1))

    cross = ((weights_x @ between) * weights_y).sum(1) / (weights_x.sum(1) * weights_y.sum(1))
    return within(within_x, weights_x) + within(within_y, weights_y) - 2 * cross


def _resamples(clips: int, generator: torch.Generator) -> Tensor:
    """How often each clip is in each resample with replacement: float64 [DRAWS, clips]."""
    drawn = torch.randint(clips, (DRAWS, clips), generator=generator)
    return torch.zeros(DRAWS, clips, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())
