"""Train a grid of sizes, learning rates and batch sizes, and ask how it stands.

python tools/sweep.py run configs/sweep/quickstart.yaml        train what is not finished; safe to repeat
python tools/sweep.py run configs/sweep/quickstart.yaml --dry-run
python tools/sweep.py status configs/sweep/quickstart.yaml
python tools/sweep.py collect configs/sweep/quickstart.yaml --out results.csv
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.errors import UserError, run_cli
from utils.files import exclusive, replacing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "status", "collect"), help="what to do with the sweep")
    parser.add_argument("config", help="the sweep's YAML")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys that override the file's")
    parser.add_argument("--dry-run", action="store_true", help="run: list the cells and their cost, train nothing")
    parser.add_argument("--json", action="store_true", help="status, run --dry-run: one JSON object on stdout")
    parser.add_argument("--out", help="collect: the CSV to write")
    arguments = parser.parse_intermixed_args()
    from data.latents import LatentCache
    from training.grid import load_sweep

    sweep = load_sweep(arguments.config, arguments.overrides, lambda path: LatentCache(path).meta)
    if arguments.command == "status":
        return status(sweep, arguments.json)
    if arguments.command == "collect":
        return collect(sweep, arguments.out)
    return plan(sweep, arguments.json) if arguments.dry_run else run(sweep)


def plan(sweep, as_json: bool) -> int:
    """List the cells: what would be trained."""
    rows = [
        {
            "run_id": Path(cell.config.name).name,
            "size": cell.config.model.size,
            "N": cell.N,
            "T": cell.config.train.tokens,
            "B": cell.config.train.batch_tokens,
            "lr": cell.config.optim.lr,
            "steps": cell.steps,
            "flops": cell.flops_per_token * cell.config.train.tokens,
            "heldout": cell.config.heldout,
        }
        for cell in sweep.cells
    ]
    total = sum(row["flops"] for row in rows)
    if as_json:
        print(json.dumps({"cells": rows, "flops": total}))
        return 0
    print(f"{'run id':14}{'size':>8}{'N':>12}{'T':>12}{'B':>9}{'lr':>10}{'steps':>9}{'FLOPs':>11}")
    for r in rows:
        held = "  held out" if r["heldout"] else ""
        print(
            f"{r['run_id']:14}{r['size']:>8}{r['N']:>12,}{r['T']:>12,}{r['B']:>9,}{r['lr']:>10.2e}"
            f"{r['steps']:>9,}{r['flops']:>11.2e}{held}"
        )
    print(f"{len(rows)} cells, {total:.3g} FLOPs")
    return 0


def run(sweep) -> int:
    """Train what is not finished; 1 if a cell failed, 130 if a signal ended it early."""
    from tqdm import tqdm

    from training.pool import cell_state, run_cells

    with exclusive(sweep.directory):
        _claim(sweep)
        states = Counter(cell_state(cell)["state"] for cell in sweep.cells)
        finished = states["done"] + states["diverged"]
        total = sum(cell.flops_per_token * cell.config.train.tokens for cell in sweep.cells)
        with tqdm(total=total, desc=str(sweep.directory), unit="FLOP", unit_scale=True, mininterval=1) as bar:
            bar.update(sum(_flops(c) for c in sweep.cells if cell_state(c)["state"] in ("done", "diverged")))
            bar.set_postfix_str(f"{finished}/{len(sweep.cells)} cells")

            def report(cell, outcome: str) -> None:
                nonlocal finished
                if outcome in ("done", "diverged"):
                    finished += 1
                    bar.update(_flops(cell))
                    bar.set_postfix_str(f"{finished}/{len(sweep.cells)} cells")
                if outcome in ("again", "failed"):
                    bar.write(f"{cell.config.name}: {outcome}, see console.log there", file=sys.stderr)

            whole = run_cells(sweep, report)
    failed = status(sweep, False)
    return failed if whole else 130


def status(sweep, as_json: bool) -> int:
    """Counts, unfinished and failed cells; 1 if a cell failed."""
    from training.pool import cell_state

    cells = [(cell, cell_state(cell)) for cell in sweep.cells]
    counts = Counter(state["state"] for _, state in cells)
    if as_json:
        rows = [{"run_id": Path(cell.config.name).name, **state} for cell, state in cells]
        print(json.dumps({"counts": counts, "cells": rows}))
    else:
        print(f"{sweep.directory}: {len(cells)} cells: " + ", ".join(f"{n} {s}" for s, n in sorted(counts.items())))
        for cell, state in cells:
            if state["state"] == "running":
                share = state["tokens"] / cell.config.train.tokens
                print(f"  running {cell.config.name}: {share:.0%} of {cell.text}")
            if state["state"] == "failed":
                print(f"  failed {cell.config.name}: {state['reason']}")
    return 1 if counts["failed"] else 0


def collect(sweep, out: str | None) -> int:
    """One CSV of every milestone of every cell that has one."""
    from scaling.runs import read, write_csv

    path = out or str(sweep.directory / "results.csv")
    ledger = read(sweep.directory)
    write_csv(ledger, path)
    print(f"{path}: {len(ledger)} rows")
    return 0


def _flops(cell) -> float:
    return cell.flops_per_token * cell.config.train.tokens


def _claim(sweep) -> None:
    """Write the sweep's settings beside its cells; refuse a folder that other settings made."""
    import dataclasses

    from omegaconf import OmegaConf

    from training.config import load_yaml

    path = sweep.directory / "sweep.yaml"
    now = dataclasses.asdict(sweep.keys)
    if path.exists():
        before = load_yaml(path)
        same = ("base", "seed")  # the grid may grow or shrink: finished cells are found by their ids
        changed = [f"{k}: {before.get(k)} -> {now[k]}" for k in same if before.get(k) != now[k]]
        if changed:
            raise UserError(f"{sweep.directory}: made by another sweep ({'; '.join(changed)}); choose another name")
    with replacing(path) as aside:
        OmegaConf.save(OmegaConf.create(now), aside)


if __name__ == "__main__":
    run_cli(main)
