"""Resolution of a configuration from the data: shape, end, milestones, warm-up. No torch here, but where a run has
clips of several shapes."""

import bisect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from videoscaling.data.index import CacheIndex, CacheMeta, is_latent_shape
from videoscaling.models.sizes import MAX_LAYERS, MAX_PARAMETERS, flops_per_token, head_width, parameters, parse_size
from videoscaling.training.config import Config, cache_folders, copied
from videoscaling.training.keys import MAX_INTEGER
from videoscaling.training.schema import OptimKeys
from videoscaling.utils.errors import UserError, plural, shown
from videoscaling.utils.files import read_json
from videoscaling.utils.seeds import derive_seed

WARMUP_FRACTION = 0.1
# Widths over the numbers in a token. 1x32 and 2x32 on tokens of 16 numbers are in line with wider ones; narrower ones
# were not tried, and a model as narrow as its tokens cannot pass the noise through.
MIN_WIDTH_RATIO, USUAL_WIDTH_RATIO = 2, 4
INDEX = "the index of a latent cache"
SEVERAL_SHAPES = "these caches differ in the shape of their clips, and a law's clips have one"


@dataclass(frozen=True)
class Run:
    """A configuration with nothing left open, and what follows from it.

    Attributes:
        config: every key set.
        N: parameters in the blocks' matrices.
        n_ctx: tokens per clip; of clips of several shapes the largest's.
        clips: clips of so many tokens per step, over all processes.
        flops_per_token: C_token; of several shapes the mean by their shares.
        shapes: of several shapes each one's part of the run, in the order of ``data.mixture.ShapeMixture.parts``.
        share, shape: of a part the share of its steps in the run's, and its place among the parts.
        data_seed: seed of data order, noise, t and caption dropout: each shape has its own.
    """

    config: Config
    N: int
    n_ctx: int
    clips: int
    flops_per_token: float
    shapes: tuple["Run", ...] = ()
    share: float = 1.0
    shape: int | None = None

    @property
    def parts(self) -> tuple["Run", ...]:
        """The part of each shape; of one shape the run itself."""
        return self.shapes or (self,)

    @property
    def data_seed(self) -> int:
        seed = self.config.data_seed
        return seed if self.shape is None else derive_seed(seed, "shape", self.shape)

    def steps_of_parts(self, steps: int) -> list[int]:
        """How many of the run's first ``steps`` steps each part has."""
        if not self.shapes:
            return [steps]
        from videoscaling.data.sample_order import MIXED, steps_by_set  # torch, for which a plan does not wait

        return steps_by_set(steps, [round(part.share * MIXED) for part in self.shapes], self.config.data_seed)

    def flops(self, steps: int) -> float:
        """C of the run's first ``steps`` steps."""
        each = zip(self.parts, self.steps_of_parts(steps))
        return sum(taken * self.config.train.batch_tokens * part.flops_per_token for part, taken in each)

    @property
    def steps(self) -> int:
        """Optimiser steps; the last one ends at ``train.tokens`` or past it."""
        return math.ceil(self.config.train.tokens / self.config.train.batch_tokens)

    @property
    def text(self) -> str:
        """One line of text."""
        config, tokens = self.config, self.steps * self.config.train.batch_tokens
        return (
            f"{config.model.size}: N {self.N:,}, T {tokens:,} tokens in {plural(self.steps, 'step')} of "
            f"{self.clips_text} ({config.train.batch_tokens:,} tokens), lr {config.optim.lr:.3g}, "
            f"C {self.flops(self.steps):.3g} FLOPs"
        )

    @property
    def clips_text(self) -> str:
        """The clips of a step, as text."""
        return " or ".join(plural(part.clips, "clip") for part in self.parts)


def label(config: Config) -> str:
    """A cell's name in tables, TensorBoard and trackers, from resolved keys; valid as a file's name."""
    B, lr = config.train.batch_tokens, config.optim.lr
    return f"{config.model.size}_B{B}_lr{lr:.4g}_seed{config.seed}"


def resolve(
    config: Config, meta: CacheMeta, earlier: Sequence[int] = (), bfloat16: Callable[[], bool] | None = None
) -> Run:
    """Fill in what ``config`` leaves open, from the cache's ``meta`` (its latent shape and fingerprint).

    Args:
        earlier: the milestones of an earlier start of the same run.
        bfloat16: whether the training device has bfloat16, which train.dtype=auto then becomes. It is called only for
            auto. None: no device is known, and auto is refused.

    Raises:
        UserError: a size that is no size, a patch that does not divide the latents, a token too large for the width,
            a batch that is no whole number of clips, no end or two, or data of another fingerprint.
    """
    config = copied(config)
    if config.train.dtype == "auto":
        # Before anything is hashed: a run's id is that of the dtype it computes in.
        if bfloat16 is None:
            raise UserError("train.dtype=auto: only a run's own device decides it; name bfloat16 or float32")
        config.train.dtype = "bfloat16" if bfloat16() else "float32"
    shapes = meta.get("shapes", [])
    tokens = [clip_tokens(config, shape["latent_shape"]) for shape in shapes or [meta]]
    _resolve_shape(config, token_numbers(config, meta["latent_shape"]))
    _resolve_data(config, meta["fingerprint"])
    model, train = config.model, config.train
    count = parameters(model.layers, model.width)
    _check_whole_clips(train.batch_tokens, tokens)
    costs = [flops_per_token(count, n_ctx, model.width) for n_ctx in tokens]
    each = zip(tokens, costs, shapes)
    parts = tuple(
        Run(config, count, n_ctx, train.batch_tokens // n_ctx, cost, share=shape["share"], shape=number)
        for number, (n_ctx, cost, shape) in enumerate(each)
    )
    n_ctx, cost = max(tokens), sum(part.share * part.flops_per_token for part in parts) if parts else costs[0]
    run = Run(config, count, n_ctx, train.batch_tokens // n_ctx, cost, parts)
    if (train.tokens is None) == (train.flops is None):
        raise UserError("train.tokens and train.flops: give one of them, the end of the run")
    if train.tokens is None:
        if train.flops / cost > MAX_INTEGER:
            raise UserError(f"train.flops={train.flops:g}: these are more than {MAX_INTEGER:.3g} tokens, the limit")
        train.tokens, train.flops = _tokens_for(run, train.flops), None
    if train.batch_tokens > train.tokens:
        raise UserError(f"train.tokens={train.tokens}: less than one batch of train.batch_tokens={train.batch_tokens}")
    late = [m for m in train.milestones if m > train.tokens]
    if late:
        raise UserError(f"train.milestones={shown(late)}: past the run's end, train.tokens={train.tokens}")
    train.milestones = sorted({*train.milestones, *(m for m in earlier if m < train.tokens), train.tokens})
    if config.optim.warmup_tokens is None:
        config.optim.warmup_tokens = round(WARMUP_FRACTION * train.milestones[0])
    if config.optim.beta2(train.batch_tokens) == 1:
        raise UserError(
            f"optim.beta2_half_life={config.optim.beta2_half_life:g}: beta2 is 1 at B {train.batch_tokens:,} tokens, "
            "where AdamW's second moment never moves; give a shorter one, or an optim.beta2_range that ends below 1"
        )
    return run


def _tokens_for(run: Run, flops: float) -> int:
    """The tokens at which ``run`` has spent ``flops``; of several shapes at the end of a step."""
    if not run.shapes:
        return math.ceil(flops / run.flops_per_token)
    batch = run.config.train.batch_tokens
    return batch * bisect.bisect_left(range(MAX_INTEGER // batch), flops, key=run.flops)


def clip_tokens(config: Config, latent_shape: Sequence[int]) -> int:
    """Tokens per clip of latents (C, f, h, w); UserError where the patch does not divide them."""
    sides, patch = list(latent_shape[1:]), config.model.patch
    if any(side % p for side, p in zip(sides, patch)):
        raise UserError(f"model.patch={patch}: does not divide the cache's latents of {sides} (frames, rows, columns)")
    return math.prod(side // p for side, p in zip(sides, patch))


def encoded_shape(config: Config) -> list[int] | None:
    """(C, f, h, w) of the clips in ``data.cache``, without opening it; None where there are none yet.

    Raises:
        UserError: the index.json there is no cache's index, or the clips have several shapes.
    """
    paths = [Path(folder) / "index.json" for folder in cache_folders(config) if folder]
    found = None
    for path in filter(Path.is_file, paths):
        shape = read_json(path, dict, INDEX).get("latent_shape")
        if not (shape is None or is_latent_shape(shape)):
            raise UserError(f"{path}: not {INDEX}")
        if shape is not None and found not in (None, shape):
            raise UserError(f"data.cache: {SEVERAL_SHAPES}; give one, or estimate the run with train.py --dry-run")
        found = found or shape
    return found


def cache_indexes(config: Config) -> list[CacheIndex]:
    """The indexes of all folders in ``data.cache``; none where one of them has no finished cache yet."""
    paths = [Path(folder) / "index.json" for folder in cache_folders(config) if folder]
    indexes = [read_json(path, dict, INDEX) for path in paths if path.is_file()]
    finished = all(index.get("latent_shape") for index in indexes)
    return indexes if finished and len(indexes) == len(paths) else []


def _resolve_shape(config: Config, token_dim: int) -> None:
    model = config.model
    if model.size is not None:
        shape = parse_size(model.size)
        for name, value in (("layers", shape.layers), ("width", shape.width)):
            if getattr(model, name) not in (None, value):
                raise UserError(f"model.{name}={getattr(model, name)}: contradicts model.size={model.size}; drop one")
        model.layers, model.width = shape.layers, shape.width
    if model.layers is None or model.width is None:
        raise UserError("model.size: not given; name one such as 4x128, or set model.layers and model.width")
    count = parameters(model.layers, model.width)
    if model.layers > MAX_LAYERS or count > MAX_PARAMETERS:
        raise UserError(
            f"model.size={model.layers}x{model.width}: {count:.3g} parameters in {model.layers:,} layers; at most "
            f"{MAX_PARAMETERS:.0e} and {MAX_LAYERS:,} can be built"
        )
    if model.heads is None:
        model.heads = parse_size(f"{model.layers}x{model.width}").heads
    if model.width % (2 * model.heads):
        raise UserError(
            f"model.heads={model.heads}: width {model.width} is no even multiple of it; "
            f"try {max(model.width // head_width(model.layers, model.width), 1)}"
        )
    if model.width < MIN_WIDTH_RATIO * token_dim:
        raise UserError(
            f"model.width={model.width}: too narrow for tokens of {token_dim} numbers, which need a width of at least "
            f"{MIN_WIDTH_RATIO * token_dim}; a narrower model cannot pass the noise through"
        )
    model.size = f"{model.layers}x{model.width}"


def _resolve_data(config: Config, fingerprint: str) -> None:
    pinned = config.data.fingerprint
    if pinned and pinned != fingerprint:
        raise UserError(
            f"data.cache={config.data.cache}: holds other clips than the run was made with (fingerprint "
            f"{fingerprint}, not {pinned}); give the cache of those"
        )
    config.data.fingerprint = fingerprint


def _check_whole_clips(batch_tokens: int, tokens: Sequence[int]) -> None:
    """Refuse a batch that is no whole number of clips of each of ``tokens``, with the nearest that are."""
    least, listed = math.lcm(*tokens), ", ".join(map(str, dict.fromkeys(tokens)))
    clips = f"clips of {listed} tokens" if len(tokens) == 1 else f"clips of every shape ({listed} tokens)"
    if batch_tokens == 0:
        raise UserError(f"train.batch_tokens: not given; a whole number of {clips}, such as {8 * least}")
    count, rest = divmod(batch_tokens, least)
    if batch_tokens <= 0 or rest:
        either = f"{count * least} or {(count + 1) * least}" if count > 0 else f"{least}"
        raise UserError(f"train.batch_tokens={batch_tokens}: not a whole number of {clips}; nearest: {either}")


def width_warnings(widths: Iterable[int], token_dim: int) -> list[str]:
    """A warning if ``widths`` of models are below ``USUAL_WIDTH_RATIO`` times the numbers in a token."""
    narrow = sorted({width for width in widths if width < USUAL_WIDTH_RATIO * token_dim})
    if not narrow:
        return []
    which = ", ".join(map(str, narrow))
    return [
        f"width {which}: below {USUAL_WIDTH_RATIO * token_dim}, {USUAL_WIDTH_RATIO} times the {token_dim} numbers of "
        "a token; tools/fit.py validate shows whether such models lie in line with wider ones"
    ]


def token_numbers(config: Config, latent_shape: Sequence[int]) -> int:
    """Numbers in one visual token: latent channels times the patch's volume."""
    return latent_shape[0] * math.prod(config.model.patch)


def run_warnings(config: Config, token_dim: int) -> list[str]:
    """Warnings on a resolved run, before compute is spent: a clamped beta2, an endless warm-up, a narrow width.

    ``token_dim`` is from ``token_numbers``.
    """
    found = beta2_warnings([(config.optim, config.train.batch_tokens)])
    warmup, end = config.optim.warmup_tokens, config.train.tokens
    if warmup >= end:
        found.append(
            f"optim.warmup_tokens={warmup}: the run ends at {end:,} tokens, before its learning rate reaches optim.lr"
        )
    return found + width_warnings([config.model.width], token_dim)


def beta2_warnings(optimizers: Sequence[tuple[OptimKeys, int]]) -> list[str]:
    """Where ``optim.beta2_range`` clamps beta2, at most a line for each of its two ends.

    ``optimizers`` are (the optimiser's keys, batch in tokens) of a run, or of all cells of a sweep.
    """
    found = []
    for end, name in enumerate(("minimum", "maximum")):
        clamped = [(optim, batch) for optim, batch in optimizers if _beta2_clamped_to(optim, batch, end)]
        if not clamped:
            continue
        # The cell farthest outside the range: the largest batch at its minimum, the smallest at its maximum.
        optim, batch = max(clamped, key=lambda one: (-1) ** end * one[1] / one[0].beta2_half_life)
        cells = f"in {len(clamped)} of {len(optimizers)} cells " if len(optimizers) > 1 else ""
        found.append(
            f"{cells}beta2 is clamped to the {name} of optim.beta2_range, {optim.beta2(batch):g}: at B {batch:,} "
            f"tokens optim.beta2_half_life={optim.beta2_half_life:g} asks for {optim.free_beta2(batch):.6g}; give "
            f"{_half_life_within(optim, batch, end)}, or optim.beta2_range=[0,1]"
        )
    return found


def _half_life_within(optim: OptimKeys, batch: int, end: int) -> str:
    """The half-lives whose beta2 lies on the inner side of one ``end`` of the range, rounded inwards to two digits."""
    limit = batch * math.log(2) / -math.log(optim.beta2_range[end])
    digit = 10 ** (math.floor(math.log10(limit)) - 1)
    rounded = digit * (math.floor(limit / digit) if end else math.ceil(limit / digit))
    return f"{'at most' if end else 'at least'} {rounded:.2g}"


def _beta2_clamped_to(optim: OptimKeys, batch: int, end: int) -> bool:
    return optim.beta2(batch) != optim.free_beta2(batch) and optim.beta2(batch) == optim.beta2_range[end]
