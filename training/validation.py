"""Validation of a run's weights on the frozen set, in forward passes that fit into the memory."""

import dataclasses
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videoscaling.data.index import shape_name
from videoscaling.data.latents import LatentCache
from videoscaling.data.mixture import Data, Mixture, ShapeMixture
from videoscaling.diffusion.validation import ValidationResult, forward_passes, pool, validate_rows
from videoscaling.models.dit import VideoDiT
from videoscaling.training.distributed.parallel import all_reduce
from videoscaling.training.memory import largest_that_fits, on_any_process
from videoscaling.training.planning.memory_formula import even_size
from videoscaling.training.run import Run

# Laws are fitted on the ema weights' loss. The raw weights' is to compare with: one clip in so many is enough.
RAW_SHARE = 4
# A forward pass where validation.batch is not given: 32 samples, of the paper's 1280 tokens
# each. As many of 32,000 tokens would take more memory than training, whose micro-batch is chosen by what fits.
MOST_SAMPLES, MOST_TOKENS = 32, 32 * 1280
# Blocks of a sharded model that a forward pass holds whole at most: one computes, the next ones are gathered.
GATHERED_BLOCKS = 3

# Each sample's loss of some sets of weights, as diffusion.validation.validate_rows takes it.
Score = Callable[..., Tensor]


def samples_per_pass(given: int | None, n_ctx: int) -> int:
    """The most samples of ``n_ctx`` tokens in a forward pass: ``given`` (validation.batch), or by their tokens."""
    return given or min(MOST_SAMPLES, max(MOST_TOKENS // n_ctx, 1))


class Validator:
    """Scores weights on a run's frozen set. The size of the forward passes changes no loss.

    All passes over a share of the set have one size. With train.compile every share's passes have the size of the
    whole set's: another size would be compiled anew. Without it the raw weights' share needs no repeated samples.

    Args:
        rank, world: which of the processes that share the work this is.
        sharded: whether weights or tokens are in shards, so that a forward pass is one of several processes.

    Attributes:
        clips: in the frozen set.
        batch: the most samples per forward pass, counted over all sets of weights that the pass scores.
    """

    def __init__(
        self,
        run: Run,
        cache: LatentCache | Mixture,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
        sharded: bool = False,
    ) -> None:
        self._keys, self._cache, self._device = run.config.validation, cache, device
        self._rank, self._world, self._sharded = rank, world, sharded
        self.clips = self._keys.clips or cache.validation_size
        self._compiled = run.config.train.compile
        self._context = run.config.train.context_parallel
        self.batch = samples_per_pass(self._keys.batch, run.n_ctx // self._context)

    @property
    def parts(self) -> "list[Validator]":
        """The validator of each shape of clips, of which ``ShapeValidator`` has several: itself."""
        return [self]

    def validate(self, score: Score, rows: int = 1, share: int = 1) -> list[ValidationResult]:
        """The losses of ``rows`` sets of weights on one clip in ``share`` of the frozen set, the same everywhere.

        Raises:
            UserError: a single sample does not fit into the memory, or a sharded model's pass does not.
        """
        results: list[ValidationResult] = []

        def attempt(size: int) -> None:
            results[:] = self._score(
                score=score,
                rows=rows,
                size=size,
                clips=self._clips_of(share),
                rank=self._rank,
                world=self._world,
                # Each loss is there as often as processes divide a clip.
                gather=lambda losses: all_reduce(losses, "sum") / self._context,
            )

        self._largest(attempt, rows, share, sharded=self._sharded)
        return results

    def find_batch(self, scores: Sequence[Score], rows: int = 1) -> None:
        """Find the size of forward passes that fits on every process, by one pass of each of ``scores``.

        Raises:
            UserError: a single sample does not fit into the memory, or a sharded model's pass does not.
        """
        for score in scores:
            self._try_pass(score, rows, self._sharded)

    def rehearse(self, score: Score) -> None:
        """Find the size by a pass of ``score``, which takes a sharded pass's memory without other processes.

        A sharded pass that fails on one process leaves the others waiting in the middle of theirs: it cannot be
        tried again in a smaller size.

        Raises:
            UserError: a single sample does not fit into the memory.
        """
        self._try_pass(score, 1, False)

    def _try_pass(self, score: Score, rows: int, sharded: bool) -> None:
        def attempt(size: int) -> None:
            world = math.ceil(2 * self._keys.timesteps / size)  # so that a process's share is one pass
            self._score(score, rows, size, 2, 0, world)

        self._largest(attempt, rows, on_any=on_any_process(self._device), sharded=sharded)

    def size(self, rows: int = 1, share: int = 1) -> int:
        """Samples of each of ``rows`` sets of weights in a forward pass over one clip in ``share``."""
        return self._even(max(self.batch // rows, 1), share)

    def passes(self, share: int = 1) -> int:
        """Forward passes that a process makes to score one clip in ``share``."""
        return forward_passes(self._clips_of(share) * self._keys.timesteps, self.size(share=share), self._world)

    def _even(self, most: int, share: int) -> int:
        clips = self._clips_of(1 if self._compiled else share)
        return even_size(math.ceil(clips * self._keys.timesteps / self._world), most)

    def _clips_of(self, share: int) -> int:
        return max(self.clips // share, 2)  # a standard error needs two

    def _score(
        self,
        score: Score,
        rows: int,
        size: int,
        clips: int,
        rank: int,
        world: int,
        gather: Callable[[Tensor], Tensor] | None = None,
    ) -> list[ValidationResult]:
        keys = self._keys
        return validate_rows(
            score,
            rows,
            self._cache.validation,
            clips=self.clips,
            per_clip=keys.timesteps,
            seed=keys.seed,
            batch=size,
            device=self._device,
            gather=gather,
            rank=rank,
            world=world,
            scored_clips=clips,
        )

    def _largest(
        self,
        attempt: Callable[[int], None],
        rows: int,
        share: int = 1,
        on_any: Callable[[bool], bool] = bool,
        sharded: bool = False,
    ) -> None:
        """Lower ``batch`` to what fits: each attempt has half the samples of each set of weights."""
        size = self.size(rows, share)
        fitting = largest_that_fits(
            lambda most: attempt(self._even(most, share)),
            size,
            on_any,
            sharded=sharded,
            verbose=self._rank == 0,
            key="validation.batch",
            rows=rows,
        )
        if fitting < size:
            self.batch = fitting * rows


class ShapeValidator:
    """Scores weights on the frozen sets of clips of several shapes: on each by its own ``Validator``, as a run on the
    clips of that shape alone does, and on all together by the mean of their tokens.

    Attributes and arguments as ``Validator``'s.
    """

    def __init__(self, run: Run, data: ShapeMixture, *place: Any) -> None:
        self.parts = [Validator(*both, *place) for both in zip(run.parts, data.parts)]
        self._names = [shape_name(cache.latent_shape) for cache in data.parts]
        # The raw weights' share of clips has the same weights, so that both losses are of the same quantity.
        self._tokens = {
            name: part.n_ctx * validator.clips for name, part, validator in zip(self._names, run.parts, self.parts)
        }

    def validate(self, score: Score, rows: int = 1, share: int = 1) -> list[ValidationResult]:
        each = zip(*(validator.validate(score, rows, share) for validator in self.parts))
        return [pool(dict(zip(self._names, results)), self._tokens) for results in each]

    def find_batch(self, scores: Sequence[Score], rows: int = 1) -> None:
        for validator in self.parts:
            validator.find_batch(scores, rows)

    def rehearse(self, score: Score) -> None:
        for validator in self.parts:
            validator.rehearse(score)


def validator_of(run: Run, data: Data, *place: Any) -> Validator | ShapeValidator:
    """The validator of clips of one shape, or of several; ``place`` are the further arguments of either."""
    kind = ShapeValidator if isinstance(data, ShapeMixture) else Validator
    return kind(run, data, *place)


def milestone_scores(raw: ValidationResult, ema: ValidationResult) -> dict[str, Any]:
    """The losses of a milestone and their standard errors, by their names in result.json."""
    scores = {
        "val_loss": raw.loss,
        "val_se": raw.standard_error,
        "ema_val_loss": ema.loss,
        "ema_val_se": ema.standard_error,
    }
    by_shape = {name: milestone_scores(raw.by_shape[name], ema.by_shape[name]) for name in ema.by_shape}
    return scores | ({"by_shape": by_shape} if by_shape else {})


def losses_file(raw: ValidationResult, ema: ValidationResult) -> bytes:
    """The content of validation/<tokens>.npy: losses [raw and ema weights, clips, times], one shape after the other.

    Clips on which the raw weights were not scored have NaN.
    """
    each = [(raw.by_shape[name].losses, ema.by_shape[name].losses) for name in ema.by_shape]
    padded = []
    for scored, losses in each or [(raw.losses, ema.losses)]:
        unmeasured = ((0, len(losses) - len(scored)), (0, 0))
        padded.append(np.stack((np.pad(scored, unmeasured, constant_values=np.nan), losses)))
    file = io.BytesIO()
    np.save(file, np.concatenate(padded, axis=1))
    return file.getvalue()


def few_blocks(model: VideoDiT, device: torch.device) -> VideoDiT:
    """A model of zeros on this process alone whose forward pass takes as much memory as that of sharded ``model``.

    Without gradients a pass keeps the activations of the current block only. A sharded model's pass gathers the
    weights of ``GATHERED_BLOCKS`` blocks at most, and the weights outside the blocks.
    """
    config = dataclasses.replace(model.config, layers=min(GATHERED_BLOCKS, model.config.layers))
    with torch.device("meta"):
        few = VideoDiT(config, 0, model.dtype, model.backend)
    few = few.to_empty(device=device).requires_grad_(False)
    for parameter in few.parameters():
        parameter.zero_()
    return few
