"""The gradient noise scale: its estimate against a known one, and the gradients that it is taken from."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.training.test_step import trainer_of
from tests.training.test_trainer import metrics, overrides, run
from videoscaling.diffusion.loss import denoising_loss
from videoscaling.scaling.runs import read
from videoscaling.training.config import load_config
from videoscaling.training.noise_scale import NoiseScale
from videoscaling.training.stacked.loop import train_stacked
from videoscaling.utils.results import read_result


def planted(decays: list[float], clips: int = 4) -> NoiseScale:
    """The averages after clips' gradients of mean 0.5 and deviation 2 in each of 400 places: tr(S) / |G|^2 is 16."""
    generator, scale = torch.Generator().manual_seed(0), NoiseScale(torch.device("cpu"))
    weight = nn.Parameter(torch.zeros(400))
    for decay in decays:
        gradients = 0.5 + 2 * torch.randn(32, 400, generator=generator)
        weight.grad = gradients[:clips].mean(0) * clips / 32  # as a backward pass of a share of the batch leaves it
        scale.add_micro_batch([weight], clips, 32)
        scale.add_step(gradients.mean(0).norm(), decay)
    return scale


def test_the_estimate_of_gaussian_gradients_is_their_noise_over_their_signal() -> None:
    scale = planted([1 - 1 / (step + 1) for step in range(400)])
    # The sd of one estimate is 1.1 % at this number of gradients (measured over 20 seeds).
    assert scale.tokens(80) == pytest.approx(16 * 80, rel=0.04)
    scale.add_micro_batch([nn.Parameter(torch.zeros(400))], 32, 32)  # one micro-batch: its step has no estimate
    scale.add_step(torch.tensor(1.0), 0.0)
    assert scale.tokens(80) is None
    assert NoiseScale(torch.device("cpu")).tokens(80) is None


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    scale = planted([0.0])
    before = scale.averages.clone()
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.full((2,), torch.inf)
    scale.add_micro_batch([weight], 4, 32)
    scale.add_step(torch.tensor(torch.inf), 0.5)
    assert torch.equal(scale.averages, before)


def test_the_small_batch_is_the_first_micro_batch(cache, tmp_path) -> None:
    trainer = trainer_of(cache, tmp_path, "train.micro_batch=1", "optim.clip=1e9")
    samples = trainer.loader.batch(0)
    first = [value[:1] for value in samples]
    denoising_loss(trainer.model, trainer.process, *first).mean().backward()
    small = sum(weight.grad.norm() ** 2 for weight in trainer.train_step.weights).item()
    trainer.train_step.zero_grad()
    trainer.train_step.run(samples, 0)
    large, clips = trainer.train_step.grad_norm.item() ** 2, len(samples.t)
    signal, noise = trainer.train_step.noise_scale.averages.tolist()
    # What Appendix A.1 expects of both squared norms.
    assert signal + noise == pytest.approx(small, rel=1e-5)
    assert signal + noise / clips == pytest.approx(large, rel=1e-5)


def test_results_have_it_where_steps_have_several_micro_batches(cache, tmp_path) -> None:
    for name, key in (("several", "train.micro_batch=1"), ("one", "train.micro_batch=4")):
        run(cache, tmp_path, name, "train.tokens=1280", "log.every_steps=1", key)
    several, one = ([line["noise_scale"] for line in metrics(tmp_path / name)] for name in ("several", "one"))
    assert set(one) == {None}
    milestones = [read_result(tmp_path / name / "result.json")["milestones"][-1] for name in ("several", "one")]
    assert milestones[0]["noise_scale"] == several[-1] > 0
    assert "noise_scale" not in milestones[1]
    assert read(tmp_path / "several").noise_scale[-1] == several[-1]
    assert np.isnan(read(tmp_path / "one").noise_scale[-1])


def test_a_resumed_run_continues_its_averages(cache, tmp_path) -> None:
    keys = ("train.micro_batch=1", "optim.schedule=constant")
    run(cache, tmp_path, "whole", "train.tokens=1280", "train.milestones=[640]", *keys)
    run(cache, tmp_path, "resumed", "train.tokens=640", *keys)
    run(cache, tmp_path, "resumed", "train.tokens=1280", *keys)
    whole, resumed = (read(tmp_path / name).noise_scale for name in ("whole", "resumed"))
    assert whole.tolist() == resumed.tolist()
    assert np.isfinite(whole).all()


@pytest.mark.parametrize("stacked", [False, True])
def test_a_run_that_continues_without_it_reports_none(cache, tmp_path, stacked) -> None:
    keys = ("optim.schedule=constant", "log.every_steps=1")
    run(cache, tmp_path, "x", "train.tokens=640", "train.micro_batch=1", *keys)
    longer = overrides(cache, tmp_path, "x", "train.tokens=1280", "train.micro_batch=1", *keys)
    if stacked:
        other = overrides(
            cache, tmp_path, "y", "train.tokens=1280", "train.micro_batch=1", "seed=1", "train.milestones=[640]", *keys
        )
        assert train_stacked([load_config(None, words) for words in (longer, other)]) == 0
    else:
        run(cache, tmp_path, "x", "train.tokens=1280", "train.micro_batch=4", *keys)
    assert np.isfinite(read(tmp_path / "x").noise_scale).tolist() == [True, False]
