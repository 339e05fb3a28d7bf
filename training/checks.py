"""Checks before a run's first step."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from videoscaling.training.config import Config, config_of_run, hashed_values, identity
from videoscaling.training.run import Run
from videoscaling.utils.errors import UserError, plural
from videoscaling.utils.messages import is_first_process
from videoscaling.utils.results import FILE, whole_results

if TYPE_CHECKING:  # they import torch, without which sweeps are listed
    from videoscaling.data.mixture import Data


def check_layout(run: Run, data: "Data", world: int) -> None:
    """Refuse a run whose data are too few for it, or whose batch ``world`` processes cannot share."""
    config = run.config
    check_share(run, world)
    for part, cache in zip(run.parts, data.parts):
        kind = f" of {part.n_ctx} tokens" if run.shapes else ""
        if not cache.train_size:
            raise UserError(f"data.cache={config.data.cache}: holds no training clips{kind}")
        if part.clips > cache.train_size:
            raise UserError(
                f"train.batch_tokens={config.train.batch_tokens}: a batch of {plural(part.clips, 'clip')}{kind}, of "
                f"which data.cache={config.data.cache} has {cache.train_size:,}; at most "
                f"{cache.train_size * part.n_ctx} tokens"
            )
        wanted, there = config.validation.clips or cache.validation_size, cache.validation_size
        if not 2 <= wanted <= there:
            found = plural(there, "validation clip") + kind
            fix = f"give 2 to {there}" if there >= 2 else "make it with tools/cache_latents.py --validation 2 or more"
            raise UserError(f"validation.clips={wanted}: the cache has {found}, and a standard error needs two; {fix}")


def check_share(run: Run, world: int) -> None:
    """Refuse a batch, or clips, that ``world`` processes cannot share, with the nearest that they can."""
    heads, context = run.config.model.heads, run.config.train.context_parallel
    tokens, batch = [part.n_ctx for part in run.parts], run.config.train.batch_tokens
    common = math.gcd(world, heads, *tokens)
    if common % context:
        nearest = max(number for number in range(1, min(context, common) + 1) if common % number == 0)
        raise UserError(
            f"train.context_parallel={context}: must divide the processes ({world}), model.heads ({heads}) and a "
            f"clip's tokens ({' and '.join(f'{n_ctx:,}' for n_ctx in tokens)}); nearest: {nearest}"
        )
    groups = world // context
    if any(part.clips % groups for part in run.parts):
        least = groups * math.lcm(*tokens)
        low, high = batch // least * least, -(-batch // least) * least
        either = f"{low} or {high}" if low else f"{high}"
        sharing = f"{plural(groups, 'group')} of {context} processes" if context > 1 else f"{world} processes"
        raise UserError(
            f"train.batch_tokens={batch}: {run.clips_text} cannot be shared by {sharing}; nearest: {either}"
        )


def check_directory(config: Config) -> None:
    """Refuse a run directory that another configuration made."""
    earlier = config_of_run(config.run_dir, verbose=is_first_process())
    if earlier is not None:
        before, now = identity(earlier), identity(config)
        keys = sorted(k for k in before | now if before.get(k) != now.get(k))
        # An id may leave a key out, which has a value all the same.
        was, value = hashed_values(earlier), hashed_values(config)
        if "data.fingerprint" in keys:  # of what these two name, which no id has
            keys += [k for k in ("data.cache", "data.weights") if was[k] != value[k]]
        changed = [f"{k}: {was[k]} -> {value[k]}" for k in keys]
        end = config.train.tokens
        if end < earlier.train.tokens and keys == ["optim.warmup_tokens"]:
            if end <= (trained := _trained_tokens(config.run_dir)):
                raise UserError(
                    f"train.tokens={end}: {config.run_dir} already has {trained:,} tokens; ask for more, or choose "
                    "another name=..."
                )
            was, value = earlier.optim.warmup_tokens, config.optim.warmup_tokens
            raise UserError(
                f"train.tokens={end}: {config.run_dir} was begun with a warm-up of {was:,} tokens, and this one would "
                f"have {value:,}; give optim.warmup_tokens={was} to continue it, or choose another name=..."
            )
        if changed:
            raise UserError(
                f"{config.run_dir}: made by another configuration ({'; '.join(changed)}); "
                "give the earlier values to continue it, choose another name=..., or remove it"
            )


def _trained_tokens(directory: Path) -> int:
    """The tokens in the result of a run directory; 0 without a result that can be read."""
    path = directory / FILE
    results, _ = whole_results([path] if path.is_file() else [])
    return max((result.get("tokens") or 0 for result in results.values()), default=0)
