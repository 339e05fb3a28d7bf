"""What ``tools/sweep.py extend`` would have trained of a table of finished grids, and what that would have found.

python tools/replay.py dense_lr_bs_loss.csv --columns "T=D,B=bs,L=smooth loss" --batch-unit sequences:2048
python tools/replay.py dense_lr_bs_loss.csv --columns "T=D,B=bs,L=smooth loss" --batch-unit sequences:2048 \\
    --noise 2e-3            # the same with noise on every run, over 20 seeds
"""

import argparse
import json
from typing import Any

from videoscaling.scaling import PAPER, extend, laws, replay, runs, tables
from videoscaling.utils.errors import Parser, UserError, path_text, run_cli
from videoscaling.utils.progress import Progress

SEEDS = 20
RANDOM = (0.15, 0.25)  # shares of a grid that random search is given
PLAIN = (4, 6)  # points on each axis of a plain grid


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "table",
        type=path_text,
        help="CSV or JSONL, a row per run, as tools/fit.py reads it: full grids of rates x batches",
    )
    parser.add_argument(
        "--columns", help="our names for the table's columns, e.g. N=params,T=tokens,B=batch,lr=lr,L=loss"
    )
    parser.add_argument("--batch-unit", help="what a batch counts: tokens, or sequences:TOKENS_EACH")
    parser.add_argument("--noise", type=float, default=0.0, help="relative noise added to every run (default 0)")
    parser.add_argument("--seeds", type=int, help="studies with different noise (default 20, 1 without noise)")
    parser.add_argument("--together", type=int, default=1, help="cells asked for at once (default 1)")
    parser.add_argument("--doubt", type=float, default=extend.DOUBT, help="chance of a miss at which a grid is done")
    parser.add_argument(
        "--tolerance", type=float, default=extend.TOLERANCE, help="of the loss, relative (default 1e-3)"
    )
    parser.add_argument(
        "--most", type=float, default=replay.MOST, help="share of a grid to pay for at most (default .35)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    limits = {
        "noise": (0, 0.1),
        "tolerance": (1e-6, 0.1),
        "doubt": (1e-3, 0.9),
        "together": (1, 100),
        "most": (0.01, 10),
        "seeds": (1, 1000),
    }
    for name, (least, most) in limits.items():
        value = getattr(arguments, name)
        if value is not None and not least <= value <= most:
            raise UserError(f"--{name} {value!s:.12}: must be a number from {least:g} to {most:g}")
    ledger = runs.read(arguments.table, tables.parse_columns(arguments.columns), arguments.batch_unit)
    found = measure(replay.oracles(ledger), arguments)
    print(json.dumps(found) if arguments.json else text(found, arguments))
    return 0


def measure(table: list[replay.Oracle], arguments: argparse.Namespace) -> dict[str, Any]:
    """All methods on all grids, over the seeds."""
    rough = replay.ROUGH * arguments.tolerance
    settings = extend.Settings(arguments.noise, rough, arguments.tolerance, arguments.doubt)
    seeds = range(arguments.seeds or (SEEDS if arguments.noise else 1))
    law = laws.load(PAPER)
    studies = []
    with Progress(len(table) * len(seeds), "replay", "grids") as bar:
        for seed in seeds:
            studies.append(
                replay.study(
                    table, law, settings, seed, arguments.together, arguments.most, lambda outcome: bar.update()
                )
            )
    noise, tolerance = arguments.noise, arguments.tolerance
    draws = range(max(len(seeds), SEEDS))
    methods = {
        "extend": studies,
        "full grid": [replay.full(table, noise, seed) for seed in draws],
        "full, believed": [replay.smoothed(table, law, settings, seed) for seed in draws],
        **{f"random, {s:.0%}": [replay.at_random(table, s, noise, seed) for seed in draws] for s in RANDOM},
        **{f"plain {n} x {n}": [replay.coarse(table, n, noise, seed) for seed in draws] for n in PLAIN},
    }
    return {
        "noise": noise,
        "tolerance": tolerance,
        "doubt": arguments.doubt,
        "together": arguments.together,
        "most": arguments.most,
        "grids": [described(outcome) for outcome in studies[0]],
        "methods": {name: replay.summary(outcomes, tolerance) for name, outcomes in methods.items()},
    }


def described(outcome: replay.Outcome) -> dict[str, Any]:
    """One grid's outcome, as the JSON has it."""
    oracle, cell = outcome.oracle, outcome.cell
    chosen = {"lr": float(oracle.lr[cell]), "B": float(oracle.B[cell]), "regret": oracle.regret(cell)}
    spent = {"cells": oracle.cells, "runs": outcome.runs, "share": outcome.share, "miss": outcome.miss}
    return {"N": oracle.N, "T": oracle.T, **spent, **chosen}


def text(found: dict[str, Any], arguments: argparse.Namespace) -> str:
    """For people."""
    of = "" if found["methods"]["extend"]["studies"] == 1 else " (the first of the studies)"
    lines = [f"{'N':>9} {'T':>9} {'runs':>9} {'share':>6} {'lr':>9} {'B':>9} {'regret':>7} {'doubt':>6}{of}"]
    for grid in found["grids"]:
        lines.append(
            f"{grid['N']:>9.3g} {grid['T']:>9.3g} {grid['runs']:>4}/{grid['cells']:<4} {grid['share']:>6.1%} "
            f"{grid['lr']:>9.3g} {grid['B']:>9.4g} {grid['regret']:>7.3%} {grid['miss']:>6.0%}"
        )
    lines.append(
        f"\nwithin {found['tolerance']:.2%} of each grid's best, noise {found['noise']:.2%}:\n"
        f"{'':<15}{'grids':>12} {'worst study':>12} {'mean regret':>12} {'worst':>8} {'mean cost':>10} {'worst':>8} "
        f"{'of all FLOPs':>13}"
    )
    for name, s in found["methods"].items():
        lines.append(
            f"{name:<15}{s['within']:>6.1f} of {s['grids']:<2} {s['within_worst']:>12} {s['regret_mean']:>12.3%} "
            f"{s['regret_worst']:>8.2%} {s['share_mean']:>10.1%} {s['share_worst']:>8.1%} {s['flops_share']:>13.1%}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_cli(main)
