"""One optimiser step: forward and backward in micro-batches, clipping, AdamW, EMA. It never waits for the device."""

import itertools
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

from videoscaling.data.index import shape_name
from videoscaling.diffusion.loss import denoising_loss
from videoscaling.diffusion.process import Process
from videoscaling.diffusion.validation import T_BINS
from videoscaling.models.dit import VideoDiT
from videoscaling.training.batches import Samples
from videoscaling.training.config import Config
from videoscaling.training.distributed.flat_buffer import merge
from videoscaling.training.distributed.parallel import (
    LooseSlices,
    Slices,
    all_reduce,
    begin_micro_batch,
    end_micro_batches,
    gather_full,
    is_parallel,
    local,
    replicate,
)
from videoscaling.training.ema import decay, power_of_width, update_ema
from videoscaling.training.model import compile_function
from videoscaling.training.noise_scale import POWER, NoiseScale
from videoscaling.training.optim import (
    Buffers,
    build_optimizer,
    gradient_norm,
    learning_rate,
    update_buffers,
    update_factors,
    weight_groups,
)
from videoscaling.training.planning.memory_formula import even_size

# Counters that a checkpoint keeps: their names in its state file, and here.
COUNTERS = {
    "loss": "loss_sum",
    "counted": "finite_steps",
    "skipped": "skipped_steps",
    "in_a_row": "consecutive_skips",
}
NOISE_COUNTERS = ("noise_signal", "noise_variance")  # and the two averages of its noise scale


def micro_batches(samples: Samples, most: int | None) -> Iterator[tuple[Samples, int]]:
    """``samples`` in micro-batches of one size, at most ``most``, each with the number of its samples that count.

    torch.compile compiles anew for every size. 527 samples with at most 16 at a time are therefore 33 micro-batches
    of 16, and the last repeats one sample; a divisor of 527 would be 1. The caller drops the losses of repeated
    samples, so that the gradient is the whole batch's mean.
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


class TrainStep:
    """One optimiser step: forward and backward in micro-batches, clipping, AdamW, EMA. Counters stay on the device.

    A step whose gradient is not finite is skipped: weights and optimiser stay as they are.

    Attributes:
        micro_batch: the most clips of a forward and backward pass; None: all.
        clip_numbers: of clips of several shapes the numbers in the largest latent. Of the others a pass has as many
            as have the numbers of ``micro_batch`` largest ones; and no noise scale is measured, whose clips are alike.
        wrapped: the model as several processes share it: itself, behind DDP, or in FSDP2's shards.
        weights, ema: what AdamW and the EMA update: two flat buffers, slices of them, or every parameter's shard.
        power: the exponent of the EMA.
        optimizer: fused AdamW over ``weights``.
        grad_norm: the last step's gradient norm before clipping.
        loss_sum: float64, training losses summed over ``finite_steps`` since ``reset_window``.
        finite_steps: the steps in that sum, all with a finite gradient.
        skipped_steps: the steps skipped since the run began.
        consecutive_skips: how many of the last steps were skipped. Once there are ``train.max_skipped`` it never
            falls, so that a run has diverged however seldom this is read.
        noise_scale: of the gradients; not measured where weights or tokens are in shards, or clips have several
            shapes.
        by_t: float32 [2, T_BINS + 1], sums of losses and their numbers in equal bins of t since ``reset_window``;
            t = 1 falls into the last column. For the log alone: a window that a resume cuts has fewer samples.
        by_shape: as ``by_t``, the losses and the steps of each of several shapes, float32 [2].
    """

    def __init__(self, config: Config, model: VideoDiT, ema: VideoDiT, device: torch.device) -> None:
        self._config = config
        self._process = Process(config.diffusion.process, config.diffusion.target)
        groups, ema_groups = weight_groups(model), weight_groups(ema)
        sharded = isinstance(model, FSDPModule)
        sliced = config.train.parallel == "zero1" and is_parallel()
        self._has_whole_gradients = not sharded and config.train.context_parallel == 1
        self.wrapped: nn.Module = model if sharded or sliced else replicate(model, device)
        self._slices: tuple[Slices, LooseSlices] | None = None  # of the weights and of the EMA
        self._whole = True  # the model and its EMA
        if not sharded:
            parts = dist.get_world_size() if sliced else 1
            # What the blocks cast at each use is a buffer of its own, which slices gather in that dtype.
            apart = sliced and model.dtype != torch.float32
            # The EMA's buffers first, before the model has gradients: 12 bytes a parameter at most, not 16.
            ema_groups, groups = (_merged(each, parts, apart) for each in (ema, model))
        self._buffers = list(itertools.chain(*groups))
        if sliced:
            mesh = init_device_mesh(device.type, (parts,))
            weights, ema = (itertools.chain(*both) for both in (groups, ema_groups))
            self._slices = Slices(weights, mesh, model.dtype), LooseSlices(ema, mesh)
            groups, ema_groups = ((both.parameters[:-1], both.parameters[-1:]) for both in self._slices)
        self.weights, self.ema = (list(itertools.chain(*both)) for both in (groups, ema_groups))
        self.power = power_of_width(config.ema.width)
        self.optimizer = build_optimizer(groups, config.optim, config.train.batch_tokens)
        self._compiles_update = config.train.compile and not sharded
        update = update_factors, update_buffers
        self._factors, self._update = map(compile_function, update) if config.train.compile else update
        self.micro_batch = config.train.micro_batch
        self.clip_numbers: int | None = None
        self.by_shape: dict[str, Tensor] = {}
        self.grad_norm = torch.zeros((), device=device)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.finite_steps = torch.zeros((), dtype=torch.int64, device=device)
        self.skipped_steps = torch.zeros((), dtype=torch.int64, device=device)
        self.consecutive_skips = torch.zeros((), dtype=torch.int64, device=device)
        self.by_t = torch.zeros(2, T_BINS + 1, device=device)
        self.noise_scale = NoiseScale(device)

    def run(self, samples: Samples, tokens: int) -> None:
        """Train on this process's share of a batch, samples [n, ...]; ``tokens``: the run's before this step."""
        loss = self.backward(samples)
        if self.clip_numbers is not None:
            sums = self.by_shape.setdefault(shape_name(samples.x0.shape[1:]), torch.zeros(2, device=loss.device))
            sums += torch.stack((loss.nan_to_num(0.0, 0.0, 0.0), loss.isfinite()))
        self.apply_gradients(loss, tokens)

    def backward(self, samples: Samples, share: bool = True) -> Tensor:
        """Forward and backward in micro-batches; returns this process's mean loss, float32 on the device.

        ``share``: average the gradients over the processes, with the last micro-batch.
        """
        if self._slices and self._whole:
            self._slices[1].release()
            self._whole = False
        count, done, most = len(samples.t), 0, self.micro_batch
        if most is not None and self.clip_numbers is not None:
            most = max(most * self.clip_numbers // samples.x0[0].numel(), 1)
        total = torch.zeros((), device=samples.t.device)
        several = even_size(count, most) < count
        for piece, kept in micro_batches(samples, most):
            done += kept
            begin_micro_batch(self.wrapped, last=share and done == count, several=several)
            losses = denoising_loss(self.wrapped, self._process, *piece)[:kept]
            loss = losses.sum() / count
            loss.backward()
            # Later ones add to these gradients, and the last may average them over the processes.
            if done == kept and self._has_whole_gradients and self.clip_numbers is None:
                self.noise_scale.add_micro_batch(self._buffers, kept, count)
            total += loss.detach()
            self._add_by_t(piece.t[:kept], losses.detach())
        if several:
            end_micro_batches(self.wrapped)
        if share and self._slices:
            self._slices[0].reduce_gradients()
        return total

    def apply_gradients(self, loss: Tensor, tokens: int) -> None:
        """Apply the accumulated gradients: clip, AdamW, EMA. ``loss`` is this process's mean loss, for the log.

        A step whose gradient is not finite moves the EMA alone, and is counted as skipped.
        """
        config, batch = self._config, self._config.train.batch_tokens
        self.grad_norm = self._compiled_update(tokens) if self._compiles_update else self._fused_update(tokens)
        finite = self.grad_norm.isfinite()
        self.noise_scale.add_step(self.grad_norm, decay(POWER, batch, tokens + batch))
        if self._slices:
            self._slices[0].gather(exact=False)
        self.zero_grad()
        self.loss_sum += torch.where(finite, loss, 0.0)
        self.finite_steps += finite
        self.skipped_steps += ~finite
        diverged = self.consecutive_skips >= config.train.max_skipped
        self.consecutive_skips.add_(~finite).mul_(~finite | diverged)

    def settings(self, tokens: int, active: bool = True) -> list[float]:
        """The numbers of a step for ``update_factors``: the rate, beta1, beta2, epsilon, weight decay, the norm to
        clip at, ``active`` (unless it is set nothing moves), and the share of the EMA that the new weights take.

        ``tokens``: the run's before this step.
        """
        keys, batch = self._config.optim, self._config.train.batch_tokens
        rate = learning_rate(keys, tokens + batch / 2, self._config.train.tokens)
        towards = 1 - decay(self.power, batch, tokens + batch)
        return [rate, keys.beta1, keys.beta2(batch), keys.eps, keys.weight_decay, keys.clip, active, towards]

    def _fused_update(self, tokens: int) -> Tensor:
        """Clip, fused AdamW and EMA, one after the other; returns the gradient's norm before clipping, float32 []."""
        rate, *_, towards = self.settings(tokens)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = gather_full(torch.nn.utils.clip_grad_norm_(self.weights, self._config.optim.clip))
        # The fused kernel's own switch, made for loss scaling: with it set, neither weights nor moments change.
        self.optimizer.found_inf = (~norm.isfinite()).float()
        self.optimizer.step()
        update_ema(local(self.ema), local(self.weights), towards)
        return norm

    def _compiled_update(self, tokens: int) -> Tensor:
        """As ``_fused_update``, compiled."""
        kinds = []
        for weights, ema in zip(self.weights, self.ema):
            state = self.optimizer.state[weights]
            moments = state["exp_avg"], state["exp_avg_sq"]
            kinds.append(Buffers(*local([weights.detach(), weights.grad, *moments, ema.detach(), state["step"]])))
        settings = torch.tensor(self.settings(tokens), dtype=torch.float64)
        return self.update(kinds, settings.to(self.by_t.device, non_blocking=True))

    def update(self, kinds: list[Buffers], settings: Tensor) -> Tensor:
        """Clip, AdamW and EMA in two compiled passes over memory, one of them the norm's, which is returned.

        ``settings`` is as for ``update_factors``.
        """
        norm = gradient_norm(kinds)
        if self._slices:
            norm = all_reduce(norm.square(), "sum").sqrt()
        self._update(kinds, self._factors(norm, kinds[0].steps, settings))
        return norm

    def share_slices(self) -> None:
        """Complete the weights from all processes' slices after a restore, for which each has read its own.

        The EMA's buffers are freed until ``gather_slices``.
        """
        if self._slices:
            self._slices[1].release()
            self._slices[0].gather()
            self._whole = False

    def gather_slices(self) -> None:
        """Complete the model and its EMA from all processes' slices, before they are saved, validated or sampled.

        The EMA is complete until the next backward pass, whose activations may need its memory.
        """
        if self._slices and not self._whole:
            for slices in self._slices:
                slices.gather()
            self._whole = True

    def zero_grad(self) -> None:
        if isinstance(self.wrapped, FSDPModule):
            self.optimizer.zero_grad()
            return
        for buffer in self._buffers:
            buffer.grad.zero_()

    def _add_by_t(self, t: Tensor, losses: Tensor) -> None:
        # 15 us on the CPU: sums of bins that are read only where a line is logged.
        which = (t * T_BINS).long()
        self.by_t[0].index_add_(0, which, losses)
        self.by_t[1].index_add_(0, which, torch.ones_like(losses))

    def counts(self) -> dict[str, float]:
        """The counters that a checkpoint keeps, by their names there."""
        counts = {key: getattr(self, name).item() for key, name in COUNTERS.items()}
        return counts | dict(zip(NOISE_COUNTERS, self.noise_scale.averages.tolist()))

    def set_counts(self, counts: dict[str, float]) -> None:
        """Restore the counters of a checkpoint; older ones have no noise scale."""
        for key, name in COUNTERS.items():
            getattr(self, name).fill_(counts[key])
        for average, key in zip(self.noise_scale.averages, NOISE_COUNTERS):
            average.fill_(counts.get(key, 0.0))

    def reset_window(self) -> None:
        """Start a new window of the log: sums of losses and their counts begin at 0."""
        self.loss_sum.zero_()
        self.finite_steps.zero_()
        self.by_t.zero_()
        self.by_shape.clear()


def _merged(model: VideoDiT, parts: int, apart: bool) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """``weight_groups`` in buffers of ``parts`` slices; with ``apart`` the blocks' matrices are one of their own."""
    matrices, others = weight_groups(model)
    inside = set(model.blocks.parameters()) if apart else set(matrices)
    both = [[each for each in matrices if each in inside], [each for each in matrices if each not in inside]]
    return [merge(each, parts) for each in both if each], [merge(others, parts)]
