"""Small random autoencoders of every supported class, saved to disk as a real one would be."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from videoscaling.data.sources.synthetic import render

WAN = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 1, 2], "num_res_blocks": 1, "temperal_downsample": [True, True]}
COGVIDEOX_BLOCKS = {
    "down_block_types": ("CogVideoXDownBlock3D",) * 4,
    "up_block_types": ("CogVideoXUpBlock3D",) * 4,
}
HUNYUAN_BLOCKS = {
    "down_block_types": ("HunyuanVideoDownBlock3D",) * 4,
    "up_block_types": ("HunyuanVideoUpBlock3D",) * 4,
}
LTX = {
    "latent_channels": 8,
    "patch_size": 2,
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("LTXVideo095DownBlock3D",) * 2,
    "downsample_type": ("spatiotemporal",) * 2,
    "spatio_temporal_scaling": (True, True),
    "layers_per_block": (0, 1, 1),
    "decoder_block_out_channels": (16, 16),
    "decoder_spatio_temporal_scaling": (True, True),
    "decoder_layers_per_block": (0, 1, 1),
    "decoder_inject_noise": (False,) * 3,
    "upsample_residual": (True, True),
    "upsample_factor": (1, 1),
}
# As LTX 0.9 and 0.9.1 have it: three blocks that halve time and space and one that halves nothing.
LTX_09 = {
    "latent_channels": 8,
    "block_out_channels": (8, 16, 16, 16),
    "decoder_block_out_channels": (8, 16, 16, 16),
    "layers_per_block": (1,) * 5,
    "decoder_layers_per_block": (1,) * 5,
}
# As LTX-2 has it: space halved by three of four blocks, time by three others.
LTX_2 = {
    "latent_channels": 8,
    "block_out_channels": (8, 16, 16, 16),
    "decoder_block_out_channels": (8, 16, 32),
    "layers_per_block": (1,) * 5,
    "decoder_layers_per_block": (1,) * 4,
    "timestep_conditioning": False,
}
COSMOS = {
    "latent_channels": 4,
    "encoder_block_out_channels": (8, 8, 16),
    "decode_block_out_channels": (8, 16, 16),
    "attention_resolutions": (),
    "resolution": 32,
    "num_layers": 1,
    "temporal_compression_ratio": 4,
}
MOCHI = {
    "latent_channels": 12,
    "encoder_block_out_channels": (32,) * 4,
    "decoder_block_out_channels": (32,) * 4,
    "layers_per_block": (1,) * 5,
    "scaling_factor": 2.0,
}
IMAGE = {
    "block_out_channels": (8, 16, 16),
    "latent_channels": 4,
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
}
NORM = {"block_out_channels": (8, 8, 8, 8), "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2}


class Case(NamedTuple):
    """``compression`` is (frames, pixels along a side) per latent; ``channel_1`` is (mean, std) of raw latents'
    channel 1 by the class's convention; ``size`` is (frames, height, width) of a small clip that it takes."""

    name: str
    config: dict
    compression: tuple[int, int]
    channel_1: tuple[float, float]
    size: tuple[int, int, int] = (9, 16, 32)


CASES = {
    "wan": Case(
        "AutoencoderKLWan",
        WAN | {"latents_mean": [0.0, 0.5, -1.0, 2.0], "latents_std": [1.0, 2.0, 3.0, 0.5]},
        (4, 4),
        (0.5, 2.0),
    ),
    "wan with patches": Case(  # and residual blocks, as Wan 2.2
        "AutoencoderKLWan",
        WAN
        | {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
        | {"in_channels": 12, "out_channels": 12, "patch_size": 2, "is_residual": True, "dim_mult": [1, 2, 2]},
        (4, 8),
        (0.0, 1.0),
    ),
    "cogvideox": Case(
        "AutoencoderKLCogVideoX", NORM | COGVIDEOX_BLOCKS | {"scaling_factor": 0.25}, (4, 8), (0.0, 4.0)
    ),
    "hunyuan": Case("AutoencoderKLHunyuanVideo", NORM | HUNYUAN_BLOCKS | {"scaling_factor": 0.5}, (4, 8), (0.0, 2.0)),
    "hunyuan 1.5": Case(
        "AutoencoderKLHunyuanVideo15",
        {"block_out_channels": (8, 8, 16, 16, 16), "latent_channels": 4, "layers_per_block": 1}
        | {"scaling_factor": 0.5},
        (4, 16),
        (0.0, 2.0),
        (5, 16, 32),
    ),
    "ltx": Case("AutoencoderKLLTXVideo", LTX | {"scaling_factor": 2.0}, (4, 8), (0.25, 1.5)),
    "ltx with time": Case(
        "AutoencoderKLLTXVideo", LTX | {"scaling_factor": 2.0, "timestep_conditioning": True}, (4, 8), (0.25, 1.5)
    ),
    "ltx 0.9": Case("AutoencoderKLLTXVideo", LTX_09, (8, 32), (0.25, 3.0), (9, 32, 64)),
    "ltx 2": Case("AutoencoderKLLTX2Video", LTX_2, (8, 32), (0.25, 3.0), (9, 64, 96)),
    "mochi": Case(
        "AutoencoderKLMochi",
        MOCHI | {"latents_mean": [0.0, 0.5] + [0.1] * 10, "latents_std": [1.0, 3.0] + [1.5] * 10},
        (6, 8),
        (0.5, 1.5),
        (13, 16, 32),
    ),
    "cosmos": Case(
        "AutoencoderKLCosmos",
        COSMOS | {"latents_mean": [1.0, 0.5, 0.0, 0.0], "latents_std": [1.0, 2.0, 3.0, 4.0]},
        (4, 8),
        (0.5, 2.0),
    ),
    "image": Case("AutoencoderKL", IMAGE | {"scaling_factor": 0.5, "shift_factor": 0.125}, (1, 4), (0.125, 2.0)),
}


class Made(NamedTuple):
    """A case with diffusers' own object and the folder where it was saved."""

    key: str
    case: Case
    model: nn.Module
    folder: Path


def make(key: str, folder: Path) -> Made:
    """Build and save one."""
    import diffusers

    case = CASES[key]
    torch.manual_seed(0)
    model = getattr(diffusers, case.name)(**case.config).eval().requires_grad_(False)
    if "LTX" in case.name:
        model.latents_mean.fill_(0.25)
        model.latents_std.fill_(3.0)
    model.save_pretrained(folder)
    return Made(key, case, model, folder)


def some_clips(frames: int = 9, height: int = 16, width: int = 32, n: int = 2) -> Tensor:
    """float32 [n, 3, frames, height, width]"""
    return render(torch.arange(n), 0, frames=frames, height=height, width=width)


@torch.no_grad()
def raw_latents(model: nn.Module, clips: Tensor) -> Tensor:
    """Posterior means straight from diffusers, clip by clip, and frame by frame where it knows only images."""
    if type(model).__name__ == "AutoencoderKL":
        return torch.stack([model.encode(clips[:, :, f]).latent_dist.mean for f in range(clips.shape[2])], dim=2)
    return torch.cat([model.encode(clip[None]).latent_dist.mode() for clip in clips])


@torch.no_grad()
def raw_decoded(model: nn.Module, latents: Tensor) -> Tensor:
    """Clips straight from diffusers, as `raw_latents`."""
    if type(model).__name__ == "AutoencoderKL":
        return torch.stack([model.decode(latents[:, :, f]).sample for f in range(latents.shape[2])], dim=2)
    time = (torch.zeros(1),) if model.config.get("timestep_conditioning") else ()
    return torch.cat([model.decode(each[None], *time).sample for each in latents])
