"""Do normalised loss curves of all sizes collapse onto one (arXiv 2507.02119)? The floor that each two would need.

    python -m videoscaling.tools.benchmarks.collapse results/doom/cells

At horizons T in one proportion to N, curves (L(x T) - L0) / (L(T) - L0) that collapse are equal at every x, for one
floor L0. Each row has two sizes at two milestones, the smaller one's (x T, T) and, as many times later as the larger
model is large, the larger one's: what its tokens from x T to T take off the loss, and the floor that makes the
normalised losses at x T equal. Losses are means over seeds, of two sizes at one batch and each at the rate with the
most of them.
"""

import argparse
from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np

from videoscaling.scaling.runs import RunTable, read
from videoscaling.tools.inputs import STUDY
from videoscaling.utils.errors import Parser, UserError, path_text, run_cli
from videoscaling.utils.inputs import check_paths

SEEDS = 2  # of a pair of rate and batch at least: a single run says nothing of its own noise
TOLERANCE = 0.01  # of a ratio: milestones are whole batches


class Segment(NamedTuple):
    """The mean losses of one size's runs, ``early`` at ``x T`` and ``late`` at ``T`` tokens."""

    N: int
    B: int
    early_T: int
    T: int
    early: float
    late: float
    se: float  # of late / early

    @property
    def drop(self) -> float:
        """What the tokens between take off, as a share of the loss at ``early_T``."""
        return 1 - self.late / self.early


class Comparison(NamedTuple):
    """Two sizes over segments of equal T / N."""

    small: Segment
    large: Segment

    @property
    def floor(self) -> float:
        """The L0 for which (early - L0) / (late - L0) is equal; infinite where both fall by the same amount."""
        small, large = self.small, self.large
        denominator = (small.early - small.late) - (large.early - large.late)
        numerator = small.early * large.late - large.early * small.late
        return numerator / denominator if denominator else float("inf")


def comparisons(table: RunTable) -> list[Comparison]:
    """All two sizes with segments of equal T / N, by T / N.

    Raises:
        UserError: there are none.
    """
    segments: list[Segment] = []
    for N, B in sorted(set(zip(table.N, table.B))):
        segments += _segments(table.rows((table.N == N) & (table.B == B)))
    found = [Comparison(*pair) for pair in combinations(segments, 2) if _alike(*pair)]
    if not found:
        raise UserError(
            f"no two sizes have {SEEDS} seeds of one rate and batch at two milestones of equal tokens a parameter"
        )
    return sorted(found, key=lambda two: two.small.T / two.small.N)


def _alike(small: Segment, large: Segment) -> bool:
    ratio = large.N / small.N
    times = [late / early for late, early in ((large.early_T, small.early_T), (large.T, small.T))]
    return small.B == large.B and ratio > 1 and all(abs(time / ratio - 1) < TOLERANCE for time in times)


def _segments(table: RunTable) -> Iterator[Segment]:
    """Neighbouring milestones of one size at one batch, by the runs of the rate that most have both at."""
    milestones = np.unique(table.nominal_T)
    for early_T, T in pairwise(milestones):
        by_rate: dict[float, list[tuple[float, float]]] = {}
        for run in np.unique(table.run_id):
            rows = table.rows(table.run_id == run)
            losses = dict(zip(rows.nominal_T, rows.loss))
            if early_T in losses and T in losses:
                by_rate.setdefault(rows.lr[0], []).append((losses[early_T], losses[T]))
        seeds = max(by_rate.values(), key=len, default=[])
        if len(seeds) < SEEDS:
            continue
        early, late = np.mean(seeds, axis=0)
        se = np.std([last / first for first, last in seeds], ddof=1) / np.sqrt(len(seeds))
        yield Segment(int(table.N[0]), int(table.B[0]), int(early_T), int(T), float(early), float(late), float(se))


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=path_text, reads=STUDY, help="a folder of results")
    args = parser.parse_args()
    check_paths(parser, args)
    print(f"{'T / N':>6} {'N':>10} {'tokens take off':>16} {'larger N':>10} {'take off':>16} {'floor':>6}")
    for two in comparisons(read(args.results)):
        cells = [f"{segment.N:>10,} {f'{segment.drop:.1%} +-{segment.se:.2%}':>16}" for segment in two]
        print(f"{two.small.T / two.small.N:>6.3g} {' '.join(cells)} {two.floor:>6.2f}")


if __name__ == "__main__":
    run_cli(main)
