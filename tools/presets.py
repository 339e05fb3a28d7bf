"""Tuned configs from a fitted law: one for each size, and a page with their tables.

python tools/presets.py 2x96:6553600 2x192:6.6e6 --law results/doom/law.json \\
    --base configs/train/doom.yaml --results results/doom/cells --out configs/train/presets --page docs/presets.md

The page gives each preset's T, B, lr and expected loss, the lowest loss of any measured run at that size, the loss it
should show during training, and the hours it takes on the hardware of the results.
"""

import argparse
import math
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from videoscaling.models import sizes
from videoscaling.scaling import law_file, laws
from videoscaling.scaling.planning.plan import Plan, plan
from videoscaling.scaling.planning.request import Request
from videoscaling.tools.inputs import CONFIG, LAW, STUDY
from videoscaling.training.planning.planned_config import (
    clip_length,
    planned_optim,
    planned_yaml,
    read_base,
    recipe_warnings,
)
from videoscaling.utils.errors import Parser, UserError, path_text, plural, run_cli
from videoscaling.utils.files import find_files, write_text
from videoscaling.utils.inputs import check_paths
from videoscaling.utils.messages import warn
from videoscaling.utils.results import FILE, RunResult, report_left_out, whole_results

FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 1)  # of T, at which the expected loss is given


def arguments() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="+", metavar="SIZE:TOKENS", help="such as 4x128:5e6")
    parser.add_argument("--law", type=path_text, required=True, reads=LAW, help="law file from tools/fit.py")
    parser.add_argument(
        "--base", type=path_text, required=True, reads=CONFIG, help="config that supplies data, VAE and the rest"
    )
    parser.add_argument(
        "--results", type=path_text, reads=STUDY, help="the study's results, whose runs give the hours"
    )
    parser.add_argument(
        "--out", type=path_text, writes="folder", required=True, help="folder for the configs, SIZE.yaml each"
    )
    parser.add_argument("--page", type=path_text, writes="file", required=True, help="Markdown file for the tables")
    return parser


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


def measured(results: Iterable[RunResult]) -> tuple[dict[tuple, float], dict[tuple, float]]:
    """Tokens per second of finished runs by (N, device), and the lowest EMA loss by (N, milestone in tokens)."""
    spent, lowest = defaultdict(lambda: np.zeros(2)), defaultdict(lambda: math.inf)
    for result in results:
        N = float(result["N"])
        if result["status"] == "done" and result.get("seconds"):
            spent[N, result["device"]] += result["tokens"], result["seconds"]
        for milestone in result["milestones"]:
            at = N, int(milestone["nominal"])
            lowest[at] = min(lowest[at], milestone["ema_val_loss"])
    return {key: tokens / seconds for key, (tokens, seconds) in spent.items()}, lowest


def page(presets: dict[str, Plan], law: laws.Law, law_path: str, results: Iterable[RunResult]) -> str:
    """The tables, as Markdown."""
    rate, lowest = measured(results)
    lines = [
        "# Presets",
        "",
        f"Made by `tools/presets.py` from `{law_path}`; how far to trust it: [reproduction.md](reproduction.md).",
        "Losses are of the averaged weights on the frozen validation clips, with 95 % intervals of the law.",
        "",
        "| preset | N | T | B | lr | steps | FLOPs | expected loss | lowest measured |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for path, preset in presets.items():
        loss = preset.loss
        span = "" if np.isnan(loss.low) else f" [{loss.low:.3f}, {loss.high:.3f}]"
        seen = lowest.get((preset.N, round(preset.T)))
        lines.append(
            f"| `{path}` | {preset.N:,.0f} | {preset.T:,.0f} | {preset.B:,} | {preset.lr.value:.3g} | "
            f"{preset.steps:,} | {preset.C:.3g} | {loss.value:.3f}{span} | {'' if seen is None else f'{seen:.3f}'} |"
        )
    lines += [
        "",
        "On the way, expected at a part of T (hours as the results' own runs of that size took, most of them several",
        "in a process: a run's share of its time):",
        "",
        "| preset | device | " + " | ".join(f"T / {1 / f:.0f}" for f in FRACTIONS[:-1]) + " | T |",
        "|---|---|" + "---|" * len(FRACTIONS),
    ]
    for preset in presets.values():
        T = preset.T * np.array(FRACTIONS)
        # At its own batch and rate, which are not the best ones of a part of T.
        losses = law.response.predict(preset.N, T, preset.B, preset.lr.value).mean
        for device in sorted(device for N, device in rate if preset.N == N) or [""]:
            hours = [f" at {t / rate[preset.N, device] / 3600:.2g} h" if device else "" for t in T]
            cells = " | ".join(f"{loss:.3f}{at}" for loss, at in zip(losses, hours))
            lines.append(f"| {preset.size} | {device or 'not measured'} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    chosen = [parse(text) for text in args.presets]
    check_paths(parser, args)
    base = read_base(args.base)
    law = law_file.load(args.law)
    n_ctx = clip_length(base, law.n_ctx)
    presets, written = {}, {}
    for shape, tokens in chosen:
        N = sizes.parameters(shape.layers, shape.width)
        request = Request(params=N, tokens=tokens, n_ctx=n_ctx, dtype=base.config.train.dtype)
        preset = plan(law, request, sizes, shape)
        out = Path(args.out) / f"{shape.name}.yaml"
        presets[os.path.relpath(out)] = preset
        written[out] = planned_yaml(preset, recipe=law.recipe, law=args.law, base=base, out=out)
    found, damaged = whole_results(find_files(Path(args.results), FILE)) if args.results else ({}, [])
    report_left_out(damaged, len(found))
    table = page(presets, law, args.law, found.values())
    for out, text in written.items():
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
    write_text(args.page, table)
    for warning in recipe_warnings(law.recipe, base, optim=planned_optim(law.recipe, base)):
        warn(warning)
    print(f"wrote {plural(len(written), 'config')} to {args.out} and {args.page}")


if __name__ == "__main__":
    run_cli(main)
