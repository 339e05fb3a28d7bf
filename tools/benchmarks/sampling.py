"""A video's time: the model's calls, what guidance adds to them, and the decoding of the latents."""

import argparse
import functools
import tempfile

import torch

from videoscaling.diffusion.process import Process
from videoscaling.diffusion.sampler_options import SamplerOptions
from videoscaling.diffusion.sampling import sample
from videoscaling.models.vae import VideoVAE, load_vae
from videoscaling.tools.benchmarks.common import TEXT_DIM, TEXT_TOKENS, Row, our_model, spread, timed
from videoscaling.tools.benchmarks.shapes import CLIPS

STEPS = 50  # of a video: sample.py's default
TIMED_STEPS = 2  # each costs the same; only a text's keys and values, 1 % of a step, are computed once a video
GUIDANCE = 5.0


def bench_sample(args: argparse.Namespace, device: torch.device) -> list[Row]:
    """Seconds of one video of ``STEPS`` steps, for each size, and the shares of model, guidance and autoencoder.

    What the text encoder takes, once for all videos of a prompt, is left out.
    """
    n_ctx, clips, rows = args.n_ctx or 80, args.clips or 4, []
    latent, patch = CLIPS[n_ctx]
    # Clips below 1,280 tokens are those of the autoencoders that ship here.
    vae = load_vae("real32", device) if n_ctx < 1280 else wan_autoencoder(device)
    for size in args.size or ("2x64", "4x128"):
        model = our_model(size, latent, patch, args.dtype, device)
        context = torch.randn(clips, TEXT_TOKENS, TEXT_DIM, device=device)
        mask = torch.ones(clips, TEXT_TOKENS, dtype=torch.bool, device=device)
        run = functools.partial(
            sample,
            model,
            Process("rectified_flow", "flow"),
            context=context,
            mask=mask,
            null=(context[0], mask[0]),
            latent_shape=latent,
            seeds=torch.arange(clips),
        )
        latents = run(options=SamplerOptions(1, 1.0))
        calls = {
            "alone": functools.partial(run, options=SamplerOptions(TIMED_STEPS, 1.0)),
            "guided": functools.partial(run, options=SamplerOptions(TIMED_STEPS, GUIDANCE)),
            "vae": functools.partial(vae.decode, latents),
        }
        seconds = timed(calls, args.rounds, device)
        rows.append(
            {"size": size, "n_ctx": n_ctx, "clips": clips, "dtype": args.dtype, "steps": STEPS}
            | shares(seconds["alone"], seconds["guided"], seconds["vae"], clips)
        )
    return rows


def shares(alone: list[float], guided: list[float], decoding: list[float], clips: int) -> Row:
    """A video's milliseconds, and the percentages of the model, of guidance and of the autoencoder.

    Args:
        alone, guided: seconds of ``TIMED_STEPS`` steps of ``clips`` videos without and with guidance, by round.
        decoding: seconds of decoding them, by round.
    """
    parts = [(a * STEPS / TIMED_STEPS, (g - a) * STEPS / TIMED_STEPS, v) for a, g, v in zip(alone, guided, decoding)]
    columns = zip(*([100 * part / sum(row) for part in row] for row in parts), strict=True)
    named = zip(("model_percent", "guidance_percent", "vae_percent"), columns, strict=True)
    return {
        "milliseconds_per_video": spread([sum(row) for row in parts], 1e3 / clips),
        **{name: spread(list(values)) for name, values in named},
    }


def wan_autoencoder(device: torch.device) -> VideoVAE:
    """Wan 2.1's autoencoder with random weights: diffusers' defaults are its shapes."""
    from diffusers import AutoencoderKLWan

    with tempfile.TemporaryDirectory() as folder:
        AutoencoderKLWan().save_pretrained(folder)
        return load_vae(folder, device)
