"""`train.py --dry-run`: a run's size, cost and memory. Nothing is written, and an existing run stays as it is."""

import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, replace

import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from torch import Tensor

from videoscaling.data.index import shape_name
from videoscaling.data.latents import LatentCache
from videoscaling.data.mixture import Data, Mixture
from videoscaling.models.dit import VideoDiT
from videoscaling.models.sizes import exact_flops
from videoscaling.training.batches import BatchLoader, Samples
from videoscaling.training.checkpoints import checkpoint as ckpt
from videoscaling.training.checks import check_directory
from videoscaling.training.config import Config, to_dict
from videoscaling.training.distributed.parallel import node_count
from videoscaling.training.logs.metrics import memory_peak, peak_flops
from videoscaling.training.logs.run_log import data_warnings, epochs_of
from videoscaling.training.planning.memory_formula import (
    ClipShape,
    Layout,
    ModelShape,
    steps_together,
    training_memory,
)
from videoscaling.training.planning.run_report import (
    PROBE_STEPS,
    WARMUP_STEPS,
    DataReport,
    Flops,
    RunReport,
    ShapeReport,
    TextLengths,
    Timing,
    ValidationCost,
    described,
    probed,
    table,
)
from videoscaling.training.planning.step_account import step_account
from videoscaling.training.result import check_growth, exact_flops_of, finished_result
from videoscaling.training.run import Run, run_warnings, token_numbers
from videoscaling.training.train import prepare
from videoscaling.training.trainer import RAW_SHARE, Trainer
from videoscaling.training.validation import Validator
from videoscaling.utils.messages import warn

SAMPLE_NUMBERS = 1 << 24  # the most latent numbers to read for the data report


def dry_run(config: Config, as_json: bool = False) -> int:
    """Print the size, cost and memory of ``config``'s run, after a probe of a few steps; returns the exit status.

    Under torchrun every process probes, and the first one prints.

    Raises:
        UserError: everything that would keep the run from starting.
    """
    run, cache = prepare(config)
    before = memory_peak(torch.device("cpu"))
    try:
        trainer = Trainer(run, cache)
        check_directory(run.config)
        report = describe(trainer)
        if trainer.main and not as_json:
            print(OmegaConf.to_yaml(OmegaConf.create(report.config)))
            print(table(described(report)), flush=True)
            for text in report.warnings:
                warn(text)
        with redirect_stdout(sys.stderr):  # a micro-batch that is halved is said there, not in the JSON
            report = probe(trainer, report, before)
        if trainer.main:
            text = json.dumps(asdict(report), indent=1, allow_nan=False) if as_json else table(probed(report))
            print(text, flush=True)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


# -- what follows from the configuration and the data ------------------------------------------------------------


def describe(trainer: Trainer) -> RunReport:
    """Everything that needs no step: parameters, length, FLOPs, memory by formula, data."""
    run, cache, config = trainer.run, trainer.cache, trainer.run.config
    groups = parameter_groups(trainer.model)
    path = ckpt.newest_checkpoint(config.run_dir / "checkpoints", ("model", "ema", "optimizer"))
    state = {"step": 0, "milestones": []} if path is None else ckpt.read_state(path)
    finished = finished_result(run)
    if not finished:
        check_growth(run, state["step"] * config.train.batch_tokens, state["milestones"])
    step = finished["tokens"] // config.train.batch_tokens if finished else state["step"]
    passed = len(finished["milestones"] if finished else state["milestones"])
    each = list(zip(run.parts, cache.parts))
    clips = [config.validation.clips or part.validation_size for _, part in each]
    samples = [(count + max(count // RAW_SHARE, 2)) * config.validation.timesteps for count in clips]
    validation = sum(number * exact_flops(*_flops_shape(*both), training=False) for number, both in zip(samples, each))
    tokens, milestones = run.steps * config.train.batch_tokens, len(config.train.milestones)
    exact, reports = exact_flops_of(run, cache.meta, run.steps), [data_report(*both) for both in each]
    return RunReport(
        config=to_dict(config),
        warnings=run_warnings(config, token_numbers(config, cache.latent_shape)) + data_warnings(run, cache),
        status=finished["status"] if finished else "resumes" if step else "new",
        from_step=step,
        N=run.N,
        parameters={**groups, "total": sum(groups.values())},
        n_ctx=run.n_ctx,
        tokens=tokens,
        steps=run.steps,
        clips_per_step=run.clips,
        epochs=epochs_of(run, cache),
        flops=Flops(run.flops(run.steps), run.flops_per_token, exact),
        memory=estimate_memory(run, cache, trainer.model, trainer.world),
        validation=ValidationCost(
            sum(clips),
            sum(samples),
            milestones,
            milestones_left=0 if finished else milestones - passed,
            flops_share=_share(milestones * validation, exact),
        ),
        data=max(reports, key=lambda report: report.training_tokens // report.training_clips),
        shapes=[shape_report(*one) for one in zip(run.parts, run.steps_of_parts(run.steps), reports) if run.shapes],
    )


def parameter_groups(model: VideoDiT) -> dict[str, int]:
    """Parameters by purpose; "blocks' matrices" are N. The groups add up to all parameters."""
    groups: dict[str, int] = {"blocks' matrices": 0, "blocks' norms": 0, "modulation": 0}
    for name, parameter in model.named_parameters():
        if "modulation" in name:
            group = "modulation"
        elif name.startswith("blocks."):
            group = "blocks' norms" if "norm" in name else "blocks' matrices"
        else:
            group = name.partition(".")[0].replace("_", " ")
        groups[group] = groups.get(group, 0) + parameter.numel()
    return groups


def estimate_memory(run: Run, cache: Data, model: VideoDiT, world: int) -> dict[str, int]:
    """``training_memory`` of a process of this run, of the shape of clips that takes most: bytes by part."""
    settings = {"dtype": run.config.train.dtype, "plain_attention": model.backend == "plain"}
    each = []
    for part, own in zip(run.parts, cache.parts):
        wanted = run.config.train.micro_batch  # of the largest clips
        shapes = _shapes(part, own, model, world, wanted and wanted * run.n_ctx // part.n_ctx)
        each.append(training_memory(*shapes, clips=part.clips, **settings))
    return max(each, key=lambda parts: parts["total"])


def _shapes(
    run: Run, cache: LatentCache | Mixture, model: VideoDiT, world: int, micro_batch: int | None = None
) -> tuple[ModelShape, ClipShape, Layout]:
    """What memory and work of a step are formulas of; ``micro_batch``: what was found to fit."""
    train, keys = run.config.train, run.config.model
    clip = ClipShape(run.n_ctx, cache.latent_shape, cache.text_tokens, cache.text_dim)
    shape = ModelShape(keys.layers, keys.width, keys.heads, model.config.token_dim, cache.text_dim)
    micro_batch, context = micro_batch or train.micro_batch or run.clips, train.context_parallel
    layout = Layout(world, train.parallel, micro_batch, train.activation_checkpointing, context=context)
    if world > 1 and train.parallel == "hsdp":
        layout = layout._replace(node=world // node_count())
    return shape, clip, layout


def data_report(run: Run, cache: LatentCache | Mixture) -> DataReport:
    """What there is to train on; latents and text lengths from clips spread evenly over the cache."""
    most = max(1, min(cache.train_size, 1024, SAMPLE_NUMBERS // math.prod(cache.latent_shape)))
    index = torch.arange(most) * cache.train_size // most
    latents, _, mask = cache.train(index)
    by_channel = latents.transpose(0, 1).flatten(1).double()
    lengths = mask.sum(1)
    return DataReport(
        cache=str(cache.path),
        fingerprint=cache.meta["fingerprint"],
        vae=cache.meta["vae"],
        text=cache.meta["text"],
        training_clips=cache.train_size,
        training_tokens=cache.train_size * run.n_ctx,
        validation_clips=cache.validation_size,
        validation_hash=cache.validation_hash,
        latent_shape=list(cache.latent_shape),
        sampled_clips=most,
        text_lengths=TextLengths(
            int(lengths.min()), int(lengths.median()), int(lengths.max()), padded_to=cache.text_tokens
        ),
        latent_mean=_rounded(by_channel.mean(1)),
        latent_std=_rounded(by_channel.std(1, correction=0)),
    )


def shape_report(part: Run, steps: int, data: DataReport) -> ShapeReport:
    """One of several shapes of clips: its ``part`` of the run, of which it has ``steps``."""
    name = shape_name(data.latent_shape)
    return ShapeReport(name, part.n_ctx, part.clips, part.share, steps, part.flops_per_token, data)


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def _share(part: float, rest: float) -> float:
    return part / (part + rest) if part + rest else 0.0


def _flops_shape(run: Run, cache: LatentCache | Mixture) -> tuple[int, ...]:
    model = run.config.model
    token_dim = token_numbers(run.config, cache.latent_shape)
    return model.layers, model.width, run.n_ctx, token_dim, cache.text_tokens, cache.text_dim


# -- measurements of a few steps ---------------------------------------------------------------------------------


def probe(trainer: Trainer, report: RunReport, before: int) -> RunReport:
    """The ``report`` with times of steps, data and validation on this device, and the memory that they took.

    Args:
        before: bytes that the process held before the model was built.
    """
    run, config, device = trainer.run, trainer.run.config, trainer.device
    batch = config.train.batch_tokens

    def seconds_of(work: Callable[[int], None], times: int) -> float:
        _wait(device)
        begun = time.perf_counter()
        for number in range(times):
            work(number)
        _wait(device)
        return (time.perf_counter() - begun) / times

    trainer.find_micro_batch()
    trainer.find_validation_batch()
    step = data = 0.0
    for part, loader in zip(run.parts, trainer.loader.parts):  # the mean over a run's steps
        samples = loader.batch(0)

        def train(number: int, samples: Samples = samples) -> None:
            trainer.train_step.run(samples, number * batch)

        seconds_of(train, WARMUP_STEPS)
        step += part.share * seconds_of(train, PROBE_STEPS)
        # Several steps' samples are loaded at once: a few such groups, not counting the first.
        group = steps_together(tuple(samples.x0.shape[1:]), len(samples.t))

        def load(number: int, loader: BatchLoader = loader, group: int = group) -> None:
            loader.batch((number + 1) * group)

        data += part.share * seconds_of(load, 3) / group
    memory = memory_peak(device) - (0 if device.type == "cuda" else before)
    validation = _validation_seconds(trainer, seconds_of)
    steps, milestones = run.steps - report.from_step, report.validation.milestones_left
    training, validating = steps * (step + data), milestones * validation
    peak = peak_flops(device, config.train.dtype)
    speed = batch / (step + data)
    part, cache = max(zip(run.parts, trainer.cache.parts), key=lambda both: both[0].n_ctx)
    shapes = _shapes(part, cache, trainer.model, trainer.world, trainer.train_step.micro_batch)
    timing = Timing(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        processes=trainer.world,
        seconds_per_step=step,
        data_seconds_per_step=data,
        tokens_per_second=speed,
        mfu=None if peak is None else speed * run.flops_per_token / (peak * trainer.world),
        validation_seconds_per_milestone=validation,
        training_seconds=training,
        validation_seconds=validating,
        seconds=training + validating,
        validation_share=_share(validating, training),
        micro_batch=shapes[2].micro_batch,
        account=step_account(*shapes, clips=run.clips, dtype=config.train.dtype, compiled=config.train.compile),
    )
    return replace(report, memory=report.memory | {"measured": memory or None}, time=timing)


def _validation_seconds(trainer: Trainer, seconds_of: Callable) -> float:
    """The time of one milestone: the EMA's loss on the whole set, and the raw weights' on a part of it."""
    return sum(_set_seconds(trainer, validator, seconds_of) for validator in trainer.validator.parts)


def _set_seconds(trainer: Trainer, validator: Validator, seconds_of: Callable) -> float:
    share = validator.passes()  # about one forward pass

    def score(number: int) -> None:
        validator.validate(trainer._score_of(trainer.ema), share=share)

    def samples(share: int) -> int:
        return validator.passes(share) * validator.size(share=share)

    seconds_of(score, 1)
    return seconds_of(score, 2) * (samples(1) + samples(RAW_SHARE)) / samples(share)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
