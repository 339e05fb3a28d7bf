"""The ``extend`` command of tools/sweep.py: what a sweep's results ask for next, its cost, and on request the runs."""

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from videoscaling.models.sizes import smooth_width
from videoscaling.scaling import extend, laws, runs
from videoscaling.scaling.belief import believe, expect
from videoscaling.scaling.planning import allocation
from videoscaling.scaling.points import Untrusted
from videoscaling.scaling.proposals import Asked, State, states
from videoscaling.scaling.target import Known, best_size, pair, spend
from videoscaling.sweeps import added_cells
from videoscaling.sweeps.grid import Sweep, cell_seed
from videoscaling.sweeps.state import UNFINISHED, cell_state
from videoscaling.training.result import finished_result, resumable_step
from videoscaling.training.run import Run
from videoscaling.utils.errors import UserError
from videoscaling.utils.locks import exclusive

LEAST, MOST = 1e-6, 0.1  # of a tolerance and of a noise, relative to the loss


@dataclass(frozen=True)
class Addition:
    """A run to add to a sweep: its entry in ``extended.json``, its N, and what it costs, in FLOPs."""

    entry: dict[str, Any]
    N: int
    flops: float


def command(
    sweep: Sweep,
    arguments: argparse.Namespace,
    train: Callable[[Sweep], int],
    reload: Callable[[], Sweep],
    paper: Path,
) -> int:
    """Show what to add; add and train it with ``--run``, or when asked at a terminal. 3 if nothing can be decided."""
    tolerance = arguments.tolerance or extend.TOLERANCE
    law = laws.load(arguments.law or paper)
    law.require("lr", "batch")
    ledger = _ledger(sweep, arguments.held_out)
    unfinished = sum(cell_state(cell)["state"] in UNFINISHED for cell in sweep.cells)
    if (
        unfinished and arguments.run
    ):  # of an earlier --run that was killed, say: what comes next hangs on their results
        print(f"{unfinished} cells of the sweep are not finished: they come first, and nothing is added to them yet")
        return train(sweep)
    made, noise, source = states(
        ledger,
        law,
        lambda noise: extend.Settings(noise, tolerance=tolerance),
        arguments.noise,
        _waiting(sweep),
        _largest(sweep),
    )
    target: dict[str, Any] | None = None
    if arguments.budget_flops is None:
        asked = [one for state in made for one in state.asked]
    else:
        try:
            asked, target = _narrow(sweep, made, law, noise, arguments)
        except Untrusted as reason:
            print(f"error: {reason}", file=sys.stderr)
            return 3
    additions = merge(sweep, asked)
    told = {
        "noise": noise, "noise_from": source, "tolerance": tolerance, "target": target, "unfinished": unfinished,
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(told | _rows(made, additions)))
    else:
        print(_text(sweep, told, made, additions))
    if not additions:
        return 0
    if not arguments.run and not (not arguments.json and _confirmed(additions)):
        return 0
    opened = reload()  # refuses now, and not once the cells are the sweep's, where the clips are not here
    with exclusive(opened.directory):
        added_cells.add(sweep.directory, [addition.entry for addition in additions])
    return train(reload())


def check(arguments: argparse.Namespace) -> None:
    if arguments.run and arguments.json:
        raise UserError("--json shows what --run would add and train: give one of them")
    for name, value in (("tolerance", arguments.tolerance), ("noise", arguments.noise)):
        if value is not None and not LEAST <= value <= MOST:
            raise UserError(f"--{name} {value!s:.12}: must be a number from {LEAST:g} to {MOST:g}")
    given = {name: getattr(arguments, name) for name in ("budget_flops", "flops", "params", "tokens")}
    for name, value in given.items():
        if value is not None and not 1 <= value <= 1e60:
            raise UserError(f"--{name.replace('_', '-')} {value!s:.12}: must be a number from 1 to 1e60")
    if arguments.budget_flops is not None and arguments.held_out:
        raise UserError("--held-out with --budget-flops: a prediction is narrowed by the sizes that a fit reads alone")
    if arguments.budget_flops is None:
        if extra := [name for name in ("flops", "params", "tokens") if given[name] is not None]:
            raise UserError(f"--{extra[0]} names a target, which --budget-flops spends on: give that too")
        return
    if arguments.params is None and (arguments.flops is None or arguments.tokens is not None):
        raise UserError("--budget-flops needs a target: --flops (N_opt there), or --params with --tokens or --flops")
    if arguments.params is not None and (arguments.flops is None) == (arguments.tokens is None):
        raise UserError("--params needs --tokens or --flops, one of them: the length of the run that is predicted")


def _ledger(sweep: Sweep, held_out: bool) -> runs.Ledger:
    """The results of the sweep's own cells."""
    if not sweep.directory.exists():
        raise UserError(f"{sweep.directory}: no results yet; has the sweep run?")
    ledger = runs.read(sweep.directory)
    own = {Path(cell.config.name).name for cell in sweep.cells if held_out or not cell.config.heldout}
    chosen = np.isin(ledger.run_id, list(own))
    # Milestones that the YAML had once: no run that is added would have them.
    milestones = {N: {m for cell in cells for m in cell.config.train.milestones} for N, cells in _sizes(sweep).items()}
    chosen &= [T in milestones.get(N, ()) for N, T in zip(ledger.N, ledger.nominal_T)]
    if not chosen.any():
        raise UserError(f"{sweep.directory}: no results of cells that may be extended; run the sweep first")
    return ledger.rows(chosen)


def _sizes(sweep: Sweep) -> dict[int, list[Run]]:
    cells = defaultdict(list)
    for cell in sweep.cells:
        cells[cell.N].append(cell)
    return cells


def _milestone(cells: list[Run], T: float) -> int:
    """The milestone of a size whose grid lies at T tokens: the last that all of these had reached there."""
    milestones = {m for cell in cells for m in cell.config.train.milestones}
    return max((m for m in milestones if m <= T), default=min(milestones))


def _waiting(sweep: Sweep) -> Callable[[float, float], list[tuple[float, float]]]:
    """The cells of an (N, T) without a result yet."""
    by_size = _sizes(sweep)
    open_cells = {cell.config.name for cell in sweep.cells if cell_state(cell)["state"] not in ("done", "diverged")}

    def waiting(N: float, T: float) -> list[tuple[float, float]]:
        milestone = _milestone(by_size[int(N)], T)
        return [
            (cell.config.optim.lr, float(cell.config.train.batch_tokens))
            for cell in by_size[int(N)]
            if cell.config.name in open_cells and milestone in cell.config.train.milestones
        ]

    return waiting


def _largest(sweep: Sweep) -> Callable[[float], float]:
    """The largest batch of an N: its first milestone."""
    by_size = _sizes(sweep)
    return lambda N: min(cell.config.train.milestones[0] for cell in by_size[int(N)])


def _whole(tokens: int, batch: float) -> int:
    """Those of whole batches: a run ends with the first one at or past its last milestone."""
    return math.ceil(tokens / batch) * round(batch)


def merge(sweep: Sweep, asked: list[Asked]) -> list[Addition]:
    """What is asked of several grids of one size as runs: one that is trained for the largest T passes the others.

    A run that was added, and ends before the T asked for, goes on where it can; else the cell gets a new one.
    """
    by_size = _sizes(sweep)
    wanted: dict[tuple[int, float, int], list[tuple[int, str]]] = defaultdict(list)
    for one in asked:
        milestone = _milestone(by_size[int(one.N)], one.T)
        wanted[int(one.N), one.lr, round(one.B)].append((milestone, one.why))
    before = added_cells.read(sweep.directory, sweep.keys.results)
    additions = []
    for (N, lr, batch), runs_of_cell in wanted.items():
        cells = by_size[N]
        grid = sorted({m for cell in cells for m in cell.config.train.milestones})
        size = cells[0].config.model.size
        ends = [
            max(cell.config.train.milestones)
            for cell in cells
            if cell.config.optim.lr == lr and cell.config.train.batch_tokens == batch
        ]
        ours = {
            c["repeat"]: max(c["milestones"])
            for c in before
            if (c["size"], c["lr"], c["batch_tokens"]) == (size, lr, batch)
        }
        # Runs for different T of one cell are one run; those for the same T are several.
        per_milestone: dict[int, int] = defaultdict(int)
        for milestone, _ in runs_of_cell:
            per_milestone[milestone] += 1
        count = max(per_milestone.values())
        grown = {
            repeat: end
            for repeat, end in ours.items()
            if end < min(per_milestone) and _goes_on(cells, cell_seed(sweep.keys, size, lr, batch, repeat))
        }
        for number in range(count):
            upto = max(m for m, times in per_milestone.items() if times > number)
            tokens = _whole(upto, batch)
            repeat, there = (min(grown), _whole(grown.pop(min(grown)), batch)) if grown else (len(ends) + number, 0)
            # The reason of a second run is not that of the first.
            why = [w for m, w in runs_of_cell if m == upto][number]
            per_token = cells[0].flops_per_token
            entry = {
                "size": size, "lr": float(lr), "batch_tokens": int(batch), "repeat": repeat,
                "milestones": [m for m in grid if m <= upto], "why": why,
            }  # fmt: skip
            additions.append(Addition(entry, N, per_token * (tokens - there)))
    return sorted(additions, key=lambda addition: (addition.N, addition.entry["milestones"][-1], addition.entry["lr"]))


def _goes_on(cells: list[Run], seed: int) -> bool:
    """Whether the run of this seed, one of ``cells``, has come to its end and left a checkpoint to go on from."""
    return any(
        finished["status"] == "done" and resumable_step(cell.config.run_dir) > 0
        for cell in cells
        if cell.config.seed == seed and (finished := finished_result(cell)) is not None
    )


def _narrow(
    sweep: Sweep, made: list[State], law: laws.Law, noise: float, arguments: argparse.Namespace
) -> tuple[list[Asked], dict[str, Any]]:
    """The runs that --budget-flops pays for, and what they are expected to bring."""
    by_size = _sizes(sweep)
    n_ctx = sweep.cells[0].n_ctx
    cost = allocation.c_token(n_ctx, smooth_width)
    told = [state.decision.found for state in made]
    grids = []
    for k, state in enumerate(made):
        cells = by_size[int(state.grid.N)]
        milestone = _milestone(cells, state.grid.T)
        price = cells[0].flops_per_token * np.array([_whole(milestone, B) for B in state.grid.B], dtype=float)
        belief = believe(state.grid, expect(state.grid, told[:k] + told[k + 1 :], law), noise, 0.0)
        grids.append(Known(state.grid, belief, price))
    if arguments.params is not None:
        tokens = arguments.tokens or arguments.flops / float(cost(np.array(arguments.params)))
        target = pair(arguments.params, tokens, grids)
    else:
        target = best_size(arguments.flops, cost, grids)
    asked, paid, variances = spend(grids, target, arguments.budget_flops, noise)
    if not asked:
        cheapest = min(known.price.min() for known in grids)
        if cheapest > arguments.budget_flops:
            given = f"--budget-flops {arguments.budget_flops:g}"
            raise UserError(f"{given}: less than the cheapest run, {cheapest:.3g} FLOPs")
        raise Untrusted(f"no run is believed to narrow {target.name}; extend without --budget-flops first")
    shown = target.unit[0]
    return asked, {
        "name": target.name, "measure": target.unit[1], "before": shown(variances[0]), "after": shown(variances[-1]),
        "flops": sum(paid), "budget": arguments.budget_flops,
    }  # fmt: skip


def _rows(made: list[State], additions: list[Addition]) -> dict[str, Any]:
    grids = []
    for state in made:
        decision, optimum = state.decision, state.optimum
        grids.append(
            {
                "N": state.grid.N,
                "T": state.grid.T,
                "verdict": optimum.verdict,
                "sides": list(optimum.sides),
                "miss": decision.miss,
                "regret": None if math.isnan(decision.regret) else decision.regret,
                "asked": [{"lr": one.lr, "B": one.B, "why": one.why} for one in state.asked],
            }
        )
    cells = [addition.entry | {"N": addition.N, "flops": addition.flops} for addition in additions]
    return {"grids": grids, "cells": cells, "flops": sum(addition.flops for addition in additions)}


def _text(sweep: Sweep, told: dict[str, Any], made: list[State], additions: list[Addition]) -> str:
    lines = [f"noise of a run {told['noise']:.2%} ({told['noise_from']}); tolerance {told['tolerance']:.2%}"]
    for state in made:
        decision = state.decision
        if state.lifeless:
            known = "every cell diverged, over three decades of rates: no lower ones are asked for"
        elif decision.choice is None:
            known = "every cell diverged"
        else:
            lr, B = state.grid.lr[decision.choice], state.grid.B[decision.choice]
            known = f"best run lr {lr:.3g}, B {B:.0f}: misses the tolerance with chance {decision.miss:.0%}"
        where = f" ({' and '.join(state.optimum.sides)})" if state.optimum.sides else ""
        lines.append(f"N {state.grid.N:.4g}, T {state.grid.T:.4g}: {state.optimum.verdict}{where}; {known}")
    if told["target"]:
        t = told["target"]
        lines.append(f"{t['name']}: {t['measure']} {t['before']:.3g} now, {t['after']:.3g} expected after these runs")
    table = [("size", "T", "B", "lr", "run", "FLOPs", "why")]
    for addition in additions:
        e = addition.entry
        table.append(
            (
                e["size"],
                f"{e['milestones'][-1]:,}",
                f"{e['batch_tokens']:,}",
                f"{e['lr']:.2e}",
                str(e["repeat"] + 1),
                f"{addition.flops:.2e}",
                e["why"],
            )
        )
    if additions:
        widths = [max(map(len, column)) for column in zip(*table)]
        for words in table:
            row = [word.rjust(width) for word, width in zip(words[:-1], widths)]
            lines.append("  ".join([*row, words[-1]]))
    total, whole = sum(a.flops for a in additions), sum(c.flops_per_token * c.config.train.tokens for c in sweep.cells)
    if told["unfinished"]:
        lines.append(f"{told['unfinished']} cells of the sweep are not finished: --run trains them first, adding none")
    if additions:
        lines.append(f"{len(additions)} runs to add, {total:.3g} FLOPs, {total / whole:.1%} of the sweep so far")
    else:
        lines.append(f"nothing to add: {_why_nothing(made)}")
    if told["target"]:
        lines[-1] += f", {total / told['target']['budget']:.0%} of the budget"
    return "\n".join(lines)


def _why_nothing(made: list[State]) -> str:
    """Whether all is known, or what is not and cannot be mended by cells near those there are."""
    lost = [s for s in made if s.lifeless]
    undecided = [s for s in made if not s.lifeless and (s.decision.miss > extend.DOUBT or not s.optimum.usable)]
    reasons = []
    if lost:
        reasons.append(
            f"every run of {len(lost)} of {len(made)} grids diverged, over three decades of rates: it is not the "
            "rate; look at what they train on, and at their console.log"
        )
    if undecided:
        verdicts = ", ".join(sorted({s.optimum.verdict for s in undecided}))
        reasons.append(
            f"{len(undecided)} of {len(made)} grids are not decided ({verdicts}), and no cell near theirs is believed "
            "to help; give the YAML other rates or batches, or repeats"
        )
    return "; and ".join(reasons) or "each grid's best run is known to the tolerance"


def _confirmed(additions: list[Addition]) -> bool:
    """Ask at a terminal; anywhere else say how to go on."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("--run adds them to the sweep and trains them")
        return False
    try:
        return input(f"add and train these {len(additions)} runs? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
