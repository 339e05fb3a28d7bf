"""Attention by its backends."""

import argparse
import functools
import statistics
import sys

import torch
from torch import Tensor

from videoscaling.models.attention import BACKENDS, attention, choose_backend
from videoscaling.models.sizes import parse_size
from videoscaling.tools.benchmarks.common import Row, spread, timed
from videoscaling.utils.errors import UserError


def bench_attention(args: argparse.Namespace, device: torch.device) -> list[Row]:
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
                {
                    "backend": name,
                    "n_ctx": n_ctx,
                    "width": width,
                    "clips": shape[0],
                    "dtype": args.dtype,
                    "milliseconds": spread(values, 1e3),
                    "flops_per_second": flops / statistics.median(values),
                    "relative_error": error[name],
                }
                for name, values in seconds.items()
            ]
    return rows


def _attend(q: Tensor, k: Tensor, v: Tensor, backend: str, gradient: Tensor) -> None:
    torch.autograd.grad(attention(q, k, v, backend=backend), (q, k, v), gradient)
