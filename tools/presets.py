"""Tuned configs from a fitted law: one for each size, and a page with their tables.

python tools/presets.py 2x96:3276800 4x128:5e6 --law results/mini/law.json --base configs/train/mini.yaml \\
    --results results/mini/cells --out configs/train/presets --page docs/presets.md

The page gives each preset's T, B, lr and expected loss, the lowest loss of any measured run at that size, the loss it
should show during training, and the hours it takes on the hardware of the results.
"""

import argparse
import math
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from videoscaling.models import sizes
from videoscaling.scaling import law_file, laws
from videoscaling.scaling.planning.plan import plan
from videoscaling.scaling.planning.request import Request
from videoscaling.training.planning.planned_config import (
    clip_length,
    planned_optim,
    planned_yaml,
    read_base,
    recipe_warnings,
)
from videoscaling.utils.errors import Parser, UserError, path_text, run_cli
from videoscaling.utils.files import find_files, write_text
from videoscaling.utils.results import FILE, report_left_out, whole_results

FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 1)  # of T, at which the expected loss is given


def arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="+", metavar="SIZE:TOKENS", help="such as 4x128:5e6")
    parser.add_argument("--law", type=path_text, required=True, help="law file from tools/fit.py")
    parser.add_argument("--base", type=path_text, required=True, help="config that supplies data, VAE and the rest")
    parser.add_argument("--results", type=path_text, help="the study's results, whose runs give the hours")
    parser.add_argument("--out", type=path_text, required=True, help="folder for the configs, SIZE.yaml each")
    parser.add_argument("--page", type=path_text, required=True, help="Markdown file for the tables")
    return parser.parse_args()


def parse(text: str) -> tuple[sizes.Shape, float]:
    """``"4x128:5e6"`` as a shape and tokens."""
    name, _, tokens = text.partition(":")
    try:
        value = float(tokens)
    except ValueError:
        value = math.nan
    if not 1 <= value <= 1e20:
        raise UserError(f"{text!r} is not SIZE:TOKENS, such as 4x128:5e6")
    return sizes.parse_size(name), value


def speeds(results: Iterable[dict[str, Any]]) -> dict[tuple[float, str], float]:
    """Tokens per second by (N, device): all tokens of the finished runs of that size over all their seconds."""
    tokens: dict[tuple[float, str], float] = defaultdict(float)
    seconds: dict[tuple[float, str], float] = defaultdict(float)
    for result in results:
        if result["status"] == "done" and result.get("seconds"):
            tokens[float(result["N"]), result["device"]] += result["tokens"]
            seconds[float(result["N"]), result["device"]] += result["seconds"]
    return {key: tokens[key] / seconds[key] for key in tokens}


def lowest(results: Iterable[dict[str, Any]]) -> dict[tuple[float, int], float]:
    """The lowest loss of averaged weights that any run had, by (N, milestone in tokens)."""
    found: dict[tuple[float, int], float] = {}
    for result in results:
        for milestone in result["milestones"]:
            key = float(result["N"]), int(milestone["nominal"])
            found[key] = min(milestone["ema_val_loss"], found.get(key, math.inf))
    return found


def page(rows: list[dict[str, Any]], law: laws.Law, path: str, results: Sequence[dict[str, Any]]) -> str:
    """The tables, as Markdown."""
    rate, seen = speeds(results), lowest(results)
    lines = [
        "# Presets",
        "",
        f"Made by `tools/presets.py` from `{path}`; how far to trust that law: [reproduction.md](reproduction.md).",
        "Losses are of the averaged weights on the frozen validation clips, with 95 % intervals of the law.",
        "",
        "| preset | N | T | B | lr | steps | FLOPs | expected loss | lowest measured |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        loss, lr = (value if isinstance(value, dict) else {"value": value} for value in (row["loss"], row["lr"]))
        span = f" [{loss['low']:.3f}, {loss['high']:.3f}]" if "low" in loss else ""
        lines.append(
            f"| `{row['out']}` | {row['N']:,.0f} | {row['T']:,.0f} | {row['B']:,} | {lr['value']:.3g} | "
            f"{row['steps']:,} | {row['C']:.3g} | {loss['value']:.3f}{span} | "
            f"{format(seen[key], '.3f') if (key := (float(row['N']), round(row['T']))) in seen else ''} |"
        )
    lines += [
        "",
        "On the way, expected at a part of T (hours as the results' own runs of that size took, most of them several",
        "in a process: a run's share of its time):",
    ]
    lines += ["", "| preset | device | " + " | ".join(f"T / {1 / f:.0f}" for f in FRACTIONS[:-1]) + " | T |"]
    lines.append("|---|---|" + "---|" * len(FRACTIONS))
    for row in rows:
        for device in sorted(device for N, device in rate if row["N"] == N) or [""]:
            cells = []
            for fraction in FRACTIONS:
                tokens = row["T"] * fraction
                hours = f" at {tokens / rate[row['N'], device] / 3600:.2g} h" if device else ""
                cells.append(f"{float(law.response.losses(row['N'], tokens)):.3f}{hours}")
            lines.append(f"| {row['size']} | {device or 'not measured'} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _always(shape: sizes.Shape, target: float) -> sizes.Shape:
    return shape


def main() -> None:
    args = arguments()
    chosen = [parse(text) for text in args.presets]
    base = read_base(args.base)
    if args.results and not Path(args.results).is_dir():
        raise UserError(f"--results {args.results}: no such folder")
    law = law_file.load(args.law)
    n_ctx = clip_length(base, law.n_ctx)
    rows, written = [], {}
    for shape, tokens in chosen:
        N = sizes.parameters(shape.layers, shape.width)
        # The planner looks for a shape; here it is given.
        ladder = SimpleNamespace(**vars(sizes) | {"shape_for": partial(_always, shape)})
        row = plan(law, Request(params=N, tokens=tokens, n_ctx=n_ctx, dtype=base.config.train.dtype), ladder)
        out = Path(args.out) / f"{shape.name}.yaml"
        rows.append(row | {"out": os.path.relpath(out)})
        written[out] = planned_yaml(row, recipe=law.recipe, law=args.law, base=base, out=out)
    found, damaged = whole_results(find_files(Path(args.results), FILE)) if args.results else ({}, [])
    report_left_out(damaged, len(found))
    table = page(rows, law, args.law, list(found.values()))
    for out, text in written.items():
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
    write_text(args.page, table)
    for warning in recipe_warnings(law.recipe, base, optim=planned_optim(law.recipe, base)):
        print(f"warning: {warning}", file=sys.stderr)
    print(f"wrote {len(written)} configs to {args.out} and {args.page}")


if __name__ == "__main__":
    run_cli(main)
