"""What a machine gives at most: the rate of a large matrix product, and of copying memory."""

import argparse

import torch

from videoscaling.tools.benchmarks.common import Row, spread, timed

SIDE = {"cuda": 8192, "cpu": 1024}  # of the product's matrices
NUMBERS = {"cuda": 1 << 28, "cpu": 1 << 24}  # float32, that are copied: more than any cache holds


def bench_rates(args: argparse.Namespace, device: torch.device) -> list[Row]:
    side, dtype = SIDE[device.type], getattr(torch, args.dtype)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    here = torch.zeros(NUMBERS[device.type], device=device)
    there = torch.empty_like(here)
    seconds = timed({"product": lambda: a @ b, "copy": lambda: there.copy_(here)}, args.rounds, device)
    return [
        {
            "dtype": args.dtype,
            "flops_per_second": spread([2 * side**3 / value for value in seconds["product"]]),
            "bytes_per_second": spread([2 * 4 * here.numel() / value for value in seconds["copy"]]),
        }
    ]
