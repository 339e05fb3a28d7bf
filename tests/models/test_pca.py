"""The linear baselines of an autoencoder."""

import torch

from videoscaling.data.sources.synthetic import render
from videoscaling.models.fidelity import psnr
from videoscaling.models.pca import components, pca_of_blocks, pca_of_clips, project


def test_components_are_those_of_svd():
    samples = torch.randn(40, 12, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 13)
    centred = samples - samples.mean(0)
    leading = torch.linalg.svd(centred, full_matrices=False)[2][:5]
    expected = centred @ leading.T @ leading + samples.mean(0)
    torch.testing.assert_close(project(samples, *components(samples, 5)), expected, atol=1e-3, rtol=0)
    # the other Gram matrix, where there are fewer samples than numbers
    wide = samples.T.contiguous()
    centred = wide - wide.mean(0)
    leading = torch.linalg.svd(centred, full_matrices=False)[2][:5]
    expected = centred @ leading.T @ leading + wide.mean(0)
    torch.testing.assert_close(project(wide, *components(wide, 5)), expected, atol=1e-3, rtol=0)


def test_components_of_few_repeated_samples_are_orthogonal():
    """A small folder of videos has fewer windows than the baseline is fitted on, and fewer than its numbers."""
    few = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    mean, found = components(few.repeat(4, 1), 16)
    torch.testing.assert_close(found @ found.T, torch.eye(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(project(few, mean, found), few, atol=1e-4, rtol=0)


def test_baselines_see_whole_clips():
    clips = render(torch.arange(40), 0)
    # one component fewer than clips span all they were fitted on
    torch.testing.assert_close(pca_of_clips(clips, clips, 39), clips, atol=1e-2, rtol=0)
    # a clip that is constant in each block needs one component per colour
    colours = torch.rand(60, 3, 5, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    frames = torch.tensor([0] + [1 + i // 4 for i in range(16)])
    flat = colours[:, :, frames].repeat_interleave(8, 3).repeat_interleave(8, 4)
    torch.testing.assert_close(pca_of_blocks(flat, flat, 16), flat, atol=1e-3, rtol=0)
    error = (pca_of_blocks(clips, clips, 16) - clips).pow(2).mean().item()
    assert 18 < psnr(error) < 30  # blocks put back in their places: anything else is near 11 dB
