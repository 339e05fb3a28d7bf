"""VideoVAE: any diffusers autoencoder behind two calls, clips in [-1, 1] to normalised latents and back.

Video autoencoders compress frames in time, the first one alone (4k + 1 frames to k + 1, say); an image autoencoder
is applied to each frame. Latents leave normalised by the autoencoder's own convention, which is the only place where
latent statistics live: caches and checkpoints copy them and never renormalise.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from videoscaling.models.autoencoders import (
    CLASSES,
    FLOAT32_ONLY,
    IMAGE_CLASS,
    compression,
    frame_step,
    rows_at_once,
    smallest,
    statistics_of,
)
from videoscaling.models.hub import VAES, located, read_config, weight_files
from videoscaling.utils.errors import UserError, first_line, nearest
from videoscaling.utils.files import read_json
from videoscaling.utils.finiteness import check_finite


def _fingerprint(folder: Path, weights: Iterable[Path], statistics: dict[str, Any]) -> str:
    """A short hash of the settings that determine latents: configuration, weights, normalisation. Not of paths."""
    config = read_json(folder / "config.json", dict)
    kept = {key: value for key, value in config.items() if key not in ("_name_or_path", "_diffusers_version")}
    digest = hashlib.sha256(json.dumps([kept, statistics], sort_keys=True).encode())
    for path in weights:
        with path.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:16]


class VideoVAE:
    """A diffusers autoencoder with its normalisation. Made by `load_vae`.

    Memory: batches are taken in parts of at most `POSITIONS_AT_ONCE` positions of the widest feature maps. A clip that
    alone has more is cut into diffusers' own overlapping tiles, whose seams differ from what the whole would give;
    whether that is so depends on the clip's shape and on nothing else.

    Attributes:
        model: the diffusers autoencoder, in evaluation mode, without gradients.
        spec: the folder or hub id it was loaded from.
        statistics: ``{"convention", "mean", "std"}`` of raw latents, per channel (or one number for all).
        fingerprint: short hash of configuration, weights and statistics.
        channels: latent channels.
        temporal, spatial: frames, and pixels along a side, per latent.
    """

    def __init__(self, model: nn.Module, spec: str, statistics: dict[str, Any], fingerprint: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.spec, self.statistics, self.fingerprint = spec, statistics, fingerprint
        self.temporal, self.spatial = compression(model)
        if "spatial_compression_ratio" in vars(model):  # tiles are measured by this label, right or wrong
            model.spatial_compression_ratio = self.spatial
        config = model.config
        self.channels: int = config.z_dim if "z_dim" in config else config.latent_channels
        for key in ("mean", "std"):
            count = len(statistics[key])
            if count != 1 and count % self.channels:
                raise UserError(f"{spec}: {count} numbers for the latents' {key}, but {self.channels} channels")

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def _image(self) -> bool:
        return type(self.model).__name__ == IMAGE_CLASS

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(channels, frames, height, width) of the latents of such clips.

        Raises:
            UserError: the autoencoder cannot take such clips; the message names the nearest that it can.
        """
        step = frame_step(self.model)
        if frames < 1 or (frames - 1) % step:
            low = max(1, (frames - 1) // step * step + 1)
            near = f"the nearest are {low} and {low + step}"
            raise UserError(f"{frames} frames: this VAE takes {step}k + 1; {near}")
        latent_frames = (frames - 1) // self.temporal + 1
        known = len(self.statistics["mean"]) // self.channels
        if known > 1 and latent_frames > known:
            longest = (known - 1) * self.temporal + 1
            raise UserError(f"{frames} frames: this VAE has latent statistics for at most {longest}")
        for name, size in (("height", height), ("width", width)):
            least = smallest(self.model) * self.spatial
            if size < least or size % self.spatial:
                low = max(least, size // self.spatial * self.spatial)
                near = f"the nearest are {low} and {low + self.spatial}"
                raise UserError(f"{name} {size}: this VAE takes multiples of {self.spatial}; {near}")
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

    def _in_parts(self, call: Callable[[Tensor], Tensor], x: Tensor, frames: int, height: int, width: int) -> Tensor:
        """``call`` on as many rows of x at a time as may be held at once, float32; see the class's word on memory.

        Args:
            frames, height, width: of the clip, in pixels, that one row of x is or becomes.
        """
        batch_rows = rows_at_once(self.model, frames, height, width)
        self.model.use_tiling = not batch_rows
        return torch.cat([call(part).float() for part in x.split(max(1, batch_rows))])

    @torch.no_grad()
    def encode(self, clips: Tensor) -> Tensor:
        """Clips [n, 3, F, H, W] in [-1, 1] to normalised latents (posterior means), float32 [n, C, f, h, w].

        Raises:
            UserError: F, H or W does not suit the autoencoder.
        """
        shape = self.latent_shape(*clips.shape[2:])
        rows = clips.to(self.device, self.dtype)
        rows = _fold_frames(rows) if self._image else rows
        latents = self._in_parts(lambda part: self.model.encode(part).latent_dist.mode(), rows, *clips.shape[2:])
        latents = _unfold_frames(latents, len(clips)) if self._image else latents
        assert latents.shape[1:] == shape, (latents.shape, shape)
        mean, std = self._mean_std(latents)
        return (latents - mean) / std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [n, C, f, h, w] to clips, float32 [n, 3, F, H, W], clamped to [-1, 1].

        Raises:
            NotFinite: a latent or a pixel is NaN or infinite; clamped, infinity would be white.
        """
        check_finite(latents, f"latents to decode with {self.spec}", "look for the cause in what made them")
        latents = latents.to(self.device, torch.float32)
        mean, std = self._mean_std(latents)
        rows = (latents * std + mean).to(self.dtype)
        rows = _fold_frames(rows) if self._image else rows

        def decoded(part: Tensor) -> Tensor:
            if not self.model.config.get("timestep_conditioning"):
                return self.model.decode(part).sample
            # Later LTX decoders can remove some noise as well; time 0 says that there is none.
            return self.model.decode(part, torch.zeros(len(part), device=part.device, dtype=part.dtype)).sample

        frames, height, width = latents.shape[2:]
        pixels = ((frames - 1) * self.temporal + 1, height * self.spatial, width * self.spatial)
        clips = self._in_parts(decoded, rows, *pixels)
        fix = "the latents are finite, so the autoencoder overflows: use it in float32, or less guidance"
        check_finite(clips, f"clips decoded with {self.spec}", fix)
        return (_unfold_frames(clips, len(latents)) if self._image else clips).clamp(-1, 1)


def _fold_frames(x: Tensor) -> Tensor:
    """[n, c, f, h, w] to [n * f, c, h, w]."""
    return x.transpose(1, 2).flatten(0, 1)


def _unfold_frames(x: Tensor, n: int) -> Tensor:
    """[n * f, c, h, w] to [n, c, f, h, w]."""
    return x.unflatten(0, (n, -1)).transpose(1, 2)


def _load(folder: Path, spec: str, name: str) -> nn.Module:
    """diffusers' autoencoder of the class ``name`` in ``folder``, float32."""
    import diffusers  # 6 s of processor time: only those who load such an autoencoder wait for it

    if not hasattr(diffusers, name):
        raise UserError(f"VAE {spec!r}: diffusers {diffusers.__version__} has no {name}; install a newer one")
    try:
        # In float32 first: LTX keeps its statistics among the weights, which another dtype would round.
        model, info = getattr(diffusers, name).from_pretrained(
            folder,
            torch_dtype=torch.float32,
            local_files_only=True,
            low_cpu_mem_usage=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # diffusers' constructors raise any kind, IndexError too, for a configuration at fault
        reason = first_line(error)
        raise UserError(f"VAE {spec!r}: {folder} does not load ({reason})") from None
    if info["missing_keys"]:  # they would be random
        raise UserError(f"VAE {spec!r}: {folder} does not load (no {sorted(info['missing_keys'])[0]} in its weights)")
    return model


def load_vae(spec: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> VideoVAE:
    """Load an autoencoder for use, not for training.

    Args:
        spec: ``"embedded"``, ``"real32"`` or ``"real64"`` (tiny ones that ship), a folder in diffusers' format (of an
            autoencoder, or of a pipeline that holds one in ``vae/``), or a hub id.
        device: where to run it.
        dtype: compute dtype, independent of the stored one. Latents and statistics stay float32.

    Raises:
        UserError: missing, unreadable, incomplete, of a class that is not supported, or without latent statistics.
    """
    if spec in VAES:
        folder = VAES[spec]
    else:
        root, layout = located(spec, "VAE", (("vae",), ("",)), VAES)  # a pipeline keeps its autoencoder in vae/
        folder = root / layout[0]
    config = read_config(folder)
    name = str(config.get("_class_name", ""))
    if name not in CLASSES:
        raise UserError(
            f"VAE {spec!r}: class {name!r} is not supported{nearest(name, list(CLASSES))}; known are {CLASSES}"
        )
    if name in FLOAT32_ONLY and dtype != torch.float32:
        raise UserError(f"VAE {spec!r}: {name}'s encoder needs float32, in {dtype} its latents are noise")
    weights = weight_files(folder, f"VAE {spec!r}")

    model = _load(folder, spec, name)
    try:
        statistics = statistics_of(model, folder)
        nn.Module.to(model, device, dtype)  # diffusers' own warns of modules to be kept in float32: these have none
        return VideoVAE(model, spec, statistics, _fingerprint(folder, weights, statistics))
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise UserError(f"VAE {spec!r}: {folder / 'config.json'}: not usable ({first_line(error)})") from None
