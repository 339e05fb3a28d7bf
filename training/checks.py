"""Checks before a run's first step."""

import math
from typing import TYPE_CHECKING

from videoscaling.training.config import Config, config_of_run, hashed_values, identity
from videoscaling.training.run import Run
from videoscaling.utils.errors import UserError, plural

if TYPE_CHECKING:  # they import torch, without which sweeps are listed
    from videoscaling.data.latents import LatentCache
    from videoscaling.data.mixture import Mixture


def check_layout(run: Run, cache: "LatentCache | Mixture", world: int) -> None:
    """Refuse a run whose data are too few for it, or whose batch ``world`` processes cannot share."""
    config, clips, n_ctx = run.config, run.clips, run.n_ctx
    if not cache.train_size:
        raise UserError(f"data.cache={config.data.cache}: holds no training clips")
    if clips > cache.train_size:
        raise UserError(
            f"train.batch_tokens={config.train.batch_tokens}: a batch of {plural(clips, 'clip')}, of which "
            f"data.cache={config.data.cache} has {cache.train_size:,}; at most "
            f"{cache.train_size * n_ctx}"
        )
    check_share(run, world)
    wanted, there = config.validation.clips or cache.validation_size, cache.validation_size
    if not 2 <= wanted <= there:
        found = plural(there, "validation clip")
        raise UserError(f"validation.clips={wanted}: the cache has {found}, and a standard error needs two")


def check_share(run: Run, world: int) -> None:
    """Refuse a batch, or clips, that ``world`` processes cannot share, with the nearest that they can."""
    clips, n_ctx, heads, context = run.clips, run.n_ctx, run.config.model.heads, run.config.train.context_parallel
    common = math.gcd(world, heads, n_ctx)
    if common % context:
        nearest = max(number for number in range(1, min(context, common) + 1) if common % number == 0)
        raise UserError(
            f"train.context_parallel={context}: must divide the processes ({world}), model.heads ({heads}) and a "
            f"clip's tokens ({n_ctx:,}); nearest: {nearest}"
        )
    groups = world // context
    if clips % groups:
        low, high = clips // groups * groups, -(-clips // groups) * groups
        either = f"{low * n_ctx} or {high * n_ctx}" if low else f"{high * n_ctx}"
        sharing = f"{plural(groups, 'group')} of {context} processes" if context > 1 else f"{world} processes"
        raise UserError(
            f"train.batch_tokens={run.config.train.batch_tokens}: {plural(clips, 'clip')} cannot be shared by "
            f"{sharing}; nearest: {either}"
        )


def check_directory(config: Config) -> None:
    """Refuse a run directory that another configuration made."""
    earlier = config_of_run(config.run_dir, verbose=True)
    if earlier is not None:
        before, now = identity(earlier), identity(config)
        keys = sorted(k for k in before | now if before.get(k) != now.get(k))
        # An id may leave a key out, which has a value all the same.
        was, value = hashed_values(earlier), hashed_values(config)
        changed = [f"{k}: {was[k]} -> {value[k]}" for k in keys]
        end, end_before = config.train.tokens, earlier.train.tokens
        if end < end_before and keys == ["optim.warmup_tokens"]:
            raise UserError(
                f"train.tokens={end}: {config.run_dir} was begun for {end_before:,}, and its warm-up with it; "
                "ask for at least as many, or choose another name=..."
            )
        if changed:
            raise UserError(
                f"{config.run_dir}: made by another configuration ({'; '.join(changed)}); "
                "give the earlier values to continue it, choose another name=..., or remove it"
            )
