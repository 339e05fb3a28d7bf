"""An exact model of a two-component Gaussian mixture, and what sampling with it must give.

python tests/diffusion/mixture.py 1 20 50 250 999 1000        # the table of errors, a line per combination
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn

from videoscaling.diffusion.process import Process
from videoscaling.diffusion.sampler_options import SamplerOptions
from videoscaling.diffusion.sampling import known_schedulers, sample
from videoscaling.utils.errors import UserError
from videoscaling.utils.random import normal

WEIGHTS = torch.tensor((0.3, 0.7), dtype=torch.float64)
MEANS = torch.tensor((-1.0, 1.0), dtype=torch.float64)
STDS = torch.tensor((0.15, 0.25), dtype=torch.float64)
VALLEY = -0.35  # where the two densities meet: less than 1e-5 of either component lies beyond
SHAPE = (1, 1, 16, 16)  # every number of a latent is its own draw from the mixture
CLIPS = 4

PROCESSES = (
    Process(),
    *(Process(name, target) for name in ("vp_linear", "vp_cosine") for target in ("eps", "v", "x0")),
    *(Process("vp_zero_snr", target) for target in ("v", "x0")),
)
SECOND_ORDER = ("dpm++", "unipc")


class Mixture(nn.Module):
    """The exact posterior mean of a process's target, for data from the mixture; keeps the times it is asked at."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process
        self.times: list[float] = []

    def forward(self, x: Tensor, t: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        self.times.append(t[0].item())
        return self.process.target_of(*posterior(self.process, x, t), t)


def posterior(process: Process, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The means of x0 and of the noise given x_t [n, ...] at t [n], float64, written without dividing by sigma."""
    alpha, sigma = (c.double().view(-1, *[1] * x.dim()) for c in process.coefficients(t))
    variance = alpha**2 * STDS**2 + sigma**2
    residual = x.double()[..., None] - alpha * MEANS
    share = torch.softmax(WEIGHTS.log() - variance.log() / 2 - residual**2 / (2 * variance), -1)
    x0 = (share * (MEANS + alpha * STDS**2 / variance * residual)).sum(-1)
    return x0, (share * sigma / variance * residual).sum(-1)


def transported(process: Process, noise: Tensor, t: Tensor) -> Tensor:
    """Where the probability flow takes ``noise`` from t to 0: in one dimension the map that keeps quantiles."""

    def below(x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        spread = (alpha**2 * STDS**2 + sigma**2) ** 0.5
        return (WEIGHTS * torch.special.ndtr((x[..., None] - alpha * MEANS) / spread)).sum(-1)

    quantile = below(noise.double(), *(c.double() for c in process.coefficients(t)))
    low, high = torch.full_like(quantile, -4), torch.full_like(quantile, 4)
    for _ in range(50):
        middle = (low + high) / 2
        under = below(middle, 1.0, 0.0) < quantile
        low, high = torch.where(under, middle, low), torch.where(under, high, middle)
    return low


def draw(process: Process, scheduler: str, steps: int) -> tuple[Tensor, Tensor, list[float]]:
    """Samples and what they must be, float64 [CLIPS, *SHAPE], and the times that the model was asked at."""
    model, seeds = Mixture(process), torch.arange(CLIPS)
    context, mask = torch.ones(CLIPS, 1, 1), torch.ones(CLIPS, 1, dtype=torch.bool)
    x = sample(
        model,
        process,
        context=context,
        mask=mask,
        null=(context[0], mask[0]),
        latent_shape=SHAPE,
        seeds=seeds,
        options=SamplerOptions(steps, 1.0, scheduler),
    )
    noise = normal(0, "sample noise", seeds, SHAPE)
    start = torch.tensor(model.times[0])
    # One step is the posterior mean of the noise, whatever the scheduler: no distribution yet.
    wanted = posterior(process, noise, start.expand(CLIPS))[0] if steps == 1 else transported(process, noise, start)
    return x.double(), wanted, model.times


def statistics(x: Tensor) -> Tensor:
    """The first component's weight, both means, both deviations: float64 [5]."""
    left = x < VALLEY
    first, second = x[left], x[~left]
    return torch.stack((left.double().mean(), first.mean(), second.mean(), first.std(), second.std()))


def error_bound(scheduler: str, steps: int) -> float:
    """The mean |error| that a scheduler's order allows.

    Measured at 20 to 1000 steps: 0.6 to 1.2 / steps of first order, at most 29 / steps^2 + 0.12 / steps of second,
    whose last step is of first order. Some margin is added.
    """
    return 40 / steps**2 + 0.2 / steps if scheduler in SECOND_ORDER else 1.5 / steps


def main() -> None:
    print("process         target  scheduler  steps  mean |error|  weight   means    deviations")
    for process in PROCESSES:
        for scheduler in known_schedulers(process):
            for steps in map(int, sys.argv[1:]):
                start = f"{process.name:<15} {process.target:<7} {scheduler:<10} {steps:>5}"
                try:
                    x, wanted, _ = draw(process, scheduler, steps)
                except UserError as error:
                    print(f"{start}  refused: {error}", flush=True)
                    continue
                off = (statistics(x) - statistics(wanted)).abs()
                parts = "" if steps == 1 else f"  {off[0]:.4f}  {off[1:3].max():.1e}  {off[3:].max():.1e}"
                print(f"{start}  {(x - wanted).abs().mean():12.1e}{parts}", flush=True)


if __name__ == "__main__":
    main()
