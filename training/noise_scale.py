"""The gradient noise scale of a run: the batch at which noise and signal of a step's gradient are equal.

Below it a larger batch makes steps proportionally better, above it hardly (McCandlish et al., arXiv 1812.06162). It is
an estimate of the best batch from one run, independent of a sweep's losses.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class NoiseScale:
    """Sums of squared gradient norms at two batch sizes since ``reset``, on the device; nothing waits for it.

    The small batch is the first of a step's micro-batches, on this process alone; the large one is the whole step's.

    Attributes:
        clips: in the small batch; 0 until a step has several micro-batches.
        small, large: float64, sums of |gradient|^2 over steps with a finite gradient.
    """

    def __init__(self, device: torch.device) -> None:
        self.clips = 0
        self.small, self.large = torch.zeros(2, dtype=torch.float64, device=device)
        self._last = torch.zeros((), device=device)

    def add_micro_batch(self, weights: Iterable[nn.Parameter], clips: int, share: float) -> None:
        """Take the gradient in ``weights`` of the first micro-batch of a step.

        Args:
            clips: in it.
            share: by which its mean loss was multiplied before the backward pass.
        """
        self.clips = clips
        norms = torch.stack([weight.grad.norm() for weight in weights if weight.grad is not None])
        self._last = (norms.square().sum() / share**2).detach()

    def add_step(self, norm: Tensor) -> None:
        """Take the ``norm`` of the whole step's gradient, before clipping; a step that is not finite is left out."""
        square = norm.double() ** 2
        finite = square.isfinite() & self._last.isfinite()
        self.small += torch.where(finite, self._last.double(), 0.0)
        self.large += torch.where(finite, square, 0.0)

    def tokens(self, small: float, clips: int, n_ctx: int) -> float | None:
        """The noise scale tr(S) / |G|^2 in tokens; None where steps have one micro-batch, or noise hides the gradient.

        Args:
            small: ``self.small``, of several processes their mean.
            clips: of the whole step's batch.
            n_ctx: tokens per clip.
        """
        few, large = self.clips, self.large.item()
        if not 0 < few < clips:
            return None
        # Appendix A.1: E|g_B|^2 = |G|^2 + tr(S) / B, at two values of B.
        signal = (clips * large - few * small) / (clips - few)
        noise = (small - large) / (1 / few - 1 / clips)
        return noise / signal * n_ctx if signal > 0 and noise > 0 else None

    def reset(self) -> None:
        self.small.zero_()
        self.large.zero_()
