"""Fit scaling laws to the runs of a sweep, or to a CSV or JSONL table of any trainer's results.

    python tools/fit.py all runs/my_sweep --out law.json
    python tools/fit.py all results.csv --columns N=params,T=tokens,B=batch,lr=lr,L=loss --batch-unit sequences:2048
    python tools/fit.py hyperparameters results/mini/cells --method grids --fix B.N=0 --fix lr.N=0
    python tools/fit.py validate results.csv

Runs with several rates or batches at some (N, T) are fitted by one response surface; without --out the law is only
shown. Exit status 3 means that the data do not support the fit asked for; the message says why, and what would help.
docs/laws.md has the laws as formulas, what is printed, the tables that are understood, and the law file.
"""

import argparse
import json
import sys
from pathlib import Path

from videoscaling.models.sizes import smooth_width
from videoscaling.scaling import PAPER, law_file, runs, tables
from videoscaling.scaling.checks import extrapolation, fixed_pair
from videoscaling.scaling.fitting import method as fitting
from videoscaling.scaling.fitting.grids.fit import PARTS
from videoscaling.scaling.fitting.losses.forms import CONSTANTS as FORMS
from videoscaling.scaling.fitting.options import HOLDABLE, Options, parse_fixed, parse_pair
from videoscaling.scaling.fitting.run_info import cost_of
from videoscaling.scaling.fitting.surface import surface_law
from videoscaling.scaling.fitting.unsupported import UnsupportedFit
from videoscaling.tools.inputs import LAW, RESULTS
from videoscaling.utils.errors import Parser, path_text, run_cli
from videoscaling.utils.files import write_json
from videoscaling.utils.inputs import check_paths
from videoscaling.utils.options import number
from videoscaling.utils.revision import code_revision


def arguments() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "part",
        choices=(*PARTS, "compare", "validate"),
        help="which laws to fit; compare: what one fixed (lr, batch) for all runs would do to N_opt; validate: how "
        "well smaller runs predict larger ones, by each loss form, and whether rows that are held out lie in their "
        "intervals",
    )
    parser.add_argument(
        "results",
        type=path_text,
        reads=RESULTS,
        help="a sweep's folder, or a CSV or JSONL file with one row per result",
    )
    parser.add_argument("--out", type=path_text, writes="file", help="law file to write")
    parser.add_argument(
        "--columns",
        help="OURS=THEIRS,...: how the file names N, T, B, lr, L (the loss); and, where it has them, status (done, or "
        "diverged), heldout (1: predict it, do not fit it), run_id, seed, n_ctx, flops, loss_se, ema_loss, "
        "ema_loss_se and noise_scale (in the unit of B)",
    )
    parser.add_argument("--batch-unit", help="what the file's batch counts: tokens, or sequences:TOKENS_EACH")
    parser.add_argument(
        "--duplicates",
        choices=("last",),
        help="where one run has two losses at one T, keep the later row (default: refuse)",
    )
    parser.add_argument(
        "--method",
        choices=(fitting.SURFACE, fitting.GRIDS),
        help="surface: one model of all runs' losses over (N, T, B, lr), the default where some (N, T) has several "
        "(lr, B); grids: an optimum of each (N, T), and power laws and the paper's loss law through these",
    )
    parser.add_argument("--form", choices=("auto", *FORMS), help="loss in N and T (default auto: by held-out error)")
    parser.add_argument("--optima", action="store_true", help="each row is already the optimum of its (N, T)")
    parser.add_argument(
        "--fix",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"grids: hold one of {', '.join(HOLDABLE)}; coefficients in the scale that the fit prints",
    )
    parser.add_argument(
        "--prior",
        type=path_text,
        reads=LAW,
        nargs="?",
        const=str(PAPER),
        help="law file (the paper's) whose exponents replace those that grids do not identify, and whose batch and "
        "rate for those of a table without any",
    )
    parser.add_argument(
        "--n-ctx",
        type=number(int, 1, 1e9),
        help="tokens per clip, for C_token and the law, where the results do not say",
    )
    parser.add_argument(
        "--pair", metavar="LR,B", help="compare: the fixed pair (default: what a plan takes for the smallest run)"
    )
    parser.add_argument(
        "--flops", type=number(float, 1, 1e33), help="compare: at this budget (default: ten times the largest swept)"
    )
    parser.add_argument("--force", action="store_true", help="grids: fit what the data do not support, with warnings")
    parser.add_argument("--json", action="store_true", help="print the law file instead of a summary")
    return parser


def show(args: argparse.Namespace, raw: dict, text: str) -> int:
    """Write ``raw`` to --out, and print it or the text. The exit status, 0."""
    if args.out:
        write_json(args.out, raw)
    print(json.dumps(raw, indent=1) if args.json else text)
    return 0


def main() -> int:
    parser = arguments()
    args = parser.parse_args()
    parser.refuse_unread(args, *fitting.unread_by_part(args.part, args.optima, args.method))
    check_paths(parser, args)
    # A table of (N, T, loss) alone has a loss law, with or without the others.
    hyperparameters = {"hyperparameters": True, "compare": True, "all": None}.get(args.part, False)
    losses = not (args.optima and args.part in ("hyperparameters", "allocation"))
    columns = tables.parse_columns(args.columns)
    table = runs.read(args.results, columns, args.batch_unit, hyperparameters, losses, args.duplicates)
    table, cost, flops = cost_of(table, args.n_ctx, smooth_width)
    method = fitting.GRIDS
    try:
        if args.part == "compare":
            pair = parse_pair(args.pair)
            law = surface_law.fit_law(table, "loss", "auto", cost, {})
            done = fixed_pair.compare(law, cost, pair, args.flops)
            return show(args, done.to_dict(), done.text())
        method = fitting.choose_method(table, args.part, args.optima, args.method)
        fixed, prior = parse_fixed(args.fix, args.part), law_file.load(args.prior) if args.prior else None
        options = Options(fixed, prior, args.force, args.optima, args.form or "auto")
        parser.refuse_unread(args, *fitting.unread_by_method(method, args.form))
        if args.part == "validate":
            done = extrapolation.validate(table, method, options, cost)
            return show(args, done.to_dict(), done.text())
        provenance = {
            "name": Path(args.out).stem if args.out else "law",
            "command": " ".join(["tools/fit.py", *sys.argv[1:]]),
            "git_revision": code_revision() or "unknown",
            "flops": flops,
            "prior": args.prior and Path(args.prior).name,
            **({"columns": table.columns} if table.columns else {}),
        }
        fitted = fitting.fit_law(table, args.part, method, options, cost, provenance)
    except UnsupportedFit as reason:
        verb = {"compare": "compared", "validate": "validated"}.get(args.part, "fitted")
        way, grids = "", "--method grids" if args.form is None else "--method grids without --form"
        if reason.forcible and method == fitting.SURFACE:
            way = f"{grids} fits an optimum of each (N, T)"
        elif reason.forcible and method == fitting.LOSSES:
            way = f"--force {grids} fits all the same"
        elif reason.forcible and args.part != "compare" and not args.force:
            way = "--force fits all the same"
        print(reason.text(verb, way, table.notes), file=sys.stderr)
        return 3
    raw = law_file.to_dict(fitted.law)
    law_file.from_dict(raw)  # what is printed is checked as what is written
    unwritten = "not written: --out law.json writes the law file, from which tools/plan.py plans"
    return show(args, raw, "\n".join([fitted.text, *([] if args.out else [unwritten])]))


if __name__ == "__main__":
    run_cli(main)
