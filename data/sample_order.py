"""Sample order: a stateless permutation, a function of (seed, position) alone."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from videoscaling.utils.random import bits, derive_seed

ROUNDS = 4
MIXED = 1000  # clips, or steps, of a mixture among which each cache, or shape, has exactly its share
BLOCK = 4096  # positions worked out together: a small batch would spend longer calling the hash than hashing


def sample_index(position: Tensor, size: int, seed: int) -> Tensor:
    """The sample at each position of the training stream: int64 [n] in [0, size), for position int64 [n].

    Positions count clips from the start of training, over all processes. Every epoch of ``size`` positions visits
    each sample once, in an order of its own.
    """
    block = position // BLOCK
    index = torch.empty_like(position)
    for number in block.unique().tolist():
        here = block == number
        index[here] = _block(number, size, seed)[position[here] - number * BLOCK]
    return index


@functools.lru_cache(maxsize=32)  # a mixture uses two blocks of each cache
def _block(number: int, size: int, seed: int) -> Tensor:
    return permuted(torch.arange(number * BLOCK, (number + 1) * BLOCK), size, seed)


def permuted(position: Tensor, size: int, seed: int) -> Tensor:
    """``sample_index``, worked out afresh.

    The permutation is a Feistel network on the smallest even number of bits that holds ``size``, walked until it
    falls inside (a cycle of a permutation always returns), so that it costs the same at position 10 and at 10 billion
    and no list of indices is kept.
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    epoch = position // size
    keys = [bits(seed, f"order {round_}", epoch, 1)[:, 0] for round_ in range(ROUNDS)]

    def permute(x: Tensor) -> Tensor:
        left, right = x >> half, x & mask
        for round_, key in enumerate(keys):
            word = bits(seed, f"order round {round_}", right ^ key, 1)[:, 0]
            left, right = right, left ^ (word & mask)
        return (left << half) | right

    index = permute(position % size)
    while bool((outside := index >= size).any()):
        index = torch.where(outside, permute(index), index)
    return index


def mixed_index(position: Tensor, sizes: Sequence[int], counts: Sequence[int], seed: int) -> Tensor:
    """The sample at each position of a stream mixed from several sets, which are numbered one after the other.

    Every ``MIXED`` positions, from the first, hold ``counts[i]`` samples of set i, shuffled; each set is gone through
    in its own ``sample_index``, so that all of its samples are seen before one is seen again.

    Args:
        position: int64 [n].
        sizes: samples in each set.
        counts: how many of each set there are in ``MIXED`` positions; they add up to it.

    Returns:
        int64 [n] in [0, sum(sizes)).
    """
    slot = sample_index(position, MIXED, derive_seed(seed, "mixture"))
    index, before, first = torch.empty_like(position), 0, 0
    for number, (size, count) in enumerate(zip(sizes, counts)):
        here = (slot >= before) & (slot < before + count)
        within = position[here] // MIXED * count + slot[here] - before
        index[here] = first + sample_index(within, size, derive_seed(seed, "mixture", number))
        before, first = before + count, first + size
    return index


def steps_by_set(steps: int, counts: Sequence[int], seed: int) -> list[int]:
    """How many of the first ``steps`` steps of a run take each set, where every step takes one.

    Every ``MIXED`` steps, from the first, hold ``counts[i]`` steps of set i, shuffled; the counts add up to it.
    """
    blocks, rest = divmod(steps, MIXED)
    return [blocks * count + more for count, more in zip(counts, _taken(blocks, tuple(counts), seed)[rest])]


@functools.lru_cache(maxsize=8)  # a step is looked up several times
def _taken(block: int, counts: tuple[int, ...], seed: int) -> list[list[int]]:
    """How many steps of a block of ``MIXED`` take each set before its steps 0, 1, ... ``MIXED``."""
    slot = sample_index(torch.arange(block * MIXED, (block + 1) * MIXED), MIXED, derive_seed(seed, "shapes"))
    which = torch.searchsorted(torch.tensor(counts).cumsum(0), slot, right=True)
    taken = torch.nn.functional.one_hot(which, len(counts)).cumsum(0)
    return [[0] * len(counts), *taken.tolist()]
