"""Train a grid of sizes, learning rates and batch sizes, and report its state.

python tools/sweep.py run configs/sweep/quickstart.yaml               # train the unfinished cells; safe to repeat
python tools/sweep.py run configs/sweep/quickstart.yaml --dry-run
python tools/sweep.py run configs/sweep/quickstart.yaml --print-commands > cells.sh   # a line of shell for each cell
python tools/sweep.py status configs/sweep/quickstart.yaml --watch
python tools/sweep.py collect configs/sweep/quickstart.yaml --out results.csv --dataset published/
python tools/sweep.py extend configs/sweep/quickstart.yaml --run      # add and train the next runs
python tools/sweep.py simulate configs/sweep/quickstart.yaml --law law.json --sweeps 20
"""

import argparse
import functools
from pathlib import Path
from typing import Any

from videoscaling.scaling import PAPER, law_file
from videoscaling.sweeps.config import sweep_key_hint
from videoscaling.sweeps.directory import check_same_sweep, data_of, recorded_data
from videoscaling.sweeps.grid import Prediction, load_sweep, read_keys
from videoscaling.sweeps.run import collect, dry_run, import_committed, run
from videoscaling.sweeps.status import print_status
from videoscaling.tools.inputs import LAW, SWEEP
from videoscaling.utils.errors import Parser, UserError, path_text, resumable, run_cli
from videoscaling.utils.inputs import check_paths
from videoscaling.utils.locks import release_abandoned


def parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser, and those of the subcommands by name."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shared = Parser(add_help=False)
    shared.add_argument(
        "config",
        type=path_text,
        reads=SWEEP,
        metavar="SWEEP.yaml [key=value ...]",
        help="the sweep's YAML; key=value words after it override its keys, such as executor.workers=4",
    )

    with_json = Parser(add_help=False)
    with_json.add_argument("--json", action="store_true", help="print one JSON object")

    def add(name: str, **more: Any) -> Parser:
        examples = "\n".join(line for line in (__doc__ or "").splitlines() if f"sweep.py {name} " in line)
        form = argparse.RawDescriptionHelpFormatter
        return commands.add_parser(
            name, key_of=sweep_key_hint, epilog=f"examples:\n{examples}", formatter_class=form, **more
        )

    command = add("run", parents=[shared, with_json], help="train the cells that are not finished")
    instead = command.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="list the cells and their cost, train nothing")
    instead.add_argument(
        "--print-commands",
        action="store_true",
        help="print one line of shell for each unfinished cell, to be run by any scheduler; train nothing",
    )
    take_over_option(command)
    command = add("status", parents=[shared, with_json], help="cells by state, progress, losses so far, time left")
    command.add_argument("--watch", action="store_true", help="show it anew every few seconds until all is finished")
    command = add("collect", parents=[shared], help="write one CSV of all milestones")
    command.add_argument(
        "--out", type=path_text, writes="file", help="the CSV to write (default: results.csv in the sweep's folder)"
    )
    command.add_argument(
        "--dataset",
        type=path_text,
        writes="folder",
        help="also a folder to publish: CSV, Parquet and a data card, of all of the YAML's `results` if it has them",
    )
    command.add_argument("--licence", help="of the data set, for its card (default: none is stated)")
    extend_options(
        add("extend", parents=[shared, with_json], help="show, add and train the runs that narrow a prediction")
    )
    simulate_options(
        add("simulate", parents=[shared, with_json], help="what its results would identify, before any is trained")
    )
    return parser, commands.choices


def main() -> int:
    parser, commands = parsers()
    arguments, overrides = parser.parse_known_args()
    strange = [word for word in overrides if word.startswith("-")]
    if strange:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    if arguments.command == "run" and arguments.json and not arguments.dry_run:
        raise UserError("--json: goes with --dry-run; status --json shows a sweep that runs")
    if arguments.command == "collect" and arguments.licence and not arguments.dataset:
        raise UserError("--licence goes into the card of a data set; add --dataset FOLDER")
    check_paths(commands[arguments.command], arguments)
    if arguments.command == "simulate":
        from videoscaling.sweeps import simulate

        return simulate.command(arguments, overrides, prediction)
    trains = arguments.run if arguments.command == "extend" else arguments.command == "run" and not arguments.dry_run
    recorded = functools.partial(recorded_data, read_keys(arguments.config, overrides).results)
    sweep = load_sweep(arguments.config, overrides, data_of if trains else recorded, prediction)
    if not trains:  # which compares the data too
        check_same_sweep(sweep)
    if trains and arguments.take_over:
        for folder in (sweep.directory, *(cell.config.run_dir for cell in sweep.cells)):
            release_abandoned(folder)
    if arguments.command == "status":
        return print_status(sweep, arguments.json, arguments.watch)
    if arguments.command == "collect":
        return collect(sweep, arguments.out, arguments.dataset, arguments.licence)
    if arguments.command == "extend":
        from videoscaling.sweeps import extend

        options = extend.Options.of(arguments)
        import_committed(sweep)
        again = functools.partial(load_sweep, arguments.config, overrides, data_of, prediction)
        return extend.command(sweep, options, run, again, PAPER)
    if arguments.dry_run:
        return dry_run(sweep, arguments.json)
    with resumable(str(sweep.directory)):
        return run(sweep, print_commands=arguments.print_commands)


def take_over_option(command: argparse.ArgumentParser) -> None:
    """Add the option that takes over a lock on a disk without flock."""
    command.add_argument(
        "--take-over",
        action="store_true",
        help="on a disk without flock: the processes that are named as working in the sweep's folder and in its "
        "cells' have ended",
    )


def extend_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``extend``."""
    take_over_option(command)
    command.add_argument("--run", action="store_true", help="add the cells to the sweep and train them")
    numbers = {
        "tolerance": "relative loss that the predicted rate's error may cost: then nothing is added (default 1e-3)",
        "noise": "relative noise of a run's loss, seed to seed (default: estimated from the results)",
        "budget-flops": "spend this much, ignoring the tolerance (default: a tenth of the sweep's FLOPs so far)",
        "flops": "predict the best size of this compute and its pair, or with --params: of that run",
        "params": "predict the loss, rate and batch of a model of this size (default: the largest held-out size)",
        "tokens": "with --params: training tokens of that run",
    }
    for name, text in numbers.items():
        command.add_argument(f"--{name}", type=float, help=text)
    command.add_argument(
        "--law",
        type=path_text,
        reads=LAW,
        help="law file for the first cells of a size without results (default: the paper's)",
    )
    command.add_argument("--held-out", action="store_true", help="extend held-out sizes too")


def simulate_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``simulate``."""
    command.add_argument(
        "--law", type=path_text, reads=LAW, default=str(PAPER), help="the law taken to be true (default: the paper's)"
    )
    command.add_argument(
        "--noise",
        type=float,
        help="relative noise of a run's loss (default: the law's own, and 1e-3 where it has none)",
    )
    command.add_argument(
        "--flops",
        type=float,
        help="predict the best run of this budget (default: the held-out sizes, else 10 x the costliest run)",
    )
    command.add_argument(
        "--also",
        type=path_text,
        reads=SWEEP,
        action="append",
        default=[],
        metavar="SWEEP.yaml",
        help="another sweep whose runs are fitted together with this one's (repeatable)",
    )
    command.add_argument("--sweeps", type=int, default=20, help="how many sweeps to simulate (default 20)")
    command.add_argument(
        "--seeds", type=int, default=1, help="runs whose mean loss is compared with the predicted one (default 1)"
    )
    command.add_argument(
        "--n-ctx",
        type=int,
        help="tokens per clip where no clips are encoded yet (default: the cache's, else the law's)",
    )
    command.add_argument("--prior", type=path_text, help=argparse.SUPPRESS)  # refused, with the reason


def prediction(path: Path) -> Prediction:
    """The best rate and batch by a law file, as functions of N and T."""
    law = law_file.load(path)
    law.require_pair()
    return law.best_pair


if __name__ == "__main__":
    run_cli(main)
