"""The gradient noise scale of a run: the batch at which noise and signal of a step's gradient are equal.

Below it a larger batch makes steps proportionally better, above it hardly (McCandlish et al., arXiv 1812.06162). It is
an estimate of the best batch from one run, independent of a sweep's losses.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from videoscaling.training.distributed.parallel import all_reduce, is_parallel

# Steps count by tokens^3, their mean being at 80 % of the tokens so far. Gradients are largest at first, and the first
# steps would weigh most in a plain mean of squares.
POWER = 3


class NoiseScale:
    """Averages over a run's steps of its gradients' signal and noise, on the device; nothing waits for them.

    Both are estimated from squared gradient norms at two batch sizes. The small batch is the first of a step's
    micro-batches, on this process alone; the large one is the whole step's.

    Attributes:
        averages: float64 [2], of |G|^2 and of tr(S), the variance of one clip's gradient; 0 while steps have one
            micro-batch. Estimates of another size of micro-batch may be added.
    """

    def __init__(self, device: torch.device) -> None:
        self.averages = torch.zeros(2, dtype=torch.float64, device=device)
        self._world = dist.get_world_size() if is_parallel() else 1
        self._small: tuple[Tensor, int, int] | None = None

    def add_micro_batch(self, weights: Iterable[nn.Parameter], clips: int, count: int) -> None:
        """Take the gradient in ``weights`` of the first micro-batch of a step.

        Args:
            clips: in it.
            count: clips of this process in the step; each one's loss was divided by it. Of one micro-batch alone
                nothing can be estimated.
        """
        self._small = None
        if clips == count:
            return
        norms = torch.stack([weight.grad.norm() for weight in weights if weight.grad is not None])
        square = norms.square().sum().double().detach() * (count / clips) ** 2
        self._small = square, clips, count * self._world

    def add_step(self, norm: Tensor, decay: float) -> None:
        """Take the ``norm`` of the whole step's gradient, before clipping; a step that is not finite is left out. One
        without an estimate, of a run that continues in another layout, ends the averages: they would be of an earlier
        time alone.

        ``decay``: what is kept of the averages.
        """
        if self._small is None:
            self.averages.zero_()
            return
        (small, few, clips), self._small = self._small, None
        large = norm.double() ** 2
        # Appendix A.1: E|g_B|^2 = |G|^2 + tr(S) / B, at two values of B.
        signal = (clips * large - few * small) / (clips - few)
        noise = (small - large) / (1 / few - 1 / clips)
        averages = torch.lerp(torch.stack([signal, noise]), self.averages, decay)
        self.averages.copy_(torch.where(averages.isfinite().all(), averages, self.averages))

    def tokens(self, n_ctx: int) -> float | None:
        """The noise scale tr(S) / |G|^2 in tokens, of clips of ``n_ctx``; every process must call.

        None where steps have one micro-batch, or noise hides the gradient.
        """
        signal, noise = all_reduce(self.averages, "mean").tolist()
        return noise / signal * n_ctx if signal > 0 and noise > 0 else None
