"""Fit scaling laws to the runs of a sweep, or to a CSV or JSONL table of any trainer's results.

    python tools/fit.py all runs/my_sweep --out law.json
    python tools/fit.py hyperparameters results.csv --columns N=params,T=tokens,B=batch,lr=lr,L=loss \\
        --batch-unit sequences:2048 --fix B.N=0 --out law.json
    python tools/fit.py hyperparameters results/mini/cells --method surface --out surface.json

Without --out the law is only shown. Exit status 3 means that the data do not support the fit asked for; the message
says why, and which cells to run. docs/laws.md has the laws as formulas, the verdicts on grids and the law file.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from videoscaling.models.sizes import smooth_width
from videoscaling.scaling import (
    PAPER,
    compare,
    fit,
    forms,
    laws,
    loss_law,
    optimum,
    runs,
    surface_law,
    tables,
    validate,
)
from videoscaling.scaling.fitting.surface_fit import FORMS
from videoscaling.scaling.optimum import WINDOW
from videoscaling.scaling.planning import allocation
from videoscaling.scaling.points import Untrusted, cells_to_run
from videoscaling.utils.errors import Parser, UserError, nearest, path_text, run_cli
from videoscaling.utils.files import write_json
from videoscaling.utils.revision import code_revision

# Constants that may be held, and where: the loss law's exponents as far as the fit itself looks for them.
HOLDABLE = dict.fromkeys(("B.T", "B.N", "lr.T", "lr.N"), (-10.0, 10.0))
HOLDABLE |= {f"loss.{c}": loss_law.EXPONENTS if c in ("aT", "aN") else (1e-9, 1e9) for c in loss_law.CONSTANTS}
# Which parts read an option: the others would ignore it in silence.
FITTED = (*fit.PARTS, "validate")
READ_BY = {
    "optima": FITTED,
    "fix": FITTED,
    "prior": fit.PARTS,
    "delta": ("loss", "allocation", "all", "validate"),
    "n_ctx": (*fit.PARTS, "compare"),
    "pair": ("compare",),
    "flops": ("compare",),
    "force": FITTED,
    "method": FITTED,
    "form": ("hyperparameters",),
}
# One surface has no use for these: nothing is held, windowed, or an optimum already.
GRIDS_ALONE = {"optima", "fix", "prior", "window", "force"}
LIMITS = {"delta": (1e-9, 1e3), "n_ctx": (1, 1e9), "flops": (1, 1e33)}


def arguments() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "part",
        choices=(*fit.PARTS, "compare", "validate"),
        help="which laws to fit; compare: what one fixed (lr, batch) for all runs would do to N_opt; "
        "validate: how well the small runs predict the large ones, by each form of the loss law: additive (the "
        "paper's), joint ((A / N^a + B / T^b)^k + E), three_term (in N, batch and steps)",
    )
    parser.add_argument(
        "results", type=path_text, help="a sweep's folder, or a CSV or JSONL file with one row per result"
    )
    parser.add_argument("--out", type=path_text, help="law file to write")
    parser.add_argument(
        "--columns",
        help="OURS=THEIRS,...: how the file names N, T, B, lr, L (the loss); and, where it has them, status (done, or "
        "diverged), heldout (1: predict it, do not fit it), run_id, seed, n_ctx, flops, loss_se, ema_loss and "
        "ema_loss_se",
    )
    parser.add_argument("--batch-unit", help="what the file's batch counts: tokens, or sequences:TOKENS_EACH")
    parser.add_argument(
        "--duplicates",
        choices=("last",),
        help="where one run has two losses at one T, keep the later row (default: refuse)",
    )
    parser.add_argument(
        "--method",
        choices=("grids", "surface"),
        help="grids: an optimum of each (N, T), and laws through these (default); surface: one model of all runs' "
        "losses over (N, T, B, lr), which also takes grids without an optimum inside; for hyperparameters",
    )
    parser.add_argument(
        "--form", choices=("auto", *FORMS), help="loss in N and T of a surface (default auto: by held-out error)"
    )
    parser.add_argument("--optima", action="store_true", help="each row is already the optimum of its (N, T)")
    parser.add_argument(
        "--fix",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"hold one of {', '.join(HOLDABLE)}; coefficients in the scale that the fit prints",
    )
    parser.add_argument(
        "--prior",
        type=path_text,
        nargs="?",
        const=str(PAPER),
        help="law file whose exponents stand in for those the data cannot tell (the paper's)",
    )
    parser.add_argument(
        "--window", help=f"cells within this fraction of a grid's best are fitted, or none (default {WINDOW:g})"
    )
    parser.add_argument("--delta", type=float, help="Huber's delta in log loss (default: 1.345 x the noise, or 1e-3)")
    parser.add_argument(
        "--n-ctx", type=int, help="tokens per clip, for C_token and the law, where the results do not say"
    )
    parser.add_argument(
        "--pair", metavar="LR,B", help="compare: the fixed pair (default: the smallest grid's optimum)"
    )
    parser.add_argument("--flops", type=float, help="compare: at this budget (default: ten times the largest swept)")
    parser.add_argument("--force", action="store_true", help="fit what the data do not support, with warnings")
    parser.add_argument("--json", action="store_true", help="print the law file instead of a summary")
    return parser


def check_options(args: argparse.Namespace) -> None:
    """Raise UserError for an option that the part asked for does not read, or a number beyond sense."""
    unread = {name for name, parts in READ_BY.items() if args.part not in parts}
    if args.optima:
        # Optima are no grids; and N_opt(C) through them is a straight line.
        unread |= {"window"} | ({"fix", "prior", "delta", "force"} if args.part == "allocation" else set())
    if args.method == "surface":
        if args.part != "hyperparameters":
            raise UserError(
                f"--method surface: fits all at once; it is fit.py hyperparameters --method surface, not {args.part}"
            )
        unread |= GRIDS_ALONE
    else:
        unread.add("form")
    for name in sorted(unread):
        if getattr(args, name) not in (None, False, []):
            asked = f"{args.part} --optima" if args.optima and name != "optima" else args.part
            asked += {"surface": " --method surface"}.get(
                args.method, " without --method surface" if name == "form" else ""
            )
            raise UserError(f"--{name.replace('_', '-')} is not read by fit.py {asked}; leave it out")
    for name, (low, high) in LIMITS.items():
        given = getattr(args, name)
        if given is not None and not low <= given <= high:
            raise UserError(
                f"--{name.replace('_', '-')} must be a positive number, at least {low:g} and at most {high:g}"
            )


def held(pairs: list[str], part: str) -> dict[str, float]:
    """``["B.N=0"]`` as a mapping, of constants that the part fits."""
    values: dict[str, float] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name not in HOLDABLE:
            raise UserError(
                f"--fix: unknown constant {name!r}{nearest(name, list(HOLDABLE))}; known: {', '.join(HOLDABLE)}"
            )
        if name in values:
            raise UserError(f"--fix: {name} is held twice")
        try:
            values[name] = float(value)
        except ValueError:
            raise UserError(f"--fix {pair!r}: {value!r} is not a number") from None
        low, high = HOLDABLE[name]
        if not low <= values[name] <= high:
            raise UserError(f"--fix {pair!r}: must be a finite number from {low:g} to {high:g}")
        hyper = not name.startswith("loss.")
        if part != "all" and hyper != (part == "hyperparameters"):
            raise UserError(f"--fix {name}: fit.py {part} fits no law with it")
    if sum(name.startswith("loss.") for name in values) == len(loss_law.CONSTANTS):
        raise UserError("--fix: all the loss law's constants are held: there is nothing left to fit")
    return values


def window(text: str | None) -> float | None:
    if text is None:
        return WINDOW
    if text == "none":
        return None
    try:
        width = float(text)
    except ValueError:
        width = 0.0
    if not 0 < width < 1:
        raise UserError(f"--window {text!r} is neither a fraction between 0 and 1 nor 'none'")
    return width


def cost_of(ledger: runs.Ledger, n_ctx: int | None) -> tuple[runs.Ledger, allocation.Cost, str]:
    """The ledger with its tokens per clip, training FLOPs per token as a function of N, and in words where these
    come from."""
    known = {int(n) for n in ledger.n_ctx if n > 0}
    if n_ctx is not None and known - {n_ctx}:
        raise UserError(f"--n-ctx {n_ctx}: the results have {', '.join(map(str, sorted(known)))}; leave it out")
    if n_ctx is not None and np.allclose(ledger.flops, 6 * ledger.N * ledger.T, rtol=1e-9, atol=0):
        raise UserError(f"--n-ctx {n_ctx}: the results' T are flops / 6N, which is another cost; leave it out")
    if n_ctx is not None or len(known) == 1:
        tokens = n_ctx or known.pop()
        if np.any(ledger.B / tokens < 1 - 1e-9):
            raise UserError(
                f"{ledger.source}: a batch of {np.nanmin(ledger.B):g} tokens is less than one clip of {tokens}; if "
                f"batches are counted in clips, say --batch-unit sequences:{tokens}"
            )
        ledger = replace(ledger, n_ctx=np.full(len(ledger), tokens))
        return ledger, allocation.c_token(tokens, smooth_width), f"C_token with n_ctx {tokens}"
    if np.any(np.isfinite(ledger.flops)):
        ratio = float(np.nanmedian(ledger.flops / (ledger.N * ledger.T)))
        return ledger, allocation.proportional(ratio), f"{ratio:.3g} N T, from the flops column"
    return ledger, allocation.proportional(), "6 N T, assumed"


def fit_or_force(
    ledger: runs.Ledger, part: str, options: fit.Options, cost: allocation.Cost, provenance: dict
) -> fit.Fitted:
    """The fit; with --force one that the data do not support as well, which says so in its law.

    Raises:
        Untrusted: the data do not support it, and it is not forced.
    """
    try:
        return fit.fit(ledger, part, replace(options, force=False), cost, provenance)
    except Untrusted as reason:
        if not options.force:
            raise
        why = f"forced: {str(reason).splitlines()[0]}"
    fitted = fit.fit(ledger, part, options, cost, provenance)
    said = (why, *fitted.warnings)
    law = replace(fitted.law, fit=fitted.law.fit | {"forced": True, "warnings": list(said)})
    return replace(fitted, law=law, warnings=said)


def summary(fitted: fit.Fitted, cost: allocation.Cost) -> str:
    """The fit for people: verdicts, constants with intervals, warnings."""
    law, lines = fitted.law, [found.describe() for found in fitted.optima]
    lines += [f"  {line}" for line in optimum.next_cells(fitted.optima)]
    for part in ("batch", "lr", "loss"):
        value = getattr(law, part)
        if value is None:
            continue
        for name in value.__dataclass_fields__:
            if name in ("scale", "assumed"):
                continue
            text = f"{part}.{name:<12}{getattr(value, name):>12.5g}"
            span = law.fit["intervals"].get(f"{part}.{name}")
            if name in value.assumed:
                text += "  assumed"
            elif span is not None:
                text += f"  [{span[0]:.5g}, {span[1]:.5g}]"
            lines.append(text)
        lines.append(f"{part} is in units of {value.scale['T']:g} tokens and {value.scale['N']:g} parameters")
    if law.allocation and law.domain["C"]:
        lines += allocation.side_by_side(law, law.domain["C"][1], cost)
        for name in laws.ESTIMATORS:
            if span := law.fit["intervals"].get(f"allocation.{name}.exponent"):
                exponent = law.allocation[name].exponent
                lines.append(f"N_opt, {name}: exponent {exponent:.4f} [{span[0]:.4f}, {span[1]:.4f}]")
        reasons: dict[str, list[str]] = {}
        for name in ("direct", "measured"):
            if reason := law.provenance.get("unknown", {}).get(f"allocation.{name}"):
                reasons.setdefault(reason, []).append(name)
        lines += [
            f"N_opt, {' and '.join(names)}: unknown ({reason}): three sizes at shared budgets, or at tokens whose C "
            "overlap over a decade, would tell"
            for reason, names in reasons.items()
        ]
    return "\n".join(lines + [f"warning: {text}" for text in fitted.warnings])


def refuse(args: argparse.Namespace, why: str, ledger: runs.Ledger) -> int:
    """Say why, and which cells would mend it. The exit status, 3."""
    cells = [] if args.optima else cells_to_run(ledger, window(args.window))
    print("\n".join([why, *cells]), file=sys.stderr)
    return 3


def compare_pair(args: argparse.Namespace) -> int:
    ledger = runs.read(args.results, tables.parse_columns(args.columns), args.batch_unit, duplicates=args.duplicates)
    pair = None
    if args.pair:
        try:
            pair = tuple(float(value) for value in args.pair.split(","))
        except ValueError:
            pair = ()
        if len(pair) != 2 or not all(1e-30 < value < 1e30 for value in pair):
            raise UserError(f"--pair {args.pair!r} is not LR,B: two positive numbers, such as 2e-4,65536")
    ledger, cost, _ = cost_of(ledger, args.n_ctx)
    try:
        done = compare.compare(ledger, cost, pair, args.flops, window(args.window))
    except Untrusted as reason:
        return refuse(args, f"not compared: {reason}", ledger)
    if args.out:
        write_json(args.out, done.to_dict())
    print(json.dumps(done.to_dict(), indent=1) if args.json else done.text())
    return 0


def fit_surface(args: argparse.Namespace) -> int:
    """One surface through all runs."""
    columns = tables.parse_columns(args.columns)
    ledger = runs.read(args.results, columns, args.batch_unit, duplicates=args.duplicates)
    ledger, cost, words = cost_of(ledger, args.n_ctx)
    try:
        law = surface_law.fit_law(ledger, args.form or "auto", cost, provenance_of(args, ledger, words))
    except UserError as error:
        raise UserError("; ".join([str(error), *ledger.notes])) from None
    except Untrusted as reason:
        way = f" ({reason.advice})" if reason.advice else ""
        print("\n".join([f"not fitted: {reason}{way}", *(f"note: {text}" for text in ledger.notes)]), file=sys.stderr)
        return 3
    raw = laws.to_dict(law)
    laws.from_dict(raw)  # what is printed is checked as what is written
    if args.out:
        write_json(args.out, raw)
    if args.json:
        print(json.dumps(raw, indent=1))
        return 0
    print("\n".join([surface_law.summary(law.surface), *(f"warning: {text}" for text in law.fit["warnings"])]))
    if not args.out:
        print("not written: --out law.json writes the law file, from which tools/predict.py predicts losses")
    return 0


def provenance_of(args: argparse.Namespace, ledger: runs.Ledger, flops: str) -> dict[str, object]:
    """Where a law comes from; ``flops`` says how training FLOPs were counted."""
    return {
        "name": Path(args.out).stem if args.out else "law",
        "command": " ".join(["tools/fit.py", *sys.argv[1:]]),
        "git_revision": code_revision() or "unknown",
        "flops": flops,
        "prior": args.prior and Path(args.prior).name,
        **({"columns": ledger.columns} if ledger.columns else {}),
    }


def check(args: argparse.Namespace) -> int:
    """Expanding windows over the optima, for each form of the loss law; and what was held out, if anything was."""
    columns = tables.parse_columns(args.columns)
    ledger = runs.read(args.results, columns, args.batch_unit, hyperparameters=False, duplicates=args.duplicates)
    options = fit.Options(held(args.fix, args.part), None, window(args.window), args.delta, args.force, args.optima)
    ledger, cost, _ = cost_of(ledger, args.n_ctx)
    try:
        fitted = fit_or_force(ledger, "loss", options, cost, {})
    except Untrusted as reason:
        return refuse(args, f"not validated: {reason}", ledger)
    points = fitted.points
    names = forms.FORMS if np.all(np.isfinite(points.B)) else forms.FORMS[:2]
    checks = validate.expanding_windows(points.N, points.T, points.B, points.loss, points.noise, names)
    rows, apart = validate.summary(checks), validate.held_out(ledger, fitted.law.loss, options.window)
    if args.out:
        write_json(args.out, {"windows": rows, "held_out": apart})
    if args.json:
        print(json.dumps({"windows": rows, "held_out": apart}, indent=1))
        return 0
    print("\n".join(validate.describe(rows, points.N, points.T)))
    for row in apart:
        compute = "never" if row["equivalent_compute"] is None else f"{row['equivalent_compute']:.3g}"
        print(
            f"held out N {row['N']:.4g}, T {row['T']:.4g}: predicted {row['predicted']:.5g}, measured "
            f"{row['measured']:.5g} ({row['error']:+.3%}), equivalent compute {compute}"
        )
    return 0


def main() -> int:
    args = arguments().parse_args()
    check_options(args)
    if args.part in ("compare", "validate"):
        return (compare_pair if args.part == "compare" else check)(args)
    if args.method == "surface":
        return fit_surface(args)
    # A table of (N, T, loss) alone has a loss law, with or without the others.
    hyperparameters = {"hyperparameters": True, "all": None}.get(args.part, False)
    losses = not (args.optima and args.part in ("hyperparameters", "allocation"))
    columns = tables.parse_columns(args.columns)
    ledger = runs.read(args.results, columns, args.batch_unit, hyperparameters, losses, args.duplicates)
    ledger, cost, words = cost_of(ledger, args.n_ctx)
    prior = laws.load(args.prior) if args.prior else None
    options = fit.Options(held(args.fix, args.part), prior, window(args.window), args.delta, args.force, args.optima)
    provenance = provenance_of(args, ledger, words)
    try:
        fitted = fit_or_force(ledger, args.part, options, cost, provenance)
    except UserError as error:
        raise UserError("; ".join([str(error), *ledger.notes])) from None
    except Untrusted as reason:
        first, *grids = str(reason).splitlines()
        ways = [reason.advice, "--force fits all the same" if reason.forcible and not args.force else ""]
        way = f" ({'; '.join(filter(None, ways))})" if any(ways) else ""
        return refuse(
            args, "\n".join([f"not fitted: {first}{way}", *grids, *(f"note: {text}" for text in ledger.notes)]), ledger
        )
    raw = laws.to_dict(fitted.law)
    if args.out:
        laws.save(fitted.law, args.out)
    else:
        laws.from_dict(raw)  # what is printed is checked as what is written
    print(json.dumps(raw, indent=1) if args.json else summary(fitted, cost))
    if not args.out and not args.json:
        print("not written: --out law.json writes the law file, from which tools/plan.py plans")
    return 0


if __name__ == "__main__":
    run_cli(main)
