"""Validation of a run's weights on the frozen set, in forward passes that fit into the memory."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from data.latents import LatentCache
from data.mixture import Mixture
from diffusion.validation import ValidationResult, forward_passes, validate_rows
from models.dit import VideoDiT
from training.memory import fit_micro_batch, on_any_process
from training.parallel import all_reduce
from training.resolve import Run
from training.step import even_size

# Laws are fitted on the averaged weights' loss. The raw weights' is to compare with: one clip in so many is enough.
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
    """Scores weights on a run's frozen set. Every forward pass has one size, whose choice changes no loss.

    Args:
        rank, world: which of the processes that share the work this is.
        sharded: whether the weights are in shards, so that every forward pass is one of all processes.

    Attributes:
        clips: in the frozen set.
        batch: the most samples per forward pass, over all sets of weights that it scores.
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
        self.batch = even_size(self._raw_samples, samples_per_pass(self._keys.batch, run.n_ctx))

    def validate(self, score: Score, rows: int = 1, share: int = 1) -> list[ValidationResult]:
        """The losses of ``rows`` sets of weights on one clip in ``share`` of the frozen set, the same everywhere.

        Raises:
            UserError: a single sample does not fit into the memory, or a sharded model's pass does not.
        """
        results: list[ValidationResult] = []

        def attempt(batch: int) -> None:
            results[:] = self._score(
                score,
                rows,
                batch,
                self._clips_of(share),
                self._rank,
                self._world,
                lambda losses: all_reduce(losses, "sum"),
            )

        self.batch = self._fit(attempt, sharded=self._sharded)
        return results

    def fit(self, scores: Sequence[Score], rows: int = 1, rehearsal: Score | None = None) -> None:
        """Find the size of forward passes that fits on every process, by one pass of each of ``scores``.

        Args:
            rehearsal: a score that takes as much memory without other processes. A sharded pass that fails in one
                process leaves the others waiting in the middle of theirs, so that it cannot be tried again.

        Raises:
            UserError: a single sample does not fit into the memory, or a sharded model's pass does not.
        """
        on_any = on_any_process(self._device)
        for score in [*([rehearsal] if rehearsal else []), *scores]:

            def attempt(batch: int, score: Score = score) -> None:
                world = math.ceil(2 * self._keys.timesteps / self.size(rows, batch))  # so that one pass is a share
                self._score(score, rows, batch, 2, 0, world)

            self.batch = self._fit(attempt, on_any, self._sharded and score is not rehearsal)

    def size(self, rows: int = 1, batch: int | None = None) -> int:
        """Samples in a forward pass of ``rows`` sets of weights."""
        return even_size(self._raw_samples, max((batch or self.batch) // rows, 1))

    def passes(self, share: int = 1) -> int:
        """Forward passes that a process makes to score one clip in ``share``."""
        return forward_passes(self._clips_of(share) * self._keys.timesteps, self.size(), self._world)

    @property
    def _raw_samples(self) -> int:
        """A process's samples of the raw weights' share, which is the smaller one: no pass is larger than it."""
        return math.ceil(self._clips_of(RAW_SHARE) * self._keys.timesteps / self._world)

    def _clips_of(self, share: int) -> int:
        return max(self.clips // share, 2)  # a standard error needs two

    def _score(
        self,
        score: Score,
        rows: int,
        batch: int,
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
            batch=self.size(rows, batch),
            device=self._device,
            gather=gather,
            rank=rank,
            world=world,
            first=clips,
        )

    def _fit(
        self, attempt: Callable[[int], None], on_any: Callable[[bool], bool] = bool, sharded: bool = False
    ) -> int:
        how = {"sharded": sharded, "speak": self._rank == 0, "key": "validation.batch"}
        return fit_micro_batch(attempt, self.batch, on_any, **how)


def few_blocks(model: VideoDiT, device: torch.device) -> VideoDiT:
    """A model of zeros on this process alone whose forward pass takes as much memory as that of sharded ``model``.

    Without gradients a pass keeps the activations of no block but the one that computes, and of a sharded model no
    weights but those of ``GATHERED_BLOCKS`` blocks and of what lies outside the blocks.
    """
    config = dataclasses.replace(model.config, layers=min(GATHERED_BLOCKS, model.config.layers))
    with torch.device("meta"):
        few = VideoDiT(config, 0, model.dtype, model.backend)
    few = few.to_empty(device=device).requires_grad_(False)
    for parameter in few.parameters():
        parameter.zero_()
    return few
