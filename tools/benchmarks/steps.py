"""A training step of several sizes, its parts, and the matrix products it is made of."""

import argparse
import functools
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from videoscaling.data.latents import LatentCache
from videoscaling.models.sizes import exact_flops, parse_size
from videoscaling.tools.benchmarks.common import CLIPS, Row, bench_trainer, random_cache, spread, timed
from videoscaling.training.planning.memory_formula import PREFETCH_SAMPLES
from videoscaling.training.trainer import Trainer
from videoscaling.utils.devices import peak_of


def bench_train(args: argparse.Namespace, device: torch.device) -> list[Row]:
    n_ctx, clips = args.n_ctx or 80, args.clips or 8
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cache = LatentCache(random_cache(Path(folder) / "latents", n_ctx))
        for size in args.size or ("1x64", "2x64", "4x128", "6x192"):
            rows.append(
                _train_row(args=args, device=device, cache=cache, folder=folder, size=size, n_ctx=n_ctx, clips=clips)
            )
    return rows


def _train_row(
    args: argparse.Namespace, device: torch.device, cache: LatentCache, folder: str, size: str, n_ctx: int, clips: int
) -> Row:
    settings = [f"model.size={size}", f"train.dtype={args.dtype}"]
    trainers = {
        name: bench_trainer(cache, folder, n_ctx, clips, [*settings, f"train.compile={compiled}"])
        for name, compiled in (("eager", False), ("compiled", True))
    }
    run = trainers["eager"].run
    # As many steps a call as one read of the data serves, so that each step has its true share of it.
    steps = max(1, 2 * PREFETCH_SAMPLES // clips)

    def several(trainer: Trainer) -> None:
        for _ in range(steps):
            trainer.train_step.run(trainer.loader.batch(trainer.step), trainer.tokens)
            trainer.step += 1

    def data(trainer: Trainer) -> None:
        for _ in range(steps):
            trainer.loader.batch(trainer.step)
            trainer.step += 1

    eager = trainers["eager"]
    samples = eager.loader.batch(0)
    shape = parse_size(size)
    text, token_dim = (cache.text_tokens, cache.text_dim), cache.latent_shape[0] * math.prod(CLIPS[n_ctx][1])
    seconds = timed(
        {
            **{name: functools.partial(several, trainer) for name, trainer in trainers.items()},
            "data": functools.partial(data, eager),
            **{f"gradients, {k}": functools.partial(t.train_step.backward, samples) for k, t in trainers.items()},
            "products": multiply(products(shape, n_ctx, clips, text, token_dim), device, getattr(torch, args.dtype)),
        },
        args.rounds,
        device,
    )
    per_step = {
        name: spread(values, 1e3 / (steps if name in (*trainers, "data") else 1)) for name, values in seconds.items()
    }
    flops = run.flops_per_token * n_ctx * clips
    exact = exact_flops(shape.layers, shape.width, n_ctx, token_dim, *text) * clips
    peak = peak_of(torch.cuda.get_device_name(device), args.dtype) if device.type == "cuda" else None
    best = min(per_step["eager"]["value"], per_step["compiled"]["value"])
    return {
        "size": size,
        "N": run.N,
        "n_ctx": n_ctx,
        "clips": clips,
        "dtype": args.dtype,
        "milliseconds": per_step,
        "data_share": per_step["data"]["value"] / best,
        "tokens_per_second": n_ctx * clips / best * 1e3,
        "flops_per_second": flops / best * 1e3,
        "mfu": flops / best * 1e3 / peak if peak else None,
        "products_flops_per_second": exact / per_step["products"]["value"] * 1e3,
    }


def products(shape: Any, n_ctx: int, clips: int, text: tuple[int, int], token_dim: int) -> list[tuple[int, ...]]:
    """Every matrix product of one forward pass, [batch, rows, inner, columns] each."""
    d, tokens, words = shape.width, n_ctx * clips, text[0] * clips
    heads, each = clips * shape.heads, d // shape.heads
    block = [(1, tokens, d, 3 * d), (1, tokens, d, d), (heads, n_ctx, each, n_ctx), (heads, n_ctx, n_ctx, each)]
    block += [(1, tokens, d, d), (1, words, d, 2 * d), (1, tokens, d, d)]
    block += [(heads, n_ctx, each, text[0]), (heads, n_ctx, text[0], each)]
    block += [(1, tokens, d, 4 * d), (1, tokens, 4 * d, d)]
    around = [(1, tokens, token_dim, d), (1, words, text[1], d), (1, words, d, d), (1, tokens, d, token_dim)]
    return shape.layers * block + around


def multiply(sizes: list[tuple[int, ...]], device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """A call that makes the products ``sizes`` and the two of their backward pass, and nothing else."""
    random = lambda *size: torch.randn(size, device=device, dtype=dtype)  # noqa: E731
    operands = {
        size: (random(b, m, k), random(b, k, n), random(b, m, n)) for size in set(sizes) for b, m, k, n in [size]
    }

    def call() -> None:
        for size in sizes:
            a, b, c = operands[size]
            a @ b, c @ b.mT, a.mT @ c

    return call
