"""One optimiser step: micro-batches forward and backward, clipping, AdamW, the average. It never asks the device."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from videoscaling.diffusion.loss import denoising_loss
from videoscaling.diffusion.process import Process
from videoscaling.diffusion.validation import T_BINS
from videoscaling.models.dit import VideoDiT
from videoscaling.training.batches import Samples
from videoscaling.training.config import Config
from videoscaling.training.ema import power_of_width, update_average
from videoscaling.training.flat_buffer import merge
from videoscaling.training.optim import build_optimizer, learning_rate, weight_groups
from videoscaling.training.parallel import local, replicate, share_gradients, whole
from videoscaling.training.planning.memory_formula import even_size

COUNTS = ("loss", "counted", "skipped", "in_a_row")


def micro_batches(samples: Samples, most: int | None) -> Iterator[tuple[Samples, int]]:
    """``samples`` in micro-batches of one size, at most ``most``, each with the number of its samples that count.

    torch.compile compiles anew for every size. 527 samples with at most 16 at a time are therefore 33 micro-batches
    of 16, of which the last repeats one sample; a divisor of 527 would be 1. Losses of repeated samples are to be
    dropped, so that the gradient is the whole batch's mean.
    """
    along, count = samples.t.dim() - 1, samples.t.shape[-1]
    size = even_size(count, most)
    missing = -count % size
    for first in range(0, count, size):
        kept = min(size, count - first)
        piece = [value.narrow(along, first, kept) for value in samples]
        if missing:  # only the last micro-batch is copied; other strides would be compiled anew too
            piece = [value.contiguous() for value in piece]
        if kept < size:
            repeats = (value.narrow(along, 0, missing) for value in samples)
            piece = [torch.cat(both, along) for both in zip(piece, repeats)]
        yield Samples(*piece), kept


class Step:
    """Moves weights, optimiser and average by one batch; counts what it saw, on the device.

    A step whose gradient is not finite leaves the weights and the optimiser as they are, and is counted.

    Attributes:
        wrapped: the model as several processes share it: itself, behind DDP, or in FSDP2's shards.
        weights, averages: what the optimiser and the average move: the two buffers, or every parameter's shard.
        power: the average's exponent.
        optimizer: fused AdamW over the model's weights, merged into two buffers where they are not sharded.
        norm: the last step's gradient norm before clipping.
        loss: float64, training losses summed over ``counted`` steps since ``restart``.
        counted: the steps among them whose gradient was finite.
        skipped: the steps skipped since the run began.
        in_a_row: how many of them were the last ones; once there are ``train.max_skipped`` it never falls, so that a
            run has diverged however seldom it is asked.
        by_t: float32 [2, T_BINS + 1], sums of losses and their numbers in equal bins of t since ``restart``; t = 1
            falls into the last column. It is for people to look at: a window that a resume cuts has fewer samples.
    """

    def __init__(self, config: Config, model: VideoDiT, average: VideoDiT, device: torch.device) -> None:
        self._config = config
        self._process = Process(config.diffusion.process, config.diffusion.target)
        groups, averages = weight_groups(model), weight_groups(average)
        sharded = isinstance(model, FSDPModule)
        if not sharded:
            groups, averages = (tuple([merge(part)] for part in both) for both in (groups, averages))
        self.wrapped: nn.Module = model if sharded else replicate(model, device)
        self.weights, self.averages = (list(itertools.chain(*both)) for both in (groups, averages))
        self.power = power_of_width(config.ema.width)
        self.optimizer = build_optimizer(groups, config.optim, config.train.batch_tokens)
        self.micro_batch = config.train.micro_batch
        self.norm = torch.zeros((), device=device)
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.counted = torch.zeros((), dtype=torch.int64, device=device)
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self.by_t = torch.zeros(2, T_BINS + 1, device=device)

    def __call__(self, samples: Samples, tokens: int) -> None:
        """Learn from this process's share of a batch, after ``tokens`` tokens."""
        self.move(self.gradients(samples), tokens)

    def move(self, loss: Tensor, tokens: int) -> None:
        """Move weights, optimiser and average by the gradients that are there, whose mean loss was ``loss``."""
        config, batch = self._config, self._config.train.batch_tokens
        rate = learning_rate(config.optim, tokens + batch / 2, config.train.tokens)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.norm = whole(torch.nn.utils.clip_grad_norm_(self.weights, config.optim.clip))
        finite = self.norm.isfinite()
        # The fused kernel's own switch, made for loss scaling: with it set, neither weights nor moments move.
        self.optimizer.found_inf = (~finite).float()
        self.optimizer.step()
        self.forget_gradients()
        self.loss += torch.where(finite, loss, 0.0)
        self.counted += finite
        self.skipped += ~finite
        self.in_a_row.add_(~finite).mul_(~finite | (self.in_a_row >= config.train.max_skipped))
        update_average(local(self.averages), local(self.weights), self.power, batch, tokens + batch)

    def gradients(self, samples: Samples, share: bool = True) -> Tensor:
        """Forward and backward in micro-batches; returns this process's mean loss, float32 on the device.

        ``share``: add the gradients up over the processes, with the last micro-batch.
        """
        count, done = len(samples.t), 0
        total = torch.zeros((), device=samples.t.device)
        for piece, kept in micro_batches(samples, self.micro_batch):
            done += kept
            share_gradients(self.wrapped, share and done == count)
            losses = denoising_loss(self.wrapped, self._process, *piece)[:kept]
            loss = losses.sum() / count
            loss.backward()
            total += loss.detach()
            self._add_by_t(piece.t[:kept], losses.detach())
        return total

    def forget_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=isinstance(self.wrapped, FSDPModule))

    def _add_by_t(self, t: Tensor, losses: Tensor) -> None:
        # 15 us on the CPU: sums of bins that are read only where a line is logged.
        which = (t * T_BINS).long()
        self.by_t[0].index_add_(0, which, losses)
        self.by_t[1].index_add_(0, which, torch.ones_like(losses))

    def counts(self) -> dict[str, float]:
        """What of the counters a resumed run needs."""
        return {name: getattr(self, name).item() for name in COUNTS}

    def set_counts(self, counts: dict[str, float]) -> None:
        for name in COUNTS:
            getattr(self, name).fill_(counts[name])

    def restart(self) -> None:
        """Begin a new mean of the loss."""
        self.loss.zero_()
        self.counted.zero_()
        self.by_t.zero_()
