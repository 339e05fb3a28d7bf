"""Rank correlation of validation loss with a distance over models: does a lower loss make better videos, and down to
which loss?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from videoscaling.utils.errors import UserError, plural

DRAWS, COVERAGE = 2000, 0.95
MIN_MODELS = 8  # for an interval: of 6 models in a random order, one in 720 is sorted


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation of loss and distance over ``models`` whose losses lie from ``loss_low`` to
    ``loss_high``, with a bootstrap interval over models."""

    features: str
    models: int
    loss_low: float
    loss_high: float
    value: float
    low: float
    high: float


def rank_correlations(loss: Sequence[float], distance: Sequence[float], features: str) -> list[RankCorrelation]:
    """Over all models; over the lower and the upper half by loss; and over the most models, from the lowest loss up,
    whose interval is not above zero: up to this loss a lower one has not been shown to be better. That fewer of them
    have one above zero may be chance, as intervals are looked at until one is not.

    Raises:
        UserError: fewer than ``MIN_MODELS`` models.
    """
    if len(loss) < MIN_MODELS:
        raise UserError(
            f"a rank correlation of {plural(len(loss), 'model')} with a validation loss; it needs {MIN_MODELS}"
        )
    order = np.argsort(loss, kind="stable")
    x, y = np.asarray(loss, float)[order], np.asarray(distance, float)[order]

    def over(part: slice) -> RankCorrelation:
        value, low, high = spearman(x[part], y[part])
        span = {"loss_low": float(x[part][0]), "loss_high": float(x[part][-1])}
        return RankCorrelation(features, len(x[part]), **span, value=value, low=low, high=high)

    found = [over(slice(None))]
    half = len(x) // 2
    if half >= MIN_MODELS:
        found += [over(slice(half)), over(slice(half, None))]
    lowest = (over(slice(count)) for count in range(len(x), MIN_MODELS - 1, -1))
    flat = next((one for one in lowest if one.low <= 0), None)
    return found if flat is None else [*found, flat]


def spearman(x: NDArray, y: NDArray, seed: int = 0) -> tuple[float, float, float]:
    """Spearman's rank correlation (mean ranks of ties) and the ends of its bootstrap interval over pairs."""
    random = np.random.default_rng(seed)
    drawn = random.integers(len(x), size=(DRAWS, len(x)))
    values = _correlation(x[drawn], y[drawn])
    tail = (1 - COVERAGE) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(_correlation(x[None], y[None])[0]), float(low), float(high)


def _correlation(x: NDArray, y: NDArray) -> NDArray:
    """Of each row; NaN where one of the two is constant."""
    ranks = [rankdata(values, axis=1) for values in (x, y)]
    a, b = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
