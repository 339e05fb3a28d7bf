"""Rates, time constants and averages, counted in tokens."""

import re

import numpy as np
import pytest
import torch

from tests.models.test_dit import build
from videoscaling.training.config import load_config, run_id
from videoscaling.training.ema import decay, power_of_width, update_ema
from videoscaling.training.optim import build_optimizer, learning_rate, weight_groups
from videoscaling.training.run import Run, beta2_warnings, resolve
from videoscaling.training.schema import OptimKeys
from videoscaling.utils.errors import UserError


def beta2_of(keys: OptimKeys, batch: int) -> float:
    return build_optimizer(weight_groups(build()), keys, batch).param_groups[0]["betas"][1]


def test_beta2_looks_back_over_the_same_tokens_at_every_batch_within_its_range() -> None:
    keys = OptimKeys(beta2_half_life=10_000)
    for batch in (100, 1_000, 1_500):
        assert beta2_of(keys, batch) ** (10_000 / batch) == pytest.approx(0.5)
    # 2^(-B / half-life) is below 0.9 from 0.152 half-lives on, and above 0.9999 up to 1.44e-4 of them.
    assert [beta2_of(keys, batch) for batch in (1, 1_530, 5_000)] == [0.9999, 0.9, 0.9]
    free = OptimKeys(beta2_half_life=10_000, beta2_range=[0.0, 1.0])
    assert beta2_of(free, 5_000) == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("given", ["[0.9]", "[0.99,0.9]", "[1,1]", "[-0.1,0.9]", "[0.9,1.1]", "[nan,0.9]"])
def test_a_range_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(UserError, match="optim.beta2_range"):
        load_config(None, [f"optim.beta2_range={given}"])


def test_where_beta2_is_kept_in_its_range_it_is_said_and_makes_another_run() -> None:
    def run(batch: int, *more: str) -> Run:
        keys = [
            "model.size=2x32",
            f"train.batch_tokens={batch}",
            "train.tokens=1e6",
            "optim.beta2_half_life=1e5",
            *more,
        ]
        return resolve(load_config(None, keys), {"latent_shape": [4, 2, 4, 4], "fingerprint": "f00d"})

    def warnings(*runs: Run) -> list[str]:
        return beta2_warnings([(one.config.optim, one.config.train.batch_tokens) for one in runs])

    small, large = run(15_168), run(15_232)  # 0.9002 and 0.8998
    free = ["optim.beta2_range=[0,1]"]
    assert run_id(small.config) == run_id(run(15_168, *free).config)
    assert run_id(large.config) != run_id(run(15_232, *free).config)
    assert warnings(small, run(15_232, *free)) == []
    assert warnings(large) == [
        "beta2 is clamped to the minimum of optim.beta2_range, 0.9: at B 15,232 tokens optim.beta2_half_life=100000 "
        "asks for 0.899802; give at least 1.1e+05, or optim.beta2_range=[0,1]"
    ]
    both = warnings(small, large, run(32_000), run(32, "optim.beta2_half_life=1e7"))
    assert [text[:42] for text in both] == [
        "in 2 of 4 cells beta2 is clamped to the mi",
        "in 1 of 4 cells beta2 is clamped to the ma",
    ]
    assert "32,000" in both[0]
    assert both[1].endswith("asks for 0.999998; give at most 2.2e+05, or optim.beta2_range=[0,1]")
    fixes = [re.search(r"give at (?:least|most) ([\d.e+]+),", text)[1] for text in both]
    assert warnings(*(run(B, f"optim.beta2_half_life={given}") for B, given in zip((32_000, 32), fixes))) == []
    with pytest.raises(UserError, match="beta2 is 1 at B 32 tokens"):
        run(32, "optim.beta2_half_life=1e30", *free)


def test_weight_decay_is_for_matrices() -> None:
    model = build(layers=1)
    decayed, spared = build_optimizer(weight_groups(model), OptimKeys(weight_decay=0.1), 32).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    linear = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert {id(p) for p in decayed["params"]} == {id(p) for p in linear}
    assert {id(p) for p in spared["params"]} == {id(p) for p in model.parameters()} - {id(p) for p in linear}


def test_schedules() -> None:
    def rates(schedule: str, end: int = 10_000, batch: int = 100) -> np.ndarray:
        keys = OptimKeys(lr=1.0, schedule=schedule, warmup_tokens=1_000, decay_fraction=0.2)
        return np.array([learning_rate(keys, t + batch / 2, end) for t in range(0, end, batch)])

    constant, cosine, wsd = rates("constant"), rates("cosine"), rates("wsd")
    for curve in (constant, cosine, wsd):
        np.testing.assert_allclose(curve[:10], np.arange(0.05, 1, 0.1))
    assert (constant[10:] == 1).all()
    assert cosine[-1] < 0.001
    assert cosine[10:].mean() == pytest.approx(0.5, abs=0.01)
    assert (wsd[10:80] == 1).all()
    np.testing.assert_allclose(wsd[80:], np.arange(0.975, 0, -0.05))
    # Neither the run's end nor the batch moves a constant schedule's rates; the warm-up's mean is one half.
    assert (rates("constant", end=20_000)[:100] == constant).all()
    assert rates("constant", batch=500)[:2].mean() == pytest.approx(0.5)


def test_power_function_average_equals_its_definition() -> None:
    """The weights w(t) averaged with the profile t^gamma: the recursion against the sum."""
    power, batch, steps = power_of_width(0.05), 7, 400
    history = torch.randn(steps, 3, dtype=torch.float64)
    average = [torch.zeros(3, dtype=torch.float64)]
    for step in range(1, steps + 1):
        update_ema(average, [history[step - 1]], 1 - decay(power, batch, step * batch))
    kept = (1 - 1 / np.arange(1, steps + 1)) ** (power + 1)
    weight = (1 - kept) * np.append(np.cumprod(kept[::-1])[::-1][1:], 1)
    torch.testing.assert_close(average[0], torch.from_numpy(weight @ history.numpy()))
    # The profile's relative width is what was asked for, in the limit of many steps.
    centre = np.arange(1, steps + 1) / steps
    mean = weight @ centre
    assert np.sqrt(weight @ (centre - mean) ** 2) == pytest.approx(0.05, rel=0.02)


@pytest.mark.parametrize(("width", "power"), [(0.05, 16.97), (0.10, 6.94)])
def test_published_powers(width: float, power: float) -> None:
    assert power_of_width(width) == pytest.approx(power, abs=0.005)
