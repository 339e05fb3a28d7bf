"""Steps of several runs trained together against the same runs' steps one after the other."""

import argparse
import functools
import tempfile
from pathlib import Path

import torch

from videoscaling.data.latents import LatentCache
from videoscaling.tools.benchmarks.common import Row, bench_trainer, random_cache, spread, timed
from videoscaling.training.planning.memory_formula import PREFETCH_SAMPLES
from videoscaling.training.stacked.loop import keep_memory
from videoscaling.training.stacked.step import StackedStep
from videoscaling.training.trainer import Trainer
from videoscaling.utils.devices import peak_of


def bench_stack(args: argparse.Namespace, device: torch.device) -> list[Row]:
    n_ctx, rows = args.n_ctx or 64, []
    keep_memory()  # runs alone gain by it too
    with tempfile.TemporaryDirectory() as folder:
        cache = LatentCache(random_cache(Path(folder) / "latents", n_ctx))
        for size in args.size or ("2x64", "4x64"):
            for clips in (args.clips,) if args.clips else (2, 8):
                torch._dynamo.reset()  # it gives up on a function that it has compiled for too many shapes
                rows.append(
                    _row(args=args, device=device, cache=cache, folder=folder, size=size, n_ctx=n_ctx, clips=clips)
                )
    return rows


def _row(
    args: argparse.Namespace, device: torch.device, cache: LatentCache, folder: str, size: str, n_ctx: int, clips: int
) -> Row:
    settings = [f"model.size={size}", f"train.dtype={args.dtype}", "data.seed=0"]

    def trainer(seed: int, compiled: bool) -> Trainer:
        own = [f"train.compile={compiled}", f"seed={seed}", f"optim.lr={1e-4 * seed}"]
        return bench_trainer(cache, folder, n_ctx, clips, [*settings, *own])

    # As many steps a call as one read of the data serves, so that each step has its true share of it.
    steps = max(1, PREFETCH_SAMPLES // clips)

    def alone(run: Trainer) -> None:
        for _ in range(steps):
            run.train_step.run(run.next_batch(), run.tokens)
            run.step += 1

    def together(stack: StackedStep) -> None:
        for _ in range(steps):
            stack.run(stack.trainers[0].next_batch(), stack.trainers[0].tokens, stack.trainers)
            for trainer in stack.trainers:
                trainer.step += 1

    things = {}
    for how, compiled in (("compiled", True), ("uncompiled", False)):
        things[f"alone, {how}"] = functools.partial(alone, trainer(1, compiled))
        stack = StackedStep([trainer(1 + row, compiled) for row in range(args.stack)])
        things[f"together, {how}"] = functools.partial(together, stack)
    seconds = timed(things, args.rounds, device)
    run = stack.trainers[0].run
    flops = run.flops_per_token * n_ctx * clips
    gains, rates = {}, {}
    for how in ("compiled", "uncompiled"):
        pairs = zip(seconds[f"alone, {how}"], seconds[f"together, {how}"])
        gains[how] = spread([args.stack * one / all_of_them for one, all_of_them in pairs])
    for name, values in seconds.items():
        runs = args.stack if name.startswith("together") else 1
        rates[name] = spread([runs * steps / value for value in values])
    best = max(rate["value"] for rate in rates.values())
    peak = peak_of(torch.cuda.get_device_name(device), args.dtype) if device.type == "cuda" else None
    return {
        "size": size,
        "N": run.N,
        "n_ctx": n_ctx,
        "clips": clips,
        "runs": args.stack,
        "dtype": args.dtype,
        "run_steps_per_second": rates,
        "times_as_fast": gains,
        "flops_per_second": flops * best,
        "mfu": flops * best / peak if peak else None,
    }
