"""Units of a few clips, an autoencoder that can be stopped, and caches made of them."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from videoscaling.data import latents
from videoscaling.data.clip_groups import ClipGroup
from videoscaling.data.sources.source import Rejected
from videoscaling.data.video.clips import Clips
from videoscaling.data.writer import write_cache
from videoscaling.models.text import load_text_encoder
from videoscaling.utils.random import normal

SHAPE = (3, 2, 4, 4)
SETTINGS = {"format": latents.FORMAT, "frames": 5, "height": 16, "width": 16, "source": "test"}
SETTINGS |= {"vae_fingerprint": "pooling", "text_fingerprint": "embedded"}
TEXT = load_text_encoder("embedded")


class PoolingVAE:
    """Averages over space and time; stops the job after ``until`` calls, as a kill would."""

    def __init__(self, until: int = 1_000_000) -> None:
        self.until, self.calls = until, 0

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        return 3, (frames + 3) // 4, height // 4, width // 4

    def encode(self, clips: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls > self.until:
            raise KeyboardInterrupt
        return torch.nn.functional.adaptive_avg_pool3d(clips, SHAPE[1:])


def caption(i: int) -> str:
    return "" if i % 7 == 0 else " ".join(["shape"] * (i % 9 + 1)) + f" {i // 2}"


def _load(name: str, first: int, count: int, broken: bool) -> Clips:
    if broken:
        raise Rejected("undecodable", "broken in the middle")
    index = range(first, first + count)
    pixels = normal(0, "clips", torch.tensor(index), (3, 5, 16, 16))
    return Clips([f"{name}#{i}" for i in index], [caption(i) for i in index], pixels)


def unit(name: str, first: int, count: int, broken: bool = False) -> ClipGroup:
    """A source of ``count`` clips, which are functions of ``first`` and their number."""
    return ClipGroup(name, [], partial(_load, name, first, count, broken))


def units_of(broken: bool = False) -> dict[str, list[ClipGroup]]:
    train = [unit(f"v{k}", 10 * k, 3 + k % 3, broken=broken and k == 2) for k in range(8)]
    return {"train": train, "validation": [unit("w0", 200, 4), unit("w1", 300, 3)]}


def make(folder: Path, units: Any = None, vae: Any = None, settings: dict = SETTINGS, **options: Any) -> dict:
    """A cache of two units a shard."""
    return write_cache(folder, settings, units or units_of(), vae or PoolingVAE(), TEXT, per_shard=2, **options)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
