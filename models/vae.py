"""VideoVAE: any diffusers autoencoder behind two calls, clips in [-1, 1] to normalised latents and back.

Video autoencoders compress frames in time, the first one alone (4k + 1 frames to k + 1, say); an image autoencoder
is applied to each frame. Latents leave normalised by the autoencoder's own convention, which is the only place where
latent statistics live: caches and checkpoints copy them and never renormalise.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import UserError, nearest
from utils.files import pickles, read_json

EMBEDDED = Path(__file__).parent / "embedded_vae"
IMAGE_CLASS = "AutoencoderKL"
# Classes that are used here as they are documented: posterior mean out of encode, first frame alone.
CLASSES = (
    "AutoencoderKLWan",
    "AutoencoderKLCogVideoX",
    "AutoencoderKLHunyuanVideo",
    "AutoencoderKLLTXVideo",
    "AutoencoderKLCosmos",
    IMAGE_CLASS,
)


def _compression(model: nn.Module) -> tuple[int, int]:
    """How many frames, and how many pixels along a side, become one latent."""
    config, name = model.config, type(model).__name__
    halvings = len(config.block_out_channels) - 1 if "block_out_channels" in config else 0
    if name == IMAGE_CLASS:
        return 1, 2**halvings
    if name == "AutoencoderKLCogVideoX":
        return int(config.temporal_compression_ratio), 2**halvings
    if name == "AutoencoderKLWan":  # its own scale factors are only labels, wrong for small configurations
        return 2 ** sum(config.temperal_downsample), 2 ** len(config.temperal_downsample) * (config.patch_size or 1)
    if name == "AutoencoderKLCosmos":
        return config.temporal_compression_ratio, config.spatial_compression_ratio
    return model.temporal_compression_ratio, model.spatial_compression_ratio


def _statistics(model: nn.Module, folder: Path) -> dict[str, Any]:
    """Mean and standard deviation of the latents per channel, and whose convention they are.

    A normalised latent is (latent - mean) / std. Published conventions are all of that form: Wan, Cosmos and LTX give
    mean and std, the last as buffers beside a factor; the others one factor, which is 1 / std, and perhaps a shift.
    """
    config = model.config
    factor = config.get("scaling_factor") or 1.0
    mean, std = (getattr(model, key, None) for key in ("latents_mean", "latents_std"))
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
        measured = read_json(folder / "statistics.json")
        mean, std = (torch.tensor(measured[key], dtype=torch.float64) for key in ("mean", "std"))
        convention = "statistics.json"
    else:
        raise UserError(
            f"{folder}: no latent statistics in config.json (latents_mean and latents_std, or scaling_factor); "
            'measure them on your clips and write {"mean": [...], "std": [...]}, one number per channel, '
            f"to {folder / 'statistics.json'}"
        )
    return {"convention": convention, "mean": mean.tolist(), "std": std.tolist()}


def _fingerprint(folder: Path, weights: Iterable[Path], statistics: dict[str, Any]) -> str:
    """A short hash of what decides latents: configuration, weights, normalisation. Not of where they lie."""
    config = read_json(folder / "config.json")
    kept = {key: value for key, value in config.items() if key not in ("_name_or_path", "_diffusers_version")}
    digest = hashlib.sha256(json.dumps([kept, statistics], sort_keys=True).encode())
    for path in weights:
        with path.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:16]


class VideoVAE:
    """A diffusers autoencoder with its normalisation. Made by `load_vae`.

    Attributes:
        model: the diffusers autoencoder, in evaluation mode, without gradients.
        spec: what it was loaded from.
        statistics: ``{"convention", "mean", "std"}`` of raw latents, per channel (or one number for all).
        fingerprint: short hash of configuration, weights and statistics.
        channels: latent channels.
        temporal, spatial: frames, and pixels along a side, per latent.
    """

    def __init__(self, model: nn.Module, spec: str, statistics: dict[str, Any], fingerprint: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.spec, self.statistics, self.fingerprint = spec, statistics, fingerprint
        self.temporal, self.spatial = _compression(model)
        config = model.config
        self.channels: int = config.z_dim if "z_dim" in config else config.latent_channels
        for key in ("mean", "std"):
            count = len(statistics[key])
            if count != 1 and count % self.channels:
                raise UserError(f"{spec}: {count} numbers for the latents' {key}, but {self.channels} channels")

    @property
    def device(self) -> torch.device:
        return self.model.device

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(channels, frames, height, width) of the latents of such clips.

        Raises:
            UserError: the autoencoder cannot take such clips; the message names the nearest that it can.
        """
        if frames < 1 or (frames - 1) % self.temporal:
            low = max(1, (frames - 1) // self.temporal * self.temporal + 1)
            near = f"the nearest are {low} and {low + self.temporal}"
            raise UserError(f"{frames} frames: this VAE takes {self.temporal}k + 1; {near}")
        for name, size in (("height", height), ("width", width)):
            if size < 1 or size % self.spatial:
                low = max(self.spatial, size // self.spatial * self.spatial)
                near = f"the nearest are {low} and {low + self.spatial}"
                raise UserError(f"{name} {size}: this VAE takes multiples of {self.spatial}; {near}")
        latent_frames = (frames - 1) // self.temporal + 1
        return self.channels, latent_frames, height // self.spatial, width // self.spatial

    def _mean_std(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std, to broadcast over latents [n, C, f, h, w]."""

        def shaped(values: list[float]) -> Tensor:
            table = torch.tensor(values, device=latents.device)
            if len(values) == 1:
                return table
            # Cosmos gives one number per channel and latent frame.
            return table.view(1, self.channels, -1, 1, 1)[:, :, : latents.shape[2]]

        return shaped(self.statistics["mean"]), shaped(self.statistics["std"])

    @torch.no_grad()
    def encode(self, clips: Tensor) -> Tensor:
        """Clips [n, 3, F, H, W] in [-1, 1] to normalised latents (posterior means), float32 [n, C, f, h, w].

        Raises:
            UserError: F, H or W does not suit the autoencoder.
        """
        shape = self.latent_shape(*clips.shape[2:])
        clips = clips.to(self.device, self.model.dtype)
        if type(self.model).__name__ == IMAGE_CLASS:
            latents = self.model.encode(_fold_frames(clips)).latent_dist.mode().float()
            latents = _unfold_frames(latents, len(clips))
        else:
            latents = self.model.encode(clips).latent_dist.mode().float()
        assert latents.shape[1:] == shape, (latents.shape, shape)
        mean, std = self._mean_std(latents)
        return (latents - mean) / std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [n, C, f, h, w] to clips, float32 [n, 3, F, H, W], clamped to [-1, 1]."""
        latents = latents.to(self.device, torch.float32)
        mean, std = self._mean_std(latents)
        raw = (latents * std + mean).to(self.model.dtype)
        if type(self.model).__name__ == IMAGE_CLASS:
            clips = _unfold_frames(self.model.decode(_fold_frames(raw)).sample, len(raw))
        elif self.model.config.get("timestep_conditioning"):
            # Later LTX decoders can remove some noise as well; time 0 says that there is none.
            clips = self.model.decode(raw, torch.zeros(len(raw), device=raw.device, dtype=raw.dtype)).sample
        else:
            clips = self.model.decode(raw).sample
        return clips.float().clamp(-1, 1)


def _fold_frames(x: Tensor) -> Tensor:
    """[n, c, f, h, w] to [n * f, c, h, w]."""
    return x.transpose(1, 2).flatten(0, 1)


def _unfold_frames(x: Tensor, n: int) -> Tensor:
    """[n * f, c, h, w] to [n, c, f, h, w]."""
    return x.unflatten(0, (n, -1)).transpose(1, 2)


def _download(spec: str) -> Path:
    """The local copy of a hub repository's autoencoder, downloading it unless it is cached."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        try:
            config = hf_hub_download(spec, "vae/config.json")
        except LocalEntryNotFoundError:  # offline, which says nothing of what the repository holds
            raise
        except EntryNotFoundError:
            config = hf_hub_download(spec, "config.json")
        folder = Path(config).parent
        prefix = "vae/" if folder.name == "vae" else ""
        snapshot_download(
            spec, allow_patterns=[f"{prefix}*.json", f"{prefix}*.safetensors"], ignore_patterns="*.fp16.*"
        )
        return folder
    except HFValidationError:
        raise UserError(f"VAE {spec!r} is neither 'embedded', nor a folder, nor a hub id like owner/name") from None
    except (HfHubHTTPError, EntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"VAE {spec!r} is no folder here, and could not be fetched from the hub ({reason}); "
            "download it where there is a connection and give its folder, or use 'embedded'"
        ) from None


def _folder(spec: str) -> Path:
    """The folder with the autoencoder's config.json."""
    if spec == "embedded":
        return EMBEDDED
    root = Path(spec)
    if not root.is_dir():
        if root.exists() or root.is_absolute() or spec.startswith(".") or spec.count("/") != 1:
            raise UserError(f"VAE {spec!r}: no such folder{nearest(spec, ['embedded'])}")
        return _download(spec)
    for folder in (root, root / "vae"):  # a pipeline keeps its autoencoder in vae/
        if (folder / "config.json").is_file():
            return folder
    raise UserError(f"VAE {spec!r}: no config.json in it, nor in {root / 'vae'}")


def load_vae(spec: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> VideoVAE:
    """Load an autoencoder for use, not for training.

    Args:
        spec: ``"embedded"`` (the tiny one shipped here), a folder in diffusers' format (of an autoencoder, or of a
            pipeline that holds one in ``vae/``), or a hub id.
        device: where to run it.
        dtype: what to run it in; whatever it was stored in.

    Raises:
        UserError: missing, unreadable, of a class that is not supported, or without latent statistics.
    """
    folder = _folder(spec)
    config = read_json(folder / "config.json")
    name = config.get("_class_name", "") if isinstance(config, dict) else ""
    if name not in CLASSES:
        raise UserError(
            f"VAE {spec!r}: class {name!r} is not supported{nearest(name, list(CLASSES))}; known are {CLASSES}"
        )
    weights = sorted(folder.glob("diffusion_pytorch_model*.safetensors"))
    if not weights:
        raise UserError(f"VAE {spec!r}: no diffusion_pytorch_model.safetensors in {folder}{pickles(folder)}")

    import diffusers  # seconds: only those who load an autoencoder wait for it
    from safetensors import SafetensorError

    try:
        model = getattr(diffusers, name).from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True, low_cpu_mem_usage=False, use_safetensors=True
        )
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"VAE {spec!r}: {folder} does not load ({reason})") from None
    statistics = _statistics(model, folder)
    return VideoVAE(model.to(device), spec, statistics, _fingerprint(folder, weights, statistics))
