"""The counter-based generator: a function of its arguments, and random."""

import numpy as np
import torch

from videoscaling.utils.random import bits, derive_seed, normal, uniform


def splitmix64(state: int) -> int:
    """The reference finaliser in Python's unbounded integers."""
    mask = (1 << 64) - 1
    z = state & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_words_equal_the_reference_in_unbounded_integers() -> None:
    golden, start = 0x9E3779B97F4A7C15, derive_seed(3, "x")
    for index in (0, 1, 12_345, 2**40):
        state = splitmix64(index * golden + start)
        wanted = [splitmix64(state + c * golden) for c in (1, 2, 3)]
        got = bits(3, "x", torch.tensor([index]), 3)[0].tolist()
        assert [word % (1 << 64) for word in got] == wanted


def test_a_seed_is_a_number_whoever_made_it() -> None:
    plain = derive_seed(3, "lr", 1e-3, 64)
    assert derive_seed(np.int64(3), "lr", np.float64(1e-3), np.int32(64)) == plain  # repr: "np.int64(3)", or "3" once
    assert derive_seed(torch.tensor(3), "lr", 1e-3, torch.tensor(64)) == plain
    index = torch.arange(3)
    assert torch.equal(uniform(np.int64(7), "t", index), uniform(7, "t", index))


def test_a_sample_does_not_know_its_batch() -> None:
    index = torch.tensor([7, 3, 100])
    alone = normal(1, "noise", torch.tensor([3]), (2, 5))
    assert torch.equal(normal(1, "noise", index, (2, 5))[1], alone[0])


def test_distributions() -> None:
    from scipy import stats  # one second, in the one process that runs this test

    index = torch.arange(2000)
    u, z = uniform(0, "u", index, 10).flatten().numpy(), normal(0, "z", index, (11,)).flatten().numpy()
    # Seeds are fixed, so this cannot flake; p-values this small would mean a broken generator.
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert stats.kstest(z, "norm").pvalue > 1e-3
    assert u.min() > 0
    assert u.max() < 1


def test_streams_seeds_and_samples_are_uncorrelated() -> None:
    index = torch.arange(20_000)
    draws = np.stack(
        [
            normal(seed, stream, index + shift, (1,))[:, 0].numpy()
            for seed, stream, shift in ((0, "a", 0), (0, "b", 0), (1, "a", 0), (0, "a", 1))
        ]
    )
    correlation = np.corrcoef(draws) - np.eye(4)
    assert np.abs(correlation).max() < 4 / np.sqrt(20_000)  # four standard errors
