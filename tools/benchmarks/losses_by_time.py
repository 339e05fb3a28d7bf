"""Where in t larger models gain: validation losses of repeated cells by diffusion time, and their slopes in ln N.

    python -m videoscaling.tools.benchmarks.losses_by_time results/study/cells

Cells with at least three seeds count, by the median over seeds, EMA weights. A slope is that of ln loss in ln N
between neighbouring sizes at the largest T that all sizes have.
"""

import argparse
import json
import re
from collections import defaultdict
from itertools import pairwise
from math import log
from pathlib import Path

import numpy as np

from videoscaling.diffusion.validation import T_BINS, validation_times
from videoscaling.utils.errors import Parser, UserError, run_cli
from videoscaling.utils.results import FILE

SEEDS = 3
Losses = dict[tuple[int, int], np.ndarray]  # by (N, T), [T_BINS]


def losses_by_time(results: Path) -> Losses:
    """Median losses over the seeds of each repeated cell, in equal bins of t.

    Raises:
        UserError: no cell has three seeds.
    """
    seeds = defaultdict(list)
    for path in sorted(results.glob(f"*/{FILE}")):
        result = json.loads(path.read_text())
        clips, times, seed = map(
            int, re.findall(r"(\d+) clips, (\d+) times, seed (\d+)", result["recipe"]["validation"])[0]
        )
        bins = (validation_times(clips, times, seed).numpy() * T_BINS).astype(int).clip(max=T_BINS - 1)
        for milestone in result["milestones"]:
            ema = np.load(path.parent / "validation" / f"{milestone['tokens']}.npy", allow_pickle=False)[1]
            cell = result["N"], milestone["nominal"], result["B"], result["lr"]
            seeds[cell].append([ema[bins == number].mean() for number in range(T_BINS)])
    repeated = {cell[:2]: np.median(found, axis=0) for cell, found in seeds.items() if len(found) >= SEEDS}
    if not repeated:
        raise UserError(f"{results}: no cell has {SEEDS} seeds")
    return repeated


def slopes_in_N(losses: Losses) -> tuple[int, list[tuple[int, int]], np.ndarray]:
    """The largest T that all sizes have, the neighbouring sizes, and the slopes of ln loss in ln N [pairs, T_BINS]."""
    sizes = sorted({N for N, _ in losses})
    last = max(T for _, T in losses if all((N, T) in losses for N in sizes))
    pairs = list(pairwise(sizes))
    slopes = [np.log(losses[b, last] / losses[a, last]) / log(b / a) for a, b in pairs]
    return last, pairs, np.array(slopes)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="a folder of results, each with its validation/*.npy")
    losses = losses_by_time(parser.parse_args().results)
    last, pairs, slopes = slopes_in_N(losses)
    print(
        f"slope of ln loss in ln N at T {last:,}, by t\n"
        + f"{'t':<12}"
        + "".join(f"{a:>9,} to {b:<9,}" for a, b in pairs)
    )
    for number in range(T_BINS):
        bounds = f"{number / T_BINS:.1f} to {(number + 1) / T_BINS:.1f}"
        print(f"{bounds:<12}" + "".join(f"{slope:>22.3f}" for slope in slopes[:, number]))


if __name__ == "__main__":
    run_cli(main)
