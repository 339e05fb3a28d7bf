"""Train a grid of sizes, learning rates and batch sizes, and ask how it stands.

python tools/sweep.py run configs/sweep/quickstart.yaml        train what is not finished; safe to repeat
python tools/sweep.py run configs/sweep/quickstart.yaml --dry-run
python tools/sweep.py status configs/sweep/quickstart.yaml
python tools/sweep.py collect configs/sweep/quickstart.yaml --out results.csv
python tools/sweep.py simulate configs/sweep/quickstart.yaml --law law.json --noise 3e-3
"""

import argparse
import dataclasses
import functools
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from omegaconf import OmegaConf
from tqdm import tqdm

from data.mixture import open_data
from training.config import Config, cache_folders, load_yaml
from training.grid import Sweep, load_sweep
from training.pool import cell_state, run_cells
from training.resolve import Run, clip_tokens, encoded_shape
from utils.errors import Parser, UserError, run_cli
from utils.files import exclusive, replacing

PAPER = Path(__file__).resolve().parents[1] / "configs" / "laws" / "paper.json"
FINISHED = ("done", "diverged")
MOST_NOISE = 0.1  # of a run's loss: beyond it losses are as good as none, and below 0 at last


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
    command.add_argument(
        "--n-ctx",
        type=int,
        help="tokens per clip where no clips are encoded yet (default: the cache's, else the law's)",
    )
    command.add_argument("--prior", help="law file for exponents that the sweep cannot tell, as in tools/fit.py")

    arguments, overrides = parser.parse_known_args()
    strange = [word for word in overrides if word.startswith("-")]
    if strange:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    if arguments.command == "simulate":
        return expect(arguments, overrides)
    encoded = functools.cache(lambda folders, weights: open_data(folders, weights).meta)

    def data_of(config: Config) -> dict[str, Any]:
        return encoded(tuple(cache_folders(config)), tuple(config.data.weights))

    sweep = load_sweep(arguments.config, overrides, data_of)
    if arguments.command == "status":
        return status(sweep, arguments.json)
    if arguments.command == "collect":
        return collect(sweep, arguments.out)
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
    table = [("run id", "size", "N", "T", "B", "lr", "steps", "FLOPs")]
    for row in rows:
        counts = (f"{row['N']:,}", f"{row['T']:,}", f"{row['B']:,}")
        table.append(
            (row["run_id"], row["size"], *counts, f"{row['lr']:.2e}", f"{row['steps']:,}", f"{row['flops']:.2e}")
        )
    widths = [max(map(len, column)) for column in zip(*table)]
    for words, held_out in zip(table, [False, *(row["heldout"] for row in rows)]):
        line = "  ".join(word.rjust(width) for word, width in zip(words, widths))
        print(f"{line}  held out" if held_out else line)
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
        if state["state"] in ("running", "stopped"):
            share = state["tokens"] / cell.config.train.tokens
            print(f"  {state['state']} {cell.config.name}: {share:.0%} of {cell.text}")
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


def latent_shape(config: Config, given: int | None, law: Any, assumed: set[str]) -> list[int]:
    """(C, f, h, w) of clips, encoded or not: the cache's if it is there, else of ``given`` tokens, else of the law's.

    The law's tokens are an assumption, which is added to ``assumed`` in words. Without a cache the clips are one row
    of tokens of no channels: how many there are is not known, and no cell is refused for them.

    Raises:
        UserError: ``given`` contradicts the cache, the cache is none, or nothing tells.
    """
    folder, shape = config.data.cache, encoded_shape(config)
    if shape is not None:
        found = clip_tokens(config, shape)
        if given not in (None, found):
            raise UserError(f"--n-ctx {given}: the clips of {folder} have {found} tokens; leave it out")
        return shape
    where = f"no latent cache in {folder}" if folder else "no data.cache"
    if given is None and law.n_ctx is None:
        raise UserError(f"{where}, and law {law.name!r} has no n_ctx: give --n-ctx, the tokens per clip")
    if given is None:
        assumed.add(f"{where}: clips of {law.n_ctx} tokens are taken, as in law {law.name!r}; --n-ctx gives yours")
    frames, *sides = config.model.patch
    return [0, frames * (given or law.n_ctx), *sides]


def expect(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """What the sweep would tell about a budget if a law were true: simulated, fitted and planned many times over."""
    from models.sizes import smooth_width
    from scaling import allocation, laws, simulate
    from scaling.plan import LEAST, MOST

    limits = {"flops": (LEAST, MOST["flops"]), "noise": (LEAST, MOST_NOISE), "n_ctx": (1, MOST["n_ctx"])}
    for name, (least, most) in limits.items():
        given = getattr(arguments, name)
        if given is not None and not least <= given <= most:
            option = name.replace("_", "-")
            raise UserError(f"--{option} {given!s:.12}: must be a number from {least:g} to {most:g}")
    law = laws.load(arguments.law)
    assumed: set[str] = set()

    def meta(config: Config) -> dict[str, Any]:
        shape = latent_shape(config, arguments.n_ctx, law, assumed)
        return {"latent_shape": shape, "fingerprint": config.data.fingerprint}

    try:
        sweep = load_sweep(arguments.config, overrides, meta)
    except UserError as error:
        raise UserError("; ".join([str(error), *assumed])) from None
    cells = simulated(sweep)
    n_ctx = sweep.cells[0].n_ctx
    flops = arguments.flops or 10 * max(cost(cell) for cell in sweep.cells)
    prior = laws.load(arguments.prior) if arguments.prior else None
    per_token = allocation.c_token(n_ctx, smooth_width)
    expected = simulate.expect(law, cells, arguments.noise, flops, per_token, n_ctx, prior)
    expected["warnings"] = [*assumed, *expected["warnings"]]
    for text in expected["warnings"]:
        print(f"warning: {text}", file=sys.stderr)
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
