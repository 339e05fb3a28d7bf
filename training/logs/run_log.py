"""The log of a run: its settings at the start, a line for each window of steps, its outcome at the end."""

import math

import torch

from videoscaling.data.mixture import Data, shared_video_warnings
from videoscaling.diffusion.validation import T_BINS
from videoscaling.training.distributed.parallel import all_reduce
from videoscaling.training.logs.metrics import MetricsLog
from videoscaling.training.logs.trackers import open_trackers
from videoscaling.training.optim import learning_rate
from videoscaling.training.planning.memory_formula import even_size
from videoscaling.training.run import Run, run_warnings, token_numbers
from videoscaling.training.step import TrainStep
from videoscaling.utils.errors import CONTINUES, plural
from videoscaling.utils.messages import warn

# Repeated tokens are worth nearly as much as new ones for four epochs, and little after sixteen (arXiv 2305.16264).
MANY_EPOCHS = 16


def open_log(
    run: Run,
    cache: Data,
    *,
    step: int,
    device: torch.device,
    world: int,
    validates: bool,
    attention: str,
) -> MetricsLog:
    """Open the log of ``run``; print its description and the warnings about its configuration.

    Args:
        step: the step that the run continues from.
        world: how many processes train.
        validates: whether the run is validated before its next step.
        attention: the backend that the model attends with.
    """
    config = run.config
    settings = {"N": run.N, "layers": config.model.layers, "width": config.model.width}
    settings |= {"T": config.train.tokens, "B": config.train.batch_tokens, "lr": config.optim.lr, "seed": config.seed}
    log = MetricsLog(
        config.run_dir,
        step,
        step * config.train.batch_tokens,
        device=device,
        world=world,
        dtype=config.train.dtype,
        validates=validates,
        board=config.log.tensorboard_dir if "tensorboard" in config.log.to else None,
        trackers=open_trackers(config, settings),
    )
    log.hparams(settings)
    begun = f"; from step {step:,}" if step else ""
    how = f"{epochs_of(run, cache):.3g} epochs; {device}, attention {attention}"
    print(f"{config.run_dir}: {run.text}; {how}{begun}", flush=True)
    for text in run_warnings(config, token_numbers(config, cache.latent_shape)) + data_warnings(run, cache):
        warn(text)
    wanted, local = config.train.micro_batch, run.clips * config.train.context_parallel // world
    if wanted and local > wanted != (size := even_size(local, wanted)):
        print(f"train.micro_batch={wanted}: of {plural(local, 'clip')} {size} at a time, which changes no result")
    return log


def epochs_of(run: Run, data: Data) -> float:
    """How often a run sees its data, in tokens."""
    there = sum(part.n_ctx * cache.train_size for part, cache in zip(run.parts, data.parts))
    return run.steps * run.config.train.batch_tokens / there


def data_warnings(run: Run, data: Data) -> list[str]:
    """Warnings if a run sees its clips more than ``MANY_EPOCHS`` times, or trains on videos that it validates on."""
    clips, epochs = sum(cache.train_size for cache in data.parts), epochs_of(run, data)
    shared = shared_video_warnings(data)
    if epochs <= MANY_EPOCHS:
        return shared
    return [
        *shared,
        f"{epochs:,.0f} epochs of {plural(clips, 'training clip')}: laws are for clips that repeat little, and a "
        "model learns such ones by heart; cache more videos, or lower train.tokens",
    ]


def log_window(
    log: MetricsLog | None, train_step: TrainStep, run: Run, *, step: int, share: float, data_seconds: float
) -> None:
    """Log the means over the steps since the last line. All processes take part; the first alone has a ``log``.

    Args:
        train_step: has the sums over the steps; they start again.
        step: the last step taken.
        share: of this process's time that the run has.
        data_seconds: that the process waited for samples in these steps.
    """
    finite_steps = train_step.finite_steps.item()
    loss = all_reduce(train_step.loss_sum, "mean").item() / finite_steps if finite_steps else math.nan
    sums, numbers = all_reduce(train_step.by_t, "sum")[:, :T_BINS]
    # In one order, as all processes take the same shapes.
    by_shape = {name: all_reduce(both, "sum").tolist() for name, both in train_step.by_shape.items()}
    noise_scale = train_step.noise_scale.tokens(run.n_ctx)
    train_step.reset_window()
    if log is not None:
        batch, end = run.config.train.batch_tokens, run.config.train.tokens
        tokens = step * batch
        rate = learning_rate(run.config.optim, tokens - batch / 2, end)
        log.step(
            step=step,
            tokens=tokens,
            flops=run.flops(step),
            loss=loss,
            lr=rate,
            grad_norm=train_step.grad_norm.item(),
            skipped=train_step.skipped_steps.item(),
            end=end,
            by_t=(sums / numbers).tolist(),
            by_shape={name: total / taken for name, (total, taken) in by_shape.items() if taken},
            share=share,
            noise_scale=noise_scale,
            data_seconds=data_seconds,
        )


def close_log(log: MetricsLog, run: Run, *, step: int, status: str) -> None:
    """Close the log, and print the run's outcome at ``step``."""
    log.close()
    ended, more = ("stopped", f"; {CONTINUES}") if status == "preempted" else (status, "")
    tokens = step * run.config.train.batch_tokens
    print(f"{run.config.run_dir}: {ended} after {plural(step, 'step')}, {tokens:,} tokens{more}", flush=True)
