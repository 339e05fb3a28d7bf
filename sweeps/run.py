"""Commands of a sweep: dry run, training of unfinished cells, and the table of results."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from videoscaling.sweeps import added_cells, commands, slurm
from videoscaling.sweeps.cost import estimate
from videoscaling.sweeps.directory import recorded_data, write_sweep_file
from videoscaling.sweeps.grid import Sweep
from videoscaling.sweeps.progress import SweepProgress
from videoscaling.sweeps.slurm_queue import queue_of, submit_and_wait
from videoscaling.sweeps.state import export_result, finished, import_result, label_heldout
from videoscaling.sweeps.status import plan, plan_text, print_status, states_of
from videoscaling.training.checks import check_share
from videoscaling.training.logs.trackers import check_installed
from videoscaling.training.result import finished_result
from videoscaling.training.run import Run, beta2_warnings, token_numbers, width_warnings
from videoscaling.utils.errors import CONTINUES, PREEMPTED, UserError, plural
from videoscaling.utils.locks import lock_run_dir
from videoscaling.utils.messages import warn

REPORTED = {
    "again": "crashed and is tried again; console.log there has the error",
    "failed": "failed; console.log there has the error, and the other cells continue",
    "diverged": "diverged, which is a result",
}  # outcomes of a cell that are reported while the others train


def planned_runs(sweep: Sweep) -> list[Any]:
    """The runs that a fit would use, as ``scaling.search.planned_runs.PlannedRun``."""
    from videoscaling.scaling.search.planned_runs import PlannedRun  # numpy, for which a status does not wait

    configs = [(cell.N, cell.config) for cell in sweep.cells if not cell.config.heldout]
    return [
        PlannedRun(N, one.train.batch_tokens, one.optim.lr, tuple(one.train.milestones), one.data.seed)
        for N, one in configs
    ]


def report_warnings(sweep: Sweep) -> list[str]:
    """Print and return warnings before compute is spent: runs too few for a fit, a clamped beta2, narrow widths."""
    from videoscaling.scaling.search import planned_runs as planned

    optimizers = [(cell.config.optim, cell.config.train.batch_tokens) for cell in sweep.cells]
    found = [*planned.fit_warnings(planned_runs(sweep)), *beta2_warnings(optimizers)]
    config = sweep.cells[0].config
    token_dim = token_numbers(config, recorded_data(sweep.keys.results, config)["latent_shape"])
    found += width_warnings([cell.config.model.width for cell in sweep.cells], token_dim)
    for text in found:
        warn(text)
    return found


def check_processes(sweep: Sweep) -> None:
    """Refuse cells to be trained whose batch or clips their processes cannot share."""
    keys = sweep.keys.executor
    for cell in sweep.cells:
        if finished(cell, sweep.keys.results) is None:
            try:
                check_share(cell, keys.world)
            except UserError as error:
                raise UserError(f"{error} (of executor.processes={keys.processes})") from None


def dry_run(sweep: Sweep, as_json: bool) -> int:
    """List the cells that would be trained, and their cost."""
    check_processes(sweep)
    warnings = report_warnings(sweep)
    states = states_of(sweep)
    planned = plan(sweep, states, estimate(sweep, states))
    print(json.dumps(asdict(planned) | {"warnings": warnings}) if as_json else plan_text(sweep, planned))
    return 0


def run(sweep: Sweep, print_commands: bool = False) -> int:
    """Train the cells that are not finished; returns 1 if a cell failed, ``PREEMPTED`` if a signal ended it early.

    Args:
        print_commands: print a line of shell for each cell instead of training it.
    """
    from videoscaling.sweeps.local import Interrupt, run_cells
    from videoscaling.training.checkpoints.leftovers import clean_finished  # these import torch

    keys = sweep.keys.executor
    if keys.kind == "slurm":
        slurm.check_options(keys.slurm)
    elif jobs := queue_of(sweep.directory):
        raise UserError(
            f"{sweep.directory}: cells of it are in Slurm's queue, such as {next(iter(jobs.values()))}; follow them "
            "with executor.kind=slurm, or end them first (scancel)"
        )
    check_installed(sweep.cells[0].config)
    check_processes(sweep)
    report_warnings(sweep)
    with lock_run_dir(sweep.directory), Interrupt() as interrupt:
        write_sweep_file(sweep)
        for cell in sweep.cells:  # one that is finished is not started again, which would clean its directory
            if cell.config.run_dir.exists() and (result := finished_result(cell)) is not None:
                clean_finished(cell, result["status"])
        import_committed(sweep)
        for cell in sweep.cells:
            label_heldout(cell)
        if print_commands:
            for cell in commands.startable(sweep.cells):
                print(commands.cell_command(cell, keys))
            return 0
        submitted = 0
        with SweepProgress(sweep, states_of(sweep)) as progress:

            def report(cell: Run, outcome: str) -> None:
                nonlocal submitted
                submitted += outcome == "submitted"
                progress.settle(cell)
                if outcome in REPORTED:
                    progress.bar.write(f"{cell.config.run_dir}: {REPORTED[outcome]}")

            if keys.kind == "slurm":
                submit_and_wait(sweep, report, interrupt, progress.look)
            else:
                cells = commands.startable(sweep.cells) if keys.kind == "command" else sweep.cells
                run_cells(cells, keys, report, interrupt, look=progress.look)
        for cell in sweep.cells:  # a job that was in the queue before knew an older YAML
            label_heldout(cell)
    failed = print_status(sweep)
    if submitted:
        print(
            f"{plural(submitted, 'cell')} submitted: status --watch shows their states, and the same command submits "
            "again those that are lost",
            file=sys.stderr,
        )
    if interrupt.caught is None:
        return failed
    if keys.kind == "slurm":
        print("the jobs continue without this command; the same command follows them again", file=sys.stderr)
    else:
        print(f"{sweep.directory}: stopped; {CONTINUES}", file=sys.stderr)
    return PREEMPTED


def import_committed(sweep: Sweep) -> None:
    """Copy finished cells from the folder of committed results into the sweep's."""
    if sweep.keys.results:
        for cell in sweep.cells:
            import_result(cell, sweep.keys.results)


def collect(sweep: Sweep, out: str | None, folder: str | None = None, licence: str | None = None) -> int:
    """Write one CSV of all milestones of all cells, and with ``folder`` a data set under ``licence``.

    Where the sweep has a folder of committed results, the data set is of all sweeps that share it.
    """
    from videoscaling.scaling import runs
    from videoscaling.sweeps import dataset

    if folder:
        dataset.check_folder(Path(folder))
    import_committed(sweep)
    for cell in sweep.cells:
        label_heldout(cell)
    if sweep.keys.results:
        there = sum(export_result(cell, sweep.keys.results) for cell in sweep.cells)
        added_cells.export_added(sweep.directory, sweep.keys.results)
        print(f"{sweep.keys.results}: {there} of {len(sweep.cells)} cells are finished, to be committed")
    path = out or str(sweep.directory / "results.csv")
    table = runs.read(sweep.directory)
    runs.write_csv(table, path)
    print(f"{path}: {plural(len(table), 'row')}")
    if folder:
        published = runs.read(sweep.keys.results) if sweep.keys.results else table
        print(f"{folder}: {', '.join(dataset.write(published, Path(folder), licence))}")
    return 0
