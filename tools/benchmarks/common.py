"""Shared code of the benchmarks: timing in turn, and clips to time."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videoscaling.data.clip_groups import ClipGroup
from videoscaling.data.latents import LatentCache
from videoscaling.data.video.clips import Clips
from videoscaling.data.writer import write_cache
from videoscaling.models.attention import choose_backend
from videoscaling.models.dit import DiTConfig, VideoDiT
from videoscaling.models.sizes import parse_size
from videoscaling.models.text import TextEncoder, load_text_encoder
from videoscaling.tools.benchmarks.shapes import CLIPS
from videoscaling.training.config import load_config
from videoscaling.training.planning.memory_formula import ASSUMED_TEXT_DIM, ASSUMED_TEXT_TOKENS
from videoscaling.training.run import resolve
from videoscaling.training.trainer import Trainer

Row = dict[str, object]  # a benchmark's figures, under names of its own
TEXT_TOKENS, TEXT_DIM = 64, 512  # of the peers' comparison
WARMUP_ROUNDS = 3


def timed(things: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each call, in turn, ``rounds`` times after warming up, so that a slow moment slows all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in things}
    for number in range(WARMUP_ROUNDS + rounds):
        for name, thing in things.items():
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            begun = time.perf_counter()
            thing()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number >= WARMUP_ROUNDS:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def spread(values: list[float], unit: float = 1.0) -> dict[str, float]:
    """Median and quartiles of ``values`` times ``unit``."""
    scaled = sorted(value * unit for value in values)
    low, middle, high = statistics.quantiles(scaled, n=4, method="inclusive") if len(scaled) > 1 else scaled * 3
    return {"value": middle, "low": low, "high": high}


class RandomText:
    """A text encoder of T5's size whose embeddings are random: full-length captions that nothing pads."""

    spec, dim, max_tokens, fingerprint = "random", ASSUMED_TEXT_DIM, ASSUMED_TEXT_TOKENS, "random"

    def encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """See ``TextEncoder.encode``."""
        shape = len(prompts), self.max_tokens
        return torch.randn(*shape, self.dim), torch.ones(shape, dtype=torch.bool)

    def count_tokens(self, prompts: list[str]) -> list[int]:
        """See ``TextEncoder.count_tokens``."""
        return [self.max_tokens for _ in prompts]


def random_cache(
    folder: Path, n_ctx: int, clips: int = 512, text: TextEncoder | None = None, captions: int = 512
) -> Path:
    """A real latent cache of random latents.

    Args:
        text: encodes the captions, by default of 31 tokens each.
        captions: different ones.
    """
    shape, _ = CLIPS[n_ctx]

    class AsTheyAre:
        def encode(self, latents: Tensor) -> Tensor:
            return latents

        def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
            return shape

    def unit(split: str, count: int) -> ClipGroup:
        words = [" ".join(f"word{(i % captions + j) % 97}" for j in range(31)) for i in range(count)]
        keys = [f"{split} {i}" for i in range(count)]
        return ClipGroup(split, keys, lambda: Clips(keys, words, torch.randn(count, *shape)))

    settings = {"format": 1, "frames": shape[1], "height": shape[2], "width": shape[3], "source": "random"}
    settings |= {"vae": "none", "vae_fingerprint": "none", "text": "embedded", "text_fingerprint": "none"}
    units = {"train": [unit("train", clips)], "validation": [unit("validation", 16)]}
    write_cache(folder, settings, units, AsTheyAre(), text or load_text_encoder("embedded"))
    return folder


def bench_trainer(cache: LatentCache, folder: str, n_ctx: int, clips: int, keys: list[str]) -> Trainer:
    """A trainer of steps of so many clips, whose run never ends; ``keys`` are the rest of its configuration."""
    batch = n_ctx * clips
    shared = [
        f"data.cache={cache.path}",
        f"out={folder}",
        f"train.batch_tokens={batch}",
        f"train.tokens={batch * 10**6}",
    ]
    shared.append(f"model.patch={list(CLIPS[n_ctx][1])}".replace(" ", ""))
    return Trainer(resolve(load_config(None, [*shared, *keys]), cache.meta), cache)


def our_model(size: str, latent: tuple, patch: tuple, dtype: str, device: torch.device) -> VideoDiT:
    shape = parse_size(size)
    config = DiTConfig(shape.layers, shape.width, shape.heads, latent[0], patch, TEXT_DIM)
    chosen = getattr(torch, dtype)
    return VideoDiT(config, 0, chosen, choose_backend("auto", device.type, chosen)).to(device)
