"""A training step as a CUDA graph: one launch instead of hundreds, which each take longer than a small kernel."""

from collections.abc import Callable

import torch
from torch import Tensor

from videoscaling.training.batches import Samples

# Steps taken before one is recorded: by then all is compiled, and libraries have the memory they want.
EAGER = 3


class StepGraph:
    """Takes the first steps by ``step(samples, settings)``, then replays a recording of one of them.

    ``step`` is the same at every call; kept here, a graph and what it runs on would keep each other in memory. It may
    neither wait for the device nor read anything but its arguments, which have the same shapes every time, and tensors
    that stay where they are; its results are what it leaves in those.
    """

    def __init__(self) -> None:
        self._taken = 0
        self._inputs: list[Tensor] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        # Recorded on the stream of the first steps: autograd's nodes for the weights may live on from them.
        self._stream = torch.cuda.Stream()

    def __call__(self, step: Callable[[Samples, Tensor], None], samples: Samples, settings: Tensor) -> None:
        """A step on ``samples`` on the GPU, and on ``settings``, which may still be on the CPU."""
        given = (*samples, settings)
        if not self._inputs:
            self._inputs = [torch.empty_like(value, device=samples.t.device) for value in given]
        for place, value in zip(self._inputs, given):
            place.copy_(value, non_blocking=True)
        here = Samples(*self._inputs[:-1]), self._inputs[-1]
        if self._graph is None and self._taken == EAGER:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=self._stream):
                step(*here)
        if self._graph is not None:
            self._graph.replay()
            return
        self._taken += 1
        outside = torch.cuda.current_stream()
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            step(*here)
        outside.wait_stream(self._stream)
