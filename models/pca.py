"""Principal component analysis of clips: what a linear autoencoder of as many numbers would reconstruct."""

import torch
from torch import Tensor


def components(samples: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean [d] and the ``count`` leading principal components [count, d] of samples [n, d]."""
    mean = samples.mean(0)
    centred = samples - mean
    if len(samples) > samples.shape[1]:
        return mean, torch.linalg.eigh(centred.T @ centred)[1][:, -count:].T
    leading = torch.linalg.eigh(centred @ centred.T)[1][:, -count:].flip(1)
    # Repeated samples span fewer directions, and the rest of these are rounding errors: orthogonal, they do no harm.
    return mean, torch.linalg.qr(centred.T @ leading)[0].T.flip(0)


def project(samples: Tensor, mean: Tensor, components: Tensor) -> Tensor:
    """samples [n, d] moved to the nearest points of the space that ``components`` span around ``mean``."""
    return (samples - mean) @ components.T @ components + mean


def pca_of_blocks(clips: Tensor, test: Tensor, count: int) -> Tensor:
    """``test`` after PCA of each block of pixels (8x8 by 4 frames, by one for the first) to ``count`` numbers.

    Args:
        clips, test: what the components are computed from and applied to, each [n, 3, 4k + 1, h, w] in [-1, 1] with h
            and w multiples of 8.

    Returns:
        In the shape of ``test``, clamped to [-1, 1].
    """

    def blocks(x: Tensor, start: int, stop: int) -> Tensor:
        """[n * h/8 * w/8, 3 * frames * 8 * 8] of frames start to stop."""
        x = x[:, :, start:stop].unflatten(4, (-1, 8)).unflatten(3, (-1, 8))
        return x.permute(0, 3, 5, 1, 2, 4, 6).flatten(0, 2).flatten(1)

    def unblock(x: Tensor, frames: int) -> Tensor:
        x = x.view(-1, rows // 8, columns // 8, 3, frames, 8, 8)
        return x.permute(0, 3, 4, 1, 5, 2, 6).flatten(5, 6).flatten(3, 4)

    rows, columns = test.shape[3:]
    spans = [(0, 1), *((start, start + 4) for start in range(1, test.shape[2], 4))]
    alone = components(blocks(clips, *spans[0]), count)
    later = components(torch.cat([blocks(clips, *span) for span in spans[1:]]), count)
    parts = [unblock(project(blocks(test, *s), *(later if s[0] else alone)), s[1] - s[0]) for s in spans]
    return torch.cat(parts, dim=2).clamp_(-1, 1)


def pca_of_clips(clips: Tensor, test: Tensor, numbers: int) -> Tensor:
    """``test`` through PCA of whole clips with ``numbers`` components; arguments and result as ``pca_of_blocks``'s, of
    any one shape of clips."""
    return project(test.flatten(1), *components(clips.flatten(1), numbers)).view_as(test).clamp_(-1, 1)
