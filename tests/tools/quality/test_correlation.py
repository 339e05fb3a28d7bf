"""Rank correlations of loss and distance: scipy's, with the loss down to which they are shown to rise together."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from videoscaling.tools.quality.correlation import MIN_MODELS, rank_correlations, spearman
from videoscaling.utils.errors import UserError


def test_it_is_spearmans_with_ties() -> None:
    random = np.random.default_rng(0)
    x = random.integers(0, 6, 30).astype(float)
    y = x + random.normal(size=30)
    value, low, high = spearman(x, y)
    assert value == pytest.approx(spearmanr(x, y).statistic, rel=1e-12)
    assert low < value < high
    assert low > 0


def test_its_interval_has_zero_where_nothing_is_related() -> None:
    random = np.random.default_rng(1)
    missed = 0
    for _ in range(100):
        _, low, high = spearman(random.normal(size=20), random.normal(size=20))
        missed += not low <= 0 <= high
    assert missed <= 12


def test_the_loss_below_which_it_stops_to_matter_is_found() -> None:
    """Distances fall with the loss down to 0.9, and are noise below."""
    random = np.random.default_rng(2)
    loss = np.linspace(0.8, 1.2, 40)
    distance = np.maximum(loss, 0.9) + 0.01 * random.normal(size=40)
    every, lower, upper, flat = rank_correlations(list(loss), list(distance), "x")
    assert (every.models, lower.models, upper.models) == (40, 20, 20)
    assert (every.loss_low, every.loss_high) == (0.8, 1.2)
    assert every.low > 0.5
    assert upper.low > 0.5
    assert 0.85 < flat.loss_high < 0.98
    assert flat.low <= 0
    # Where distances follow the loss everywhere, no such part is reported.
    assert len(rank_correlations(list(loss), list(loss), "x")) == 3


def test_a_lucky_order_of_the_lowest_losses_does_not_end_the_search() -> None:
    """Eight distances in the order of their losses, then noise, then a rise: the first 20 say nothing together."""
    random = np.random.default_rng(0)
    distance = np.concatenate([0.8 + 0.01 * np.arange(8), 0.7 + 0.01 * random.permutation(12), 1 + np.arange(20)])
    loss = np.linspace(0.8, 1.2, 40)
    assert spearman(loss[:8], distance[:8])[1] > 0
    *_, flat = rank_correlations(list(loss), list(distance), "x")
    assert 20 <= flat.models < 35
    assert flat.low <= 0


def test_few_models_are_refused() -> None:
    with pytest.raises(UserError, match=f"3 models .* needs {MIN_MODELS}"):
        rank_correlations([1, 2, 3], [1, 2, 3], "x")
