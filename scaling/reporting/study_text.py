"""The answers of a study as text for readers."""

from typing import Any

import numpy as np

from videoscaling.scaling.reporting.study import TOLERANCE


def span(value: Any, form: str) -> str:
    """A value with its interval, where it has one."""
    if not isinstance(value, dict):
        return format(value, form)
    if value.get("low") is None:
        return format(value["value"], form)
    return f"{value['value']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


def text(answers: dict[str, Any]) -> str:
    """The answers of ``study.study``, a line each."""
    lines = [f"{answers['runs']} runs", "", "noise, relative to the loss"]
    for row in answers["noise"]["between_seeds"]:
        lines.append(
            f"  N {row['N']:.4g}: between seeds {span(row['ema'], '.3%')}, raw weights {span(row['raw'], '.3%')}, "
            f"{row['freedom']} spare runs"
        )
    if not answers["noise"]["between_seeds"]:
        lines.append("  between seeds: unknown, nothing repeats")
    for row in answers["noise"]["validation"]:
        lines.append(
            f"  N {row['N']:.4g}, T {row['T']:.4g}: validation's standard error {row['one']:.3%} of one loss, "
            f"{row['paired']:.3%} of a difference"
        )
    lines += ["", "from one size to the next at equal T"]
    lines += [
        f"  T {row['T']:.4g}: N {row['N']:.4g} to {row['to']:.4g}: {row['change']:+.2%}"
        for row in answers["noise"]["from_size_to_size"]
    ]
    lines += ["", "exponents"]
    for name, row in answers["exponents"].items():
        reference = "" if row["reference"] is None else f"   reference {row['reference']:+.4f}"
        lines.append(f"  {name:<8}{span(row, '+.3f')}{' assumed' if row['assumed'] else ''}{reference}")
    lines += ["", "held-out sizes", *held_out(answers["held_out"])]
    lines += ["", "best size", *_sizes(answers["N_opt"])]
    lines += ["", "best size, from the grids alone", *_best_sizes(answers["best_sizes"])]
    lines += ["", "what one fixed pair costs, from the grids alone", *_prices(answers["pair_prices"])]
    pair = answers["fixed_pair"]
    lines += ["", "the law through one fixed pair for all"]
    if "unknown" in pair:
        return "\n".join([*lines, f"  unknown: {pair['unknown']}"])
    lines += [
        f"  lr {pair['lr']:.3g}, B {pair['B']:.4g}: loss {pair['excess']:+.2%} over the optima",
        f"  N_opt's exponent {span(pair['exponent_difference'], '+.3f')}; N_opt at {pair['C']:.3g} FLOPs "
        f"{span(pair['ratio'], '.3g')} times, cost to serve {span(pair['inference_ratio'], '.3g')} times",
    ]
    return "\n".join(lines + [f"  warning: {warning}" for warning in pair["warnings"]])


def held_out(rows: Any) -> list[str]:
    """Prediction and measurement of each held-out (N, T), and how far the law's pair lies from the best."""
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


def _sizes(answers: dict[str, Any]) -> list[str]:
    if "unknown" in answers:
        return [f"  unknown: {answers['unknown']}"]
    lines = []
    for count, found in answers.items():
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


def _best_sizes(answers: dict[str, Any]) -> list[str]:
    if "budgets" not in answers:
        return [f"  unknown: {answers['unknown']}"]
    lines = []
    for row in answers["budgets"]:
        losses = ", ".join(
            f"{N:.4g}: {loss:.4f}{'*' * (N in row['unsure'])}" for N, loss in zip(row["N"], row["loss"])
        )
        best = row["N"][int(np.argmin(row["loss"]))]
        inside = "" if min(row["N"]) < best < max(row["N"]) else ", at the end of those that reach this budget"
        lines.append(f"  {row['C']:.3g} FLOPs: N {best:.4g}{inside} ({losses})")
    if any(row["unsure"] for row in answers["budgets"]):
        lines.append("  * from a grid without an optimum inside: its best cell")
    for name, exponent in answers["exponents"].items():
        lines.append(f"  {name}: {answers['unknown'][name] if exponent is None else f'exponent {exponent:.3f}'}")
    return lines


def _prices(answers: dict[str, Any]) -> list[str]:
    if "grids" not in answers:
        return [f"  unknown: {answers['unknown']}"]
    lines = [
        f"  lr {answers['lr']:.3g}, B {answers['B']:.4g}, the best of the smallest grid; grids with an optimum inside:"
    ]
    for row in answers["grids"]:
        price = "unknown, the pair lies outside the cells near the best"
        if row["price"] is not None:
            price = f"loss {span(row['price'], '.2%')} over the best"
        tokens = "" if row["tokens"] is None else f", made up for by {row['tokens']:.3g} times the tokens"
        lines.append(f"  N {row['N']:.4g}, T {row['T']:.4g}: {price}{tokens}")
    return lines
