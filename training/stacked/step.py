"""A step of many models at once: the one model run over rows of weights, and all rows moved together."""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from videoscaling.diffusion.loss import denoising_loss
from videoscaling.diffusion.validation import T_BINS
from videoscaling.models.dit import VideoDiT
from videoscaling.training.batches import Samples
from videoscaling.training.flat_buffer import move, place_of
from videoscaling.training.model import build_model, compile_function
from videoscaling.training.optim import learning_rate, weight_groups
from videoscaling.training.stacked.cuda_graph import StepGraph
from videoscaling.training.step import COUNTS, micro_batches
from videoscaling.training.trainer import Scores, Trainer
from videoscaling.training.validation import RAW_SHARE, Score


class _Buffers(NamedTuple):
    """One kind of parameters of every run (matrices, or the rest): float32 [rows, numbers]; AdamW's steps [rows]."""

    weights: Tensor
    gradients: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    averages: Tensor
    steps: Tensor


class StackedStep:
    """``training.step.Step`` for several runs: it moves the rows that are their own buffers.

    Attributes:
        members: the runs, a row each. They are moved here, and are whole whenever a step has ended.
        wrapped, norm, by_t, micro_batch: as ``Step``'s, of all rows; what ``fit_memory`` asks for.
    """

    def __init__(self, members: list[Trainer], micro_batch: int | None = None) -> None:
        self.members = list(members)
        lead, rows = members[0], len(members)
        self._config, self.device, self._process = lead.config, lead.device, lead.process
        # The definition of attention has a batching rule everywhere; the kernel for CPUs has none.
        config = dataclasses.replace(lead.config, model=dataclasses.replace(lead.config.model, attention="plain"))
        self.wrapped: VideoDiT = build_model(config, lead.cache.meta, self.device).to(
            "meta"
        )  # its code, not its weights
        self._compiled = lead.config.train.compile
        self._graph = StepGraph() if self.device.type == "cuda" else None
        self._run = compile_function(self._losses) if self._compiled else self._losses
        self._move = compile_function(move_rows) if self._compiled else move_rows
        self.micro_batch = micro_batch or lead.learn.micro_batch
        self.norm = torch.zeros(rows, device=self.device)
        for name in COUNTS:
            setattr(self, name, torch.stack([getattr(member.learn, name) for member in members]))
        self.by_t = torch.stack([member.learn.by_t for member in members])
        self._buffers = [self._adopt(kind) for kind in range(len(lead.learn.weights))]
        seeds = [member.config.data_seed for member in members]
        self._streams = [members[seeds.index(seed)].feed for seed in dict.fromkeys(seeds)]
        which = [list(dict.fromkeys(seeds)).index(seed) for seed in seeds]
        self._stream_of_row = torch.tensor(which, device=self.device)
        for row, member in enumerate(members):
            member.model.backend = "plain"
            for name in (*COUNTS, "by_t", "norm"):
                setattr(member.learn, name, getattr(self, name)[row])
        self._weights = self._named("weights")
        self._averages = self._named("averages")
        self._gradients = list(self._named("gradients").values())
        for weight in self._weights.values():
            weight.requires_grad_()

    def _adopt(self, kind: int) -> _Buffers:
        """Move the members' buffers of a kind into rows of common ones."""
        rows, length = len(self.members), len(self.members[0].learn.weights[kind])
        numbers = (torch.zeros(rows, length, device=self.device) for _ in _Buffers._fields[:-1])
        buffers = _Buffers(*numbers, torch.zeros(rows, device=self.device))
        for row, member in enumerate(self.members):
            learn = member.learn
            model, average = (weight_groups(each)[kind] for each in (member.model, member.average))
            move(learn.weights[kind], model, buffers.weights[row], buffers.gradients[row])
            move(learn.averages[kind], average, buffers.averages[row])
            state = learn.optimizer.state[learn.weights[kind]]
            for name in ("exp_avg", "exp_avg_sq", "step"):
                common = buffers.steps if name == "step" else getattr(buffers, name)
                common[row] = state[name]
                state[name] = common[row]
        return buffers

    def _named(self, field: str) -> dict[str, Tensor]:
        """Views of all rows of each parameter, [rows, *shape]."""
        groups, views = weight_groups(self.members[0].model), {}
        place = {id(parameter): name for name, parameter in self.members[0].model.named_parameters()}
        for buffers, group in zip(self._buffers, groups):
            whole = getattr(buffers, field)
            for parameter in group:
                start = place_of(parameter, whole.shape[1])
                here = whole[:, start : start + parameter.numel()].detach()
                views[place[id(parameter)]] = here.view(len(whole), *parameter.shape)
        return views

    def samples(self, step: int) -> Samples:
        """What step ``step`` sees: [n, ...] where all rows see the same, else [rows, n, ...].

        Raises:
            DataFault: a clip is damaged; no row moves.
        """
        streams = [feed.step(step) for feed in self._streams]
        for feed in self._streams:
            if feed.fault is not None:
                raise feed.fault
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

    def __call__(self, samples: Samples, tokens: int, moving: list[Trainer]) -> None:
        """Learn from a batch, after ``tokens`` tokens; rows that are not ``moving`` stay as they are."""
        if self._graph is not None:
            self._graph(self._learn, samples, self._settings(tokens, moving))
        elif self._compiled:
            self._learn(samples, self._settings(tokens, moving))
        else:
            # Fused AdamW of one row after the other: the whole of them, uncompiled, would pass memory a dozen times.
            losses = self.gradients(samples)
            for row, member in enumerate(self.members):
                if member in moving:
                    member.learn.move(losses[row], tokens)
        for member in self.members:
            if member not in moving:  # it has seen these samples already, or has ended
                member.learn.by_t.zero_()

    def gradients(self, samples: Samples, share: bool = True) -> Tensor:
        """As ``Step.gradients``, for all rows; returns each one's mean loss, float32 [rows]."""
        rows, count = len(self.members), samples.t.shape[-1]
        total = torch.zeros(rows, device=self.device)
        for number, (piece, kept) in enumerate(micro_batches(samples, self.micro_batch)):
            losses = self._run(self._weights, piece)[:, :kept]
            loss = losses.sum(1) / count
            found = torch.autograd.grad(loss.sum(), list(self._weights.values()))
            # The first pass replaces what is there: no gradient has to be set to zero before.
            (torch._foreach_add_ if number else torch._foreach_copy_)(self._gradients, found)
            total += loss.detach()
            which = (piece.t[..., :kept] * T_BINS).long().expand(rows, -1)
            self.by_t[:, 0].scatter_add_(1, which, losses.detach())
            self.by_t[:, 1].scatter_add_(1, which, torch.ones_like(losses))
        return total

    def forget_gradients(self) -> None:
        """Nothing to do: the next ``gradients`` replaces these."""

    def _settings(self, tokens: int, moving: list[Trainer]) -> Tensor:
        """What ``move_rows`` wants to know of each row, on the CPU."""
        batch = self._config.train.batch_tokens
        columns = []
        for member in self.members:
            keys = member.config.optim
            columns.append(
                (
                    learning_rate(keys, tokens + batch / 2, member.config.train.tokens),
                    keys.beta1,
                    keys.beta2(batch),
                    keys.eps,
                    keys.weight_decay,
                    keys.clip,
                    member in moving,
                    1 - (1 - batch / (tokens + batch)) ** (member.learn.power + 1),
                )
            )
        return torch.tensor(columns, dtype=torch.float64).T.contiguous()

    def _learn(self, samples: Samples, settings: Tensor) -> None:
        """A step of all rows together; nothing in it waits for a GPU or depends on what a GPU found."""
        losses = self.gradients(samples)
        active = settings[6].bool()
        with torch.no_grad():
            norm = self._move(self._buffers, settings)
            finite = norm.isfinite()
            self.norm.copy_(torch.where(active, norm, self.norm))
            self.loss += torch.where(finite & active, losses, 0.0)
            self.counted += finite & active
            self.skipped += ~finite & active
            failed = self.in_a_row + ~finite
            failed *= ~finite | (failed >= self._config.train.max_skipped)
            self.in_a_row.copy_(torch.where(active, failed, self.in_a_row))

    def crowded(self, wanted: int) -> bool:
        """Whether rows whose runs have ended cost more than to leave them behind, which is to compile anew."""
        rows = len(self.members)
        return wanted < rows and (not self._compiled or wanted <= rows // 2)

    def fit_validation(self) -> None:
        """As ``Trainer.fit_validation``, for all rows."""
        validator = self.members[0].validator
        validator.fit([self._score_of(self._weights), self._score_of(self._averages)], len(self.members))
        for member in self.members:
            member.validator.batch = validator.batch

    def scores(self) -> list[Scores]:
        """Every run's validation, of raw and of averaged weights."""
        validator, rows = self.members[0].validator, len(self.members)
        raw = validator.validate(self._score_of(self._weights), rows, RAW_SHARE)
        return list(zip(raw, validator.validate(self._score_of(self._averages), rows)))

    def _score_of(self, weights: dict[str, Tensor]) -> Score:
        detached = {name: weight.detach() for name, weight in weights.items()}
        return lambda *samples: self._losses(detached, Samples(*samples))


def move_rows(kinds: list[_Buffers], settings: Tensor) -> Tensor:
    """AdamW, clipped by each row's own norm, and the average, in place; compiled it passes memory once.

    A row whose gradient is not finite keeps its weights and moments.

    Args:
        kinds: the matrices, which weight decay is for, and the rest.
        settings: float64 [8, rows]: rate, beta1, beta2, epsilon, weight decay, clip, whether the row moves, and the
            share by which its average does.

    Returns:
        The gradients' norms before clipping, float32 [rows].
    """
    norm = torch.stack([buffers.gradients.square().sum(1) for buffers in kinds]).sum(0).sqrt()
    rate, beta1, beta2, epsilon, decay, clip, active, towards = settings
    moves = norm.isfinite() & active.bool()
    count = kinds[0].steps.double() + moves
    step_size = (rate / (1 - beta1**count)).float()[:, None]
    root = (1 - beta2**count).sqrt().float()[:, None]
    scale = (clip.float() / (norm + 1e-6)).clamp(max=1.0)[:, None]
    new1, old2, new2 = ((value).float()[:, None] for value in (1 - beta1, beta2, 1 - beta2))
    towards, epsilon, moved = (active * towards).float()[:, None], epsilon.float()[:, None], moves[:, None]
    for kind, (weights, gradients, exp_avg, exp_avg_sq, averages, steps) in enumerate(kinds):
        keep = (1 - rate * decay).float()[:, None] if kind == 0 else 1.0
        gradient = gradients * scale
        first = torch.lerp(exp_avg, gradient, new1)
        second = exp_avg_sq * old2 + gradient * gradient * new2
        after = weights * keep - step_size * first / (second.sqrt() / root + epsilon)
        after = torch.where(moved, after, weights)
        exp_avg.copy_(torch.where(moved, first, exp_avg))
        exp_avg_sq.copy_(torch.where(moved, second, exp_avg_sq))
        averages.copy_(torch.lerp(averages, after, towards))
        weights.copy_(after)
        steps += moves
    return norm
