"""The training of a tiny video autoencoder: its architecture, optimiser, scores, and the folder that it leaves."""

import datetime
import itertools
import json
import math
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from videoscaling.models.fidelity import psnr
from videoscaling.models.pca import pca_of_blocks, pca_of_clips
from videoscaling.tools.vae_clips import FRAMES, Size, TrainingClips, mixed_batch, training_clips
from videoscaling.utils.errors import UserError, first_line, resumable
from videoscaling.utils.files import atomic_write, remove_abandoned, replace_folder, temporary, write_json, write_text
from videoscaling.utils.progress import Progress
from videoscaling.utils.random import derive_seed, normal

if TYPE_CHECKING:
    from videoscaling.tools.train_vae import Settings

# 4 frames (the first alone) and 8x8 pixels to one latent of 16 numbers: 17 frames of 32x32 to 5x4x4 of them. LTX's
# blocks carry a linear path through every resampling (space to depth and back), which is what makes minutes of
# training enough; few channels at high resolution keep it quick.
ARCHITECTURE = {
    "latent_channels": 16,
    "patch_size": 2,
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("LTXVideo095DownBlock3D",) * 2,
    "downsample_type": ("spatiotemporal",) * 2,
    "spatio_temporal_scaling": (True, True),
    "layers_per_block": (0, 2, 2),
    "decoder_block_out_channels": (32, 64),
    "decoder_spatio_temporal_scaling": (True, True),
    "decoder_layers_per_block": (0, 2, 2),
    "decoder_inject_noise": (False,) * 3,
    "upsample_residual": (True, True),
    "upsample_factor": (1, 2),
}
KL_WEIGHT = 2e-4  # of the mean over latents: costs some 1e-4 of squared error, and keeps latents near a Gaussian
FIRST_LOG_VARIANCE = -6.0  # the untrained posterior's: noise of 1 would drown the first thousand steps
WARM_UP = 100  # steps
PCA_NUMBERS = 6144 * 3 * FRAMES * 32 * 32  # pixels that the baseline is fitted on: of 6144 clips of 32x32
MEASURED = 2048  # training clips for latent statistics
SAVE_SECONDS = 120
CLIPS_OF_A_SIZE = 2**40  # more than are ever seen
CREDITS = {  # whose pictures they are, as their licences ask to be said
    "film": "Big Buck Bunny: (c) 2008 Blender Foundation, www.bigbuckbunny.org, Creative Commons Attribution 3.0.\n\n",
    "doom": "Freedoom's levels and pictures: (c) its contributors, 3-clause BSD licence.\n\n",
}


def build() -> nn.Module:
    """The untrained autoencoder."""
    from diffusers import AutoencoderKLLTXVideo

    model = AutoencoderKLLTXVideo(**ARCHITECTURE)
    with torch.no_grad():  # LTX has one log variance for all channels, the last output of its encoder
        model.encoder.conv_out.conv.bias[-1] = FIRST_LOG_VARIANCE
    return model


class Optimiser:
    """Muon for kernels, as matrices [out, in * volume], AdamW for the rest, at one learning rate.

    After 440 steps of 8 clips a network like this one stood at 22.6 dB; with AdamW alone, 16.3."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        self.lr = lr
        self.kernels = [p for p in model.parameters() if p.ndim > 1]
        self.matrices = [p.detach().flatten(1) for p in self.kernels]  # the same memory: Muon takes only matrices
        others = [p for p in model.parameters() if p.ndim == 1]
        self.parts = [
            torch.optim.Muon(self.matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.99), weight_decay=0.0),
        ]

    def step(self, fraction: float) -> None:
        """One step at ``fraction`` of the learning rate; gradients are used up."""
        for matrix, kernel in zip(self.matrices, self.kernels):
            matrix.grad, kernel.grad = kernel.grad.flatten(1), None
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.lr * fraction
            part.step()
            part.zero_grad()


def loss_of(model: nn.Module, clips: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The training loss, and the squared error alone."""
    with torch.autocast(clips.device.type, torch.bfloat16):
        posterior = model.encode(clips).latent_dist
        sample = posterior.mean + posterior.std * noise
        decoded = model.decode(sample).sample
    squared_error = (decoded.float() - clips).pow(2).mean()
    mean, log_variance = posterior.mean.float(), posterior.logvar.float()
    divergence = 0.5 * (mean.pow(2) + log_variance.exp() - 1 - log_variance).mean()
    return squared_error + KL_WEIGHT * divergence, squared_error


def train(settings: "Settings", sources: Sequence[TrainingClips], state_path: Path) -> nn.Module:
    """Train from scratch, or on from ``state_path`` where an earlier run with the same settings left its state."""
    steps, seed, device = settings.steps, settings.seed, settings.device
    described = asdict(settings) | {"architecture": ARCHITECTURE}
    torch.manual_seed(derive_seed(seed, "initial weights"))
    model = build().to(device)
    optimiser = Optimiser(model, settings.lr)
    first, clips_of = 0, [source.fingerprint for source in sources]
    if state_path.exists():
        try:
            state = torch.load(state_path, weights_only=True)
        except Exception as error:  # EOFError, RuntimeError or UnpicklingError, by what is damaged
            raise UserError(f"{state_path}: damaged ({first_line(error)}); remove it to start anew") from None
        if state["settings"] != described:
            raise UserError(
                f"{state_path} is a training with other settings: {state['settings']}; remove it to start anew"
            )
        if state.get("clips") != clips_of:  # its held-out clips may be some that this training has seen
            raise UserError(f"{state_path} is a training on other clips of these sources; remove it to start anew")
        first = state["step"]
        model.load_state_dict(state["model"])
        for part, saved in zip(optimiser.parts, state["optimiser"]):
            part.load_state_dict(saved)

    saved_at, recent = time.monotonic(), None
    with Progress(steps, "training", "steps", done=first) as bar:
        for step in range(first, steps):
            size, index = samples(settings, step)
            index = index.to(device)
            clips = mixed_batch(sources, index, size)
            loss, squared_error = loss_of(model, clips, normal(seed, "posterior", index, latent_shape(size)))
            loss.backward()
            optimiser.step(min(1.0, (step + 1) / WARM_UP) * (1 - step / steps))

            error = squared_error.item()
            if not math.isfinite(error):
                raise UserError(f"training diverged at step {step}: try a lower --lr than {settings.lr}")
            recent = error if recent is None else 0.98 * recent + 0.02 * error
            bar.set(step + 1, note=f"PSNR {psnr(recent):.2f} dB")
            if time.monotonic() - saved_at > SAVE_SECONDS:
                saved = {"settings": described, "clips": clips_of, "step": step + 1}
                saved["model"] = model.state_dict()
                saved["optimiser"] = [part.state_dict() for part in optimiser.parts]
                with atomic_write(state_path) as tmp:
                    torch.save(saved, tmp)
                saved_at = time.monotonic()
    return model


def latent_shape(size: Size) -> tuple[int, int, int, int]:
    """Channels, frames, height and width of a clip's latents."""
    return ARCHITECTURE["latent_channels"], (FRAMES - 1) // 4 + 1, size[0] // 8, size[1] // 8


def clips_of_size(settings: "Settings", size: Size) -> int:
    """The clips of a step: of the smallest size ``batch``, of others as many as have as many pixels."""
    smallest = min(math.prod(one) for one in settings.size)
    return max(1, settings.batch * smallest // math.prod(size))


def samples(settings: "Settings", step: int) -> tuple[Size, Tensor]:
    """The size of a step's clips, and their numbers: no two steps have one in common.

    Sizes take turns, and each counts its clips by itself: sources take clips in turn by their numbers, so that the few
    of a large size would else always be of the same ones.
    """
    turn, place = divmod(step, len(settings.size))
    count = clips_of_size(settings, settings.size[place])
    return settings.size[place], place * CLIPS_OF_A_SIZE + turn * count + torch.arange(count)


@torch.no_grad()
def finish(model: nn.Module, sources: Sequence[TrainingClips], size: Size) -> nn.Module:
    """Round to the float16 that is shipped, then measure the latents of that, for the model's own convention."""
    model = model.eval().half().float()
    device = model.latents_mean.device
    parts = torch.arange(MEASURED, device=device).split(64)
    clips = (mixed_batch(sources, part, size, plain=True) for part in parts)
    latents = torch.cat([model.encode(part).latent_dist.mode() for part in clips])
    model.latents_mean.copy_(latents.mean((0, 2, 3, 4)))
    model.latents_std.copy_(latents.std((0, 2, 3, 4)))
    return model


@torch.no_grad()
def reconstruct(model: nn.Module, clips: Tensor) -> Tensor:
    """The autoencoder's reconstructions of clips, from posterior means."""
    device = model.latents_mean.device
    parts = [model.decode(model.encode(part.to(device)).latent_dist.mode()).sample.cpu() for part in clips.split(64)]
    return torch.cat(parts).clamp_(-1, 1)


def scores(model: nn.Module, source: TrainingClips, test: Tensor) -> dict[str, dict[str, float]]:
    """PSNR on ``test``, a source's held-out clips, by method: of the mean squared error over all clips (``pooled``,
    the stricter) and the mean over clips of each one's PSNR (``per_clip``)."""
    size = tuple(test.shape[3:])
    numbers = math.prod(latent_shape(size))
    fitted_on = source.plain(torch.arange(min(PCA_NUMBERS // test[0].numel(), source.windows)), size)
    made = {
        "autoencoder": reconstruct(model, test),
        "pca_of_blocks": pca_of_blocks(fitted_on, test, ARCHITECTURE["latent_channels"]),
    }
    if len(fitted_on) > numbers or len(fitted_on) == source.windows:  # of fewer clips there are fewer components
        made["pca_of_clips"] = pca_of_clips(fitted_on, test, numbers)
    errors = {name: (clips - test).pow(2).flatten(1).mean(1) for name, clips in made.items()}
    return {
        name: {
            "pooled": round(psnr(error.mean().item()), 3),
            "per_clip": round(sum(psnr(e) for e in error.tolist()) / len(error), 3),
        }
        for name, error in errors.items()
    }


def table(by_source: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The scores of each source as text."""
    lines = [f"{'PSNR in dB, held-out clips':<40}   all pixels pooled   mean over clips"]
    for source, by_method in by_source.items():
        for name, score in by_method.items():
            lines.append(f"{f'{source[-24:]}: {name}':<40} {score['pooled']:>19.2f} {score['per_clip']:>17.2f}")
    return "\n".join(lines)


def write(model: nn.Module, out: Path, record: Mapping[str, Any]) -> None:
    """Put the folder in place whole. A process killed between moving the old one away and this one in leaves none
    until the next start (``recover_folder``)."""
    remove_abandoned(out)
    tmp = temporary(out)
    try:
        model.half().save_pretrained(tmp)
        write_json(tmp / "record.json", record)
        used, sizes = record["settings"]["source"], record["settings"]["size"]
        shapes = [f"{height}x{width} to 5x{height // 8}x{width // 8}" for height, width in sizes]
        readme = (
            f"# {out.name}\n\nA tiny `AutoencoderKLLTXVideo`, trained on clips of {', '.join(used)}:\n{FRAMES} frames "
            f"of {' and of '.join(shapes)} latents of {ARCHITECTURE['latent_channels']} numbers, "
            f"{record['parameters']:,} parameters in float16.\nIt serves demonstrations and tests on such clips. "
            f"Made {record['date']} by\n\n    {record['command']}\n\n```\n{table(record['psnr'])}\n```\n\n"
            f"{''.join(CREDITS.get(source, '') for source in used)}"
            "Details: `record.json`. Latent statistics: the model's buffers `latents_mean` and `latents_std`.\n"
        )
        write_text(tmp / "README.md", readme)
        replace_folder(tmp, out)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def run(settings: "Settings", out: Path, as_json: bool) -> None:
    """Train, score and write the autoencoder ``out``, and print its scores, or its record as JSON."""
    state_path = out.with_name(f".{out.name}.training.pt")
    started = time.monotonic()
    with resumable(str(out)):
        sources = [training_clips(source, settings.seed, settings.size) for source in settings.source]
        model = finish(train(settings, sources, state_path), sources, settings.size[-1])
        by_source, scored = {}, {}
        for source, size in itertools.product(sources, settings.size):
            name, clips = f"{source.name} {size[0]}x{size[1]}", source.held_out(size)
            by_source[name], scored[name] = scores(model, source, clips), len(clips)

    import diffusers

    record = {
        "command": shlex.join(["python", "tools/train_vae.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "settings": asdict(settings),
        "seconds": round(time.monotonic() - started),
        "parameters": sum(p.numel() for p in model.parameters()),
        "psnr": by_source,
        "psnr_clips": scored,
        "latents_mean": [round(x, 5) for x in model.latents_mean.tolist()],
        "latents_std": [round(x, 5) for x in model.latents_std.tolist()],
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
    }
    write(model, out, record)
    state_path.unlink(missing_ok=True)
    print(json.dumps(record, indent=1) if as_json else f"{table(by_source)}\n{out}")
