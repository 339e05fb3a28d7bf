"""Every scheduler carries noise to the data's distribution when the model is exact, at every number of steps."""

import math

import pytest
import torch
from torch import Tensor, nn

from tests.diffusion.mixture import CLIPS, MEANS, PROCESSES, STDS, WEIGHTS, Mixture, draw, error_bound, statistics
from videoscaling.diffusion.process import Process
from videoscaling.diffusion.sampler_options import MAX_STEPS, SamplerOptions
from videoscaling.diffusion.sampling import (
    _guided,
    build_scheduler,
    known_schedulers,
    sample,
)
from videoscaling.utils.errors import UserError
from videoscaling.utils.finiteness import NotFinite

CPU = torch.device("cpu")
SHAPE = (2, 1, 2, 2)
FLOW, ZERO_SNR = Process(), Process("vp_zero_snr", "v")
PAIRS = [(process, scheduler) for process in PROCESSES for scheduler in known_schedulers(process)]


def combinations() -> list[object]:
    """All of them at few steps. At many (up to two seconds each) one flow and one vp process; the others are
    slow tests, and so is 999 but for unipc, which once ended there in a traceback. 300 is no divisor of 1000, which
    diffusers' own DDIM needs."""
    cases = []
    for process, scheduler in PAIRS:
        for steps in (1, 2, 3, 20, 50, 250, 300, 999, 1000):
            many = steps in (300, 1000) or (steps == 999 and scheduler == "unipc" and process == FLOW)
            quick = steps <= 50 or (many and process in (FLOW, ZERO_SNR))
            name = f"{process.name}-{process.target}-{scheduler}-{steps}"
            cases.append(pytest.param(process, scheduler, steps, id=name, marks=() if quick else pytest.mark.slow))
    return cases


@pytest.mark.parametrize(("process", "scheduler", "steps"), combinations())
def test_an_exact_model_gives_the_mixture(process: Process, scheduler: str, steps: int) -> None:
    x, wanted, times = draw(process, scheduler, steps)
    assert len(times) == steps
    assert x.isfinite().all()
    if steps == 1:
        # The noise, at most 4, is rounded to float32 (2e-7), and for eps divided by an alpha of at least 0.0065.
        assert (x - wanted).abs().max() < (1e-4 if process.target == "eps" else 1e-5)
        return
    if steps < 20:  # two steps give no shape, but nothing leaves the data's range
        assert x.abs().max() < 2.5
        return
    bound = error_bound(scheduler, steps)
    assert (x - wanted).abs().mean() < bound
    # A statistic moves at most as the samples do; a component's deviation, of fewer and further ones, twice as much.
    off = (statistics(x) - statistics(wanted)).abs()
    assert off[0] < bound / 2 + 2 / x.numel()
    assert off[1:].max() < 2 * bound
    # The population's own numbers, within four standard errors of 1024 draws (0.014 of the weight, 0.009 of a mean).
    population = torch.cat((WEIGHTS[:1], MEANS, STDS))
    n = x.numel() * torch.cat((torch.ones(1), WEIGHTS, 2 * WEIGHTS))
    spread = torch.cat(((WEIGHTS[0] * WEIGHTS[1]).sqrt()[None], STDS, STDS))
    assert ((statistics(x) - population).abs() < 4 * spread / n.sqrt() + 2 * bound).all()


@pytest.mark.parametrize(("process", "scheduler"), PAIRS)
@pytest.mark.parametrize("steps", [1, 7, 300, 1000])
def test_the_model_is_asked_at_the_time_of_the_schedulers_sigma(process: Process, scheduler: str, steps: int) -> None:
    solver = build_scheduler(process, SamplerOptions(steps, scheduler=scheduler), CPU)
    assert len(solver.timesteps) == steps
    assert (solver.timesteps.diff() < 0).all()
    assert (solver.sigmas.diff() < 0).all()
    alpha, sigma = process.coefficients(solver.timesteps)
    ours = sigma if process == FLOW else sigma.double() / alpha.double()
    torch.testing.assert_close(solver.sigmas[:-1], ours.double(), rtol=1e-6, atol=0)
    assert solver.sigmas[-1] == 0
    # Nothing of the noise is left out at the start: alpha is 0, or that of vp_linear's end at most.
    assert alpha[0] < 0.0067


def test_ddim_is_diffusers_ddim() -> None:
    process, steps = Process("vp_cosine", "v"), 50
    ours = build_scheduler(process, SamplerOptions(steps, scheduler="ddim"), CPU)
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(steps, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=True)
    theirs.alphas_cumprod = process.coefficients(ours.timesteps.flip(0))[0].double() ** 2
    theirs.set_timesteps(steps)
    x, prediction = (torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(i)) for i in range(2))
    for t, number in zip(ours.timesteps, range(steps - 1, -1, -1)):
        wanted = theirs.step(prediction, number, x).prev_sample
        torch.testing.assert_close(ours.step(prediction, t, x).prev_sample, wanted, rtol=1e-5, atol=1e-5)


def test_an_error_of_eps_is_not_blown_up_by_the_first_step() -> None:
    process = Process("vp_cosine", "eps")

    class Inexact(Mixture):
        def forward(self, x: Tensor, t: Tensor, context: Tensor, mask: Tensor) -> Tensor:
            return super().forward(x, t, context, mask) + 0.03 * torch.sin(7 * x + 20 * t[0])

    context, mask = torch.ones(CLIPS, 1, 1), torch.ones(CLIPS, 1, dtype=torch.bool)
    null, seeds = (context[0], mask[0]), torch.arange(CLIPS)
    x = sample(
        Inexact(process),
        process,
        context=context,
        mask=mask,
        null=null,
        latent_shape=(1, 1, 16, 16),
        seeds=seeds,
        options=SamplerOptions(20, 1.0, "ddim"),
    )
    # Divided by the alpha of 2^-12 at t = 1, the same error moved the means to -1.72 and 2.26.
    torch.testing.assert_close(statistics(x)[1:3], MEANS, rtol=0, atol=0.08, check_dtype=False)


class Gaussian(nn.Module):
    """The exact posterior mean for normal data whose mean is the context's first number, of deviation 0.3."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process

    def forward(self, x: Tensor, t: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        alpha, sigma = (c.view(-1, 1, 1, 1, 1) for c in self.process.coefficients(t))
        mean = context[:, 0, 0].view(-1, 1, 1, 1, 1)
        residual = (x - alpha * mean) / (alpha**2 * 0.09 + sigma**2)
        return self.process.target_of(mean + alpha * 0.09 * residual, sigma * residual, t)


def draw_gaussian(
    process: Process, scheduler: str, means: list[float], seeds: Tensor, *, guidance: float = 1.0, **more: object
) -> Tensor:
    """One clip for each mean; the empty prompt's data have mean 0.2."""
    return draw_with(Gaussian(process), process, means, seeds, SamplerOptions(20, guidance, scheduler, **more))


def draw_with(
    model: nn.Module, process: Process, means: list[float], seeds: Tensor, options: SamplerOptions
) -> Tensor:
    """As ``draw_gaussian``, by a model of its kind."""
    context, mask = torch.tensor(means).view(-1, 1, 1), torch.ones(len(means), 1, dtype=torch.bool)
    null = torch.full((1, 1), 0.2), torch.ones(1, dtype=torch.bool)
    return sample(
        model, process, context=context, mask=mask, null=null, latent_shape=SHAPE, seeds=seeds, options=options
    )


@pytest.mark.parametrize(("process", "scheduler"), PAIRS)
def test_a_video_is_a_function_of_its_seed_and_prompt(process: Process, scheduler: str) -> None:
    means = [0.7, -0.4, 0.1, 0.7, 0.7]
    many = draw_gaussian(process, scheduler, means, torch.arange(5), guidance=3.0)
    one = draw_gaussian(process, scheduler, means[3:4], torch.tensor([3]), guidance=3.0)
    torch.testing.assert_close(many[3:4], one)
    assert not torch.allclose(many[3], many[4])
    other = draw_gaussian(process, scheduler, [-0.7], torch.tensor([3]), guidance=3.0)
    assert not torch.allclose(one, other)


@pytest.mark.parametrize(("process", "scheduler"), PAIRS)
def test_guidance_extrapolates_away_from_the_empty_prompt(process: Process, scheduler: str) -> None:
    # Predictions are linear in the mean: guidance 3 between means 0.2 and 0.7 is the exact model of mean 1.7.
    seeds = torch.arange(8)
    guided = draw_gaussian(process, scheduler, [0.7] * 8, seeds, guidance=3.0)
    torch.testing.assert_close(guided, draw_gaussian(process, scheduler, [1.7] * 8, seeds), rtol=1e-3, atol=1e-3)


def test_schedulers_of_the_other_family_are_refused() -> None:
    with pytest.raises(UserError, match="one of dpm"):
        build_scheduler(Process(), SamplerOptions(10, scheduler="ddim"), CPU)
    with pytest.raises(UserError, match="one of dpm"):
        build_scheduler(Process("vp_cosine", "v"), SamplerOptions(10, scheduler="euler"), CPU)


def test_a_mistyped_scheduler_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"^scheduler 'unipcc': must be one of .*; did you mean 'unipc'\?$"):
        SamplerOptions(10, scheduler="unipcc")


@pytest.mark.parametrize(("steps", "nearest"), [(0, 1), (-3, 1), (MAX_STEPS + 1, MAX_STEPS)])
def test_steps_out_of_bounds_name_the_nearest(steps: int, nearest: int) -> None:
    with pytest.raises(UserError, match=f"between 1 and 1000; the nearest is {nearest}$"):
        SamplerOptions(steps)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"guidance": math.nan}, "guidance nan: must be a finite number"),
        ({"shift": 0.0}, "shift 0.0: must be a positive number"),
        ({"guidance_interval": (0.5, 0.5)}, "two times with 0 <= LOW < HIGH <= 1"),
        ({"guidance_rescale": 1.5}, "between 0 and 1"),
    ],
)
def test_options_out_of_their_range_are_refused(option: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SamplerOptions(**option)


def test_shift_moves_a_flows_times_and_is_refused_for_other_processes() -> None:
    plain, shifted = (build_scheduler(FLOW, SamplerOptions(10, shift=shift), CPU).timesteps for shift in (1.0, 3.0))
    torch.testing.assert_close(shifted[1:], (3 * plain / (1 + 2 * plain))[1:])
    with pytest.raises(UserError, match="shift 3: only flows have one, and this model is of vp_zero_snr"):
        build_scheduler(ZERO_SNR, SamplerOptions(10, shift=3.0), CPU)
    # The same video is reached on any grid of many times (the last of 200, 0.015, costs 0.002).
    equal, moved = (
        draw_with(Gaussian(FLOW), FLOW, [0.7] * 8, torch.arange(8), SamplerOptions(200, 1.0, shift=shift))
        for shift in (1.0, 3.0)
    )
    torch.testing.assert_close(moved, equal, rtol=0, atol=0.005)


def test_outside_the_guidance_interval_the_empty_prompt_is_not_evaluated() -> None:
    rows = []

    class Counting(Gaussian):
        def forward(self, x: Tensor, t: Tensor, context: Tensor, mask: Tensor) -> Tensor:
            rows.append((t[0].item(), len(x)))
            return super().forward(x, t, context, mask)

    options = SamplerOptions(10, 3.0, guidance_interval=(0.25, 0.75))
    part = draw_with(Counting(FLOW), FLOW, [0.7] * 2, torch.arange(2), options)
    assert [count for _, count in rows] == [4 if 0.25 <= t <= 0.75 else 2 for t, _ in rows]
    assert {count for _, count in rows} == {2, 4}
    none, whole = (draw_gaussian(FLOW, "dpm++", [0.7] * 2, torch.arange(2), guidance=w).mean() for w in (1.0, 3.0))
    assert none < part.mean() < whole


def test_rescaled_guidance_has_the_deviation_of_the_conditional_prediction() -> None:
    generator = torch.Generator().manual_seed(0)
    conditional, unconditional = (torch.randn(3, *SHAPE, generator=generator) for _ in range(2))
    dims = (1, 2, 3, 4)
    plain, half, whole = (
        _guided(conditional, unconditional, SamplerOptions(guidance=4.0, guidance_rescale=phi)) for phi in (0, 0.5, 1)
    )
    torch.testing.assert_close(plain, unconditional + 4 * (conditional - unconditional))
    torch.testing.assert_close(whole.std(dims), conditional.std(dims))
    torch.testing.assert_close(half, (plain + whole) / 2)


class Broken(Gaussian):
    """A model whose predictions become NaN at times below ``until``, or whose weight is NaN."""

    def __init__(self, until: float, weight: float) -> None:
        super().__init__(FLOW)
        self.until, self.weight = until, nn.Parameter(torch.tensor(weight))

    def forward(self, x: Tensor, t: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        prediction = super().forward(x, t, context, mask) * self.weight
        return prediction if t[0] > self.until else prediction * torch.nan


@pytest.mark.parametrize(
    ("model", "guidance", "cause"),
    [
        (Broken(0, torch.nan), 1.0, "so are the model's weights (weight); take an earlier checkpoint"),
        (Broken(0.5, 1.0), 1.0, "the model's prediction at t = 0.5 is not; take an earlier checkpoint"),
        (Broken(0, 1.0), 1e39, "guidance 1e+39 is too much"),
    ],
)
def test_what_is_not_finite_is_refused_with_its_cause(model: Broken, guidance: float, cause: str) -> None:
    with pytest.raises(NotFinite, match="not finite") as error:
        draw_with(model, FLOW, [1.0, 1.0], torch.arange(2), SamplerOptions(4, guidance))
    assert cause in str(error.value)
    assert "\n" not in str(error.value)
