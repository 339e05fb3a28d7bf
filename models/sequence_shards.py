"""Sequence shards: a clip's tokens over several processes, which divide the heads where all tokens attend to all.

DeepSpeed-Ulysses (arXiv 2309.14509). A process has an equal run of every clip's tokens. Around self-attention,
queries, keys and values go to processes that hold all tokens of an equal part of the heads, and the outputs come back.
In bfloat16 a process sends 8 bytes for each of its tokens and unit of width in a block's forward pass, however many
processes there are. The exchanges are differentiable. So the mean of the gradients over all processes, each of which
computes the whole loss of its clips, is the gradient of the batch.
"""

import torch.distributed as dist
from einops import rearrange, repeat
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single_autograd


class SequenceShards:
    """This process's run of the tokens, among those of ``group``.

    Attributes:
        size: processes, which must divide a clip's tokens and the heads.
        rank: which of the runs is this process's.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.size, self.rank = group.size(), group.rank()
        self._group = group.group_name  # a string, which the compiler takes as a constant

    def cut(self, tokens: Tensor, dim: int) -> Tensor:
        """This process's run of all ``tokens``, which lie along ``dim``."""
        return tokens.chunk(self.size, dim)[self.rank]

    def join(self, tokens: Tensor) -> Tensor:
        """[batch, n_ctx / size, any] of each process to [batch, n_ctx, any] on all."""
        # As an exchange of copies: torch 2.11 and 2.14 name the differentiable gather differently.
        parts = self._exchange(repeat(tokens, "b s c -> n b s c", n=self.size))
        return rearrange(parts, "n b s c -> b (n s) c")

    def to_heads(self, x: Tensor) -> Tensor:
        """[batch, n_ctx / size, any, heads, head_dim] to [batch, n_ctx, any, heads / size, head_dim]."""
        parts = self._exchange(rearrange(x, "b s k (n h) d -> n b s k h d", n=self.size))
        return rearrange(parts, "n b s k h d -> b (n s) k h d")

    def to_tokens(self, x: Tensor) -> Tensor:
        """[batch, n_ctx, heads / size, head_dim] to [batch, n_ctx / size, heads, head_dim]."""
        parts = self._exchange(rearrange(x, "b (n s) h d -> n b s h d", n=self.size))
        return rearrange(parts, "n b s h d -> b s (n h) d")

    def _exchange(self, parts: Tensor) -> Tensor:
        """Part i of each process to process i.

        A functional collective: torch.compile gives one into a given tensor no gradient (DeepSpeed pull request 8491).
        """
        return all_to_all_single_autograd(parts.contiguous(), None, None, self._group)
