"""VideoDiT: the paper's Cross-DiT, a transformer over video latents with full spatio-temporal attention."""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from videoscaling.models.attention import attention, keep_attention
from videoscaling.models.embeddings import Grid, patchify, rotary_table, rotate, timestep_features, unpatchify
from videoscaling.models.sequence_shards import SequenceShards
from videoscaling.utils.random import derive_seed

TIMESTEP_FEATURES = 256
KEEP_ATTENTION = functools.partial(create_selective_checkpoint_contexts, keep_attention)


@dataclass(frozen=True)
class DiTConfig:
    """The shape of a VideoDiT.

    Attributes:
        layers, width, heads: depth, model width d, attention heads (width / heads is even).
        channels: latent channels.
        patch: latent frames, rows and columns that make one token.
        text_dim: size of the text encoder's embeddings.
    """

    layers: int
    width: int
    heads: int
    channels: int
    patch: Grid
    text_dim: int

    @property
    def token_dim(self) -> int:
        """Latent numbers in one token."""
        return self.channels * self.patch[0] * self.patch[1] * self.patch[2]


class Linear(nn.Linear):
    """A linear layer that computes in its input's dtype, so that float32 master weights serve bfloat16 too."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


def _normalise(x: Tensor) -> Tensor:
    """LayerNorm without affine parameters: the modulation supplies them. Statistics are float32 inside."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x [batch, n_ctx, width] normalised, with float32 shift and scale [batch, 1, width], in the dtype of ``x``."""
    return (_normalise(x) * (1 + scale) + shift).to(x.dtype)


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm of each head's channels, the last side of x: float32 inside, in the dtype of ``x``."""
    return (F.rms_norm(x.float(), x.shape[-1:], eps=1e-6) * weight).to(x.dtype)


class SelfAttention(nn.Module):
    """Attention among all tokens of a clip, with RMS-normalised, rotated queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width, bias=False)
        self.out = Linear(width, width, bias=False)
        self.qk_norm = nn.Parameter(torch.ones(2, 1, width // heads))

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], backend: str, shards: SequenceShards | None = None
    ) -> Tensor:
        """x [batch, n_ctx, width] to the same shape; ``rotary`` is ``rotary_table``'s. With ``shards``, both are of
        this process's tokens."""
        # queries and keys [batch, n_ctx, 2, heads, head_dim], values [batch, n_ctx, 1, heads, head_dim]
        qk, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).split((2, 1), dim=2)
        # Queries and keys go through norm and rotation as one: half the kernels, which is what small models wait for.
        qk = rotate(_rms_norm(qk, self.qk_norm), rotary)
        if shards is None:
            (q, k), v = qk.unbind(2), v.squeeze(2)
            return self.out(attention(q, k, v, backend=backend).flatten(2))
        q, k, v = shards.to_heads(torch.cat((qk, v), 2)).unbind(2)
        return self.out(shards.to_tokens(attention(q, k, v, backend=backend)).flatten(2))


class CrossAttention(nn.Module):
    """Attention of a clip's tokens to its caption's, with RMS-normalised queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = Linear(width, width, bias=False)
        self.kv = Linear(width, 2 * width, bias=False)
        self.out = Linear(width, width, bias=False)
        self.q_norm = nn.Parameter(torch.ones(width // heads))
        self.k_norm = nn.Parameter(torch.ones(width // heads))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor, backend: str) -> Tensor:
        """x [batch, n_ctx, width] to the same shape, for context [batch, text_tokens, width] and mask bool
        [batch, text_tokens], true where a token is real."""
        q = _rms_norm(self.q(x).unflatten(-1, (self.heads, -1)), self.q_norm)
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).unbind(2)
        return self.out(attention(q, _rms_norm(k, self.k_norm), v, mask, backend).flatten(2))


class Block(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward: matrices of 4, 4 and 8 times width squared.

    The matrices have no biases: the modulation's shift serves on the way in.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attention = SelfAttention(width, heads)
        self.cross_attention = CrossAttention(width, heads)
        self.feed_forward = nn.Sequential(
            Linear(width, 4 * width, bias=False),
            nn.GELU(approximate="tanh"),
            Linear(4 * width, width, bias=False),
        )
        self.modulation = nn.Parameter(torch.zeros(6, width))

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        context: Tensor,
        mask: Tensor,
        rotary: tuple[Tensor, Tensor],
        backend: str,
        shards: SequenceShards | None = None,
        recompute: bool | str = False,
    ) -> Tensor:
        """One block.

        Args:
            x: [batch, n_ctx, width]; with ``shards``, it and ``rotary`` are those of this process's tokens.
            modulation: float32 [batch, 6, width], to which the block adds its own table: shift, scale and gate of
                self-attention, then of the feed-forward.
            context, mask: the embedded caption [batch, text_tokens, width], and bool, true where a token is real.
            rotary: of ``rotary_table``.
            backend: the attention kernel, as ``VideoDiT``'s.
            recompute: as ``VideoDiT.recompute``.

        Returns:
            [batch, n_ctx, width], in the dtype of ``x``.
        """
        inputs = (x, modulation, context, mask, rotary, backend, shards)
        if not recompute or not torch.is_grad_enabled():
            return self._forward(*inputs)
        # In here, so that the compiler sees it; without random numbers there is no state of theirs to keep.
        more = {"context_fn": KEEP_ATTENTION} if recompute == "selective" else {}
        return checkpoint(self._forward, *inputs, use_reentrant=False, preserve_rng_state=False, **more)

    def _forward(
        self,
        x: Tensor,
        modulation: Tensor,
        context: Tensor,
        mask: Tensor,
        rotary: tuple[Tensor, Tensor],
        backend: str,
        shards: SequenceShards | None,
    ) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (self.modulation + modulation)[:, :, None].unbind(1)
        update = self.self_attention(_modulate(x, shift_1, scale_1), rotary, backend, shards)
        x = x + (gate_1 * update).to(x.dtype)
        x = x + self.cross_attention(_normalise(x), context, mask, backend)
        update = self.feed_forward(_modulate(x, shift_2, scale_2))
        return x + (gate_2 * update).to(x.dtype)


class VideoDiT(nn.Module):
    """Predicts the diffusion target from noisy latents, the time and the text.

    adaLN-single (PixArt-alpha, arXiv 2310.00426): one shared MLP turns t into a modulation, to which each block adds
    its own learned table. Queries and keys are RMS-normalised and carry 3-D rotary positions.

    Args:
        config: the shape.
        seed: each parameter is drawn from (seed, its name) alone, independent of the other parameters.
        dtype: compute dtype of the blocks; parameters, time and modulation stay float32.
        backend: the attention kernel, as ``models.attention.choose_backend`` resolved it.
    """

    def __init__(
        self, config: DiTConfig, seed: int = 0, dtype: torch.dtype = torch.float32, backend: str = "sdpa"
    ) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.backend = backend
        # Each block's activations in the backward pass, instead of keeping them: True, or "selective", which keeps the
        # outputs of attention kernels.
        self.recompute: bool | str = False
        self.sequence_shards: SequenceShards | None = None  # None: this process computes all of a clip's tokens
        width = config.width
        self.patch_embedding = Linear(config.token_dim, width)
        self.text_embedding = nn.Sequential(
            Linear(config.text_dim, width), nn.GELU(approximate="tanh"), Linear(width, width)
        )
        self.time_embedding = nn.Sequential(
            Linear(TIMESTEP_FEATURES, width), nn.SiLU(), Linear(width, width), nn.SiLU()
        )
        self.modulation = Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.layers))
        self.final_modulation = Linear(width, 2 * width)
        self.final = Linear(width, config.token_dim)
        self.initialize_weights(seed)

    @torch.no_grad()
    def initialize_weights(self, seed: int) -> None:
        """Matrices normal with variance 1 / fan-in; gates, cross-attention's output and the final layer zero.

        Every block is therefore the identity at first, and the prediction is zero.
        """
        zero = (".bias", "modulation.weight", "final.weight", "cross_attention.out.weight")
        for name, parameter in self.named_parameters():
            if name.endswith(zero):
                parameter.zero_()
            elif name.endswith(".weight"):
                generator = torch.Generator().manual_seed(derive_seed(seed, name) & (1 << 63) - 1)
                draw = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(draw * parameter.shape[1] ** -0.5)
            # The other parameters keep their constructor's values: modulation tables zero, norms' weights one.

    def forward(self, x: Tensor, t: Tensor, context: Tensor, context_mask: Tensor) -> Tensor:
        """Predict the diffusion target.

        Args:
            x: noisy latents, float [batch, channels, frames, height, width], each side a multiple of the patch's.
            t: time, float [batch], 0 for data and 1 for noise.
            context: text embeddings, float [batch, text_tokens, text_dim].
            context_mask: bool [batch, text_tokens], true for real tokens, at least one per row.

        Returns:
            The prediction, float32, in the shape of ``x``.
        """
        patch = self.config.patch
        grid = (x.shape[2] // patch[0], x.shape[3] // patch[1], x.shape[4] // patch[2])
        rotary = rotary_table(grid, self.config.width // self.config.heads, x.device)
        time = self.time_embedding(timestep_features(t, TIMESTEP_FEATURES))
        modulation = self.modulation(time).unflatten(-1, (6, -1))
        context = self.text_embedding(context.to(self.dtype))
        tokens = patchify(x.to(self.dtype), patch)
        shards = self.sequence_shards
        if shards is not None:
            tokens, rotary = shards.cut(tokens, 1), (shards.cut(rotary[0], 0), shards.cut(rotary[1], 0))
        hidden = self.patch_embedding(tokens)
        for block in self.blocks:
            hidden = block(
                hidden,
                modulation,
                context,
                context_mask,
                rotary,
                self.backend,
                shards=shards,
                recompute=self.recompute,
            )
        shift, scale = self.final_modulation(time).unflatten(-1, (2, -1))[:, :, None].unbind(1)
        tokens = self.final(_modulate(hidden.float(), shift, scale))
        return unpatchify(tokens if shards is None else shards.join(tokens), patch, grid)
