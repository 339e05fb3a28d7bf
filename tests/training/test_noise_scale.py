"""The gradient noise scale: its estimate against a known one, and the gradients that it is taken from."""

import pytest
import torch
from torch import nn

from tests.training.test_step import trainer_of
from tests.training.test_trainer import metrics, run
from videoscaling.diffusion.loss import denoising_loss
from videoscaling.training.noise_scale import NoiseScale


def test_the_estimate_of_gaussian_gradients_is_their_noise_over_their_signal() -> None:
    """Clips' gradients of mean 0.5 and deviation 2 in each of 400 places: tr(S) / |G|^2 is 16 clips."""
    generator, scale = torch.Generator().manual_seed(0), NoiseScale(torch.device("cpu"))
    weight = nn.Parameter(torch.zeros(400))
    for _ in range(400):
        gradients = 0.5 + 2 * torch.randn(32, 400, generator=generator)
        weight.grad = gradients[:4].mean(0) * 4 / 32  # as a backward pass of a share of the batch's mean leaves it
        scale.add_micro_batch([weight], 4, 4 / 32)
        scale.add_step(gradients.mean(0).norm())
    # The sd of one estimate is 1.1 % at this number of gradients (measured over 20 seeds).
    assert scale.tokens(scale.small.item(), 32, 80) == pytest.approx(16 * 80, rel=0.04)
    scale.add_step(torch.tensor(torch.inf))  # a step that is not finite changes nothing
    assert scale.tokens(scale.small.item(), 32, 80) == pytest.approx(16 * 80, rel=0.04)
    scale.reset()
    assert scale.tokens(scale.small.item(), 32, 80) is None


def test_the_small_batch_is_the_first_micro_batch(cache, tmp_path) -> None:
    trainer = trainer_of(cache, tmp_path, "train.micro_batch=1", "optim.clip=1e9")
    samples = trainer.loader.batch(0)
    first = [value[:1] for value in samples]
    denoising_loss(trainer.model, trainer.process, *first).mean().backward()
    alone = sum(weight.grad.norm() ** 2 for weight in trainer.train_step.weights)
    trainer.train_step.zero_grad()
    trainer.train_step.run(samples, 0)
    scale = trainer.train_step.noise_scale
    assert scale.clips == 1
    assert scale.small.item() == pytest.approx(alone.item(), rel=1e-5)
    assert scale.large.item() == pytest.approx(trainer.train_step.grad_norm.item() ** 2, rel=1e-6)


def test_metrics_have_it_where_steps_have_several_micro_batches(cache, tmp_path) -> None:
    for name, key in (("several", "train.micro_batch=1"), ("one", "train.micro_batch=4")):
        run(cache, tmp_path, name, "train.tokens=1280", "log.every_steps=5", key)
    several, one = ([line["noise_scale"] for line in metrics(tmp_path / name)] for name in ("several", "one"))
    assert any(value is not None and value > 0 for value in several)
    assert set(one) == {None}
