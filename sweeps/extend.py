"""``sweep.py extend``: the runs that reduce a prediction's variance most per FLOP, and the effect of each."""

import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from videoscaling.models.sizes import smooth_width
from videoscaling.scaling import law_file, runs
from videoscaling.scaling.fitting.surface.cells import Cells
from videoscaling.scaling.fitting.surface.surface import Surface
from videoscaling.scaling.fitting.unsupported import UnsupportedFit
from videoscaling.scaling.planning import allocation
from videoscaling.scaling.search.acquisition import Target, target_at, target_of_budget
from videoscaling.scaling.search.proposals import Decision, Proposal, Size, decide, target_finder, whole
from videoscaling.sweeps import added_cells
from videoscaling.sweeps.added_cells import AddedCell
from videoscaling.sweeps.cost import flops_of
from videoscaling.sweeps.grid import Sweep, cell_seed
from videoscaling.sweeps.state import FINISHED, UNFINISHED, cell_status
from videoscaling.sweeps.status import aligned
from videoscaling.training.result import finished_result, resumable_step
from videoscaling.training.run import Run
from videoscaling.utils.errors import UserError, plural
from videoscaling.utils.locks import lock_run_dir
from videoscaling.utils.options import check_range

MIN_RELATIVE, MAX_RELATIVE = 1e-6, 0.1  # of a tolerance and of a noise, relative to the loss
TOLERANCE = 1e-3  # of the loss: a tenth of the cost of a factor of two in the rate
BUDGET_SHARE = 0.1  # of the sweep's FLOPs so far, for the runs of one call, unless --budget-flops says how many
BUDGET_RATIO = 10  # times the costliest cell: the budget that is predicted where no size is held out


@dataclass(frozen=True)
class Options:
    """Options of ``extend``; None is the default. FLOPs, parameters and tokens in ones."""

    run: bool = False
    json: bool = False
    tolerance: float | None = None
    noise: float | None = None
    budget_flops: float | None = None
    flops: float | None = None
    params: float | None = None
    tokens: float | None = None
    law: str | None = None
    held_out: bool = False

    @property
    def aim(self) -> float | None:
        """The tolerance that ends the additions; None where a budget does."""
        return None if self.budget_flops else self.tolerance or TOLERANCE

    @staticmethod
    def of(arguments: Any) -> "Options":
        """The options in parsed arguments.

        Raises:
            UserError: a number out of its range, or options that contradict each other.
        """
        options = Options(**{field.name: getattr(arguments, field.name) for field in fields(Options)})
        if options.run and options.json:
            raise UserError("--json shows what --run would add and train: give one of them")
        limits = {"tolerance": (MIN_RELATIVE, MAX_RELATIVE), "noise": (MIN_RELATIVE, MAX_RELATIVE)}
        limits |= dict.fromkeys(("budget_flops", "flops", "params", "tokens"), (1, 1e60))
        for name, (least, most) in limits.items():
            check_range(name, getattr(options, name), least, most)
        if options.held_out and (options.budget_flops, options.flops, options.params) != (None,) * 3:
            raise UserError("--held-out: held-out sizes are no part of a prediction at another N; give it alone")
        if options.params is not None and (options.flops is None) == (options.tokens is None):
            raise UserError("--params needs --tokens or --flops, one of them: the length of the run that is predicted")
        if options.tokens is not None and options.params is None:
            raise UserError("--tokens needs --params: the run that is predicted")
        return options


@dataclass(frozen=True)
class Addition:
    """A run to add to a sweep: its entry in the file of added cells, its N, its FLOPs, and its effect."""

    entry: AddedCell
    N: int
    flops: float
    after: dict[str, float]


def command(
    sweep: Sweep, options: Options, train: Callable[[Sweep], int], reload: Callable[[], Sweep], paper: Path
) -> int:
    """Show what to add; add and train it with --run. 3 if nothing can be decided."""
    unfinished = sum(cell_status(cell).state in UNFINISHED for cell in sweep.cells)
    table = _table(sweep, options.held_out)
    if unfinished and options.run:  # of an earlier --run that was killed, say: what comes next hangs on their results
        print(f"{plural(unfinished, 'cell')} of the sweep unfinished: nothing is added before the sweep is finished")
        return train(sweep)
    try:
        decision = decide_for(sweep, Cells.of_table(table), options, paper)
    except UnsupportedFit as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 3
    additions = additions_of(sweep, decision.proposals)
    so_far = sum(flops_of(cell) for cell in sweep.cells)
    if options.json:
        print(json.dumps(_summary(decision, additions, options, unfinished, so_far)))
    else:
        print(_text(decision, additions, options, unfinished, so_far))
    if not additions or options.json:
        return 0
    if not options.run:
        print("--run adds them to the sweep and trains them")
        return 0
    opened = reload()  # refuses now, and not once the cells are the sweep's, where the clips are not here
    with lock_run_dir(opened.directory):
        added_cells.add(sweep.directory, [addition.entry for addition in additions])
    return train(reload())


def decide_for(sweep: Sweep, cells: Cells, options: Options, paper: Path) -> Decision:
    """The runs to add to a sweep with these results.

    Raises:
        UnsupportedFit: the results do not identify the prediction.
    """
    by_size = _sizes(sweep)
    groups = max(sweep.keys.executor.world // sweep.cells[0].config.train.context_parallel, 1)
    sizes = [_size(mine, cells, groups) for mine in by_size.values() if options.held_out or not mine[0].config.heldout]
    law = law_file.load(options.law or paper)
    costs = [flops_of(cell) for cell in sweep.cells]
    # At least the costliest run: a tenth of a small sweep pays for none.
    budget = options.budget_flops or max(BUDGET_SHARE * sum(costs), *costs)
    return decide(
        cells,
        sizes,
        _target(sweep, options, max(costs)),
        budget=budget,
        noise_sd=options.noise,
        tolerance=options.aim,
        first=lambda size: law.best_pair(size.N, max(size.T)),
    )


def _target(sweep: Sweep, options: Options, costliest: float) -> Callable[[Surface], Target]:
    """The predicted run: from the options, else the largest held-out size, else ten times the costliest cell."""
    cost = allocation.c_token(sweep.cells[0].n_ctx, smooth_width)
    if options.flops is not None or options.params is not None:
        return target_finder(N=options.params, T=options.tokens, C=options.flops, cost=cost)
    heldout = [cell for cell in sweep.cells if cell.config.heldout]
    if heldout and not options.held_out:
        largest = max(heldout, key=lambda cell: (cell.N, cell.config.train.tokens))
        return lambda surface: target_at(surface, largest.N, largest.config.train.tokens)
    last = max(sweep.cells, key=lambda cell: (cell.N, cell.config.train.tokens))
    return lambda surface: (
        target_of_budget(surface, BUDGET_RATIO * costliest, cost)
        if surface.members
        else target_at(surface, last.N, last.config.train.tokens)
    )


def _table(sweep: Sweep, held_out: bool) -> runs.RunTable:
    """The results of the sweep's own cells."""
    if not sweep.directory.exists():
        raise UserError(f"{sweep.directory}: no results yet; has the sweep run?")
    table = runs.read(sweep.directory)
    own = {Path(cell.config.name).name for cell in sweep.cells if held_out or not cell.config.heldout}
    chosen = np.isin(table.run_id, list(own))
    # Milestones that the YAML had once: no run that is added would have them.
    milestones = {N: _milestones(cells) for N, cells in _sizes(sweep).items()}
    chosen &= [T in milestones.get(N, ()) for N, T in zip(table.N, table.nominal_T)]
    if not chosen.any():
        raise UserError(f"{sweep.directory}: no results of cells that may be extended; run the sweep first")
    return table.rows(chosen)


def _sizes(sweep: Sweep) -> dict[int, list[Run]]:
    cells = defaultdict(list)
    for cell in sweep.cells:
        cells[cell.N].append(cell)
    return cells


def _milestones(cells: list[Run]) -> list[int]:
    return sorted({m for cell in cells for m in cell.config.train.milestones})


def _size(cells: list[Run], results: Cells, groups: int) -> Size:
    """The cells of one N, whose clips so many groups of processes share. A grid is taken at the last milestone that
    all of its runs have reached."""
    milestones = _milestones(cells)
    T = {m: float(m) for m in milestones}
    for tokens in np.unique(results.T[cells[0].N == results.N]):
        T[max((m for m in milestones if m <= tokens), default=milestones[0])] = float(tokens)
    pairs = {cell.config.name: (cell.config.optim.lr, float(cell.config.train.batch_tokens)) for cell in cells}
    waiting = {cell.config.name for cell in cells if cell_status(cell).state not in FINISHED}
    return Size(
        float(cells[0].N),
        T,
        tuple(pairs.values()),
        tuple(pairs[name] for name in sorted(waiting)),
        cells[0].flops_per_token,
        cells[0].n_ctx * groups,
    )


def additions_of(sweep: Sweep, proposals: tuple[Proposal, ...]) -> list[Addition]:
    """The proposals as cells of the sweep.

    An earlier added run of the cell that ends before the milestone is continued if possible, which costs less;
    otherwise the cell gets a new run.
    """
    by_size, before = _sizes(sweep), added_cells.read(sweep.directory, sweep.keys.results)
    additions = []
    for one in proposals:
        cells, lr, batch = by_size[int(one.N)], float(one.lr), round(one.B)
        size = cells[0].config.model.size
        same = [c for c in cells if c.config.optim.lr == lr and c.config.train.batch_tokens == batch]
        ours = {c.repeat: max(c.milestones) for c in before if (c.size, c.lr, c.batch_tokens) == (size, lr, batch)}
        grown = [
            repeat
            for repeat, end in ours.items()
            if end < one.milestone and _continues(cells, cell_seed(sweep.keys, size, lr, batch, repeat))
        ]
        repeat, there = (min(grown), whole(ours[min(grown)], batch)) if grown else (len(same), 0)
        milestones = [m for m in _milestones(cells) if m <= one.milestone]
        entry = AddedCell(size, lr, batch_tokens=batch, repeat=repeat, milestones=milestones, why=one.why)
        flops = cells[0].flops_per_token * (whole(one.milestone, batch) - there)
        additions.append(Addition(entry, int(one.N), flops, one.after))
    return additions


def _continues(cells: list[Run], seed: int) -> bool:
    """Whether the run of this seed, one of ``cells``, has ended and left a checkpoint to continue from."""
    return any(
        finished["status"] == "done" and resumable_step(cell.config.run_dir) > 0
        for cell in cells
        if cell.config.seed == seed and (finished := finished_result(cell)) is not None
    )


def _summary(
    decision: Decision, additions: list[Addition], options: Options, unfinished: int, so_far: float
) -> dict[str, object]:
    """The output as JSON. Half-widths are of ln of each prediction, at 95 %."""
    target = decision.target and {
        "N": decision.target.N,
        "T": decision.target.T,
        "B": decision.target.B,
        "lr": decision.target.lr,
        "half_widths": decision.before,
        "rate_cost": decision.rate_cost[0],
        "rate_cost_after": decision.rate_cost[1],
    }
    return {
        "noise": None if math.isnan(decision.noise) else decision.noise,
        "tolerance": options.aim,
        "target": target,
        "no_surface": decision.reason,
        "unfinished": unfinished,
        "all_diverged": list(decision.dead),
        "cells": [asdict(one.entry) | {"N": one.N, "flops": one.flops, "half_widths": one.after} for one in additions],
        "flops": sum(one.flops for one in additions),
        "flops_so_far": so_far,
        "budget": options.budget_flops,
        "warnings": list(decision.warnings),
    }


def _text(decision: Decision, additions: list[Addition], options: Options, unfinished: int, so_far: float) -> str:
    """The output for readers."""
    target = decision.target
    lines = [f"warning: {text}" for text in decision.warnings]
    if target is None:
        lines.append(f"no surface can be fitted yet ({decision.reason}): first cells, a step around the best ones")
    else:
        lines.append(
            f"to narrow the prediction at N {target.N:.4g} and T {target.T:.4g}, where lr is {target.lr:.3g} and B "
            f"{target.B:.4g}; noise of a run {decision.noise:.2%}"
        )
        widths = ", ".join(f"{name} {_width(value)}" for name, value in decision.before.items())
        lines.append(
            f"95 % intervals now: {widths}; the rate's error is expected to cost {decision.rate_cost[0]:.2%} of the "
            "loss"
        )
    names = list(decision.before) if target else []
    if additions and names:
        lines.append("runs to add, and the intervals after each of them:")
    table = [("size", "T", "B", "lr", "run", "FLOPs", *names, "why")]
    for one in additions:
        cell, widths = one.entry, (_width(one.after[name]) for name in names)
        counts = f"{cell.milestones[-1]:,}", f"{cell.batch_tokens:,}", f"{cell.lr:.2e}", str(cell.repeat + 1)
        table.append((cell.size, *counts, f"{one.flops:.2e}", *widths, cell.why))
    if additions:
        lines += aligned([row[:-1] for row in table], [f"  {row[-1]}" for row in table])
    if unfinished:
        lines.append(f"{plural(unfinished, 'cell')} of the sweep unfinished: --run finishes it first, adding none")
    for N in decision.dead:
        lines.append(
            f"N {N:.4g}: every run diverged, over three decades of rates: it is not the rate; look at what they train "
            "on, and at their console.log"
        )
    if additions:
        total = sum(one.flops for one in additions)
        lines.append(
            f"{plural(len(additions), 'run')} to add, {total:.3g} FLOPs, {total / so_far:.1%} of the sweep so far"
        )
        if options.budget_flops:
            lines[-1] += f", {total / options.budget_flops:.0%} of the budget"
    elif target and options.aim and decision.rate_cost[0] <= options.aim:
        lines.append(
            f"nothing to add: that is within the tolerance, {options.aim:.2%}; --budget-flops narrows further"
        )
    else:
        lines.append("nothing to add: no run near those there are would narrow it; give the YAML other sizes or cells")
    return "\n".join(lines)


def _width(half: float) -> str:
    """A half-width of a logarithm: a percentage where it is small, else a factor to either side."""
    return f"±{math.expm1(half):.2%}" if half < 0.1 else f"factor {math.exp(min(half, 50.0)):.3g}"
