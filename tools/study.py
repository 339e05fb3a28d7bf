"""What a study shows, from its results and its law alone: noise, exponents, held-out sizes, N_opt, one fixed pair.

python tools/study.py results/mini/cells --law results/mini/law.json
python tools/study.py results/mini/cells --law results/mini/law.json --json > study.json
python tools/study.py results/mini/cells --law results/mini/law.json --expect results/mini/study.json

Answers have intervals where these can be told. With --expect they are held against earlier ones: exit status 1 and a
line for each number that differs. docs/reproduction.md shows a whole study.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray

from models.sizes import smooth_width
from scaling import PAPER, allocation, compare, fit, heldout, laws, noise, runs
from scaling.optimum import WINDOW
from scaling.points import Untrusted, at_nominal, grid_optima
from scaling.stages import Options
from utils.errors import Parser, UserError, path_text, run_cli
from utils.files import find_files, read_json
from utils.results import FILE, whole_results

# Relative: another machine's last bits, after a fit's iterations.
SAME = 1e-4
TOLERANCE = 1e-3  # of the loss, within which sizes count as equally good, as in tools/plan.py


def arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "results", type=path_text, help="the study's results: a sweep's folder, or one of committed results"
    )
    parser.add_argument("--law", type=path_text, required=True, help="law file that tools/fit.py made of them")
    parser.add_argument("--prior", type=path_text, help="the law file given to tools/fit.py as --prior, if one was")
    parser.add_argument(
        "--reference", type=path_text, default=str(PAPER), help="law whose exponents stand beside (the paper's)"
    )
    parser.add_argument("--expect", type=path_text, help="earlier --json output that this must agree with")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return parser.parse_args()


def exponents(law: laws.Law, reference: laws.Law) -> dict[str, dict[str, Any]]:
    """Each exponent of B_opt, lr_opt and L with its interval, whether it was assumed, and the reference's."""
    found = {}
    for part, names in (("batch", ("T", "N")), ("lr", ("T", "N")), ("loss", ("aT", "aN"))):
        value, other = getattr(law, part), getattr(reference, part)
        for name in names if value is not None else ():
            low, high = (law.fit.get("intervals") or {}).get(f"{part}.{name}") or (None, None)
            found[f"{part}.{name}"] = {
                "value": getattr(value, name), "low": low, "high": high, "assumed": name in value.assumed,
                "reference": getattr(other, name, None),
            }  # fmt: skip
    return found


def exact_ratios(folder: Path) -> dict[float, float]:
    """Exact training FLOPs over C_token's, by N, as the runs of a folder counted them; empty where they did not."""
    ratios = {}
    for result in whole_results(find_files(folder, FILE))[0].values():
        if result.get("exact_flops") and result.get("flops"):
            ratios[float(result["N"])] = result["exact_flops"] / result["flops"]
    return ratios


def sizes_of(law: laws.Law, cost: allocation.Cost) -> dict[str, Any]:
    """N_opt by estimator at the largest fitted budget and ten times it, with intervals where they were drawn, and the
    range of N within ``TOLERANCE`` of the best loss."""
    if law.domain.get("C") is None:
        raise Untrusted("the law does not say which budgets it was fitted to")
    found: dict[str, Any] = {}
    for name in laws.ESTIMATORS:
        one = (law.allocation or {}).get(name)
        found[name] = None if one is None else {"exponent": one.exponent}
    found["minimised"] = {}
    for label, C in (("C", law.domain["C"][1]), ("10 C", 10 * law.domain["C"][1])):
        sizes = allocation.estimates(law, C, cost)
        for name, row in found.items():
            if row is None:
                continue
            size = sizes[name]
            ends = {end: float(v) if np.isfinite(v := getattr(size, end)) else None for end in ("low", "high")}
            row[label] = {"FLOPs": C, "value": float(size.value), **ends}
        within = allocation.within(law.response.losses, C, cost, TOLERANCE)
        found["minimised"][label] |= {"within": list(within)}
    return found


def allocations(ledger: runs.Ledger, law: laws.Law, prior: laws.Law | None, folder: Path) -> dict[str, Any]:
    """N_opt under the paper's count of FLOPs and, where the runs have one, under the exact count."""
    token = allocation.cost_of(law, smooth_width)
    found = {"C_token": sizes_of(law, token)}
    if ratios := exact_ratios(folder):
        N = np.array(sorted(ratios))
        ratio = np.array([ratios[n] for n in N])

        def exact(size: NDArray[np.float64]) -> NDArray[np.float64]:
            return token(size) * np.interp(np.log(size), np.log(N), ratio)

        counted = replace(ledger, flops=ledger.flops * np.interp(np.log(ledger.N), np.log(N), ratio))
        found["exact"] = sizes_of(fit.fit(counted, "loss", Options(prior=prior), exact, {}).law, exact)
    return found


def best_sizes(ledger: runs.Ledger, cost: allocation.Cost) -> dict[str, Any]:
    """N_opt of each budget that three sizes share, from what the grids' best losses were: no law, and none needed.

    Held-out sizes count with the others here, since nothing is predicted; so do grids without an optimum inside, by
    their best cell's loss: ``unsure`` names the sizes whose loss rests on such a one.
    """
    ledger = at_nominal(ledger)
    optima = [o for o in grid_optima(ledger, WINDOW) if math.isfinite(o.loss)]
    if not optima:
        raise Untrusted("no run ended with a loss")
    N, T, loss = np.array([(o.N, o.T, o.loss) for o in optima]).T
    C = fit.training_flops(ledger, N, T, cost)
    curves = list(allocation.budgets(N, C, loss, C))
    found, reasons = allocation.estimate(curves)

    def unsure(budget: float, size: float) -> bool:
        """Whether a grid next to this budget has no optimum of its own."""
        own = np.flatnonzero(size == N)
        order = own[np.argsort(C[own])]
        above = np.searchsorted(C[order], budget * (1 - 1e-9))
        return not all(optima[i].usable for i in order[max(above - 1, 0) : above + 1])

    return {
        "budgets": [
            {
                "C": budget,
                "N": sizes.tolist(),
                "loss": losses.tolist(),
                "unsure": [float(size) for size in sizes if unsure(budget, size)],
            }
            for budget, sizes, losses in curves
        ],
        "exponents": {name: None if one is None else one.exponent for name, one in found.items()},
        "unknown": reasons,
    }


def pair_prices(ledger: runs.Ledger) -> dict[str, Any]:
    """The loss that one pair for all costs at each (N, T)."""
    (lr, B), rows = compare.prices(ledger)
    return {"lr": lr, "B": B, "grids": rows}


def study(args: argparse.Namespace) -> dict[str, Any]:
    """Every answer as one object; a question that the results cannot answer has {"unknown": why}."""
    folder = Path(args.results)
    if not folder.is_dir():
        raise UserError(f"{folder}: a folder of runs is wanted, whose result.json files tell more than a table")
    ledger, law = runs.read(folder), laws.load(args.law)
    law.require("batch", "lr", "loss")
    prior = laws.load(args.prior) if args.prior else None
    seeds = noise.between_seeds(at_nominal(ledger))
    freedom = sum(row["freedom"] for row in seeds)
    pooled = math.sqrt(sum(row["freedom"] * row["ema"]["value"] ** 2 for row in seeds) / freedom) if seeds else None
    cost = allocation.cost_of(law, smooth_width)

    def asked(question: Callable[[], Any]) -> Any:
        try:
            return question()
        except (Untrusted, UserError) as reason:
            return {"unknown": str(reason).splitlines()[0]}

    return {
        "runs": len(np.unique(ledger.run_id)),
        "noise": {
            "between_seeds": seeds,
            "validation": noise.of_validation(ledger),
            "from_size_to_size": noise.steps_in_size(at_nominal(ledger), WINDOW),
        },
        "exponents": exponents(law, laws.load(args.reference)),
        "held_out": asked(lambda: heldout.check(ledger, law, pooled, freedom)),
        "N_opt": asked(lambda: allocations(ledger, law, prior, folder)),
        "best_sizes": asked(lambda: best_sizes(ledger, cost)),
        "fixed_pair": asked(lambda: compare.compare(ledger, cost).to_dict()),
        "pair_prices": asked(lambda: pair_prices(ledger)),
    }


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Where two answers differ by more than ``SAME``, relative to the larger."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted({*one, *other}):
            yield from differences(one.get(name), other.get(name), f"{where}.{name}".lstrip("."))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (a, b) in enumerate(zip(one, other)):
            yield from differences(a, b, f"{where}[{number}]")
    elif _number(one) and _number(other):
        if not math.isclose(one, other, rel_tol=SAME, abs_tol=1e-9):
            yield f"{where}: {one:.8g} here, {other:.8g} expected"
    elif one != other:
        yield f"{where}: {one} here, {other} expected"


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def span(value: Any, form: str) -> str:
    """A value with its interval, where it has one, for people."""
    if not isinstance(value, dict):
        return format(value, form)
    if value.get("low") is None:
        return format(value["value"], form)
    return f"{value['value']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


def text(told: dict[str, Any]) -> str:
    """The answers for people."""
    lines = [f"{told['runs']} runs", "", "noise, relative to the loss"]
    for row in told["noise"]["between_seeds"]:
        lines.append(
            f"  N {row['N']:.4g}: between seeds {span(row['ema'], '.3%')}, raw weights {span(row['raw'], '.3%')}, "
            f"{row['freedom']} spare runs"
        )
    if not told["noise"]["between_seeds"]:
        lines.append("  between seeds: unknown, nothing repeats")
    for row in told["noise"]["validation"]:
        lines.append(
            f"  N {row['N']:.4g}, T {row['T']:.4g}: validation's standard error {row['one']:.3%} of one loss, "
            f"{row['paired']:.3%} of a difference"
        )
    lines += ["", "from one size to the next at equal T"]
    lines += [
        f"  T {row['T']:.4g}: N {row['N']:.4g} to {row['to']:.4g}: {row['change']:+.2%}"
        for row in told["noise"]["from_size_to_size"]
    ]
    lines += ["", "exponents"]
    for name, row in told["exponents"].items():
        beside = "" if row["reference"] is None else f"   reference {row['reference']:+.4f}"
        lines.append(f"  {name:<8}{span(row, '+.3f')}{' assumed' if row['assumed'] else ''}{beside}")
    lines += ["", "held-out sizes", *_held_out(told["held_out"])]
    lines += ["", "best size", *_sizes(told["N_opt"])]
    lines += ["", "best size, from the grids alone", *_best_sizes(told["best_sizes"])]
    lines += ["", "what one fixed pair costs, from the grids alone", *_prices(told["pair_prices"])]
    pair = told["fixed_pair"]
    lines += ["", "the law through one fixed pair for all"]
    if "unknown" in pair:
        return "\n".join([*lines, f"  unknown: {pair['unknown']}"])
    lines += [
        f"  lr {pair['lr']:.3g}, B {pair['B']:.4g}: loss {pair['excess']:+.2%} over the optima",
        f"  N_opt's exponent {span(pair['exponent_difference'], '+.3f')}; N_opt at {pair['C']:.3g} FLOPs "
        f"{span(pair['ratio'], '.3g')} times, cost to serve {span(pair['inference_ratio'], '.3g')} times",
    ]
    return "\n".join(lines + [f"  warning: {warning}" for warning in pair["warnings"]])


def _held_out(rows: Any) -> list[str]:
    if isinstance(rows, dict):
        return [f"  unknown: {rows['unknown']}"]
    lines = []
    for row in rows:
        loss, regret = row["loss"], row["regret"]
        # A grid around the law's pair shows no best that lies farther off than its own edge.
        least = "; the best cell lies on the edge: at least so far, and so much" if row["verdict"] == "edge" else ""
        lines += [
            f"  N {row['N']:.4g}, T {row['T']:.4g}: predicted {span(loss['predicted'], '.4f')}, measured "
            f"{span(loss['measured'], '.4f')}: {loss['error']:+.2%}",
            f"    the law's lr {row['law']['lr']:.3g}, B {row['law']['B']:.4g}: {row['steps']['lr']:+.2f} steps of "
            f"rate and {row['steps']['B']:+.2f} of batch from the best; regret "
            f"{'unknown' if regret is None else span(regret, '.2%')} ({row['cells']} cells, {row['verdict']}{least})",
        ]
    return lines


def _sizes(told: dict[str, Any]) -> list[str]:
    if "unknown" in told:
        return [f"  unknown: {told['unknown']}"]
    lines = []
    for count, found in told.items():
        for name, row in found.items():
            if row is None:
                lines.append(f"  {count:<8} {name:<10} unknown")
                continue
            power = f"exponent {row['exponent']:.3f}; " if "exponent" in row else ""
            at = ", ".join(f"{span(row[k], '.3g')} at {row[k]['FLOPs']:.3g} FLOPs" for k in ("C", "10 C"))
            lines.append(f"  {count:<8} {name:<10} {power}{at}")
        low, high = found["minimised"]["10 C"]["within"]
        lines.append(f"  {count:<8} within {TOLERANCE:.1%} of the best loss: {low:.3g} to {high:.3g}, at ten times C")
    return lines


def _best_sizes(told: dict[str, Any]) -> list[str]:
    if "budgets" not in told:
        return [f"  unknown: {told['unknown']}"]
    lines = []
    for row in told["budgets"]:
        losses = ", ".join(
            f"{N:.4g}: {loss:.4f}{'*' * (N in row['unsure'])}" for N, loss in zip(row["N"], row["loss"])
        )
        best = row["N"][int(np.argmin(row["loss"]))]
        inside = "" if min(row["N"]) < best < max(row["N"]) else ", at the end of those that reach this budget"
        lines.append(f"  {row['C']:.3g} FLOPs: N {best:.4g}{inside} ({losses})")
    if any(row["unsure"] for row in told["budgets"]):
        lines.append("  * from a grid without an optimum inside: its best cell")
    for name, exponent in told["exponents"].items():
        lines.append(f"  {name}: {told['unknown'][name] if exponent is None else f'exponent {exponent:.3f}'}")
    return lines


def _prices(told: dict[str, Any]) -> list[str]:
    if "grids" not in told:
        return [f"  unknown: {told['unknown']}"]
    lines = [f"  lr {told['lr']:.3g}, B {told['B']:.4g}, the best of the smallest grid; grids with an optimum inside:"]
    for row in told["grids"]:
        price = "unknown, the pair lies outside the cells near the best"
        if row["price"] is not None:
            price = f"loss {span(row['price'], '.2%')} over the best"
        tokens = "" if row["tokens"] is None else f", made up for by {row['tokens']:.3g} times the tokens"
        lines.append(f"  N {row['N']:.4g}, T {row['T']:.4g}: {price}{tokens}")
    return lines


def main() -> int:
    args = arguments()
    told = study(args)
    print(json.dumps(told, indent=1) if args.json else text(told))
    if args.expect is None:
        return 0
    found = list(differences(json.loads(json.dumps(told)), read_json(args.expect)))
    for line in found:
        print(line, file=sys.stderr)
    print(f"{args.expect}: {'the same numbers' if not found else f'{len(found)} differ'}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    run_cli(main)
