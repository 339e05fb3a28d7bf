"""Time what training and sampling are made of, on this machine.

    python tools/benchmark.py train --size 2x64 --size 4x128 --clips 8 --json
    python tools/benchmark.py peers --dtype bfloat16

train: a step of several sizes, its parts, and the matrix products it is made of.  attention: its backends.
sample: a sampler's steps.  data: reading cached latents.  peers: our model's step and diffusers' Wan's of equal shape.

Things to compare are timed in turn, round after round, in one process; what is printed are medians, with quartiles in
--json. FLOPs are C_token's (3/4 N (7 + n_ctx / width) a token) unless called exact.
"""

import argparse
import datetime
import functools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from data.clips import Clips
from data.latents import LatentCache
from data.sources import Unit
from data.writer import write_cache
from diffusion.process import Process
from diffusion.sampling import sample
from models.attention import BACKENDS, attention, choose_backend
from models.dit import DiTConfig, VideoDiT
from models.sizes import exact_flops, flops_per_token, parameters, parse_size
from models.text import load_text_encoder
from training.config import load_config
from training.feed import AHEAD
from training.model import compile_model
from training.records import environment
from training.resolve import resolve
from training.trainer import Trainer
from utils.devices import peak_of, pick_device
from utils.errors import Parser, UserError, run_cli

# Latent [channels, frames, height, width] and patch of a clip of so many tokens.
CLIPS = {
    80: ((16, 5, 4, 4), (1, 1, 1)),
    128: ((16, 8, 4, 4), (1, 1, 1)),
    1280: ((16, 5, 32, 32), (1, 2, 2)),
}
TEXT_TOKENS, TEXT_DIM = 64, 512  # of the peers' comparison
WARMUP_ROUNDS = 3


def arguments() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("train", "attention", "sample", "data", "peers"))
    parser.add_argument("--size", action="append", help="LAYERSxWIDTH; may be given again (default: by part)")
    parser.add_argument("--clips", type=int, help="clips per step (train 8, peers 2, sample 4, attention 2)")
    parser.add_argument(
        "--n-ctx", type=int, choices=tuple(CLIPS), help="tokens per clip (80; peers and attention 1280)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="what blocks compute in")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each thing, after warming up")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object with quartiles, versions and device"
    )
    return parser


def timed(things: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each call, in turn, ``rounds`` times after warming up: whatever slows a round slows all of them."""
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


def random_cache(folder: Path, n_ctx: int, clips: int = 512) -> Path:
    """A real latent cache of random latents, whose captions have 31 tokens."""
    shape, _ = CLIPS[n_ctx]

    class AsTheyAre:
        def encode(self, latents: Tensor) -> Tensor:
            return latents

        def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
            return shape

    def unit(split: str, count: int) -> Unit:
        captions = [" ".join(f"word{(i + j) % 97}" for j in range(31)) for i in range(count)]
        keys = [f"{split} {i}" for i in range(count)]
        return Unit(split, keys, lambda: Clips(keys, captions, torch.randn(count, *shape)))

    settings = {"format": 1, "frames": shape[1], "height": shape[2], "width": shape[3], "source": "random"}
    settings |= {"vae": "none", "vae_fingerprint": "none", "text": "embedded", "text_fingerprint": "none"}
    units = {"train": [unit("train", clips)], "validation": [unit("validation", 16)]}
    write_cache(folder, settings, units, AsTheyAre(), load_text_encoder("embedded"))
    return folder


def bench_train(args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    n_ctx, clips = args.n_ctx or 80, args.clips or 8
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cache = LatentCache(random_cache(Path(folder) / "latents", n_ctx))
        for size in args.size or ("1x64", "2x64", "4x128", "6x192"):
            rows.append(_train_row(args, device, cache, folder, size, n_ctx, clips))
    return rows


def _train_row(
    args: argparse.Namespace, device: torch.device, cache: LatentCache, folder: str, size: str, n_ctx: int, clips: int
) -> dict[str, Any]:
    settings = [
        f"model.size={size}", f"data.cache={cache.path}", f"out={folder}", f"train.batch_tokens={n_ctx * clips}",
        f"train.tokens={n_ctx * clips * 10**6}", f"train.dtype={args.dtype}",
        f"model.patch={list(CLIPS[n_ctx][1])}".replace(" ", ""),
    ]  # fmt: skip
    trainers = {}
    for name, compiled in (("eager", False), ("compiled", True)):
        config = load_config(None, [*settings, f"train.compile={compiled}"])
        trainers[name] = Trainer(resolve(config, cache.meta), cache)
    run = trainers["eager"].run
    # As many steps a call as make one reading of the data, of which each is then a true share.
    steps = max(1, 2 * AHEAD // clips)

    def several(trainer: Trainer) -> None:
        for _ in range(steps):
            trainer.learn(trainer.feed.step(trainer.step), trainer.tokens)
            trainer.step += 1

    def data(trainer: Trainer) -> None:
        for _ in range(steps):
            trainer.feed.step(trainer.step)
            trainer.step += 1

    eager = trainers["eager"]
    samples = eager.feed.step(0)
    shape = parse_size(size)
    text, token_dim = (cache.text_tokens, cache.text_dim), cache.latent_shape[0] * math.prod(CLIPS[n_ctx][1])
    seconds = timed(
        {
            **{name: functools.partial(several, trainer) for name, trainer in trainers.items()},
            "data": functools.partial(data, eager),
            **{f"gradients, {k}": functools.partial(t.learn.gradients, samples) for k, t in trainers.items()},
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
    peak = peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    best = min(per_step["eager"]["value"], per_step["compiled"]["value"])
    return {
        "size": size, "N": run.N, "n_ctx": n_ctx, "clips": clips, "dtype": args.dtype, "milliseconds": per_step,
        "data_share": per_step["data"]["value"] / best, "tokens_per_second": n_ctx * clips / best * 1e3,
        "flops_per_second": flops / best * 1e3, "mfu": flops / best * 1e3 / peak if peak else None,
        "products_flops_per_second": exact / per_step["products"]["value"] * 1e3,
    }  # fmt: skip


def bench_attention(args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    dtype, rows = getattr(torch, args.dtype), []
    backends = []
    for name in BACKENDS[1:]:
        try:
            backends.append(choose_backend(name, device.type, dtype))
        except UserError as reason:
            print(reason, file=sys.stderr)
    for n_ctx in (args.n_ctx,) if args.n_ctx else (80, 1280):
        for width in [parse_size(size).width for size in args.size or ("1x64", "1x512")]:
            heads = parse_size(f"1x{width}").heads
            shape = (args.clips or 2, n_ctx, heads, width // heads)
            q, k, v = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
            exact = attention(*(value.detach().double() for value in (q, k, v)), backend="plain")
            gradient = torch.randn(shape, device=device, dtype=dtype)
            calls, error = {}, {}
            for name in backends:
                calls[name] = functools.partial(_attend, q, k, v, name, gradient)
                difference = attention(q, k, v, backend=name).detach().double() - exact
                error[name] = (difference.norm() / exact.norm()).item()
            seconds = timed(calls, args.rounds, device)
            flops = 3 * 4 * n_ctx * n_ctx * width * shape[0]
            rows += [
                {"backend": name, "n_ctx": n_ctx, "width": width, "clips": shape[0], "dtype": args.dtype,
                 "milliseconds": spread(values, 1e3), "flops_per_second": flops / statistics.median(values),
                 "relative_error": error[name]}
                for name, values in seconds.items()
            ]  # fmt: skip
    return rows


def _attend(q: Tensor, k: Tensor, v: Tensor, backend: str, gradient: Tensor) -> None:
    torch.autograd.grad(attention(q, k, v, backend=backend), (q, k, v), gradient)


def bench_sample(args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    n_ctx, clips, steps, rows = args.n_ctx or 80, args.clips or 4, 10, []
    latent, patch = CLIPS[n_ctx]
    process = Process("rectified_flow", "flow")
    for size in args.size or ("2x64", "4x128"):
        model = _our_model(size, latent, patch, args.dtype, device)
        context, mask = torch.randn(clips, 31, TEXT_DIM, device=device), torch.ones(clips, 31, device=device).bool()
        inputs = (context, mask, (context[0], mask[0]), latent, torch.arange(clips))
        calls = {
            f"guidance {guidance:g}": functools.partial(sample, model, process, *inputs, steps, guidance)
            for guidance in (1.0, 5.0)
        }
        for name, values in timed(calls, args.rounds, device).items():
            each = spread(values, 1e3 / (clips * steps))
            rows.append(
                {"size": size, "n_ctx": n_ctx, "clips": clips, "dtype": args.dtype, "what": name,
                 "milliseconds_per_clip_and_step": each}
            )  # fmt: skip
    return rows


def bench_data(args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for n_ctx in (args.n_ctx,) if args.n_ctx else (80, 1280):
            cache = LatentCache(random_cache(Path(folder) / str(n_ctx), n_ctx, 1024))
            index = torch.randperm(1024)[: args.clips or 256]
            stored = 2 * math.prod(cache.latent_shape) * len(index)
            seconds = timed({"read": functools.partial(cache.train, index)}, args.rounds, device)["read"]
            rows.append(
                {"n_ctx": n_ctx, "clips": len(index), "milliseconds": spread(seconds, 1e3),
                 "bytes_per_second": stored / statistics.median(seconds)}
            )  # fmt: skip
    return rows


def _our_model(size: str, latent: tuple, patch: tuple, dtype: str, device: torch.device) -> VideoDiT:
    shape = parse_size(size)
    config = DiTConfig(shape.layers, shape.width, shape.heads, latent[0], patch, TEXT_DIM)
    chosen = getattr(torch, dtype)
    return VideoDiT(config, 0, chosen, choose_backend("auto", device.type, chosen)).to(device)


def bench_peers(args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """A training step (forward, backward, fused AdamW on float32 weights) of ours and of diffusers' Wan."""
    from diffusers import WanTransformer3DModel

    n_ctx, clips, size = args.n_ctx or 1280, args.clips or 2, (args.size or ["8x512"])[0]
    latent, patch = CLIPS[n_ctx]
    shape, dtype = parse_size(size), getattr(torch, args.dtype)
    x, t = torch.randn(clips, *latent, device=device), torch.rand(clips, device=device)
    context = torch.randn(clips, TEXT_TOKENS, TEXT_DIM, device=device)
    mask = torch.ones(clips, TEXT_TOKENS, dtype=torch.bool, device=device)

    def wan(weights: torch.dtype = torch.float32) -> torch.nn.Module:
        return WanTransformer3DModel(
            patch_size=patch, num_attention_heads=shape.heads, attention_head_dim=shape.width // shape.heads,
            in_channels=latent[0], out_channels=latent[0], text_dim=TEXT_DIM, freq_dim=256,
            ffn_dim=4 * shape.width, num_layers=shape.layers, cross_attn_norm=True, rope_max_seq_len=64,
        ).to(device, weights)  # fmt: skip

    def step_of(model: torch.nn.Module, predict: Callable[[], Tensor]) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

        def step() -> None:
            (predict().float() - x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def peer(model: torch.nn.Module) -> Callable[[], None]:
        weights = model.dtype

        def predict() -> Tensor:
            with torch.autocast(device.type, dtype, enabled=dtype != weights):
                return model(x.to(weights), 1000 * t, context.to(weights), return_dict=False)[0]

        return step_of(model, predict)

    def compiled(model: torch.nn.Module) -> torch.nn.Module:
        for block in model.blocks:
            block.compile()
        return model

    ours, ours_compiled = (_our_model(size, latent, patch, args.dtype, device) for _ in range(2))
    compile_model(ours_compiled, whole=False)  # as the peer is compiled
    calls = {
        "ours": step_of(ours, lambda: ours(x, t, context, mask)),
        "ours, compiled": step_of(ours_compiled, lambda: ours_compiled(x, t, context, mask)),
        "Wan": peer(wan()),
        "Wan, compiled": peer(compiled(wan())),
    }
    if dtype != torch.float32:
        # Weights in bfloat16 too: less exact than ours, whose masters are float32, and faster than autocast.
        calls |= {"Wan, bfloat16 weights": peer(wan(dtype))}
        calls |= {"Wan, bfloat16 weights, compiled": peer(compiled(wan(dtype)))}
    seconds = timed(calls, args.rounds, device)
    flops = flops_per_token(parameters(shape.layers, shape.width), n_ctx, shape.width) * n_ctx * clips
    return [
        {"model": name, "size": size, "n_ctx": n_ctx, "clips": clips, "dtype": args.dtype,
         "milliseconds": spread(values, 1e3), "tokens_per_second": n_ctx * clips / statistics.median(values),
         "flops_per_second": flops / statistics.median(values),
         "ours_is_faster": spread([a / b for a, b in zip(values, seconds["ours, compiled"])])}
        for name, values in seconds.items()
    ]  # fmt: skip


def about(device: torch.device) -> dict[str, Any]:
    facts = environment(device, 1)
    return {
        "date": datetime.date.today().isoformat(), "device": facts["device"], "threads": torch.get_num_threads(),
        "git_revision": facts["git_revision"], "versions": facts["versions"],
        "flops": "C_token = 3/4 N (7 + n_ctx / width) per token",
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Rows for people: a line each, medians alone."""
    lines = []
    for row in rows:
        cells = []
        for name, value in row.items():
            if isinstance(value, dict) and "value" not in value:
                cells += [f"{part} {entry['value']:.4g} ms" for part, entry in value.items()]
                continue
            number = value["value"] if isinstance(value, dict) else value
            cells.append(f"{name} {number:.4g}" if isinstance(number, float) else f"{name} {number}")
        lines.append("  ".join(cells))
    return "\n".join(lines)


def main() -> int:
    args = arguments().parse_args()
    if args.rounds < 1 or (args.clips is not None and args.clips < 1):
        raise UserError("--rounds and --clips: must be at least 1")
    device = pick_device(args.device)
    parts = {"train": bench_train, "attention": bench_attention, "sample": bench_sample, "data": bench_data}
    rows = (parts | {"peers": bench_peers})[args.part](args, device)
    facts = about(device)
    if args.json:
        print(json.dumps({"benchmark": args.part, "about": facts, "rows": rows}, indent=1))
    else:
        print(f"{facts['date']}, {facts['device']}, {facts['threads']} threads, torch {facts['versions']['torch']}")
        print(table(rows))
    return 0


if __name__ == "__main__":
    run_cli(main)
