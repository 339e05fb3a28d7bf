"""The stateless order: every epoch a permutation, and a position means the same however it is asked for."""

import pytest
import torch

from videoscaling.data.sample_order import BLOCK, permuted, sample_index


@pytest.mark.parametrize("size", [1, 2, 5, 96, 1000, 5000])
def test_each_epoch_visits_every_sample_once(size: int) -> None:
    for epoch in range(3):
        position = torch.arange(epoch * size, (epoch + 1) * size)
        assert torch.equal(sample_index(position, size, 0).sort().values, torch.arange(size))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first, second = (sample_index(torch.arange(e * 500, (e + 1) * 500), 500, 0) for e in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first, sample_index(torch.arange(500), 500, 1))
    assert not torch.equal(first, torch.arange(500))


def test_blocks_and_direct_computation_agree() -> None:
    position = torch.tensor([0, BLOCK - 1, BLOCK, 10 * BLOCK + 17, 10**12])
    assert torch.equal(sample_index(position, 777, 4), permuted(position, 777, 4))


def test_order_is_not_serially_correlated() -> None:
    index = sample_index(torch.arange(4000), 4000, 0).double()
    correlation = torch.corrcoef(torch.stack((index[:-1], index[1:])))[0, 1]
    assert abs(correlation) < 4 / 4000**0.5  # four standard errors
