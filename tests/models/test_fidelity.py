import math

import pytest
import torch

from videoscaling.data.sources.synthetic import render
from videoscaling.models.fidelity import psnr, squared_errors, ssim


def test_psnr():
    clips = torch.zeros(2, 3, 1, 16, 16)
    errors = squared_errors(clips, clips + torch.tensor([0.02, 0.2]).view(2, 1, 1, 1, 1))
    assert [psnr(error) for error in errors.tolist()] == pytest.approx([40, 20], abs=1e-5)  # 2 over 0.02, 0.2
    assert psnr(0.0) == math.inf


def test_ssim_of_what_can_be_worked_out():
    clips = render(torch.arange(2), 0, frames=3, height=24, width=16)
    torch.testing.assert_close(ssim(clips, clips), torch.ones(2, dtype=torch.float64))
    # Without structure only the means' factor is left: (2ab + c1) / (a^2 + b^2 + c1), c1 = 0.02^2.
    grey = torch.ones(1, 3, 2, 16, 16)
    expected = (2 * 0.5 * 0.25 + 0.0004) / (0.25 + 0.0625 + 0.0004)
    assert ssim(0.5 * grey, 0.25 * grey).item() == pytest.approx(expected, rel=1e-6)
    # By hand, at one place: the window's weights on one 11 x 11 picture.
    a, b = (torch.rand(11, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    weight = torch.tensor([math.exp(-(((i - 5) ** 2) + (j - 5) ** 2) / 4.5) for i in range(11) for j in range(11)])
    weight = (weight.double() / weight.double().sum()).view(11, 11)
    mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
    variances = (weight * (a - mean_a) ** 2).sum() + (weight * (b - mean_b) ** 2).sum()
    covariance = (weight * (a - mean_a) * (b - mean_b)).sum()
    value = (2 * mean_a * mean_b + 0.0004) * (2 * covariance + 0.0036)
    value = value / ((mean_a**2 + mean_b**2 + 0.0004) * (variances + 0.0036))
    pictures = [x.expand(1, 3, 2, 11, 11) for x in (a, b)]
    torch.testing.assert_close(ssim(*pictures), value[None])


def test_ssim_and_psnr_fall_with_noise():
    clips = render(torch.arange(4), 0)
    noise = torch.randn(clips.shape, generator=torch.Generator().manual_seed(0))
    similar = [ssim(clips, clips + size * noise).mean().item() for size in (0.01, 0.1, 0.5)]
    assert similar == sorted(similar, reverse=True)
    assert similar[0] > 0.9 > similar[2]
