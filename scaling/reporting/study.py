"""What a study shows, from its results and its law alone: noise, exponents, held-out sizes, N_opt, one fixed pair."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling import laws, noise
from videoscaling.scaling.checks import fixed_pair, heldout, pair_prices
from videoscaling.scaling.estimates import Estimate, Span
from videoscaling.scaling.fitting import isoflop
from videoscaling.scaling.fitting.grids import fit
from videoscaling.scaling.fitting.grids.fit_points import at_nominal, grid_optima
from videoscaling.scaling.fitting.options import Options
from videoscaling.scaling.fitting.run_info import training_flops
from videoscaling.scaling.fitting.surface import surface_law
from videoscaling.scaling.fitting.surface.surface import Surface
from videoscaling.scaling.fitting.unsupported import UnsupportedFit
from videoscaling.scaling.planning import allocation
from videoscaling.scaling.runs import RunTable, read
from videoscaling.utils.errors import UserError
from videoscaling.utils.files import find_files
from videoscaling.utils.results import FILE, whole_results
from videoscaling.utils.text_tables import outline

SAME = 1e-4  # relative: another machine's last bits, after a fit's iterations
TOLERANCE = 1e-3  # of the loss, within which sizes count as equally good, as in tools/plan.py
PRICES = (0.01, 0.02)  # of a batch, in the loss
EXPONENTS = (("batch", ("T", "N")), ("lr", ("T", "N")), ("loss", ("aT", "aN")))
NOTES = """
Noise, regret and price are relative to the loss. A held-out grid whose verdict is edge has its best cell on its edge:
the best is at least so many steps away, and the regret at least so much. best_sizes: a loss of an unsure size is that
of its grid's best cell. pair_prices: tokens is the factor of T that makes up for the price.
"""


def study(
    folder: Path, law: laws.Law, cost: allocation.Cost, *, prior: laws.Law | None, reference: laws.Law
) -> dict[str, object]:
    """Every answer as one object; a question that the results cannot answer has {"unknown": why}.

    Args:
        folder: its runs, held-out ones too.
        law: fitted to those that are not held out, with ``prior`` where one was given.
        cost: training FLOPs per token of N parameters.
        reference: the law whose exponents stand next to this one's.

    Raises:
        UserError: no runs, or a law without batch, rate or loss.
    """
    law.require_pair()
    if reason := law.response.no_losses:
        raise UserError(f"law {law.name!r} has no loss ({reason}), which this needs")
    table = read(folder)
    nominal = at_nominal(table)
    seeds = noise.between_seeds(nominal)
    freedom = sum(row["freedom"] for row in seeds)
    pooled = math.sqrt(sum(row["freedom"] * row["ema"]["value"] ** 2 for row in seeds) / freedom) if seeds else None

    def answer(question: Callable[[], Any]) -> Any:
        try:
            return question()
        except (UnsupportedFit, UserError) as reason:
            return {"unknown": str(reason).splitlines()[0]}

    def prices() -> dict[str, object]:
        (lr, B), grids = pair_prices.prices(table)
        return {"lr": lr, "B": B, "grids": grids}

    return {
        "runs": len(np.unique(table.run_id)),
        "noise": {
            "between_seeds": seeds,
            "validation": noise.of_validation(table),
            "from_size_to_size": noise.steps_in_size(nominal),
        },
        "exponents": exponents(law, reference) if law.surface is None else surface_exponents(law.surface),
        **({} if law.surface is None else {"edges": edges(law.surface)}),
        "held_out": answer(lambda: heldout.check(table, law, pooled, freedom)),
        "N_opt": answer(lambda: allocations(table, law, cost, prior, exact_ratios(folder))),
        "best_sizes": answer(lambda: best_sizes(nominal, cost)),
        "fixed_pair": answer(lambda: fixed_pair.compare(fixed_pair.with_surface(law, table, cost), cost).to_dict()),
        "pair_prices": answer(prices),
    }


def text(answers: Mapping[str, object]) -> str:
    """The answers for readers."""
    return "\n".join(outline(answers)) + "\n" + NOTES.rstrip()


def exponents(law: laws.Law, reference: laws.Law) -> dict[str, dict[str, float | bool | None]]:
    """Each exponent of B_opt, lr_opt and L with its interval, whether it was assumed, and the reference's."""
    found = {}
    for part, names in EXPONENTS:
        value, other = getattr(law, part), getattr(reference, part)
        for name in names:
            low, high = (law.fit.get("intervals") or {}).get(f"{part}.{name}") or (None, None)
            found[f"{part}.{name}"] = {
                "value": getattr(value, name),
                "low": low,
                "high": high,
                "assumed": name in value.assumed,
                "reference": getattr(other, name, None),
            }
    return found


def surface_exponents(surface: Surface) -> dict[str, Span]:
    """Exponents of lr_opt(B, T, N), and of the batch beyond which losses rise; averages over shapes of the batch."""
    names = {"lr.B": "aB", "lr.T": "aT", "lr.N": "aN", "edge.T": "bT", "edge.N": "bN"}
    known = {name for candidate in surface.shapes for name in candidate.solution.model.names}
    return {ours: _span(surface.exponent(name)) for ours, name in names.items() if name in known}


def edges(surface: Surface) -> dict[str, object]:
    """The batch in tokens beyond which the loss is 1 and 2 % worse, at the largest fitted N and T; also by shape."""
    N, T = (np.array([surface.domain[name][1]]) for name in ("N", "T"))
    found: dict[str, object] = {"N": float(N[0]), "T": float(T[0])}
    for price in PRICES:
        edge = surface.edge(T, N, price)
        by_shape = {name: float(value[0]) for name, value in surface.edges_by_shape(T, N, price).items()}
        found |= {f"{price:.0%}": _span(edge), f"{price:.0%} by shape": by_shape}
    return found


def allocations(
    table: RunTable, law: laws.Law, token: allocation.Cost, prior: laws.Law | None, ratios: dict[float, float]
) -> dict[str, object]:
    """N_opt under the paper's count of FLOPs, ``token``, and under the exact count, so many times as much by N."""
    found = {"C_token": sizes_of(law, token)}
    if ratios:
        N, ratio = np.array(sorted(ratios.items())).T

        def exact_over_token(size: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.interp(np.log(size), np.log(N), ratio)

        def exact(size: NDArray[np.float64]) -> NDArray[np.float64]:
            return token(size) * exact_over_token(size)

        counted = replace(table, flops=table.flops * exact_over_token(table.N))
        if law.surface is None:
            again = fit.fit(counted, "loss", Options(prior=prior), exact, {}).law
        else:
            again = surface_law.fit_law(counted, "all", "auto", exact, {})
        found["exact"] = sizes_of(again, exact)
    return found


def exact_ratios(folder: Path) -> dict[float, float]:
    """Exact training FLOPs over C_token's, by N, as the runs of a folder counted them; empty where they did not."""
    results = whole_results(find_files(folder, FILE))[0].values()
    return {
        float(result["N"]): result["exact_flops"] / result["flops"]
        for result in results
        if result.get("exact_flops") and result.get("flops")
    }


def sizes_of(law: laws.Law, cost: allocation.Cost) -> dict[str, Any]:
    """N_opt by estimator at the largest fitted budget and ten times it, with intervals where they were drawn, and the
    range of N within ``TOLERANCE`` of the best loss."""
    if law.domain.get("C") is None:
        raise UnsupportedFit("the law does not say which budgets it was fitted to")
    powers = {name: (law.allocation or {}).get(name) for name in laws.ESTIMATORS}
    found = {name: power and {"exponent": power.exponent} for name, power in powers.items()} | {"minimised": {}}
    if (power := allocation.exponent(law, cost)) is not None:
        found["predicted"]["exponent"] = _span(power)
    for label, C in (("C", law.domain["C"][1]), ("10 C", 10 * law.domain["C"][1])):
        for name, size in allocation.estimates(law, C, cost).items():
            found[name][label] = {"FLOPs": C, **_span(size)}
        found["minimised"][label]["within"] = list(allocation.within(law.response.losses, C, cost, TOLERANCE))
    return found


def _span(one: Estimate) -> Span:
    """One value; None for an end that is no bound."""
    low, high = (float(end) if np.isfinite(end := getattr(one, name).item()) else None for name in ("low", "high"))
    return {"value": one.value.item(), "low": low, "high": high}


def best_sizes(table: RunTable, cost: allocation.Cost) -> dict[str, object]:
    """N_opt of each budget that three sizes share, from the best losses of the grids: no law enters.

    Held-out sizes count with the others here, since nothing is predicted; so do grids without an optimum inside, by
    the loss of their best cell: ``unsure`` names the sizes whose loss rests on such a grid.

    Args:
        table: at the tokens that all runs of a grid have seen.
    """
    optima = [o for o in grid_optima(table) if math.isfinite(o.loss)]
    if not optima:
        raise UnsupportedFit("no run ended with a loss")
    N, T, loss = np.array([(o.N, o.T, o.loss) for o in optima]).T
    C = training_flops(table, N, T, cost)
    curves = isoflop.interpolated(N, C, loss)
    found, reasons = isoflop.estimate(curves)

    def unsure(budget: float, size: float) -> bool:
        """Whether a grid next to this budget has no optimum of its own."""
        own = np.flatnonzero(size == N)
        order = own[np.argsort(C[own])]
        above = np.searchsorted(C[order], budget * (1 - 1e-9))
        return not all(optima[i].usable for i in order[max(above - 1, 0) : above + 1])

    return {
        "budgets": [
            {
                "C": one.C,
                "N": one.N.tolist(),
                "loss": one.loss.tolist(),
                "unsure": [float(size) for size in one.N if unsure(one.C, size)],
            }
            for one in curves
        ],
        "exponents": {name: one and one.law.exponent for name, one in found.items()},
        "unknown": reasons,
    }


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """A line for each place that one answer lacks, or where they differ by more than ``SAME``, of the larger one."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted({*one, *other}):
            place = f"{where}.{name}".lstrip(".")
            if name not in one:
                yield f"{place}: missing here, {other[name]} expected"
            elif name not in other:
                yield f"{place}: {one[name]} here, not expected"
            else:
                yield from differences(one[name], other[name], place)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (a, b) in enumerate(zip(one, other)):
            yield from differences(a, b, f"{where}[{number}]")
    elif {type(one), type(other)} <= {int, float}:
        if not math.isclose(one, other, rel_tol=SAME, abs_tol=1e-9):
            yield f"{where}: {one:.8g} here, {other:.8g} expected"
    elif one != other:
        yield f"{where}: {one} here, {other} expected"
