"""One optimiser step of stacked runs: one model evaluated over rows of weights, and all rows updated together."""

import dataclasses

import torch
from torch import Tensor
from torch.func import functional_call

from videoscaling.diffusion.loss import denoising_loss
from videoscaling.diffusion.validation import T_BINS
from videoscaling.models.dit import VideoDiT
from videoscaling.training.batches import Samples
from videoscaling.training.distributed.flat_buffer import move_parameters, place_of
from videoscaling.training.model import build_model, compile_function
from videoscaling.training.optim import Buffers, weight_groups
from videoscaling.training.stacked.cuda_graph import StepGraph
from videoscaling.training.step import COUNTERS, micro_batches
from videoscaling.training.trainer import Scores, Trainer
from videoscaling.training.validation import RAW_SHARE, Score


class StackedStep:
    """``training.step.TrainStep`` for several runs, whose buffers become rows of common ones.

    Attributes:
        trainers: the runs, a row each. Their own buffers are views of the rows, complete after each step.
        wrapped, by_t, micro_batch: as ``TrainStep``'s, of all rows; ``find_micro_batch`` uses them.
        grad_norm, loss_sum, finite_steps, skipped_steps, consecutive_skips: as ``TrainStep``'s, [rows].
    """

    def __init__(self, trainers: list[Trainer], micro_batch: int | None = None) -> None:
        self.trainers = list(trainers)
        lead, rows = trainers[0], len(trainers)
        self._config, self.device, self._process = lead.config, lead.device, lead.process
        # The definition of attention has a batching rule everywhere; the kernel for CPUs has none.
        config = dataclasses.replace(lead.config, model=dataclasses.replace(lead.config.model, attention="plain"))
        self.wrapped: VideoDiT = build_model(config, lead.cache.meta, self.device).to(
            "meta"
        )  # its code, not its weights
        self._compiled = lead.config.train.compile
        self._graph = StepGraph() if self.device.type == "cuda" else None
        self._run = compile_function(self._losses) if self._compiled else self._losses
        self.micro_batch = micro_batch or lead.train_step.micro_batch
        self.grad_norm = torch.zeros(rows, device=self.device)
        for name in COUNTERS.values():
            setattr(self, name, torch.stack([getattr(trainer.train_step, name) for trainer in trainers]))
        self.by_t = torch.stack([trainer.train_step.by_t for trainer in trainers])
        self._buffers = [self._share_buffers(kind) for kind in range(len(lead.train_step.weights))]
        seeds = [trainer.config.data_seed for trainer in trainers]
        self._streams = [trainers[seeds.index(seed)].loader for seed in dict.fromkeys(seeds)]
        for loader in self._streams:
            loader.trims_text = False  # one shape for all rows, and for a captured CUDA graph
        which = [list(dict.fromkeys(seeds)).index(seed) for seed in seeds]
        self._stream_of_row = torch.tensor(which, device=self.device)
        for row, trainer in enumerate(trainers):
            trainer.loader = self._streams[which[row]]  # whose time each logs
            trainer.model.backend = "plain"
            trainer.train_step.noise_scale.averages.zero_()  # of its time alone: a stack measures none
            for name in (*COUNTERS.values(), "by_t", "grad_norm"):
                setattr(trainer.train_step, name, getattr(self, name)[row])
        self._weights = self._named("weights")
        self._ema = self._named("ema")
        self._gradients = list(self._named("gradients").values())
        for weight in self._weights.values():
            weight.requires_grad_()

    def _share_buffers(self, kind: int) -> Buffers:
        """Move the runs' buffers of a kind into rows of common ones."""
        rows, length = len(self.trainers), len(self.trainers[0].train_step.weights[kind])
        numbers = (torch.zeros(rows, length, device=self.device) for _ in Buffers._fields[:-1])
        buffers = Buffers(*numbers, torch.zeros(rows, device=self.device))
        for row, trainer in enumerate(self.trainers):
            train_step = trainer.train_step
            model, ema = (weight_groups(each)[kind] for each in (trainer.model, trainer.ema))
            move_parameters(train_step.weights[kind], model, buffers.weights[row], buffers.gradients[row])
            move_parameters(train_step.ema[kind], ema, buffers.ema[row])
            state = train_step.optimizer.state[train_step.weights[kind]]
            for name in ("exp_avg", "exp_avg_sq", "step"):
                common = buffers.steps if name == "step" else getattr(buffers, name)
                common[row] = state[name]
                state[name] = common[row]
        return buffers

    def _named(self, field: str) -> dict[str, Tensor]:
        """Views of all rows of each parameter, [rows, *shape]."""
        groups, views = weight_groups(self.trainers[0].model), {}
        place = {id(parameter): name for name, parameter in self.trainers[0].model.named_parameters()}
        for buffers, group in zip(self._buffers, groups):
            whole = getattr(buffers, field)
            for parameter in group:
                start = place_of(parameter, whole.shape[1])
                here = whole[:, start : start + parameter.numel()].detach()
                views[place[id(parameter)]] = here.view(len(whole), *parameter.shape)
        return views

    def samples(self, step: int) -> Samples:
        """The samples of step ``step``: [n, ...] if all rows share them, else [rows, n, ...].

        Raises:
            DataFault: a clip is damaged; no row is updated.
        """
        streams = [loader.batch(step) for loader in self._streams]
        for loader in self._streams:
            if loader.fault is not None:
                raise loader.fault
        if len(streams) == 1:
            return streams[0]
        each = zip(*streams)
        return Samples(*(torch.stack(values)[self._stream_of_row] for values in each))

    def _losses(self, weights: dict[str, Tensor], samples: Samples) -> Tensor:
        """Each sample's loss under each row of ``weights``, float32 [rows, samples]."""

        def one(row: dict[str, Tensor], samples: Samples) -> Tensor:
            def model(*inputs: Tensor) -> Tensor:
                return functional_call(self.wrapped, row, inputs)

            return denoising_loss(model, self._process, *samples)

        return torch.vmap(one, in_dims=(0, 0 if samples.t.dim() == 2 else None))(weights, samples)

    def run(self, samples: Samples, tokens: int, active: list[Trainer]) -> None:
        """Train the ``active`` runs on a batch, after ``tokens`` tokens; the other rows stay as they are."""
        if self._graph is not None:
            self._graph(self._run_rows, samples, self._settings(tokens, active))
        elif self._compiled:
            self._run_rows(samples, self._settings(tokens, active))
        else:
            # Fused AdamW of one row after the other: the whole of them, uncompiled, would pass memory a dozen times.
            losses = self.backward(samples)
            for row, trainer in enumerate(self.trainers):
                if trainer in active:
                    trainer.train_step.apply_gradients(losses[row], tokens)
        for trainer in self.trainers:
            if trainer not in active:  # it has seen these samples already, or has ended
                trainer.train_step.by_t.zero_()

    def backward(self, samples: Samples, share: bool = True) -> Tensor:
        """As ``TrainStep.backward``, for all rows; returns each one's mean loss, float32 [rows]."""
        rows, count = len(self.trainers), samples.t.shape[-1]
        total = torch.zeros(rows, device=self.device)
        for number, (piece, kept) in enumerate(micro_batches(samples, self.micro_batch)):
            losses = self._run(self._weights, piece)[:, :kept]
            loss = losses.sum(1) / count
            found = torch.autograd.grad(loss.sum(), list(self._weights.values()))
            # The first pass overwrites the gradients, so they need not be set to zero before.
            (torch._foreach_add_ if number else torch._foreach_copy_)(self._gradients, found)
            total += loss.detach()
            which = (piece.t[..., :kept] * T_BINS).long().expand(rows, -1)
            self.by_t[:, 0].scatter_add_(1, which, losses.detach())
            self.by_t[:, 1].scatter_add_(1, which, torch.ones_like(losses))
        return total

    def zero_grad(self) -> None:
        """Do nothing: the next backward pass overwrites the gradients."""

    def _settings(self, tokens: int, active: list[Trainer]) -> Tensor:
        """Each row's settings for ``update_factors``, on the CPU."""
        columns = [trainer.train_step.settings(tokens, trainer in active) for trainer in self.trainers]
        return torch.tensor(columns, dtype=torch.float64).T.contiguous()

    def _run_rows(self, samples: Samples, settings: Tensor) -> None:
        """One step of all rows. It never waits for the GPU or depends on a value there."""
        losses = self.backward(samples)
        active = settings[6].bool()
        with torch.no_grad():
            norm = self.trainers[0].train_step.update(self._buffers, settings)
            finite = norm.isfinite()
            self.grad_norm.copy_(torch.where(active, norm, self.grad_norm))
            self.loss_sum += torch.where(finite & active, losses, 0.0)
            self.finite_steps += finite & active
            self.skipped_steps += ~finite & active
            failed = self.consecutive_skips + ~finite
            failed *= ~finite | (failed >= self._config.train.max_skipped)
            self.consecutive_skips.copy_(torch.where(active, failed, self.consecutive_skips))

    def should_shrink(self, wanted: int) -> bool:
        """Whether the rows of ended runs cost more than compiling a smaller stack."""
        rows = len(self.trainers)
        return wanted < rows and (not self._compiled or wanted <= rows // 2)

    def find_validation_batch(self) -> None:
        """As ``Trainer.find_validation_batch``, for all rows."""
        validator = self.trainers[0].validator
        validator.find_batch([self._score_of(self._weights), self._score_of(self._ema)], len(self.trainers))
        for trainer in self.trainers:
            trainer.validator.batch = validator.batch

    def validate(self) -> list[Scores]:
        """The validation results of every run: of the raw weights and of the EMA."""
        validator, rows = self.trainers[0].validator, len(self.trainers)
        raw = validator.validate(self._score_of(self._weights), rows, RAW_SHARE)
        return list(zip(raw, validator.validate(self._score_of(self._ema), rows)))

    def _score_of(self, weights: dict[str, Tensor]) -> Score:
        detached = {name: weight.detach() for name, weight in weights.items()}
        return lambda *samples: self._losses(detached, Samples(*samples))
