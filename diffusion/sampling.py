"""Sampling: solvers of diffusers on our own time grid, from noise at t = 1 to data at t = 0.

The schedulers' discrete time is not used. It evaluates the model at floor(1000 sigma) / 1000 instead of sigma, repeats
timesteps from about 500 steps on (at 1000 the first step is skipped or the last has no successor), makes DDIM step
over 1000 // steps instead of the true distance, and rebuilds alpha from float32 betas, which gives infinity where the
SNR ends at zero. Here t comes first: the model is asked at t, and the scheduler gets the process's sigma at t.
"""

from typing import Any

import torch
from torch import Tensor, nn

from videoscaling.diffusion.process import Process
from videoscaling.diffusion.sampler_options import SCHEDULERS, SamplerOptions
from videoscaling.utils.errors import UserError
from videoscaling.utils.finiteness import NotFinite
from videoscaling.utils.random import normal

# Multistep solvers work in log(alpha / sigma), which is -infinity at a flow's t = 1. The value is diffusers' own.
MIN_MULTISTEP_ALPHA = 1e-6
# The first step divides the error of an eps model by alpha. vp_linear ends at alpha = 0.0066; vp_cosine ends at zero,
# where an error of 0.03 moved two components from -1 and 1 to -1.72 and 2.26 (20 steps of ddim).
MIN_EPS_ALPHA = 0.0065
_PREDICTIONS = {"flow": "flow_prediction", "eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def known_schedulers(process: Process) -> tuple[str, ...]:
    """The schedulers that can follow ``process``; the first is its default."""
    return SCHEDULERS["rectified_flow" if process.name == "rectified_flow" else "vp"]


def build_scheduler(process: Process, options: SamplerOptions, device: torch.device) -> Any:
    """A diffusers scheduler for ``process`` whose ``timesteps`` are the times t at which the model is evaluated.

    Returns:
        The scheduler. Its ``timesteps``, float32 [steps] on ``device``, fall from about 1 to about 1 / steps where
        there is no shift. Its ``sigmas``, float64 [steps + 1] on the CPU, are sigma of a flow, or sigma / alpha of a
        vp process, at these times and at 0.

    Raises:
        UserError: the scheduler belongs to the other family, or the process has no ``shift``.
    """
    import diffusers

    known = known_schedulers(process)
    name = options.scheduler or known[0]
    if name not in known:
        raise UserError(f"scheduler {name!r}: not one for {process.name}; one of {', '.join(known)}")
    if options.shift != 1 and process.name != "rectified_flow":
        raise UserError(f"shift {options.shift:g}: only flows have one, and this model is of {process.name}")
    # The last step ends at sigma 0 and is of first order: log(alpha / sigma) is infinite there, and x0 needs no more.
    settings: dict[str, Any] = {"prediction_type": _PREDICTIONS[process.target], "final_sigmas_type": "zero"}
    settings |= {"use_flow_sigmas": process.name == "rectified_flow", "solver_order": 1 if name == "ddim" else 2}
    if name == "euler":
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    elif name == "unipc":
        scheduler = diffusers.UniPCMultistepScheduler(**settings)
    else:  # DDIM without noise is DPM-Solver++ of first order (arXiv 2211.01095)
        scheduler = diffusers.DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", **settings)
    scheduler.set_timesteps(options.steps, device=device)
    times, sigmas = _time_grid(process, name, options)
    scheduler.timesteps, scheduler.sigmas = times.to(device), sigmas
    scheduler.set_begin_index(0)  # steps are counted, not looked up by their timestep
    return scheduler


def _time_grid(process: Process, name: str, options: SamplerOptions) -> tuple[Tensor, Tensor]:
    """The times float32 [steps] and the scheduler's sigmas float64 [steps + 1] of ``build_scheduler``."""
    min_alpha = MIN_EPS_ALPHA if process.target == "eps" else 0.0 if name == "euler" else MIN_MULTISTEP_ALPHA
    start = process.largest_time(min_alpha)
    equal = start * torch.arange(options.steps, 0, -1, dtype=torch.float64) / options.steps
    times = (options.shift * equal / (1 + (options.shift - 1) * equal)).clamp(max=start).float()
    alpha, sigma = (c.double() for c in process.coefficients(times))
    sigmas = sigma if process.name == "rectified_flow" else sigma / alpha
    return times, torch.cat((sigmas, sigmas.new_zeros(1)))


@torch.no_grad()
def sample(
    model: nn.Module,
    process: Process,
    *,
    context: Tensor,
    mask: Tensor,
    null: tuple[Tensor, Tensor],
    latent_shape: tuple[int, ...],
    seeds: Tensor,
    options: SamplerOptions,
) -> Tensor:
    """Draw one video's latents per prompt.

    Args:
        model: called as model(x_t, t, context, mask).
        context, mask: float32 [n, text_tokens, text_dim] and bool [n, text_tokens]; ``null``: the empty prompt's,
            without the batch.
        latent_shape: (channels, frames, height, width).
        seeds: int64 [n]; a video is a function of its own seed and prompt, not of the batch.

    Returns:
        Latents, float32 [n, *latent_shape].

    Raises:
        NotFinite: a latent is NaN or infinite; the message names the cause: weights, predictions or guidance.
    """
    solver = build_scheduler(process, options, context.device)
    x = normal(0, "sample noise", seeds.to(context.device), latent_shape)
    n = len(seeds)
    both_contexts = torch.cat((context, null[0].expand(n, -1, -1)))
    both_masks = torch.cat((mask, null[1].expand(n, -1)))
    finite = []  # of each step's input and prediction, on the device: nothing waits for the GPU before the end
    for t, time in zip(solver.timesteps, solver.timesteps.tolist()):
        if options.guides(time):
            both = model(torch.cat((x, x)), t.expand(2 * n), both_contexts, both_masks).float()
            conditional, unconditional = both.chunk(2)
            prediction = _guided(conditional, unconditional, options)
        else:
            both = prediction = model(x, t.expand(n), context, mask).float()
        finite.append(torch.stack((x.isfinite().all(), both.isfinite().all())))
        x = solver.step(prediction, t, x, return_dict=False)[0]
    if not x.isfinite().all():
        raise NotFinite(_cause(model, torch.stack(finite), solver.timesteps, options.guidance))
    return x


def _guided(conditional: Tensor, unconditional: Tensor, options: SamplerOptions) -> Tensor:
    """The guided prediction [n, ...], rescaled as ``SamplerOptions`` says."""
    guided = unconditional + options.guidance * (conditional - unconditional)
    if not options.guidance_rescale:
        return guided
    dims = tuple(range(1, guided.dim()))
    ratio = conditional.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
    return guided * (1 + options.guidance_rescale * (ratio - 1))


def _cause(model: nn.Module, finite: Tensor, times: Tensor, guidance: float) -> str:
    """One line: why latents are not finite, and what to do.

    Args:
        finite: bool [steps, 2], of the model's input and of its prediction; ``times``: [steps].
    """
    for name, weight in model.named_parameters():
        # Under FSDP this process's shard: an error is no place for a collective operation.
        if not getattr(weight, "to_local", lambda weight=weight: weight)().isfinite().all():
            return f"sampled latents are not finite: so are the model's weights ({name}); take an earlier checkpoint"
    wrong = finite[:, 0] & ~finite[:, 1]
    if wrong.any():
        t = times[int(wrong.int().argmax())].item()
        return (
            f"sampled latents are not finite: the model's prediction at t = {t:.4g} is not; take an earlier "
            f"checkpoint, or less guidance than {guidance:g}"
        )
    return f"sampled latents are not finite, though the predictions are: guidance {guidance:g} is too much; take less"
