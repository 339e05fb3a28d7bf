"""The ladder of sizes: names, shapes, N and FLOPs. No torch here, so that planning starts fast.

N counts the blocks' matrices only: 4 d^2 of self-attention, 4 d^2 of cross-attention and 8 d^2 of FFN, 16 d^2
per layer. FLOPs are counted twice: C_token, the paper's, which every law is written in, and the exact count.
"""

import math
import re
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.utils.errors import UserError, nearest

# Width is 32 times depth, so that each size is a scaled copy of the others; 1x64 to 4x192 are extra sizes.
MICRO = ("2x64", "3x96", "4x128", "6x192", "8x256", "10x320")
BESIDE_MICRO = ("1x64", "2x96", "4x96", "4x192")
# The paper's widths are not public; these match its N and, for 0.72B, its FLOPs at 140B tokens.
PAPER = ("16x256", "14x512", "16x704", "16x1024", "15x1728", "16x2048")

ASPECT = 32
DEEPEST = 16
# Sizes are quoted to two or three digits: "0.72B" is 716,636,160. Within this (relative), two sizes are one.
SAME_SIZE = 0.01
# The largest model that is built: a million layers would take an hour to be made before memory is asked about.
MAX_LAYERS = 1024
MAX_PARAMETERS = 10**14


class Shape(NamedTuple):
    """A model's shape; ``heads`` follows from the others."""

    layers: int
    width: int
    heads: int

    @property
    def name(self) -> str:
        return f"{self.layers}x{self.width}"


def head_width(layers: int, width: int) -> int:
    """Channels per attention head: 32 below 12 layers and width 512, else 64.

    So each ladder has one: where it changes, the loss jumps and a law breaks. After 1.6 million tokens 4x128 with
    heads of 64 channels was 4 to 6 % worse than with heads of 32, and no better than 4x96 (docs/reproduction.md).
    """
    return 32 if layers < 12 and width < 512 else 64


def parse_size(name: str) -> Shape:
    """The shape named ``"LAYERSxWIDTH"``, e.g. ``"4x128"``.

    Raises:
        UserError: the name has another form, or the width is no multiple of the head width.
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", str(name).strip())
    if match is None:
        hint = nearest(str(name), [*MICRO, *BESIDE_MICRO, *PAPER])
        raise UserError(f"model size {name!r} is not LAYERSxWIDTH, such as 4x128{hint}")
    layers, width = int(match[1]), int(match[2])
    per_head = head_width(layers, width)
    if width % per_head:
        if layers > width and layers % head_width(width, layers) == 0:
            raise UserError(
                f"model size {name!r}: is {layers} layers of width {width}; did you mean '{width}x{layers}', "
                f"{width} layers of width {layers}?"
            )
        low = width // per_head * per_head
        either = f"{low} or {low + per_head}" if low else str(per_head)
        raise UserError(f"model size {name!r}: width must be a multiple of {per_head}; the nearest is {either}")
    return Shape(layers, width, width // per_head)


def parameters(layers: int, width: int) -> int:
    """N, the parameters of the blocks' matrices: ``16 * layers * width^2``."""
    return 16 * layers * width**2


def shape_for(target: float) -> Shape:
    """The shape whose N is nearest to ``target``, among those near one aspect ratio.

    Width is 32 x depth (the micro ladder) until 16 layers; beyond that only width grows, as in the paper's
    ladder, so that extrapolating a law stays within the family of shapes it was fitted on.

    Raises:
        UserError: ``target`` is below the smallest shape by more than half.
    """
    smallest = parameters(1, 32)
    if not target >= smallest / 2 or math.isinf(target):
        raise UserError(
            f"no model has about {target:.3g} parameters: the smallest, 1x32, has {smallest:,}; ask for a larger one, "
            "or give a larger budget"
        )
    ideal = min((target / (16 * ASPECT**2)) ** (1 / 3), DEEPEST)
    # A fifth of depth either way is invisible in the loss, and lets N come near the target.
    shallow, deep = math.floor(ideal * 0.8), math.ceil(ideal * 1.2)
    candidates = []
    for layers in range(max(shallow, 1), min(deep, DEEPEST) + 1):
        width = math.sqrt(target / (16 * layers))
        step = head_width(layers, round(width))
        for multiple in {max(math.floor(width / step), 1), math.ceil(width / step)}:
            shape = parse_size(f"{layers}x{multiple * step}")
            miss = abs(math.log(parameters(shape.layers, shape.width) / target))
            # A factor e of depth weighs as one per cent of N.
            candidates.append((max(miss, SAME_SIZE) + 0.01 * abs(math.log(layers / ideal)), miss, shape))
    return min(candidates)[-1]


def flops_per_token(N: float, n_ctx: int, width: int) -> float:
    """C_token, training FLOPs per visual token: ``3/4 * N * (7 + n_ctx / width)`` (the paper, section 3).

    Three times the blocks' forward pass; text keys and values, and all outside the blocks, are not charged.
    """
    return 0.75 * N * (7 + n_ctx / width)


def exact_flops(
    layers: int,
    width: int,
    n_ctx: int,
    token_dim: int,
    text_tokens: int,
    text_dim: int,
    training: bool = True,
) -> int:
    """FLOPs of every matrix product of VideoDiT on one clip (a multiplication and an addition are two).

    Args:
        layers, width: the shape.
        n_ctx: visual tokens per clip.
        token_dim: numbers per visual token (latent channels times patch volume).
        text_tokens, text_dim: the encoder's output per clip.
        training: forward and backward, three times the forward; False for the forward alone.
    """
    d, text, frequencies = width, text_tokens, 256
    patch_embedding = n_ctx * token_dim * d
    text_projection = text * (text_dim * d + d * d)
    time_embedding = frequencies * d + d * d + d * 6 * d
    self_attention = n_ctx * 4 * d * d
    cross_attention = n_ctx * 2 * d * d + text * 2 * d * d
    ffn = n_ctx * 8 * d * d
    final = n_ctx * d * token_dim + d * 2 * d
    outside = patch_embedding + text_projection + time_embedding + final
    forward = 2 * (outside + layers * (self_attention + cross_attention + ffn))
    return (3 if training else 1) * forward + attention_flops(layers, width, n_ctx, text, training)


def attention_flops(layers: int, width: int, n_ctx: int, text_tokens: int, training: bool = True) -> int:
    """The part of ``exact_flops`` that attention kernels make: scores, and their sums of values."""
    return (3 if training else 1) * 2 * layers * 2 * n_ctx * (n_ctx + text_tokens) * width


def smooth_width(N: ArrayLike) -> NDArray[np.float64]:
    """The widths of ``shape_for``'s rule at N, before rounding, for C_token between sizes."""
    N = np.asarray(N, dtype=float)
    return np.maximum((2 * N) ** (1 / 3), (N / (16 * DEEPEST)) ** 0.5)
