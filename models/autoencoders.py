"""Differences between diffusers' autoencoder classes: compression, latent statistics, and batch limits.

A supported class is a name in `CLASSES` and the lines below that it needs; `models.vae` treats all classes alike.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from videoscaling.utils.errors import UserError
from videoscaling.utils.files import read_json

IMAGE_CLASS = "AutoencoderKL"
# Classes that are used here as they are documented: posterior mean out of encode, first frame alone.
CLASSES = (
    "AutoencoderKLWan",
    "AutoencoderKLCogVideoX",
    "AutoencoderKLHunyuanVideo",
    "AutoencoderKLHunyuanVideo15",
    "AutoencoderKLLTXVideo",
    "AutoencoderKLLTX2Video",
    "AutoencoderKLMochi",
    "AutoencoderKLCosmos",
    IMAGE_CLASS,
)
# The most that an autoencoder may hold at once: positions of its widest maps, by clip and frame. With 128 float32
# channels a map of this size is 4 GiB. An image of 2896 x 2896 is as much, or 17 frames of 702 x 702.
POSITIONS_AT_ONCE = 2**23
# These go through a clip in pieces, of at most so many frames; the others take all of it.
FRAMES_AT_ONCE = {
    "AutoencoderKLWan": 4,
    "AutoencoderKLCogVideoX": 9,
    "AutoencoderKLHunyuanVideo": 17,
    IMAGE_CLASS: 1,
}
# In diffusers 0.42.1 its attention mask fits a batch of one alone.
ONE_AT_A_TIME = ("AutoencoderKLHunyuanVideo15",)
# Its encoder takes sines of pixels times 2 pi 128, which bfloat16's rounding of pixels destroys.
FLOAT32_ONLY = ("AutoencoderKLMochi",)


def compression(model: nn.Module) -> tuple[int, int]:
    """How many frames, and how many pixels along a side, become one latent.

    Computed from the network's layers: its attributes of that name are mere labels for some classes.
    """
    config, name = model.config, type(model).__name__
    if name == IMAGE_CLASS:
        return 1, 2 ** (len(config.block_out_channels) - 1)
    if name == "AutoencoderKLCogVideoX":
        return int(config.temporal_compression_ratio), 2 ** (len(config.block_out_channels) - 1)
    if name == "AutoencoderKLWan":
        return 2 ** sum(config.temperal_downsample), 2 ** len(config.temperal_downsample) * (config.patch_size or 1)
    if name in ("AutoencoderKLLTXVideo", "AutoencoderKLLTX2Video"):
        scaling = config.spatio_temporal_scaling  # one truth for all blocks, or one for each
        scaling = scaling if isinstance(scaling, list | tuple) else [scaling] * len(config.downsample_type)
        kinds = [kind for on, kind in zip(scaling, config.downsample_type) if on]
        temporal, spatial = (sum(kind != other for kind in kinds) for other in ("spatial", "temporal"))
        return config.patch_size_t * 2**temporal, config.patch_size * 2**spatial
    if name == "AutoencoderKLMochi":
        return math.prod(config.temporal_expansions), math.prod(config.spatial_expansions)
    return config.temporal_compression_ratio, config.spatial_compression_ratio


def frame_step(model: nn.Module) -> int:
    """Clips of this many frames, times any number, and one more go in and come out as long as they were."""
    temporal = compression(model)[0]
    # CogVideoX decodes two latent frames at a time and sees a first one only in an odd number of them.
    return 2 * temporal if type(model).__name__ == "AutoencoderKLCogVideoX" else temporal


def smallest(model: nn.Module) -> int:
    """Latents along a side at least: LTX-2's decoder mirrors at edges, and a single latent has nothing to mirror."""
    return 2 if model.config.get("decoder_spatial_padding_mode") == "reflect" else 1


def rows_at_once(model: nn.Module, frames: int, height: int, width: int) -> int:
    """How many such clips (pixels; of an image autoencoder, frames) go through together; 0: one is too large."""
    fitting = POSITIONS_AT_ONCE // positions(model, frames, height, width)
    return min(fitting, 1) if type(model).__name__ in ONE_AT_A_TIME else fitting


def positions(model: nn.Module, frames: int, height: int, width: int) -> int:
    """Positions of the widest maps that are held at once for one such clip (frames and pixels)."""
    config, name = model.config, type(model).__name__
    patch = config.patch_size or 1 if "patch_size" in config else 1
    # Cosmos has wavelets for patches, in time as well.
    volume = patch**3 if name == "AutoencoderKLCosmos" else patch**2
    return min(frames, FRAMES_AT_ONCE.get(name, frames)) * height * width // volume


def _numbers(values: Any, what: str) -> Tensor:
    """A list of numbers as float64 [channels]; UserError names it by ``what`` where it is none."""
    if not (isinstance(values, list) and values and all(type(value) in (int, float) for value in values)):
        raise UserError(f"{what} is not a list of numbers, one per channel")
    return torch.tensor(values, dtype=torch.float64)


def statistics_of(model: nn.Module, folder: Path) -> dict[str, Any]:
    """Mean and standard deviation of the latents per channel, and whose convention they are.

    A normalised latent is (latent - mean) / std. Published conventions are all of that form: Wan, Mochi, Cosmos and
    LTX give mean and std, LTX as buffers next to a factor; the others one factor, which is 1 / std, and perhaps a
    shift. A scheduler's further scale (Cosmos' sigma_data) belongs to the scheduler, not to the autoencoder.

    Raises:
        UserError: there are none.
    """
    config = model.config
    factor = config.get("scaling_factor") or 1.0
    buffers = dict(model.named_buffers())
    mean, std = (buffers.get(key) for key in ("latents_mean", "latents_std"))
    if mean is None:
        mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        mean, std = torch.as_tensor(mean).double(), torch.as_tensor(std).double() / factor
        convention = "latents_mean, latents_std"
    elif config.get("scaling_factor"):
        mean = torch.tensor([config.get("shift_factor") or 0.0], dtype=torch.float64)
        std = torch.tensor([1 / factor], dtype=torch.float64)
        convention = "scaling_factor"
    elif (folder / "statistics.json").is_file():
        measured = read_json(folder / "statistics.json", dict)
        mean, std = (_numbers(measured.get(key), f"{folder / 'statistics.json'}: {key}") for key in ("mean", "std"))
        convention = "statistics.json"
    else:
        raise UserError(
            f"{folder}: no latent statistics in config.json (latents_mean and latents_std, or scaling_factor); "
            'measure them on your clips and write {"mean": [...], "std": [...]}, one number per channel, '
            f"to {folder / 'statistics.json'}"
        )
    return {"convention": convention, "mean": mean.tolist(), "std": std.tolist()}
