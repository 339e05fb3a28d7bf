"""Train a grid of sizes, learning rates and batch sizes, and ask how it stands.

python tools/sweep.py run configs/sweep/quickstart.yaml        train what is not finished; safe to repeat
python tools/sweep.py run configs/sweep/quickstart.yaml --dry-run
python tools/sweep.py status configs/sweep/quickstart.yaml
python tools/sweep.py collect configs/sweep/quickstart.yaml --out results.csv
python tools/sweep.py simulate configs/sweep/quickstart.yaml --law law.json --noise 3e-3
"""

import argparse
import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from omegaconf import OmegaConf
from tqdm import tqdm

from data.latents import LatentCache
from training.config import load_yaml
from training.grid import Sweep, load_sweep
from training.pool import cell_state, run_cells
from training.resolve import Run
from utils.errors import Parser, UserError, run_cli
from utils.files import exclusive, replacing

PAPER = Path(__file__).resolve().parents[1] / "configs" / "laws" / "paper.json"
FINISHED = ("done", "diverged")


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shared = Parser(add_help=False)
    shared.add_argument("config", help="the sweep's YAML, and key=value words that override its keys")

    listed = Parser(add_help=False)
    listed.add_argument("--json", action="store_true", help="print one JSON object")

    command = commands.add_parser("run", parents=[shared, listed], help="train the cells that are not finished")
    command.add_argument("--dry-run", action="store_true", help="list the cells and their cost, train nothing")
    commands.add_parser("status", parents=[shared, listed], help="count the cells by state, name what failed")
    command = commands.add_parser("collect", parents=[shared], help="write one CSV of all milestones")
    command.add_argument("--out", help="the CSV to write (default: results.csv in the sweep's folder)")
    command = commands.add_parser(
        "simulate", parents=[shared, listed], help="the intervals to expect, before any of it is trained"
    )
    command.add_argument("--law", default=str(PAPER), help="the law taken to be true (default: the paper's)")
    command.add_argument("--noise", type=float, default=1e-3, help="relative noise of a run's loss (default 1e-3)")
    command.add_argument("--flops", type=float, help="budget to predict (default: 10 x the costliest cell)")
    command.add_argument("--prior", help="law file for exponents that the sweep cannot tell, as in tools/fit.py")

    arguments, overrides = parser.parse_known_args()
    strange = [word for word in overrides if word.startswith("-")]
    if strange:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    sweep = load_sweep(arguments.config, overrides, lambda path: LatentCache(path).meta)
    if arguments.command == "status":
        return status(sweep, arguments.json)
    if arguments.command == "collect":
        return collect(sweep, arguments.out)
    if arguments.command == "simulate":
        return expect(sweep, arguments)
    return plan(sweep, arguments.json) if arguments.dry_run else run(sweep)


def cost(cell: Run) -> float:
    """Training FLOPs of a cell, by C_token."""
    return cell.flops_per_token * cell.config.train.tokens


def simulated(sweep: Sweep) -> list:
    """The cells that a fit would use, as ``scaling.simulate.Cell``."""
    from scaling import simulate  # not at the top: every cell's process imports this file again

    return [
        simulate.Cell(
            cell.N, cell.config.train.batch_tokens, cell.config.optim.lr, tuple(cell.config.train.milestones)
        )
        for cell in sweep.cells
        if not cell.config.heldout
    ]


def doubts(sweep: Sweep) -> list[str]:
    """What the grids are too small to tell, said before compute is spent on them."""
    from scaling import simulate

    found = simulate.doubts(simulated(sweep))
    for text in found:
        print(f"warning: {text}", file=sys.stderr)
    return found


def plan(sweep: Sweep, as_json: bool) -> int:
    """List the cells: what would be trained."""
    warnings = doubts(sweep)
    rows = [
        {
            "run_id": Path(cell.config.name).name,
            "size": cell.config.model.size,
            "N": cell.N,
            "T": cell.config.train.tokens,
            "B": cell.config.train.batch_tokens,
            "lr": cell.config.optim.lr,
            "steps": cell.steps,
            "flops": cost(cell),
            "heldout": cell.config.heldout,
        }
        for cell in sweep.cells
    ]
    total = sum(row["flops"] for row in rows)
    if as_json:
        print(json.dumps({"cells": rows, "flops": total, "warnings": warnings}))
        return 0
    print(f"{'run id':14}{'size':>8}{'N':>12}{'T':>12}{'B':>9}{'lr':>10}{'steps':>9}{'FLOPs':>11}")
    for row in rows:
        held = "  held out" if row["heldout"] else ""
        print(
            f"{row['run_id']:14}{row['size']:>8}{row['N']:>12,}{row['T']:>12,}{row['B']:>9,}{row['lr']:>10.2e}"
            f"{row['steps']:>9,}{row['flops']:>11.2e}{held}"
        )
    print(f"{len(rows)} cells, {total:.3g} FLOPs")
    return 0


def run(sweep: Sweep) -> int:
    """Train what is not finished; 1 if a cell failed, 130 if a signal ended it early."""
    doubts(sweep)
    with exclusive(sweep.directory):
        claim(sweep)
        finished = [cell for cell in sweep.cells if cell_state(cell)["state"] in FINISHED]
        total = sum(cost(cell) for cell in sweep.cells)
        with tqdm(total=total, desc=str(sweep.directory), unit="FLOP", unit_scale=True, mininterval=1) as bar:

            def count(cells: list[Run]) -> None:
                bar.set_postfix_str(f"{len(finished)}/{len(sweep.cells)} cells")
                bar.update(sum(cost(cell) for cell in cells))

            def report(cell: Run, outcome: str) -> None:
                if outcome in FINISHED:
                    finished.append(cell)
                    count([cell])
                elif outcome in ("again", "failed"):
                    bar.write(f"{cell.config.name}: {outcome}, see console.log there", file=sys.stderr)

            count(finished)
            whole = run_cells(sweep, report)
    failed = status(sweep, False)
    return failed if whole else 130


def status(sweep: Sweep, as_json: bool) -> int:
    """Counts, unfinished and failed cells; 1 if a cell failed."""
    cells = [(cell, cell_state(cell)) for cell in sweep.cells]
    counts = Counter(state["state"] for _, state in cells)
    if as_json:
        rows = [{"run_id": Path(cell.config.name).name, **state} for cell, state in cells]
        print(json.dumps({"counts": counts, "cells": rows}))
        return 1 if counts["failed"] else 0
    print(f"{sweep.directory}: {len(cells)} cells: " + ", ".join(f"{n} {s}" for s, n in sorted(counts.items())))
    for cell, state in cells:
        if state["state"] == "running":
            print(f"  running {cell.config.name}: {state['tokens'] / cell.config.train.tokens:.0%} of {cell.text}")
        elif state["state"] == "failed":
            print(f"  failed {cell.config.name}: {state['reason']}")
    return 1 if counts["failed"] else 0


def collect(sweep: Sweep, out: str | None) -> int:
    """One CSV of every milestone of every cell that has one."""
    from scaling import runs

    path = out or str(sweep.directory / "results.csv")
    ledger = runs.read(sweep.directory)
    runs.write_csv(ledger, path)
    print(f"{path}: {len(ledger)} rows")
    return 0


def expect(sweep: Sweep, arguments: argparse.Namespace) -> int:
    """What the sweep would tell about a budget if a law were true: simulated, fitted and planned many times over."""
    from models.sizes import smooth_width
    from scaling import allocation, laws, simulate

    if not arguments.noise > 0:
        raise UserError(f"--noise {arguments.noise}: must be a positive number")
    cells = simulated(sweep)
    n_ctx = sweep.cells[0].n_ctx
    flops = arguments.flops or 10 * max(cost(cell) for cell in sweep.cells)
    prior = laws.load(arguments.prior) if arguments.prior else None
    per_token = allocation.c_token(n_ctx, smooth_width)
    expected = simulate.expect(laws.load(arguments.law), cells, arguments.noise, flops, per_token, n_ctx, prior)
    print(json.dumps(expected) if arguments.json else simulate.text(expected))
    return 0


def claim(sweep: Sweep) -> None:
    """Write the sweep's settings beside its cells; refuse a folder that another sweep made.

    The grid may grow or shrink: finished cells are found by their ids, and each is refused where it differs.
    """
    path = sweep.directory / "sweep.yaml"
    now = dataclasses.asdict(sweep.keys)
    if path.exists():
        before = load_yaml(path)
        changed = [
            f"{key}: {before.get(key)} -> {now[key]}" for key in ("base", "seed") if before.get(key) != now[key]
        ]
        if changed:
            raise UserError(f"{sweep.directory}: made by another sweep ({'; '.join(changed)}); choose another name")
    with replacing(path) as aside:
        OmegaConf.save(OmegaConf.create(now), aside)


if __name__ == "__main__":
    run_cli(main)
