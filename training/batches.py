"""Training batches: latents, noise, timesteps and captions as functions of (seed, position in the stream)."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from videoscaling.data.latents import LatentCache
from videoscaling.data.mixture import Data, Mixture, ShapeMixture
from videoscaling.data.shards import Stored, as_float
from videoscaling.diffusion.loss import drop_captions
from videoscaling.diffusion.timesteps import draw_timesteps
from videoscaling.training.planning.memory_formula import steps_together
from videoscaling.training.run import Run
from videoscaling.utils.errors import DataFault
from videoscaling.utils.random import normal

TEXT_STEP = 64  # tokens: captions are padded to a multiple, for kernels' tiles and few shapes
PREFETCH_GROUPS = 2  # groups of steps whose clips are read from disk while earlier ones are trained on


class Samples(NamedTuple):
    """Training samples, [n, ...] each: the arguments of ``diffusion.loss.denoising_loss`` after model and process."""

    x0: Tensor
    noise: Tensor
    t: Tensor
    context: Tensor
    mask: Tensor


class BatchLoader:
    """Loads one process's share of each step's batch.

    Args:
        run: the resolved run; its batch is divisible by ``world``.
        rank, world: which share: position p of the stream belongs to step p // clips, and within it the processes
            take equal runs of positions, so that the batch is the same however many there are.
        device: where samples are computed and kept.

    Attributes:
        fault: the fault of the clips of a step that was asked for, or None. The samples of such a step are zeros:
            processes that share a batch continue to where all of them can stop together (``DataCheck``).
        seconds: that all calls of ``batch`` have taken.
        trims_text: whether captions are padded to the longest of their steps, in steps of ``TEXT_STEP`` tokens, and
            not to the cache's longest. A compiled model would be compiled anew for each length.
    """

    def __init__(self, run: Run, cache: LatentCache | Mixture, rank: int, world: int, device: torch.device) -> None:
        self._run, self._cache, self._device = run, cache, device
        self._local = run.clips // world
        self._first = rank * self._local
        self._steps = steps_together(cache.latent_shape, self._local)
        self._last = (run.steps - 1) // self._steps
        self._null = tuple(value.to(device) for value in cache.null_context)
        self._null_tokens = int(cache.null_context[1].sum())
        self.fault: DataFault | None = None
        self.seconds = 0.0
        self.trims_text = not run.config.train.compile
        self._reader = ThreadPoolExecutor(1)
        self._reads: dict[int, Future[tuple[Stored, DataFault | None]]] = {}
        self._group = -1
        self._samples: Samples

    @property
    def parts(self) -> "list[BatchLoader]":
        """The loader of each shape, of which ``ShapeLoader`` has several: itself."""
        return [self]

    def batch(self, step: int) -> Samples:
        """The samples of step ``step``, counted from 0."""
        begun = time.monotonic()
        group, place = divmod(step, self._steps)
        if group != self._group:
            self._samples = self._load(group)
            self._group = group
        self.seconds += time.monotonic() - begun
        here = slice(place * self._local, (place + 1) * self._local)
        return Samples(*(value[here] for value in self._samples))

    def check(self, first: int, last: int) -> None:
        """Verify the clips of the steps from ``first`` to before ``last`` again, and set ``fault``."""
        for group in range(first // self._steps, -(-last // self._steps)):
            positions = self._positions(group, "cpu").view(self._steps, -1)
            here = positions[max(first - group * self._steps, 0) : last - group * self._steps].flatten()
            try:
                self._cache.check(self._cache.order(here, self._run.data_seed))
            except DataFault as fault:
                self.fault = self.fault or fault

    def _read(self, group: int) -> tuple[Stored, DataFault | None]:
        """The clips of a group of steps, as they are stored; zeros and the fault of a damaged one."""
        positions = self._positions(group, "cpu")
        try:
            index = self._cache.order(positions, self._run.data_seed)
            return self._cache.stored(index, pinned=self._device.type == "cuda"), None
        except DataFault as error:
            fault = error
        count, text = len(positions), (self._cache.text_tokens, self._cache.text_dim)
        shapes = (self._cache.latent_shape, torch.float16), (text, torch.float16), ((), torch.int32)
        return Stored(*(torch.zeros(count, *shape, dtype=dtype) for shape, dtype in shapes)), fault

    def _positions(self, group: int, device: torch.device | str) -> Tensor:
        """The positions in the stream of this process's samples of a group of steps."""
        steps = torch.arange(group * self._steps, (group + 1) * self._steps, device=device)
        within = torch.arange(self._first, self._first + self._local, device=device)
        return (steps[:, None] * self._run.clips + within).flatten()

    def _load(self, group: int) -> Samples:
        """The samples of a group of steps; meanwhile a thread reads the clips of the next ``PREFETCH_GROUPS`` groups.

        Nothing here waits for a GPU: clips go there as float16 from pinned memory, which PyTorch's allocator
        keeps until they have arrived.
        """
        config = self._run.config
        seed, diffusion = self._run.data_seed, config.diffusion
        wanted = range(group, max(group, min(group + PREFETCH_GROUPS, self._last)) + 1)
        self._reads = {n: self._reads.get(n) or self._reader.submit(self._read, n) for n in wanted}
        read, fault = self._reads[group].result()
        self.fault = self.fault or fault
        here = Stored(*(value.to(self._device, non_blocking=True) for value in read))
        text_tokens = self._cache.text_tokens
        if self.trims_text:
            longest = max(int(read.text_length.max()), self._null_tokens)
            text_tokens = min(-(-longest // TEXT_STEP) * TEXT_STEP, text_tokens)
        x0, context, mask = as_float(here._replace(text=here.text[:, :text_tokens]))
        on_device = self._positions(group, self._device)
        t = draw_timesteps(on_device, seed, diffusion.timesteps, diffusion.logit_mean, diffusion.logit_std)
        noise = normal(seed, "noise", on_device, tuple(x0.shape[1:]))
        null = (self._null[0][:text_tokens], self._null[1][:text_tokens])
        context, mask = drop_captions(context, mask, null, on_device, seed, config.data.caption_dropout)
        return Samples(x0, noise, t, context, mask)


class ShapeLoader:
    """The batches of a run on clips of several shapes: each step's from the ``BatchLoader`` of its shape.

    Arguments, ``batch``, ``check``, ``fault`` and ``seconds`` as ``BatchLoader``'s.

    Attributes:
        parts: the loader of each shape, in the order of the run's ``parts``, each with steps of its own.
    """

    def __init__(self, run: Run, data: ShapeMixture, rank: int, world: int, device: torch.device) -> None:
        self._run = run
        self.parts = [BatchLoader(*both, rank, world, device) for both in zip(run.parts, data.parts)]

    def batch(self, step: int) -> Samples:
        before, after = (self._run.steps_of_parts(number) for number in (step, step + 1))
        shape = next(shape for shape, taken in enumerate(before) if after[shape] > taken)
        return self.parts[shape].batch(before[shape])

    def check(self, first: int, last: int) -> None:
        for loader, *steps in zip(self.parts, self._run.steps_of_parts(first), self._run.steps_of_parts(last)):
            loader.check(*steps)

    @property
    def fault(self) -> DataFault | None:
        return next((loader.fault for loader in self.parts if loader.fault is not None), None)

    @property
    def seconds(self) -> float:
        return sum(loader.seconds for loader in self.parts)


def loader_of(run: Run, data: Data, rank: int, world: int, device: torch.device) -> BatchLoader | ShapeLoader:
    """The loader of clips of one shape, or of several."""
    kind = ShapeLoader if isinstance(data, ShapeMixture) else BatchLoader
    return kind(run, data, rank, world, device)


def with_text_tokens(samples: Samples, tokens: int) -> Samples:
    """``samples`` with captions padded to ``tokens``."""
    missing = tokens - samples.mask.shape[1]
    return samples._replace(context=F.pad(samples.context, (0, 0, 0, missing)), mask=F.pad(samples.mask, (0, missing)))
