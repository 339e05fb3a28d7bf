"""Every scheduler carries noise to the data's distribution when the model is perfect, for both families."""

import pytest
import torch
from torch import Tensor, nn

from diffusion.process import Process
from diffusion.sampling import build_scheduler, known_schedulers, sample, vp_betas
from utils.errors import UserError

MEAN, STD = 0.7, 0.3
SHAPE = (2, 1, 2, 2)
CASES = [
    (process, scheduler)
    for process in (
        Process(),
        Process("vp_linear", "eps"),
        Process("vp_cosine", "v"),
        Process("vp_linear", "x0"),
        Process("vp_zero_snr", "v"),
    )
    for scheduler in known_schedulers(process)
]


class Perfect(nn.Module):
    """The exact posterior mean for normal data of mean ``MEAN`` (times the context's first number) and ``STD``."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process

    def forward(self, x: Tensor, t: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        alpha, sigma = (c.view(-1, 1, 1, 1, 1) for c in self.process.coefficients(t))
        mean = MEAN * context[:, 0, 0].view(-1, 1, 1, 1, 1)
        variance = alpha**2 * STD**2 + sigma**2
        x0 = mean + alpha * STD**2 / variance * (x - alpha * mean)
        # The posterior mean of the noise, written without dividing by sigma.
        noise = sigma / variance * (x - alpha * mean)
        return self.process.target_of(x0, noise, t)


def draw(
    process: Process, scheduler: str, n: int = 256, first: int = 0, guidance: float = 1.0, steps: int = 60
) -> Tensor:
    context, mask = torch.ones(n, 1, 1), torch.ones(n, 1, dtype=torch.bool)
    null = torch.zeros(1, 1), torch.ones(1, dtype=torch.bool)
    seeds = torch.arange(first, first + n)
    return sample(Perfect(process), process, context, mask, null, SHAPE, seeds, steps, guidance, scheduler)


@pytest.mark.parametrize(
    ("process", "scheduler"), CASES, ids=lambda v: v if isinstance(v, str) else f"{v.name}-{v.target}"
)
def test_samples_have_the_datas_distribution(process: Process, scheduler: str) -> None:
    x = draw(process, scheduler)
    # 2048 numbers: the mean's standard error is 0.007; 60 steps discretise away a few per cent of the spread.
    assert x.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert x.std().item() == pytest.approx(STD, rel=0.08)


def test_a_video_depends_on_its_seed_and_not_on_the_batch() -> None:
    many, one = draw(Process(), "euler", n=5, steps=8), draw(Process(), "euler", n=1, first=3, steps=8)
    torch.testing.assert_close(many[3:4], one)
    assert not torch.equal(many[0], many[1])


def test_guidance_extrapolates_away_from_the_empty_prompt() -> None:
    # The empty prompt's data has mean 0: guidance 2 takes twice the difference between the predictions.
    plain, guided = (draw(Process(), "euler", guidance=g).mean().item() for g in (1.0, 2.0))
    assert guided > plain + 0.3


def test_betas_multiply_to_the_process() -> None:
    process = Process("vp_cosine", "v")
    alpha_squared = torch.cumprod(1 - torch.from_numpy(vp_betas(process)), 0)
    alpha, _ = process.coefficients(torch.arange(1, 1001) / 1000)
    torch.testing.assert_close(alpha_squared, alpha.double() ** 2, rtol=1e-4, atol=1e-9)


def test_schedulers_of_the_other_family_are_refused() -> None:
    with pytest.raises(UserError, match="one of euler, dpm"):
        build_scheduler(Process(), "ddim", 10, torch.device("cpu"))
    with pytest.raises(UserError, match="did you mean 'unipc'"):
        build_scheduler(Process("vp_cosine", "v"), "unipcc", 10, torch.device("cpu"))
