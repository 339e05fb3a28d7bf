"""Where in t larger models gain: validation losses of repeated cells by diffusion time, and their slopes in ln N.

    python -m videoscaling.tools.benchmarks.losses_by_time results/study/cells

Cells with at least three seeds count, by the median over seeds, EMA weights; of several of one N and T the best.
A slope is that of ln loss in ln N between neighbouring sizes at the largest T that all sizes have.
"""

import argparse
from collections import defaultdict
from itertools import pairwise
from math import log
from pathlib import Path

import numpy as np

from videoscaling.diffusion.validation import T_BINS, validation_times
from videoscaling.scaling.fitting.grids.clip_losses import averaged_weights
from videoscaling.scaling.runs import read
from videoscaling.tools.inputs import STUDY
from videoscaling.utils.errors import Parser, UserError, run_cli
from videoscaling.utils.inputs import check_paths

SEEDS = 3
Losses = dict[tuple[int, int], np.ndarray]  # by (N, T), [T_BINS]


def losses_by_time(results: Path) -> Losses:
    """Median losses over the seeds of each repeated cell, in equal bins of t.

    Raises:
        UserError: no cell has three seeds, the runs were not validated alike, or a file of losses is missing or
            damaged.
    """
    table = read(results)
    validated = table.recipe.get("validation")
    if validated is None:
        raise UserError(f"{results}: runs of different validation sets or times; name a folder of one sweep")
    seeds = defaultdict(list)
    for row in np.flatnonzero(np.isfinite(table.loss)):
        if not table.samples[row]:
            raise UserError(f"{results}: {table.run_id[row]} has no losses in validation/ at T {table.T[row]:,.0f}")
        losses = averaged_weights(str(table.samples[row]), int(table.samples_crc32[row]))
        times = validation_times(*losses.shape, int(validated.rpartition(" ")[2])).numpy()
        bins = (times * T_BINS).astype(int).clip(max=T_BINS - 1)
        cell = int(table.N[row]), int(table.nominal_T[row]), table.B[row], table.lr[row]
        seeds[cell].append([table.loss[row], *(losses[bins == number].mean() for number in range(T_BINS))])
    repeated: Losses = {}
    medians = [(cell, np.median(found, axis=0)) for cell, found in seeds.items() if len(found) >= SEEDS]
    for cell, (_, *by_time) in sorted(medians, key=lambda one: one[1][0]):
        repeated.setdefault(cell[:2], np.array(by_time))
    if not repeated:
        raise UserError(f"{results}: no cell has {SEEDS} seeds")
    return repeated


def slopes_in_N(losses: Losses) -> tuple[int, list[tuple[int, int]], np.ndarray]:
    """The largest T that all sizes have, the neighbouring sizes, and the slopes of ln loss in ln N [pairs, T_BINS].

    Raises:
        UserError: there is one size, or no such T.
    """
    sizes = sorted({N for N, _ in losses})
    common = [T for _, T in losses if all((N, T) in losses for N in sizes)]
    if len(sizes) < 2 or not common:
        raise UserError(
            f"repeated cells of N {' and '.join(f'{N:,}' for N in sizes)}: a slope needs two sizes with some at one T"
        )
    last = max(common)
    pairs = list(pairwise(sizes))
    slopes = [np.log(losses[b, last] / losses[a, last]) / log(b / a) for a, b in pairs]
    return last, pairs, np.array(slopes)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, reads=STUDY, help="a folder of results, each with its validation/*.npy")
    args = parser.parse_args()
    check_paths(parser, args)
    losses = losses_by_time(args.results)
    last, pairs, slopes = slopes_in_N(losses)
    print(
        f"slope of ln loss in ln N at T {last:,}, by t\n"
        + f"{'t':<12}"
        + "".join(f"{f'{a:,} to {b:,}':>26}" for a, b in pairs)
    )
    for number in range(T_BINS):
        bounds = f"{number / T_BINS:.1f} to {(number + 1) / T_BINS:.1f}"
        print(f"{bounds:<12}" + "".join(f"{slope:>26.3f}" for slope in slopes[:, number]))


if __name__ == "__main__":
    run_cli(main)
