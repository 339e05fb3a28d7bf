"""Forward processes x_t = alpha(t) x0 + sigma(t) noise, and what a model is to predict of them.

Time runs from 0 (data) to 1 (noise). Two families: rectified flow (arXiv 2209.03003), and variance preserving with
linear (arXiv 2011.13456), cosine (arXiv 2102.09672) or zero-terminal-SNR (arXiv 2305.08891) schedules.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from videoscaling.utils.errors import UserError, nearest

PROCESSES = ("rectified_flow", "vp_linear", "vp_cosine", "vp_zero_snr")
TARGETS = ("flow", "eps", "v", "x0")

# The continuous limit of DDPM's linear betas, 1e-4 to 0.02 over 1000 steps.
BETA_MIN, BETA_MAX = 0.1, 20.0
COSINE_OFFSET = 0.008
# diffusers puts zero-SNR schedules' last alpha squared here, so that log-SNR solvers stay finite.
MIN_ALPHA_SQUARED = 2.0**-24


def _linear_alpha(t: Tensor) -> Tensor:
    return torch.exp(-0.25 * t**2 * (BETA_MAX - BETA_MIN) - 0.5 * t * BETA_MIN)


def _cosine_alpha(t: Tensor) -> Tensor:
    start = math.cos(COSINE_OFFSET / (1 + COSINE_OFFSET) * math.pi / 2)
    return torch.cos((t + COSINE_OFFSET) / (1 + COSINE_OFFSET) * (math.pi / 2)) / start


def _zero_snr_alpha(t: Tensor) -> Tensor:
    end = math.exp(-0.25 * (BETA_MAX - BETA_MIN) - 0.5 * BETA_MIN)
    return (_linear_alpha(t) - end) / (1 - end)


_ALPHA = {"vp_linear": _linear_alpha, "vp_cosine": _cosine_alpha, "vp_zero_snr": _zero_snr_alpha}


@dataclass(frozen=True)
class Process:
    """A forward process and the model's target.

    Attributes:
        name: one of ``PROCESSES``.
        target: "flow" (noise - x0), "eps" (noise), "v" (alpha noise - sigma x0) or "x0".

    Raises:
        UserError: an unknown name or target, or "flow" on a variance-preserving process and the reverse.
    """

    name: str = "rectified_flow"
    target: str = "flow"

    def __post_init__(self) -> None:
        for key, value, known in (("process", self.name, PROCESSES), ("target", self.target, TARGETS)):
            if value not in known:
                hint = nearest(value, list(known))
                raise UserError(f"diffusion.{key}: unknown {value!r}; one of {', '.join(known)}{hint}")
        if (self.name == "rectified_flow") != (self.target == "flow"):
            wanted = "flow" if self.name == "rectified_flow" else "eps, v or x0"
            raise UserError(f"diffusion.target: {self.name} predicts {wanted}, not {self.target}")
        if self.name == "vp_zero_snr" and self.target == "eps":
            raise UserError("diffusion.target: eps says nothing about x0 where the SNR is zero; use v or x0")

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha(t), sigma(t): float32, in the shape of ``t``."""
        t = t.double()
        if self.name == "rectified_flow":
            alpha, sigma = 1 - t, t
        else:
            alpha = _ALPHA[self.name](t).clamp(min=math.sqrt(MIN_ALPHA_SQUARED))
            sigma = torch.sqrt(1 - alpha**2)
        return alpha.float(), sigma.float()

    def largest_time(self, min_alpha: float = 0.0) -> float:
        """The largest t at which alpha(t) is at least ``min_alpha`` and not clamped: the start of sampling.

        Above it the clamped process does not change. Two times there have one SNR, and a solver divides by the
        difference: for vp_zero_snr that is t > 0.9963, two steps of 400.
        """
        bound = max(min_alpha, 0.0 if self.name == "rectified_flow" else math.sqrt(MIN_ALPHA_SQUARED))
        low, high = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        if self._alpha(high) >= bound:
            return 1.0
        for _ in range(60):  # alpha falls with t: bisection to float64's precision
            middle = (low + high) / 2
            low, high = (middle, high) if self._alpha(middle) >= bound else (low, middle)
        return low.item()

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - t if self.name == "rectified_flow" else _ALPHA[self.name](t)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t for x0 and noise [batch, ...] and t [batch]."""
        alpha, sigma = (_like(c, x0) for c in self.coefficients(t))
        return alpha * x0 + sigma * noise

    def target_of(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The target of the model's prediction for x0 and noise [batch, ...] at t [batch]: [batch, ...]."""
        if self.target == "flow":
            return noise - x0
        if self.target != "v":
            return noise if self.target == "eps" else x0
        alpha, sigma = (_like(c, x0) for c in self.coefficients(t))
        return alpha * noise - sigma * x0


def _like(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient [batch] in a shape that multiplies x [batch, ...]."""
    return coefficient.reshape(-1, *[1] * (x.dim() - 1))
