"""Sampling: diffusers' schedulers walk from noise to data; what is written here is the bridge to our processes."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion.process import Process
from utils.errors import UserError, nearest
from utils.random import normal

TRAIN_STEPS = 1000  # diffusers' discrete time; t = sigma = timestep / 1000 for flows, (timestep + 1) / 1000 for vp
_PREDICTIONS = {"flow": "flow_prediction", "eps": "epsilon", "v": "v_prediction", "x0": "sample"}
SCHEDULERS = {
    "rectified_flow": ("euler", "dpm++", "unipc"),
    "vp": ("ddim", "dpm++", "unipc"),
}


def known_schedulers(process: Process) -> tuple[str, ...]:
    """The schedulers that can follow ``process``; the first is its default."""
    return SCHEDULERS["rectified_flow" if process.name == "rectified_flow" else "vp"]


def build_scheduler(process: Process, name: str | None, steps: int, device: torch.device) -> Any:
    """A diffusers scheduler for ``process``, with its timesteps set.

    Args:
        name: one of ``known_schedulers(process)``, or None for the first of them.
        steps: sampler steps.

    Raises:
        UserError: the scheduler is unknown, or belongs to the other family.
    """
    import diffusers

    if not 1 <= steps <= TRAIN_STEPS:
        raise UserError(f"steps {steps}: must lie between 1 and {TRAIN_STEPS}")
    known = known_schedulers(process)
    name = name or known[0]
    if name not in known:
        raise UserError(
            f"scheduler {name!r}: not one for {process.name}; one of {', '.join(known)}{nearest(name, list(known))}"
        )
    if name == "euler":
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAIN_STEPS)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist(), device=device)
        return scheduler
    settings: dict[str, Any] = {"prediction_type": _PREDICTIONS[process.target]}
    if process.name == "rectified_flow":
        settings |= {"use_flow_sigmas": True, "flow_shift": 1.0}
    else:
        settings |= {"trained_betas": vp_betas(process), "timestep_spacing": "trailing"}
    if name == "ddim":
        scheduler = diffusers.DDIMScheduler(TRAIN_STEPS, clip_sample=False, set_alpha_to_one=True, **settings)
    elif name == "dpm++":
        scheduler = diffusers.DPMSolverMultistepScheduler(TRAIN_STEPS, algorithm_type="dpmsolver++", **settings)
    else:
        scheduler = diffusers.UniPCMultistepScheduler(TRAIN_STEPS, **settings)
    scheduler.set_timesteps(steps, device=device)
    return scheduler


def vp_betas(process: Process) -> np.ndarray:
    """The 1000 betas whose products are the process's alpha(t)^2 at t = 1/1000, 2/1000, ... 1."""
    t = torch.arange(TRAIN_STEPS + 1, dtype=torch.float64) / TRAIN_STEPS
    alpha, _ = process.coefficients(t)
    alpha_squared = alpha.double().square().numpy()
    alpha_squared[0] = 1.0
    return 1 - alpha_squared[1:] / alpha_squared[:-1]


@torch.no_grad()
def sample(
    model: nn.Module,
    process: Process,
    context: Tensor,
    mask: Tensor,
    null: tuple[Tensor, Tensor],
    latent_shape: tuple[int, ...],
    seeds: Tensor,
    steps: int = 50,
    guidance: float = 5.0,
    scheduler: str | None = None,
) -> Tensor:
    """Draw one video's latents per prompt.

    Args:
        model: called as model(x_t, t, context, mask).
        context, mask: float32 [n, text_tokens, text_dim] and bool [n, text_tokens]; ``null``: the empty prompt's,
            without the batch.
        latent_shape: (channels, frames, height, width).
        seeds: int64 [n]; a video is a function of its own seed and prompt, not of the batch.
        guidance: classifier-free guidance (arXiv 2207.12598): null + guidance * (conditional - null); 1 is none.

    Returns:
        Latents, float32 [n, *latent_shape].
    """
    walk = build_scheduler(process, scheduler, steps, context.device)
    x = normal(0, "sample noise", seeds.to(context.device), latent_shape)
    n = len(seeds)
    if guidance != 1:
        context = torch.cat((context, null[0].expand(n, -1, -1)))
        mask = torch.cat((mask, null[1].expand(n, -1)))
    for timestep in walk.timesteps:
        t = timestep / TRAIN_STEPS if process.name == "rectified_flow" else (timestep + 1) / TRAIN_STEPS
        inputs = x if guidance == 1 else torch.cat((x, x))
        prediction = model(inputs, t.float().expand(len(inputs)), context, mask)
        if guidance != 1:
            conditional, unconditional = prediction.chunk(2)
            prediction = unconditional + guidance * (conditional - unconditional)
        x = walk.step(prediction, timestep, x, return_dict=False)[0]
    return x
