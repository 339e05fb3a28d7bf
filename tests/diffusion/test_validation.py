"""The frozen validation loss: the same number however it is computed."""

import functools

import numpy as np
import pytest
import torch

from tests.models.test_dit import build, trained
from videoscaling.diffusion.loss import denoising_loss, drop_captions
from videoscaling.diffusion.process import Process
from videoscaling.diffusion.timesteps import draw_timesteps
from videoscaling.diffusion.validation import summarise, validate_rows, validation_times
from videoscaling.utils.errors import UserError
from videoscaling.utils.random import normal

CLIPS, TIMES = 12, 4


def read(index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    context = normal(0, "context", index, (6, 16))
    return normal(0, "latents", index, (4, 2, 4, 4)), context, torch.ones(len(index), 6, dtype=torch.bool)


def score(batch: int = 8, **share):
    model = functools.partial(denoising_loss, trained(build()), Process())
    (result,) = validate_rows(
        score=model,
        rows=1,
        read=read,
        clips=CLIPS,
        per_clip=TIMES,
        seed=0,
        batch=batch,
        device=torch.device("cpu"),
        **share,
    )
    return result


def test_batch_and_sharing_do_not_matter() -> None:
    whole = score(16)
    np.testing.assert_allclose(score(1).losses, whole.losses, rtol=1e-5)  # kernels sum in another order
    parts = []
    for rank in range(3):
        score(8, gather=lambda losses: parts.append(losses) or losses, rank=rank, world=3)
    shared = summarise(sum(parts).reshape(CLIPS, TIMES), validation_times(CLIPS, TIMES, 0))
    assert shared.loss == pytest.approx(whole.loss, rel=1e-6)
    assert shared.standard_error == pytest.approx(whole.standard_error, rel=1e-5)


def test_more_processes_than_samples_make_the_same_passes() -> None:
    parts, sizes = [], []

    def losses(x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x0))
        return t + x0.mean((1, 2, 3, 4))

    def of(**share):
        return validate_rows(
            score=losses,
            rows=1,
            read=read,
            clips=CLIPS,
            per_clip=2,
            seed=0,
            batch=3,
            device=torch.device("cpu"),
            scored_clips=2,
            **share,
        )[0]

    whole = of()
    sizes.clear()
    for rank in range(7):  # of four samples
        of(gather=lambda losses: parts.append(losses) or losses, rank=rank, world=7)
    assert sizes == [3] * 7  # a sharded model needs every process for each pass
    np.testing.assert_allclose(sum(parts).reshape(2, 2), whole.losses, rtol=1e-6)


def test_times_are_stratified_per_clip_and_across_the_set() -> None:
    times = validation_times(CLIPS, TIMES, 3)
    assert torch.equal((times * TIMES).long(), torch.arange(TIMES).expand(CLIPS, TIMES))
    assert torch.equal((times.flatten() * CLIPS * TIMES).long().sort().values, torch.arange(CLIPS * TIMES))
    assert not torch.equal(times, validation_times(CLIPS, TIMES, 4))


def test_standard_error_is_clustered_by_clip() -> None:
    # Clips that differ, times that do not: only the clips count, not the clips times K samples.
    losses = torch.arange(CLIPS, dtype=torch.float64)[:, None].expand(CLIPS, TIMES)
    result = summarise(losses, validation_times(CLIPS, TIMES, 0))
    assert result.standard_error == pytest.approx(np.arange(CLIPS).std(ddof=1) / CLIPS**0.5)
    assert result.loss == pytest.approx((CLIPS - 1) / 2)


def test_bins_average_to_the_loss() -> None:
    times = validation_times(100, 10, 0)  # as many strata as bins: every bin has as many samples
    result = summarise(times.double(), times)
    assert np.mean(result.bins) == pytest.approx(result.loss)
    assert result.bins[0] == pytest.approx(0.05, abs=0.005)


def test_training_times() -> None:
    index = torch.arange(4000)
    uniform = draw_timesteps(index, 0, "uniform")
    logit_normal = draw_timesteps(index, 0, "logit_normal", 0.5, 2.0)
    assert 0 < uniform.min() < 0.01 < 0.99 < uniform.max() < 1
    logit = torch.logit(logit_normal.double())
    assert logit.mean() == pytest.approx(0.5, abs=0.1)  # three standard errors
    assert logit.std() == pytest.approx(2.0, abs=0.1)
    with pytest.raises(UserError, match="did you mean 'uniform'"):
        draw_timesteps(index, 0, "unifrom")


def test_caption_dropout_is_per_sample_and_at_its_rate() -> None:
    index = torch.arange(2000)
    context, mask = torch.ones(2000, 3, 2), torch.ones(2000, 3, dtype=torch.bool)
    null = torch.zeros(3, 2), torch.tensor([True, False, False])
    dropped, masks = drop_captions(context, mask, null, index, 0, 0.1)
    gone = dropped[:, 0, 0] == 0
    assert gone.float().mean() == pytest.approx(0.1, abs=0.02)  # three standard errors
    assert torch.equal(masks[gone], null[1].expand(int(gone.sum()), 3))
    assert masks[~gone].all()
    again, _ = drop_captions(context[5:9], mask[5:9], null, index[5:9], 0, 0.1)
    assert torch.equal(again, dropped[5:9])
