"""Simulated sweeps: what a sweep's runs would identify if a law were true, before any GPU-hour is spent on them.

Each simulated sweep has losses that the law gives, with noise and scatter (``truth``), and is fitted as
``tools/fit.py`` fits real runs.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.estimates import Estimate
from videoscaling.scaling.fitting.surface import surface_law
from videoscaling.scaling.fitting.unsupported import UnsupportedFit
from videoscaling.scaling.laws import TOLERANCE, Law
from videoscaling.scaling.planning import allocation
from videoscaling.scaling.planning.warnings import FAR
from videoscaling.scaling.search.planned_runs import LEAST, PlannedRun, fit_warnings
from videoscaling.scaling.search.truth import BATCH, Truth, quantities, simulated_runs
from videoscaling.utils.errors import UserError, plural
from videoscaling.utils.text_tables import table

CLOSE = 0.005  # a measured loss this near the predicted one (relative) is a success
MEASURED = 400  # new runs at a target, for each simulated sweep
QUANTITIES = ("loss", "lr", "edge", "B_opt", "N_opt")
LABELS = {
    "aB": "lr_opt, exponent of B",
    "aT": "lr_opt, exponent of T",
    "aN": "lr_opt, exponent of N",
    "bT": "batch, exponent of T",
    "bN": "batch, exponent of N",
    "loss": "loss",
    "lr": "lr_opt",
    "edge": "1 % edge of B",
    "B_opt": "B_opt",
    "N_opt": "N_opt",
}


def _measured(truth: Truth, at: dict[str, float], seeds: int, random: np.random.Generator) -> NDArray[np.float64]:
    """ln of losses [MEASURED] that would be measured at N, T, B, lr: each the mean of ``seeds`` runs of a new grid."""
    N, T, B, lr = (np.full(MEASURED, at[name]) for name in ("N", "T", "B", "lr"))
    number = np.arange(MEASURED)
    error = truth.run_sd(N, T, B, lr) * random.standard_normal(MEASURED) / math.sqrt(seeds)
    return truth.scattered(N, T, B, lr, grid=number, size=number, random=random) + error


def _inside(low: float, high: float) -> bool:
    """Whether sizes lie off the ends of the range in which N_opt is sought."""
    return bool(allocation.SIZES[0] * 1.01 < low and high < allocation.SIZES[1] / 1.01)


@dataclass(frozen=True)
class Target:
    """A run to predict: N parameters on T tokens, C FLOPs."""

    N: float
    T: float
    C: float

    @staticmethod
    def best_at(law: Law, C: float, cost: allocation.Cost, n_ctx: int) -> "Target":
        """The best run of C FLOPs by a law.

        Raises:
            UserError: the law has none, or it would have less than one clip.
        """
        N = float(allocation.optimum(law.response.losses, C, cost))
        T = C / float(cost(np.array(N)))
        if not n_ctx <= T:
            raise UserError(f"{C:.3g} FLOPs are {T:.3g} tokens for their best size, less than one clip of {n_ctx}")
        if not _inside(N, N):
            raise UserError(f"law {law.name!r} has no best size at {C:.3g} FLOPs: the smallest or the largest is")
        return Target(N, T, C)


class Summary(TypedDict, total=False):
    """What ``sweeps`` simulated sweeps say of a quantity of which ``truth`` is known; fewer than half: no more.

    ``bias`` is the mean of estimate less truth (of logarithms but for exponents), ``sd`` that over the sweeps,
    ``half_width`` the mean one of 95 % intervals, and ``coverage`` their share that holds the truth.
    """

    truth: float
    sweeps: int
    bias: float
    sd: float
    half_width: float
    coverage: float


class AtTarget(TypedDict, total=False):
    """Quantities at a target, and the predicted run against measurements; None where under half of the sweeps say.

    ``close`` is the chance that a measured loss lies within CLOSE of the predicted one, ``inside`` that it lies in
    its 95 % interval, ``regret`` what the predicted pair costs.
    """

    N: float
    T: float
    C: float
    B: float
    loss: Summary
    lr: Summary
    edge: Summary
    B_opt: Summary
    N_opt: Summary
    close: float | None
    inside: float | None
    regret: float | None
    regret_worst: float | None


class Expected(TypedDict):
    """What a sweep would identify; ``refused`` counts the sweeps whose fit was refused, by reason."""

    law: str
    runs: int
    n_ctx: int
    sweeps: int
    seeds: int
    noise: float
    scatter: float
    fitted: int
    B_opt_identified: int
    refused: dict[str, int]
    exponents: dict[str, Summary]
    targets: list[AtTarget]
    where: list[str]
    warnings: list[str]


@dataclass(frozen=True)
class Reading:
    """What one fitted law says of a target: quantities, and how a measurement there compares (None: unknown)."""

    quantities: dict[str, Estimate]
    regret: float
    close: float | None = None
    inside: float | None = None


def expect(
    truth: Truth,
    runs: Sequence[PlannedRun],
    targets: Sequence[Target],
    *,
    cost: allocation.Cost,
    n_ctx: int,
    sweeps: int,
    seeds: int = 1,
    report: Callable[[], None] = lambda: None,
) -> Expected:
    """What a sweep would identify if ``truth`` were true: simulated and fitted ``sweeps`` times.

    Args:
        cost: training FLOPs per token as a function of N.
        seeds: of a target's runs, whose mean loss is compared with the predicted one.
        report: called after each simulated sweep.

    Raises:
        UserError: the runs leave nothing to fit, at any losses.
    """
    pairs: dict[tuple[float, float], set[tuple[float, float]]] = defaultdict(set)
    for run in runs:
        for tokens in run.milestones:
            pairs[run.N, tokens].add((run.lr, run.B))
    if max(map(len, pairs.values()), default=0) < LEAST:
        most = f"no (N, T) has {LEAST} different (lr, B)"
        raise UserError(f"nothing to simulate: {most if runs else fit_warnings(runs)[0]}")
    refused: Counter[str] = Counter()
    truth = truth.of_clips(n_ctx)
    truths = [truth.at(one.N, one.T, one.C, cost=cost, n_ctx=n_ctx) for one in targets]
    exponents: list[dict[str, Estimate]] = []
    found: list[list[Reading]] = [[] for _ in targets]
    bracketed = 0
    for seed in range(sweeps):
        simulated = simulated_runs(truth, runs, seed, n_ctx)
        try:
            law = surface_law.fit_law(simulated, "all", "auto", cost, {"name": "simulated"})
        except UnsupportedFit as reason:
            refused[str(reason).partition("\n")[0]] += 1
        else:
            names = [name.removeprefix("surface.") for name in law.fit["intervals"]]
            exponents.append({name: law.surface.exponent(name) for name in names if name in truth.exponents})
            bracketed += law.surface.no_best_batch is None
            for number, (target, true) in enumerate(zip(targets, truths)):
                random = np.random.default_rng([seed, 1, number])
                found[number].append(
                    _read(truth, law, target, true, cost=cost, n_ctx=n_ctx, seeds=seeds, random=random)
                )
        report()
    N, T, B, lr = np.array([(run.N, tokens, run.B, run.lr) for run in runs for tokens in run.milestones]).T
    return {
        "law": truth.law.name,
        "runs": len(runs),
        "n_ctx": n_ctx,
        "sweeps": sweeps,
        "seeds": seeds,
        "noise": float(np.median(truth.run_sd(N, T, B, lr))),
        "scatter": truth.scatter,
        "fitted": len(exponents),
        "B_opt_identified": bracketed,
        "refused": dict(refused.most_common()),
        "exponents": {
            name: _summary(value, [one[name] for one in exponents if name in one], sweeps)
            for name, value in truth.exponents.items()
        },
        "targets": [_at_target(*one, sweeps) for one in zip(targets, truths, found)],
        "where": _where(truth.law, runs, n_ctx),
        "warnings": _far(truth.law, runs, targets, cost),
    }


def _read(
    truth: Truth,
    law: Law,
    target: Target,
    true: dict[str, float],
    *,
    cost: allocation.Cost,
    n_ctx: int,
    seeds: int,
    random: np.random.Generator,
) -> Reading:
    """What a fitted law says of a target, and how a measurement there would compare."""
    N, T, response = target.N, target.T, law.response
    found = quantities(law, N, T, B=true["B"], C=target.C, cost=cost, n_ctx=n_ctx)
    if "N_opt" in found and not _inside(found["N_opt"].low, found["N_opt"].high):
        del found["N_opt"]
    B = float(response.batch(N, T, n_ctx, TOLERANCE))
    pair = {"N": N, "T": T, "B": B, "lr": float(response.rate(N, T, B).value)}
    there = float(truth.ln_loss(*(np.array([pair[name]]) for name in ("N", "T", "B", "lr")))[0])
    # Rounding gave -1e-16, printed as -0.00 %. No more than that is hidden: nothing is better than the best.
    regret = round(math.expm1(there - true["best_ln_loss"]), 12) + 0.0
    if response.no_losses is not None:
        return Reading(found, regret)
    planned = response.predict(**pair, seeds=seeds)
    mean, low, high = (float(np.log(v[0])) for v in (planned.mean, planned.low, planned.high))
    measured = _measured(truth, pair, seeds, random)
    close = float(np.mean(np.abs(np.expm1(measured - mean)) <= CLOSE))
    return Reading(found, regret, close, float(np.mean((measured >= low) & (measured <= high))))


def _at_target(target: Target, true: dict[str, float], found: list[Reading], sweeps: int) -> AtTarget:
    result: AtTarget = {"N": target.N, "T": target.T, "C": target.C, "B": true["B"]}
    for name in QUANTITIES:
        if name in true:
            known = [one.quantities[name] for one in found if one.quantities.get(name) is not None]
            logs = [Estimate(*np.log([one.value, one.low, one.high])) for one in known]
            result[name] = _summary(math.log(true[name]), logs, sweeps) | {"truth": true[name]}
    for name in ("close", "inside", "regret"):
        values = [value for one in found if (value := getattr(one, name)) is not None]
        result[name] = float(np.mean(values)) if 2 * len(values) >= sweeps else None
    result["regret_worst"] = max((one.regret for one in found), default=None)
    return result


def _summary(truth: float, found: Sequence[Estimate], sweeps: int) -> Summary:
    result: Summary = {"truth": truth, "sweeps": len(found)}
    if 2 * len(found) < sweeps:
        return result
    value, low, high = np.array([(one.value, one.low, one.high) for one in found], dtype=float).T
    return result | {
        "bias": float(np.mean(value) - truth),
        "sd": float(np.std(value, ddof=1)),
        "half_width": float(np.mean(high - low) / 2),
        "coverage": float(np.mean((low <= truth) & (truth <= high))),
    }


def _far(law: Law, runs: Sequence[PlannedRun], targets: Sequence[Target], cost: allocation.Cost) -> list[str]:
    """A line if the runs or the targets lie far outside the compute that the law was fitted on."""
    fitted = law.domain.get("C")
    if fitted is None:
        return []
    used = [float(cost(np.array(run.N))) * T for run in runs for T in run.milestones] + [one.C for one in targets]
    factor = max(fitted[0] / min(used), max(used) / fitted[1])
    if factor <= FAR:
        return []
    return [
        f"law {law.name!r} was fitted from {fitted[0]:.3g} to {fitted[1]:.3g} FLOPs, and is taken to be true from "
        f"{min(used):.3g} to {max(used):.3g}: extrapolated by a factor of {factor:.3g}; --law takes one fitted nearer"
    ]


def _where(law: Law, runs: Sequence[PlannedRun], n_ctx: int) -> list[str]:
    """The law's planned rates and batches next to those of the runs, a line per size."""
    lines = []
    for N in sorted({run.N for run in runs}):
        mine = [run for run in runs if run.N == N]
        T = np.array(sorted({tokens for run in mine for tokens in run.milestones}))
        B = law.response.batch(N, T, n_ctx, TOLERANCE)
        own = law.response.rate(N, T, B).value, B, *np.array([(run.lr, run.B) for run in mine]).T
        spans = [f"{v.min():.3g} to {v.max():.3g}" for v in own]
        lines.append(f"N {N:.4g}: lr {spans[0]}, batch {spans[1]}; the sweep has lr {spans[2]}, batch {spans[3]}")
    return lines


def text(expected: Expected) -> str:
    """For readers."""
    sweeps, fitted = expected["sweeps"], expected["fitted"]
    lines = [
        f"{plural(expected['runs'], 'run')}, noise of a run {expected['noise']:.2%}, simulated "
        f"{plural(sweeps, 'time')} from law {expected['law']!r}; {fitted} of {sweeps} fits gave a law",
        *table([_row(name, one, sweeps) for name, one in expected["exponents"].items()]),
    ]
    if expected["exponents"].keys() & set(BATCH):
        lines.append(f"(the batch: B_opt in {expected['B_opt_identified']} of {fitted} fits, else its 1 % edge)")
    for at in expected["targets"]:
        lines += [
            f"N {at['N']:.4g}, T {at['T']:.4g}, {at['C']:.3g} FLOPs (lr_opt at B {at['B']:.6g}; errors of ln):",
            *table([_row(name, at[name], sweeps) for name in QUANTITIES if name in at]),
        ]
        if at["regret"] is not None:
            lines.append(f"the predicted pair costs {at['regret']:.2%} of the loss, {at['regret_worst']:.2%} at worst")
        if at["close"] is not None:
            seeds = "one new run" if expected["seeds"] == 1 else f"the mean of {expected['seeds']} new runs"
            lines.append(
                f"{seeds} within {CLOSE:.1%} of the predicted loss: chance {at['close']:.2f}; inside its 95 % "
                f"interval: {at['inside']:.2f}"
            )
    if expected["refused"]:
        lines.append(f"the fit would be refused in {sweeps - fitted} of {sweeps} sweeps ({1 - fitted / sweeps:.0%}):")
        lines += [f"  {plural(count, 'time')}: {reason}" for reason, count in expected["refused"].items()]
        lines += ["where the law has the best runs:", *(f"  {line}" for line in expected["where"])]
    return "\n".join(lines)


def _row(name: str, one: Summary, sweeps: int) -> dict[str, object]:
    """A line of ``text``'s tables, errors with three digits; what few sweeps identify is unknown."""
    errors = {
        key: float(f"{one[key]:.3g}") if key in one else None for key in ("bias", "sd", "half_width", "coverage")
    }
    return {"": LABELS[name], "truth": one["truth"], **errors, "identified by": f"{one['sweeps']} of {sweeps} sweeps"}
