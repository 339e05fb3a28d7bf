"""Forward processes and targets, as identities."""

import itertools

import pytest
import torch

from videoscaling.diffusion.process import PROCESSES, TARGETS, Process
from videoscaling.utils.errors import UserError

VALID = [
    (name, target)
    for name, target in itertools.product(PROCESSES, TARGETS)
    if (name == "rectified_flow") == (target == "flow") and (name, target) != ("vp_zero_snr", "eps")
]
X0, NOISE = torch.randn(2, 6, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.05, 0.2, 0.4, 0.6, 0.8, 0.95])


@pytest.mark.parametrize(("name", "target"), VALID)
def test_x0_follows_from_a_perfect_prediction(name: str, target: str) -> None:
    process = Process(name, target)
    x_t, truth = process.add_noise(X0, NOISE, T), process.target_of(X0, NOISE, T)
    alpha, sigma = (c[:, None, None, None, None] for c in process.coefficients(T))
    x0 = {
        "flow": x_t - sigma * truth,  # the straight path followed back from t to 0
        "eps": (x_t - sigma * truth) / alpha,
        "v": alpha * x_t - sigma * truth,  # arXiv 2202.00512, appendix D
        "x0": truth,
    }[target]
    # eps is divided by alpha, as small as 7e-3 at t = 0.95: float32's 6e-8 grows to 1e-4.
    torch.testing.assert_close(x0, X0, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", PROCESSES)
def test_ends_and_monotony(name: str) -> None:
    process = Process(name, "flow" if name == "rectified_flow" else "v")
    alpha, sigma = process.coefficients(torch.linspace(0, 1, 101))
    assert alpha[0] == pytest.approx(1)
    assert sigma[0] == pytest.approx(0, abs=1e-6)
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() >= 0).all()
    assert sigma[-1] > 0.999
    if name != "rectified_flow":
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(101))
    if name == "vp_zero_snr":
        assert alpha[-1] < 1e-3 < Process("vp_linear", "v").coefficients(torch.ones(1))[0]


def test_linear_is_ddpms_schedule_in_the_limit() -> None:
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha = torch.cumprod(1 - betas, 0).sqrt()
    ours, _ = Process("vp_linear", "eps").coefficients(torch.arange(1, 1001) / 1000)
    torch.testing.assert_close(ours.double()[:800], alpha[:800], rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("rectified_flwo", "flow", "did you mean 'rectified_flow'"),
        ("rectified_flow", "eps", "predicts flow"),
        ("vp_cosine", "flow", "predicts eps, v or x0"),
        ("vp_zero_snr", "eps", "SNR is zero"),
    ],
)
def test_impossible_pairs_are_refused(name: str, target: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Process(name, target)
