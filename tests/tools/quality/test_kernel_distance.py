"""The kernel distance against brute force, a closed form, and its own promises: unbiased, with honest intervals."""

import itertools

import numpy as np
import pytest
import torch

from videoscaling.tools.quality.kernel_distance import (
    MIN_CLIPS,
    kernel_distance,
    mean_kernel,
    relative_change,
    squared_mmd,
)
from videoscaling.utils.errors import UserError
from videoscaling.utils.finiteness import NotFinite


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def brute_force(x: np.ndarray, y: np.ndarray) -> float:
    """The estimator by its definition, pair by pair, for clips [n, vectors, width]."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([(u @ v / len(u) + 1) ** 3 for u in a for v in b]))

    within = [np.mean([kernel(a, b) for a, b in itertools.permutations(z, 2)]) for z in (x, y)]
    return sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y])


def test_it_is_the_double_sum() -> None:
    x, y = normal(11, 3, 5), 0.7 * normal(13, 2, 5, seed=1) + 0.2
    assert kernel_distance(x, y).value == pytest.approx(brute_force(x.double().numpy(), y.double().numpy()), rel=1e-9)


def test_resampled_clips_are_not_compared_with_themselves() -> None:
    """Weights are clips that occur more than once, without the pairs of a clip and its own copy."""
    x, y = normal(5, 1, 4), normal(4, 1, 4, seed=1)
    often = torch.tensor([[2.0, 0.0, 1.0, 1.0, 1.0]]).double()
    found = squared_mmd(mean_kernel(x, x), mean_kernel(y, y), mean_kernel(x, y), often, torch.ones(1, 4).double())
    drawn = [0, 0, 2, 3, 4]
    pairs = [(i, j) for i, j in itertools.permutations(range(5), 2) if drawn[i] != drawn[j]]
    kernel, between = mean_kernel(x, x), mean_kernel(x, y)
    within_y = [mean_kernel(y, y)[i, j] for i, j in itertools.permutations(range(4), 2)]
    wanted = (
        np.mean([kernel[drawn[i], drawn[j]] for i, j in pairs])
        + np.mean(within_y)
        - 2 * np.mean([between[i, j] for i in drawn for j in range(4)])
    )
    assert found.item() == pytest.approx(wanted, rel=1e-9)


def squared_mmd_of_gaussians(width: int, shift: float) -> float:
    """Between N(0, I) and N(shift, I) in each coordinate. The kernel (a.b / d + 1)^3 has by its terms
    1 + 3 m + 3 (m^2 + v) + (m^3 + 3 m s + c), where a.b / d has these moments; differences of independent x and y
    leave the mean's part of each term."""
    d, m = width, shift

    # E (a.b/d + 1)^3 for a ~ N(p, I), b ~ N(q, I): moments of a.b, by the cumulants 1 to 3 of a sum over coordinates.
    def expected(p: float, q: float) -> float:
        first = p * q
        second = (1 + p * p) * (1 + q * q)
        third = (p**3 + 3 * p) * (q**3 + 3 * q)
        k1, k2 = d * first, d * (second - first**2)
        k3 = d * (third - 3 * second * first + 2 * first**3)
        moments = k1, k2 + k1**2, k3 + 3 * k1 * k2 + k1**3
        return 1 + 3 * moments[0] / d + 3 * moments[1] / d**2 + moments[2] / d**3

    return expected(0, 0) + expected(m, m) - 2 * expected(0, m)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_it_is_unbiased_and_its_interval_covers(shift: float) -> None:
    """Over 300 draws of 12 against 15 clips in 6 dimensions."""
    exact = squared_mmd_of_gaussians(6, shift)
    assert (exact > 0.5) if shift else exact == 0
    found = [
        kernel_distance(normal(12, 1, 6, seed=2 * seed), normal(15, 1, 6, seed=2 * seed + 1) + shift)
        for seed in range(300)
    ]
    values = np.array([one.value for one in found])
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean() - exact) < 3 * error
    assert values.min() < 0 or shift
    assert np.mean([one.low <= exact <= one.high for one in found]) > 0.9


def test_all_frames_of_a_clip_count_once() -> None:
    """Copies of a frame add nothing, so a clip of many frames is no more certain than one of a single frame."""
    x, y = normal(12, 1, 4), normal(12, 1, 4, seed=1) + 0.5
    one, many = kernel_distance(x, y), kernel_distance(x.expand(-1, 9, -1), y)
    assert (many.value, many.low, many.high) == pytest.approx((one.value, one.low, one.high), rel=1e-9)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UserError, match="4 and of 5 numbers"):
        kernel_distance(normal(12, 1, 4), normal(12, 1, 5))
    with pytest.raises(UserError, match=f"9 clips; .* needs {MIN_CLIPS} on each side"):
        kernel_distance(normal(12, 1, 4), normal(9, 1, 4))
    with pytest.raises(NotFinite):
        kernel_distance(normal(12, 1, 4), normal(12, 1, 4) / 0)


def test_relative_change_is_of_the_median_clip() -> None:
    x = normal(5, 2, 4)
    factors = torch.tensor([1.0, 1.1, 1.2, 2.0, 9.0]).view(5, 1, 1)
    assert relative_change(x, factors * x) == pytest.approx(0.2, rel=1e-5)
