"""The embedded autoencoder in plain PyTorch: the layers of diffusers' AutoencoderKLLTXVideo that its settings use.

diffusers takes 5 to 6 s of processor time to import, as it loads torch._dynamo, transformers and its other models. The
names of the weights and every bit of the results are those of diffusers' class (tests/models/test_embedded.py).
"""

from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from videoscaling.models.hub import WEIGHTS
from videoscaling.utils.files import read_json

EMBEDDED = Path(__file__).parent / "embedded_vae"
NORM_EPS = 1e-8
STRIDE = 2  # of every resampling: frames, rows and columns


class Config(dict):
    """The settings in config.json, as items and as attributes."""

    __getattr__ = dict.__getitem__


class Conv(nn.Module):
    """A 3x3x3 convolution that repeats the first frame twice (causal), or the first and the last frame once."""

    def __init__(self, inputs: int, outputs: int, causal: bool) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, padding=(0, 1, 1))
        self.padding = (0, 0, 0, 0, 2, 0) if causal else (0, 0, 0, 0, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding, mode="replicate"))


def normalised(x: Tensor) -> Tensor:
    """x [n, C, f, h, w] over the root mean square of its channels."""
    return (x * torch.rsqrt(x.float().pow(2).mean(1, keepdim=True) + NORM_EPS)).to(x.dtype)


class Residual(nn.Module):
    def __init__(self, channels: int, causal: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = (Conv(channels, channels, causal) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(normalised(x)))
        return self.conv2(F.silu(normalised(hidden))) + x


def to_channels(x: Tensor, frames: int, side: int) -> Tensor:
    """Cut x [n, C, f, h, w] into blocks, and give each number of a block a channel of its own."""
    x = x.unflatten(4, (-1, side)).unflatten(3, (-1, side)).unflatten(2, (-1, frames))
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def from_channels(x: Tensor, frames: int, side: int) -> Tensor:
    """The inverse of ``to_channels``."""
    x = x.unflatten(1, (-1, frames, side, side))
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)


class Downsample(nn.Module):
    """Half of the frames, rows and columns, the first frame twice: a convolution plus the mean of each block."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = Conv(inputs, outputs // STRIDE**3, causal=True)
        self.group = inputs * STRIDE**3 // outputs

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, :, : STRIDE - 1], x], dim=2)
        mean = to_channels(x, STRIDE, STRIDE).unflatten(1, (-1, self.group)).mean(2)
        return to_channels(self.conv(x), STRIDE, STRIDE) + mean


class Upsample(nn.Module):
    """The inverse in shape, without the first frame: a convolution plus repeated channels."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.conv = Conv(channels, channels * STRIDE**3 // factor, causal=False)
        self.repeats = STRIDE**3 // factor

    def forward(self, x: Tensor) -> Tensor:
        repeated = from_channels(x, STRIDE, STRIDE).repeat(1, self.repeats, 1, 1, 1)
        return (from_channels(self.conv(x), STRIDE, STRIDE) + repeated)[:, :, STRIDE - 1 :]


class Block(nn.Module):
    """Upsampling (in the decoder), residual layers, downsampling (in the encoder)."""

    def __init__(
        self, channels: int, layers: int, causal: bool, up: Upsample | None = None, down: Downsample | None = None
    ) -> None:
        super().__init__()
        self.upsamplers = nn.ModuleList([up] if up else [])
        self.resnets = nn.ModuleList([Residual(channels, causal) for _ in range(layers)])
        self.downsamplers = nn.ModuleList([down] if down else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.upsamplers, *self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class Encoder(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        widths, layers, self.patch = config.block_out_channels, config.layers_per_block, config.patch_size
        self.conv_in = Conv(config.in_channels * self.patch**2, widths[0], causal=True)
        pairs = zip(layers, widths, widths[1:])
        self.down_blocks = nn.ModuleList([Block(a, n, True, down=Downsample(a, b)) for n, a, b in pairs])
        self.mid_block = Block(widths[-1], layers[-1], True)
        self.conv_out = Conv(widths[-1], config.latent_channels + 1, causal=True)  # one log variance for all channels

    def forward(self, x: Tensor) -> Tensor:
        # Patches are columns first, unlike the blocks of the resamplings.
        x = x.unflatten(4, (-1, self.patch)).unflatten(3, (-1, self.patch))
        x = self.conv_in(x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3))
        for block in (*self.down_blocks, self.mid_block):
            x = block(x)
        return self.conv_out(F.silu(normalised(x)))


class Decoder(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        widths, layers = config.decoder_block_out_channels[::-1], config.decoder_layers_per_block[::-1]
        self.patch, factors, width = config.patch_size, config.upsample_factor[::-1], widths[0]
        self.conv_in = Conv(config.latent_channels, width, causal=False)
        self.mid_block = Block(width, layers[0], False)
        self.up_blocks = nn.ModuleList()
        for width, count, factor in zip(widths, layers[1:], factors):
            inside = width // factor
            self.up_blocks.append(Block(inside, count, False, up=Upsample(width, factor)))
        self.conv_out = Conv(inside, config.out_channels * self.patch**2, causal=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in (self.mid_block, *self.up_blocks):
            x = block(x)
        x = self.conv_out(F.silu(normalised(x)))
        x = x.unflatten(1, (-1, self.patch, self.patch))
        return x.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)


class AutoencoderKLLTXVideo(nn.Module):
    """The embedded autoencoder, called as diffusers' class of this name; without its tiles for large clips."""

    def __init__(self, folder: Path = EMBEDDED) -> None:
        super().__init__()
        self.config = Config(read_json(folder / "config.json", dict))
        self.encoder, self.decoder = Encoder(self.config), Decoder(self.config)
        for name in ("latents_mean", "latents_std"):
            self.register_buffer(name, torch.empty(self.config.latent_channels))
        self.load_state_dict({name: value.float() for name, value in load_file(folder / WEIGHTS).items()})

    @property
    def device(self) -> torch.device:
        return self.latents_mean.device

    @property
    def dtype(self) -> torch.dtype:
        return self.latents_mean.dtype

    def encode(self, clips: Tensor) -> SimpleNamespace:
        mean = self.encoder(clips)[:, :-1]
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: mean))

    def decode(self, latents: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=self.decoder(latents))
