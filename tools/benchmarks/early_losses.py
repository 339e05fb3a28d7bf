"""Could a sweep stop cells early? How far above the best of its size a run may be at first, and yet end near the best.

    python -m videoscaling.tools.benchmarks.early_losses results/doom/cells --tokens 3276800

Runs of one size are compared at the earlier milestones and at --tokens, each with the size's lowest loss there. The
rank correlation is Spearman's. A rule that stops runs further above the best than "highest that ends near it" would
have stopped none that ends within 1 %; the last column is how many it would have stopped.
"""

import argparse
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from videoscaling.scaling.runs import RunTable, read
from videoscaling.tools.inputs import STUDY
from videoscaling.utils.errors import Parser, UserError, path_text, run_cli
from videoscaling.utils.inputs import check_paths

NEAR = 0.01  # of the best loss: what a run that matters ends within
RUNS = 6  # of one size at least: fewer have no ranks to speak of


@dataclass(frozen=True)
class EarlyLosses:
    """Losses of the ``runs`` of size ``N`` at milestone ``T`` against those at the end.

    Attributes:
        correlation: rank correlation of both.
        highest: the largest excess at T over the best there, as a share of it, of a run that ends within ``NEAR`` of
            the best.
        above: how many runs exceed even that.
    """

    N: int
    T: int
    runs: int
    correlation: float
    highest: float
    above: int


def early_losses(table: RunTable, end: float) -> list[EarlyLosses]:
    """By size and milestone before ``end`` tokens, of the runs that have all of that size's milestones up to it.

    Raises:
        UserError: no size has ``RUNS`` runs with a milestone at ``end`` and an earlier one.
    """
    found = []
    for N in np.unique(table.N):
        losses = _by_milestone(table.rows(table.N == N), end)
        last = losses.pop(end, np.empty(0))
        if len(last) < RUNS:
            continue
        near = _excess(last) <= NEAR
        for T, early in sorted(losses.items()):
            highest = float(_excess(early)[near].max())
            correlation = float(spearmanr(early, last).statistic)
            above = int((_excess(early) > highest).sum())
            found.append(EarlyLosses(int(N), int(T), len(last), correlation, highest, above))
    if not found:
        raise UserError(f"--tokens {end:,.0f}: no size has {RUNS} runs that were validated there and before")
    return found


def _by_milestone(table: RunTable, end: float) -> dict[float, NDArray]:
    """The losses at each milestone up to ``end`` of the runs that have them all, in one order of runs."""
    milestones = [float(T) for T in np.unique(table.nominal_T) if end >= T]
    by_run: dict[str, dict[float, float]] = {}
    for run, T, loss in zip(table.run_id, table.nominal_T, table.loss):
        by_run.setdefault(str(run), {})[float(T)] = float(loss)
    whole = [losses for losses in by_run.values() if all(T in losses for T in milestones)]
    return {T: np.array([losses[T] for losses in whole]) for T in milestones}


def _excess(losses: NDArray) -> NDArray:
    return losses / losses.min() - 1


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=path_text, reads=STUDY, help="a folder of results")
    parser.add_argument("--tokens", required=True, type=float, help="the milestone that decides which runs are good")
    args = parser.parse_args()
    check_paths(parser, args)
    print(f"{'N':>12} {'T':>12} {'runs':>5} {'rank correlation':>17} {'highest that ends near it':>26} {'above':>6}")
    for row in early_losses(read(args.results), args.tokens):
        print(f"{row.N:>12,} {row.T:>12,} {row.runs:>5} {row.correlation:>17.2f} {row.highest:>26.1%} {row.above:>6}")


if __name__ == "__main__":
    run_cli(main)
