"""Our model's training step compared with diffusers' Wan of equal shape."""

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from videoscaling.models.sizes import Shape, flops_per_token, parameters, parse_size
from videoscaling.tools.benchmarks.common import TEXT_DIM, TEXT_TOKENS, Row, our_model, spread, timed
from videoscaling.tools.benchmarks.shapes import CLIPS
from videoscaling.training.model import compile_model


def bench_peers(args: argparse.Namespace, device: torch.device) -> list[Row]:
    """A training step (forward, backward, fused AdamW on float32 weights) of ours and of diffusers' Wan."""
    n_ctx, clips, size = args.n_ctx or 1280, args.clips or 2, (args.size or ["8x512"])[0]
    latent, patch = CLIPS[n_ctx]
    shape, dtype = parse_size(size), getattr(torch, args.dtype)
    x, t = torch.randn(clips, *latent, device=device), torch.rand(clips, device=device)
    context = torch.randn(clips, TEXT_TOKENS, TEXT_DIM, device=device)
    mask = torch.ones(clips, TEXT_TOKENS, dtype=torch.bool, device=device)

    def wan(weights: torch.dtype = torch.float32) -> torch.nn.Module:
        return _wan(shape, latent[0], patch).to(device, weights)

    def peer(model: torch.nn.Module) -> Callable[[], None]:
        weights = model.dtype

        def predict() -> Tensor:
            with torch.autocast(device.type, dtype, enabled=dtype != weights):
                return model(x.to(weights), 1000 * t, context.to(weights), return_dict=False)[0]

        return _step_of(model, predict, x)

    ours, ours_compiled = (our_model(size, latent, patch, args.dtype, device) for _ in range(2))
    compile_model(ours_compiled, whole=False)  # as the peer is compiled
    calls = {
        "ours": _step_of(ours, lambda: ours(x, t, context, mask), x),
        "ours, compiled": _step_of(ours_compiled, lambda: ours_compiled(x, t, context, mask), x),
        "Wan": peer(wan()),
        "Wan, compiled": peer(_compiled(wan())),
    }
    if dtype != torch.float32:
        # Weights in bfloat16 too: less exact than ours, whose masters are float32, and faster than autocast.
        calls |= {"Wan, bfloat16 weights": peer(wan(dtype))}
        calls |= {"Wan, bfloat16 weights, compiled": peer(_compiled(wan(dtype)))}
    seconds = timed(calls, args.rounds, device)
    flops = flops_per_token(parameters(shape.layers, shape.width), n_ctx, shape.width) * n_ctx * clips
    return [
        {
            "model": name,
            "size": size,
            "n_ctx": n_ctx,
            "clips": clips,
            "dtype": args.dtype,
            "milliseconds": spread(values, 1e3),
            "tokens_per_second": n_ctx * clips / statistics.median(values),
            "flops_per_second": flops / statistics.median(values),
            "ours_is_faster": spread([a / b for a, b in zip(values, seconds["ours, compiled"])]),
        }
        for name, values in seconds.items()
    ]


def _wan(shape: Shape, channels: int, patch: tuple[int, int, int]) -> torch.nn.Module:
    """Wan's transformer of a shape, on latents of so many channels."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=patch,
        num_attention_heads=shape.heads,
        attention_head_dim=shape.width // shape.heads,
        in_channels=channels,
        out_channels=channels,
        text_dim=TEXT_DIM,
        freq_dim=256,
        ffn_dim=4 * shape.width,
        num_layers=shape.layers,
        cross_attn_norm=True,
        rope_max_seq_len=64,
    )


def _compiled(model: torch.nn.Module) -> torch.nn.Module:
    for block in model.blocks:
        block.compile()
    return model


def _step_of(model: torch.nn.Module, predict: Callable[[], Tensor], target: Tensor) -> Callable[[], None]:
    """A training step of ``model``, whose prediction is scored against ``target``."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        (predict().float() - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
