"""What ``tools/sweep.py extend`` would have trained of a table of finished runs, and how well that predicts the rest.

python tools/replay.py dense_lr_bs_loss.csv --columns "T=D,B=bs,L=smooth loss" --batch-unit sequences:2048
python tools/replay.py lr_bsz.train.csv --batch-unit sequences:2048 --held-out 1 --shares 0.02 0.1
"""

import argparse
import json

from videoscaling.scaling import runs, tables
from videoscaling.scaling.fitting.surface.cells import Cells
from videoscaling.scaling.search import replay
from videoscaling.utils.errors import Parser, UserError, path_text, run_cli
from videoscaling.utils.progress import Progress

SHARES = (0.02, 0.05, 0.1)
METHODS = ("extend", "random")


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=path_text, help="CSV or JSONL, a row per run, as tools/fit.py reads it")
    parser.add_argument(
        "--columns", help="our names for the table's columns, e.g. N=params,T=tokens,B=batch,lr=lr,L=loss"
    )
    parser.add_argument("--batch-unit", help="what a batch counts: tokens, or sequences:TOKENS_EACH")
    parser.add_argument(
        "--shares",
        type=float,
        nargs="+",
        default=SHARES,
        help="of the table's FLOPs (6 N T) to spend (default: several)",
    )
    parser.add_argument(
        "--held-out",
        type=int,
        default=0,
        help="the largest sizes, which are predicted and never shown (default 0: all)",
    )
    parser.add_argument("--noise", type=float, default=0.0, help="relative noise added to every run (default 0)")
    parser.add_argument("--seeds", type=int, default=5, help="studies with other random runs and noise (default 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    limits = {"shares": (1e-3, 1), "noise": (0, 0.1), "seeds": (1, 1000), "held_out": (0, 100)}
    for name, (least, most) in limits.items():
        value = getattr(arguments, name)
        for one in value if isinstance(value, list | tuple) else [value]:
            if not least <= one <= most:
                raise UserError(f"--{name.replace('_', '-')} {one!s:.12}: must be a number from {least:g} to {most:g}")
    table = runs.read(arguments.table, tables.parse_columns(arguments.columns), arguments.batch_unit)
    found = measure(Cells.of_table(table), arguments)
    print(json.dumps(found) if arguments.json else text(found))
    return 0


def measure(cells: Cells, arguments: argparse.Namespace) -> dict:
    """All methods at all shares, over the seeds; without noise ``extend`` has no seed."""
    rows, seeds = [], range(arguments.seeds)
    own = {"extend": seeds if arguments.noise else seeds[:1], "random": seeds}
    count = len(arguments.shares) * sum(map(len, own.values())) + len(own["extend"])
    with Progress(count, "replay", "studies") as bar:
        for share, method in [*((s, m) for s in arguments.shares for m in METHODS), (1.0, "all")]:
            studies = []
            for seed in own.get(method, own["extend"]):
                pool = replay.Pool.of(cells, arguments.held_out, arguments.noise, seed)
                studies.append(replay.study(pool, share, method, seed))
                bar.update()
            rows.append({"method": method, "share_asked": share} | replay.summary(studies))
    return {"held_out": arguments.held_out, "noise": arguments.noise, "rows": rows}


def text(found: dict) -> str:
    """For readers."""
    judged = f"the {found['held_out']} largest sizes" if found["held_out"] else "all grids"
    lines = [
        f"regret of the predicted pair (at the nearest cell), and rms error within 2 % of the best: {judged}",
        f"{'':<8}{'of FLOPs':>9}{'runs':>6}{'studies':>8}{'regret':>8}{'worst study':>12}{'worst grid':>11}{'rms':>8}",
    ]
    for row in found["rows"]:
        lines.append(
            f"{row['method']:<8}{row['share']:>9.1%}{row['runs']:>6.0f}{row['studies']:>8}{row['regret']:>8.2%}"
            f"{row['regret_worst_study']:>12.2%}{row['regret_worst_grid']:>11.2%}{row['error']:>8.2%}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_cli(main)
