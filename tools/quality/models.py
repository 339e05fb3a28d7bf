"""Trained models as makers of clips, with what is known of each: N, T and its validation loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from videoscaling.diffusion.sampler_options import SamplerOptions
from videoscaling.models.sizes import parameters
from videoscaling.tools.quality.names import is_model
from videoscaling.training.checkpoints.checkpoint import find_checkpoint, read_state
from videoscaling.training.checkpoints.exported import read_trained
from videoscaling.training.checkpoints.paths import STATE
from videoscaling.training.config import cache_folders, read_config, run_id
from videoscaling.training.pipeline import VideoPipeline
from videoscaling.utils.errors import UserError


@dataclass(frozen=True)
class ModelFacts:
    """A model's parameters N, its training tokens T, and the validation loss of its averaged weights with its standard
    error; T and the loss are None where the checkpoint does not say, as for exported models."""

    N: int
    T: int | None = None
    loss: float | None = None
    loss_se: float | None = None


def cache_of(path: str) -> str:
    """The cache that a model was trained on.

    Raises:
        UserError: the model does not say, or was trained on several.
    """
    trained = read_trained(path)
    folders = [folder for folder in cache_folders(trained.config) if folder]
    if len(folders) != 1:
        raise UserError(f"{path}: names {len(folders)} caches; name one, or real videos, as --real")
    return folders[0]


def load_model(
    path: str, device: torch.device, *, vae: str | None = None, text: str | None = None
) -> tuple[VideoPipeline, ModelFacts]:
    """The pipeline of a model with averaged weights, and what is known of it."""
    pipeline = VideoPipeline.from_run(path, device=str(device), vae=vae, text=text)
    size = pipeline.model.config
    N = parameters(size.layers, size.width)
    if pipeline.path == "embedded" or not (Path(pipeline.path) / STATE).is_file():
        return pipeline, ModelFacts(N)
    state = read_state(Path(pipeline.path))
    measured = next((one for one in state["milestones"] if one["tokens"] == state["tokens"]), {})
    return pipeline, ModelFacts(N, state["tokens"], measured.get("ema_val_loss"), measured.get("ema_val_se"))


def check_curve(names: Sequence[str]) -> None:
    """Check that ``names`` are models of one curve over T.

    Raises:
        UserError: one is no checkpoint with a T, two have the same T, or they are of several runs.
    """
    others = any(name == "embedded" or (Path(name) / "config.json").is_file() or not is_model(name) for name in names)
    paths = [] if others else [find_checkpoint(Path(name), ("ema",)) for name in names]
    seen, runs = [read_state(path)["tokens"] for path in paths], {run_id(read_config(path)) for path in paths}
    if len(set(seen)) < max(len(seen), 1) or len(runs) > 1:
        found = f"T is {', '.join(f'{tokens:,}' for tokens in seen)}" if seen else "these are not all such"
        found = f"these are of {len(runs)} runs" if len(runs) > 1 else found
        raise UserError(f"--tensorboard: a curve needs checkpoints of one run, each of another T; {found}")


def sample_clips(
    pipeline: VideoPipeline, captions: Sequence[str], options: SamplerOptions, *, seed: int, batch: int
) -> Tensor:
    """A clip for each caption, the i-th of seed ``seed`` + i: float32 [n, 3, F, H, W] on the CPU."""
    seeds = [seed + index for index in range(len(captions))]
    return torch.cat([part.cpu() for part in pipeline.batches(captions, seeds, options, batch=batch)])
