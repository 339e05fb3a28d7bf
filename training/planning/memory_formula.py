"""Parameters and training memory by formula, from a model's shape. No torch here: a plan takes milliseconds."""

import math
from typing import NamedTuple

from videoscaling.models.sizes import parameters

TIMESTEP_FEATURES = 256  # of models.dit
# Bytes kept for the backward pass, counted on the tensors that autograd saves (a test counts them again): per unit of
# width, by a block for each visual token and for each text token, and outside the blocks for each visual token.
KEPT = {"float32": 122, "bfloat16": 78}
KEPT_BY_TEXT, KEPT_OUTSIDE = 16, 16
# The most parameters that fsdp keeps gathered over a step's micro-batches: with their gradients 9 GB in bfloat16. A
# larger model's gathers are shorter than the products of a few thousand tokens (``planning.layout``).
MAX_GATHERED = 1_500_000_000
GPUS_PER_NODE = 8
# Samples prepared together, over as many steps as that takes, and the most numbers of noise they have. A step of one
# clip spent a third of its time calling small functions; twice as many samples leave the CPU's cache, and each then
# takes twice the time. Steps are grouped from the run's start, so that a resumed run groups them alike.
PREFETCH_SAMPLES, MAX_PREFETCH_NUMBERS = 64, 1 << 22
# Without a cache: the latents of the public video autoencoders, and T5's embeddings of captions of full length.
ASSUMED_CHANNELS, ASSUMED_TEXT_TOKENS, ASSUMED_TEXT_DIM = 16, 512, 4096


class ModelShape(NamedTuple):
    """The numbers that determine a VideoDiT's parameters; ``token_dim`` is the numbers in one visual token."""

    layers: int
    width: int
    heads: int
    token_dim: int
    text_dim: int


class ClipShape(NamedTuple):
    """One training clip: visual tokens, its latent's (C, f, h, w), text tokens and the width of their embeddings."""

    n_ctx: int
    latent_shape: tuple[int, ...]
    text_tokens: int
    text_dim: int


class Layout(NamedTuple):
    """How processes share a training step, by the keys of ``train``; ``micro_batch`` is at most a process's share.

    ``node`` is the processes of a node, among which hsdp divides the shards; ``context`` those that divide a clip.
    """

    processes: int
    parallel: str
    micro_batch: int
    activation_checkpointing: bool | str
    node: int = GPUS_PER_NODE
    context: int = 1


def assumed_clip(n_ctx: int, patch: tuple[int, ...] = (1, 1, 1)) -> tuple[ClipShape, list[str]]:
    """A clip of ``n_ctx`` tokens with assumed channels and text, and the assumptions as text."""
    frames, rows, columns = patch
    clip = ClipShape(n_ctx, (ASSUMED_CHANNELS, n_ctx * frames, rows, columns), ASSUMED_TEXT_TOKENS, ASSUMED_TEXT_DIM)
    text = f"text of {ASSUMED_TEXT_TOKENS} tokens x {ASSUMED_TEXT_DIM} (T5)"
    return clip, [text, f"latents of {ASSUMED_CHANNELS} channels"]


def parameter_groups(shape: ModelShape) -> dict[str, int]:
    """Parameters of a VideoDiT by purpose; their sum is all of them. "blocks' matrices" is N."""
    layers, d, head = shape.layers, shape.width, shape.width // shape.heads
    return {
        "blocks' matrices": parameters(layers, d),
        "blocks' norms": layers * 4 * head,
        "modulation": 6 * d * d + 6 * d + 2 * d * d + 2 * d + layers * 6 * d,
        "patch embedding": shape.token_dim * d + d,
        "text embedding": shape.text_dim * d + d + d * d + d,
        "time embedding": TIMESTEP_FEATURES * d + d + d * d + d,
        "final": d * shape.token_dim + shape.token_dim,
    }


def block_parameters(shape: ModelShape) -> int:
    """Parameters of one block: matrices, norms and its modulation table."""
    return parameters(1, shape.width) + 4 * (shape.width // shape.heads) + 6 * shape.width


def even_size(count: int, most: int | None) -> int:
    """The size of ``count`` samples' passes: as few as hold at most ``most`` samples each, all of one size."""
    return math.ceil(count / math.ceil(count / min(most or count, count)))


def keeps_gathered(parameters: int) -> bool:
    """Whether fsdp gathers a model once for all micro-batches of a step, and not in each of them."""
    return parameters <= MAX_GATHERED


def training_memory(
    shape: ModelShape, clip: ClipShape, layout: Layout, *, clips: int, dtype: str, plain_attention: bool = False
) -> dict[str, int]:
    """Bytes that one process holds when the backward pass begins, by part, with their "total".

    With P parameters, weights, gradients and the average take 4 P each and AdamW's moments 8 P, divided by the number
    of processes under fsdp (by the GPUs of a node under hsdp), average and moments alone under zero1; DDP's buckets
    take 4 P more. torch.compile keeps less than the activations counted here.

    Args:
        clips: the global batch, in clips.
        dtype: compute dtype of the blocks, "float32" or "bfloat16".
        plain_attention: attention without a kernel, which keeps every score.
    """
    count, block = sum(parameter_groups(shape).values()), block_parameters(shape)
    world, local = layout.processes, clips * layout.context // layout.processes
    shards = {"fsdp": world, "hsdp": min(world, layout.node)}.get(layout.parallel, 1)
    weight_bytes = 4 * count // shards
    slices = world if layout.parallel == "zero1" else 1
    outside = count - shape.layers * block
    micro = even_size(local, layout.micro_batch)
    scores = (2 if dtype == "bfloat16" else 4) * shape.layers * micro * shape.heads * clip.n_ctx // layout.context
    gathered = 2 if dtype == "bfloat16" else 4
    if world == 1 or layout.parallel == "zero1":
        communication = 0
    elif shards == 1:
        communication = 4 * count
    elif micro < local and keeps_gathered(count):
        communication = (gathered + 4) * count
    else:  # two blocks are gathered at a time, one with its gradient, and all parameters outside the blocks
        communication = (2 * gathered + 4) * block + 4 * outside
    sample = 2 * math.prod(clip.latent_shape) + clip.text_tokens * clip.text_dim
    steps_at_once = steps_together(clip.latent_shape, local)
    parts = {
        "weights": weight_bytes,
        "gradients": weight_bytes,
        "optimizer": 2 * weight_bytes // slices,
        "average": weight_bytes // slices,
        "communication": communication,
        "activations": activation_bytes(
            layers=shape.layers,
            width=shape.width,
            n_ctx=clip.n_ctx // layout.context,
            text_tokens=clip.text_tokens,
            clips=micro,
            dtype=dtype,
            recompute=layout.activation_checkpointing,
            casts=shards == 1,
        ),
        "attention scores": scores * (clip.n_ctx + clip.text_tokens) if plain_attention else 0,
        "samples": 4 * local * steps_at_once * sample,
    }
    return parts | {"total": sum(parts.values())}


def activation_bytes(
    *,
    layers: int,
    width: int,
    n_ctx: int,
    text_tokens: int,
    clips: int,
    dtype: str,
    recompute: bool | str,
    casts: bool = True,
) -> int:
    """Bytes that a forward pass keeps for the backward pass, without torch.compile, which keeps less.

    Per block ``clips * width * (KEPT * n_ctx + KEPT_BY_TEXT * text_tokens)``. With ``recompute`` every block keeps
    its input ("selective": and the outputs of two attentions), and one block at a time the rest.

    Args:
        casts: whether the matrices are cast to bfloat16 where they are used, whose copies are kept: shards are
            gathered in it.
    """
    tokens = clips * n_ctx * width
    block = KEPT[dtype] * tokens + KEPT_BY_TEXT * clips * text_tokens * width
    block += 2 * parameters(1, width) if dtype == "bfloat16" and casts else 0
    entry = tokens * (2 if dtype == "bfloat16" else 4) * (3 if recompute == "selective" else 1)
    return (layers * entry + block if recompute else layers * block) + KEPT_OUTSIDE * tokens


def steps_together(latent_shape: tuple[int, ...], clips: int) -> int:
    """How many steps' samples are prepared at once, where a process has ``clips`` of this shape in each step."""
    return max(1, min(PREFETCH_SAMPLES, MAX_PREFETCH_NUMBERS // math.prod(latent_shape)) // clips)
