"""result.json: a run's result for the fits, which read nothing else of a run."""

import functools
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from videoscaling.data.index import CacheMeta, shape_name
from videoscaling.models.sizes import exact_flops, head_width
from videoscaling.training.config import Config, config_of_run, run_id, to_dict
from videoscaling.training.run import Run, token_numbers
from videoscaling.utils.errors import UserError, shown
from videoscaling.utils.results import FILE, DamagedResult, Milestone, RunResult, read_result
from videoscaling.utils.revision import code_revision

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "accelerate", "diffusers", "safetensors", "numpy")


def recipe(config: Config, meta: CacheMeta) -> dict[str, object]:
    """The settings that a loss depends on besides N, T, B, lr and seed: laws hold for one recipe.

    ``meta`` is the cache's. wsd's decay, initial weights and heads that are not the size's own are there only where a
    run has them.
    """
    model, optim, diffusion, validation = config.model, config.optim, config.diffusion, config.validation
    channels = model.width // model.heads
    own_heads = channels == head_width(model.layers, model.width)
    return {
        "optimizer": "adamw",
        "beta1": optim.beta1,
        "beta2_half_life": optim.beta2_half_life,
        "beta2_range": optim.beta2_range,
        "eps": optim.eps,
        "weight_decay": optim.weight_decay,
        "clip": optim.clip,
        "schedule": optim.schedule,
        "warmup": round(optim.warmup_tokens / config.train.milestones[0], 4),  # of the smallest milestone
        "ema_width": config.ema.width,
        "process": diffusion.process,
        "target": diffusion.target,
        "timesteps": diffusion.timesteps,
        "logit_mean": diffusion.logit_mean,
        "logit_std": diffusion.logit_std,
        "caption_dropout": config.data.caption_dropout,
        "patch": config.model.patch,
        "dtype": config.train.dtype,
        "data": config.data.fingerprint,
        "vae": meta["vae_fingerprint"],
        "text": meta["text_fingerprint"],
        "validation": f"{meta['validation_hash']}, {validation.clips or 'all'} clips, {validation.timesteps} times, "
        f"seed {validation.seed}",
        **({"decay_fraction": optim.decay_fraction} if optim.schedule == "wsd" else {}),
        **({"init": config.train.init} if config.train.init else {}),
        **({} if own_heads else {"heads": f"of {channels} channels"}),
    }


def environment(device: "torch.device", world: int) -> RunResult:
    """Versions, code revision and device."""
    import torch  # not at the top: who only reads results does not wait for it

    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "git_revision": code_revision(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})",
        "processes": world,
    }


def build_result(
    run: Run,
    meta: CacheMeta,
    *,
    status: str,
    step: int,
    skipped: int,
    milestones: list[Milestone],
    seconds: float,
    device: "torch.device",
    world: int,
) -> RunResult:
    """The content of result.json.

    ``status`` is "running" (some milestones are there), "preempted", "done" or "diverged" (a loss was not finite; the
    milestones before it stand). ``skipped`` counts the steps among ``step`` that moved nothing, as their gradient was
    not finite.
    """
    config = run.config
    return {
        "status": status,
        "run_id": run_id(config),
        "N": run.N,
        "layers": config.model.layers,
        "width": config.model.width,
        "n_ctx": run.n_ctx,
        "B": config.train.batch_tokens,
        "lr": config.optim.lr,
        "seed": config.seed,
        "heldout": config.heldout,
        "tokens": step * config.train.batch_tokens,
        "skipped": skipped,
        "flops": run.flops(step),
        "exact_flops": exact_flops_of(run, meta, step),
        **({"shapes": _shapes(run, meta, step)} if run.shapes else {}),
        "warmup_tokens": config.optim.warmup_tokens,
        "milestones": milestones,
        "milestones_asked": config.train.milestones,
        "recipe": recipe(config, meta),
        "seconds": seconds,
        **environment(device, world),
        "config": to_dict(config),
    }


def exact_flops_of(run: Run, meta: CacheMeta, steps: int) -> int:
    """The exact count of the run's first ``steps`` steps, for data of ``meta``."""
    model, token_dim = run.config.model, token_numbers(run.config, meta["latent_shape"])
    each = zip(run.parts, meta.get("shapes", [meta]), run.steps_of_parts(steps))
    return sum(
        taken
        * part.clips
        * exact_flops(model.layers, model.width, part.n_ctx, token_dim, shape["text_tokens"], meta["text_dim"])
        for part, shape, taken in each
    )


def _shapes(run: Run, meta: CacheMeta, step: int) -> list[dict]:
    """Each shape of clips in result.json: its latents, tokens and clips per step, its share and its steps so far."""
    return [
        {
            "latents": shape_name(shape["latent_shape"]),
            "n_ctx": part.n_ctx,
            "clips": part.clips,
            "share": part.share,
            "steps": taken,
        }
        for part, shape, taken in zip(run.parts, meta["shapes"], run.steps_of_parts(step))
    ]


def finished_result(run: Run) -> RunResult | None:
    """The result in the run's directory if it is this run's and final: diverged, or done to the end asked for."""
    result = recorded(run)
    reached = {m.get("nominal") for m in result["milestones"]}
    done = result.get("status") == "done" and reached >= set(run.config.train.milestones)
    return result if done or result.get("status") == "diverged" else None


def recorded(run: Run) -> RunResult:
    """The result in the run's directory, if it is this run's and not damaged; else one of no tokens and milestones."""
    nothing: RunResult = {"tokens": 0, "milestones": []}
    path = run.config.run_dir / FILE
    try:
        result = read_result(path) if path.exists() else nothing
    except DamagedResult:
        return nothing
    return result if result.get("run_id") == run_id(run.config) and result.get("tokens") is not None else nothing


def earlier_milestones(config: Config) -> list[int]:
    """The milestones of an earlier start of a run that may grow: they stay, and so does its warm-up."""
    earlier = config_of_run(config.run_dir) if config.optim.schedule == "constant" else None
    return earlier.train.milestones if earlier else []


def result_damage(directory: Path) -> str | None:
    """Why the result in ``directory`` cannot be used, as text; None if it is intact or absent."""
    path = directory / FILE
    try:
        if path.exists():
            read_result(path)
    except DamagedResult as error:
        return str(error)
    return None


def resumable_step(directory: Path) -> int:
    """The step of a run's newest checkpoint with its optimiser, from which it can continue; 0 without one.

    A finished run that kept its averages alone starts again, should it grow.
    """
    paths = (directory / "checkpoints").glob("step_*/optimizer.*safetensors")
    steps = [path.parent.name.removeprefix("step_") for path in paths]
    return max((int(step) for step in steps if step.isdigit()), default=0)  # not of a user's copy, step_9_good


def check_growth(run: Run, tokens: int, milestones: list[Milestone]) -> None:
    """Refuse a ``run`` whose end or new milestone lies before ``tokens`` and is not among the measured ``milestones``.

    A milestone at ``tokens`` itself can still be measured: a checkpoint is saved before its step is validated.

    Raises:
        UserError: names the end or milestone that was passed without a measurement.
    """
    measured = {m["nominal"] for m in milestones}
    before = tokens - run.config.train.batch_tokens
    end, known = run.config.train.tokens, recorded(run)["tokens"]
    if end <= max(before, known) and end not in measured:
        raise UserError(
            f"train.tokens={end}: the run already has {max(tokens, known):,} tokens, and at {end:,} it was not "
            "measured; ask for more, or choose another name=..."
        )
    missed = [m for m in run.config.train.milestones if m <= before and m not in measured]
    if missed:
        raise UserError(
            f"train.milestones={shown(missed)}: the run is already at {tokens:,} tokens; "
            "choose later ones, or another name=..."
        )


@functools.cache  # reading the metadata of packages took two thirds of the time of writing a result
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
