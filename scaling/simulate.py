"""Ledgers that a law would produce, with noise: what a sweep can tell, before any GPU-hour is spent on it."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.estimates import interval
from videoscaling.scaling.fitting.grids import fit, loss_law, power_law
from videoscaling.scaling.fitting.grids.fit_points import SHARED, Untrusted, at_nominal, grid_optima
from videoscaling.scaling.fitting.grids.optimum import COEFFICIENTS, Optimum
from videoscaling.scaling.laws import Law
from videoscaling.scaling.planning import allocation
from videoscaling.scaling.planning.warnings import FAR
from videoscaling.scaling.runs import Ledger, concatenate
from videoscaling.utils.errors import UserError


@dataclass(frozen=True)
class Cell:
    """A run of a sweep that has not been run."""

    N: float
    B: float
    lr: float
    milestones: tuple[float, ...]


# What each verdict on a grid asks for.
REMEDIES = {
    "edge": "the grids do not reach the best cells, which are listed below",
    "floor": "one clip is the best batch there is: longer runs want larger ones; --prior assumes the exponents",
    "saddle": "too much noise for the cells: add rates and batches, or repeats",
    "misfit": "losses that span more than a quadratic can follow: closer rates and batches",
    "too few points": "too few cells near the best ones: closer rates and batches",
    "flat": "the noise hides the optimum: wider steps, or repeats",
}


def doubts(cells: Sequence[Cell]) -> list[str]:
    """Why a fit of these cells could not decide, whatever their losses will be: one line each, before they are run."""
    if not cells:
        return ["every size is held out: nothing is left to fit"]
    found = []
    grids = {N: [c for c in cells if c.N == N] for N in sorted({c.N for c in cells})}

    def name(small: list[float]) -> str:
        return f"N {', '.join(f'{N:.4g}' for N in small)}"

    counts = {N: (len({(c.lr, c.B) for c in grid}), len(grid)) for N, grid in grids.items()}
    if few := [N for N, (distinct, runs) in counts.items() if distinct < COEFFICIENTS or runs <= COEFFICIENTS]:
        found.append(
            f"{name(few)}: {min(counts[N][0] for N in few)} different cells in a grid; a quadratic in (lr, batch) "
            f"needs {COEFFICIENTS}, and one more to tell its error"
        )
    for axis, key in (("learning rates", "lr"), ("batch sizes", "B")):
        if few := [N for N, grid in grids.items() if len({getattr(c, key) for c in grid}) < 3]:
            found.append(f"{name(few)}: fewer than three {axis}; a best one between them cannot be found")
    N, T = np.array(sorted({(c.N, t) for c in cells for t in c.milestones})).T
    for law, reason in (
        ("batch and rate laws", power_law.unidentified(N, T, {})),
        ("loss law", loss_law.unidentified(N, T, {})),
    ):
        if reason:
            found.append(f"{law}: {reason}; add sizes or milestones, or fit with --prior")
    return found


def ledger(
    law: Law,
    cells: Iterable[tuple[float, float, float]],
    milestones: Iterable[float],
    noise: float,
    correlation: float = 0.6,
    seed: int = 0,
    n_ctx: int = 0,
) -> Ledger:
    """One run per cell (N, B, lr), validated at every milestone.

    Args:
        law: loss law, and curvature around the batch and rate laws; a batch or lr of nan means at their optimum.
        noise: relative standard deviation of one loss.
        correlation: of the noise of two milestones of one run.
        seed: of the noise.
    """
    random = np.random.default_rng(seed)
    N, B, lr = np.array(list(cells), dtype=float).T
    T = np.array(list(milestones), dtype=float)
    shared, own = random.standard_normal((len(N), 1)), random.standard_normal((len(N), len(T)))
    error = noise * (np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own)
    N, B, lr, T = (np.broadcast_to(v, error.shape).ravel() for v in (N[:, None], B[:, None], lr[:, None], T))
    best_B, best_lr = law.batch(N, T), law.lr(N, T)
    B, lr = np.where(np.isnan(B), best_B, B), np.where(np.isnan(lr), best_lr, lr)
    loss = law.loss(N, T) * (1 + error.ravel())
    if law.curvature is not None:
        loss *= 1 + law.curvature(np.log(lr / best_lr), np.log(B / best_B))
    unknown = np.full(len(N), np.nan)
    width = len(str(len(shared)))
    return Ledger(
        run_id=np.repeat([f"simulated-{i:0{width}d}" for i in range(len(shared))], error.shape[1]),
        N=N, T=T, nominal_T=T, B=B, lr=lr, loss=loss, loss_se=noise * loss, raw_loss=loss, raw_loss_se=unknown,
        flops=unknown, seed=np.repeat(np.arange(len(shared)), error.shape[1]), n_ctx=np.full(len(N), n_ctx),
        heldout=np.zeros(len(N), dtype=bool), samples=np.full(len(N), ""), samples_crc32=np.full(len(N), -1),
        stream=np.full(len(N), -1), skipped=unknown, recipe={}, source=f"simulated from {law.name}",
    )  # fmt: skip


def grid(
    law: Law, N: Iterable[float], T: Iterable[float], batches: int, rates: int, factor: float, offset: float = 0.0
) -> list[tuple[float, float, float]]:
    """Cells (N, B, lr) around the law's optimum at each N and the middle T, ``factor`` apart; ``offset`` in steps."""
    middle = float(np.exp(np.mean(np.log(list(T)))))
    steps = [factor ** (np.arange(count) - (count - 1) / 2 + offset) for count in (batches, rates)]
    return [
        (n, float(law.batch(n, middle)) * b, float(law.lr(n, middle)) * r)
        for n in N
        for b in steps[0]
        for r in steps[1]
    ]


def sweep(law: Law, cells: Sequence[Cell], noise: float, correlation: float, seed: int, n_ctx: int) -> Ledger:
    """A ledger of cells that may each have milestones of their own. Those of a size share samples, as sweeps' do."""
    parts, own = [], noise * math.sqrt(1 - SHARED)
    for number, milestones in enumerate(sorted({cell.milestones for cell in cells})):
        chosen = [(c.N, c.B, c.lr) for c in cells if c.milestones == milestones]
        part = ledger(law, chosen, milestones, own, correlation, seed * 1000 + number, n_ctx)
        part.run_id[:] = np.char.add(f"{number}-", np.char.replace(part.run_id, "simulated-", ""))
        parts.append(part)
    return _on_common_samples(concatenate(parts), noise * math.sqrt(SHARED), correlation, seed)


def _on_common_samples(ledger: Ledger, noise: float, correlation: float, seed: int) -> Ledger:
    """The ledger with noise that the runs of a size share; repeats of a cell have samples of their own."""
    repeat: Counter[tuple[float, float, float]] = Counter()
    stream = np.empty(len(ledger), dtype=np.int64)
    known: dict[tuple[float, int], int] = {}
    for run in dict.fromkeys(ledger.run_id):
        rows = np.flatnonzero(ledger.run_id == run)
        cell = tuple(float(getattr(ledger, name)[rows[0]]) for name in ("N", "B", "lr"))
        stream[rows] = known.setdefault((cell[0], repeat[cell]), len(known))
        repeat[cell] += 1
    random, (times, time) = np.random.default_rng([seed, 1]), np.unique(ledger.T, return_inverse=True)
    whole, own = random.standard_normal(len(known)), random.standard_normal((len(known), len(times)))
    error = math.sqrt(correlation) * whole[stream] + math.sqrt(1 - correlation) * own[stream, time]
    loss = ledger.loss * (1 + noise * error)
    return replace(ledger, loss=loss, raw_loss=loss, stream=stream)


def expect(
    law: Law,
    cells: Sequence[Cell],
    noise: float,
    C: float,
    cost: allocation.Cost,
    n_ctx: int,
    prior: Law | None = None,
    correlation: float = 0.6,
    repeats: int = 20,
) -> dict[str, Any]:
    """What a sweep would tell about a budget, if ``law`` were true: simulated, fitted, planned, ``repeats`` times.

    Args:
        law: with loss, batch, rate and curvature.
        cells: the sweep's runs.
        noise: relative standard deviation of one run's loss, from seed to seed.
        C: the target budget in FLOPs.
        cost: training FLOPs per token as a function of N.
        prior: as in fitting.

    Returns:
        For N_opt, B, lr and loss at the budget: the truth, and the median ends of the 95 % intervals. B, lr and loss
        are at the true N_opt. No intervals where fewer than half of the simulations could be ``fitted``: those that
        could are the lucky ones. Beside it the number of grids and of interior ones, all verdicts, why fits were
        refused, where the law has the best cells, and ``warnings``.

    Raises:
        UserError: the cells leave nothing to fit, whatever their losses.
    """
    largest = max(Counter((c.N, t) for c in cells for t in c.milestones).values(), default=0)
    if largest < COEFFICIENTS:
        raise UserError(f"nothing to simulate: {doubts(cells)[0]}")
    law.require("loss", "batch", "lr", "curvature")
    N = float(allocation.optimum(law.loss, C, cost))
    T = C / float(cost(np.array(N)))
    if not n_ctx <= T:
        raise UserError(f"{C:.3g} FLOPs are {T:.3g} tokens for their best size, less than one clip of {n_ctx}")
    truth = {"N_opt": N, "B": float(law.batch(N, T)), "lr": float(law.lr(N, T)), "loss": float(law.loss(N, T))}
    spans: dict[str, list[tuple[float, float]]] = {name: [] for name in truth}
    refused: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    options = fit.Options(prior=prior)
    for seed in range(repeats):
        simulated = sweep(law, cells, noise, correlation, seed, n_ctx)
        optima = grid_optima(at_nominal(simulated), options.window)
        verdicts.update(_verdict(o) for o in optima)
        try:
            fitted = fit.fit(simulated, "all", options, cost, {"name": "simulated"})
        except Untrusted as reason:
            refused[_why(str(reason))] += 1
            continue
        for name, values in _predictions(fitted.law, N, T, C, cost).items():
            spans[name].append(interval(values))
    result: dict[str, Any] = {"C": C, "noise": noise, "runs": len(cells), "repeats": repeats, "refused": dict(refused)}
    result |= {"grids": verdicts.total() // repeats, "interior": verdicts["interior"] / repeats}
    result |= {"verdicts": dict(verdicts.most_common()), "where": _where(law, cells, n_ctx)}
    result |= {"n_ctx": n_ctx, "fitted": repeats - refused.total(), "warnings": _far(law, cells, C, cost)}
    for name, value in truth.items():
        result[name] = {"value": value}
        if 2 * result["fitted"] >= repeats:
            result[name]["low"], result[name]["high"] = np.median(spans[name], axis=0).tolist()
    return result


def _far(law: Law, cells: Sequence[Cell], C: float, cost: allocation.Cost) -> list[str]:
    """A line if the cells or the budget lie far outside the compute that the law was fitted on."""
    fitted = law.domain.get("C")
    if fitted is None:
        return []
    used = [float(cost(np.array(cell.N))) * T for cell in cells for T in cell.milestones] + [C]
    factor = max(fitted[0] / min(used), max(used) / fitted[1])
    if factor <= FAR:
        return []
    return [
        f"law {law.name!r} was fitted from {fitted[0]:.3g} to {fitted[1]:.3g} FLOPs, and is taken to be true from "
        f"{min(used):.3g} to {max(used):.3g}: extrapolated by a factor of {factor:.3g}; --law takes one fitted nearer"
    ]


def _verdict(optimum: Optimum) -> str:
    where = f" ({', '.join(sorted(optimum.sides))})" if optimum.verdict == "edge" else ""
    return optimum.verdict + where


def _where(law: Law, cells: Sequence[Cell], n_ctx: int) -> list[str]:
    """The law's best rates and batches beside those of the grid, a line per size; batches are at least one clip."""
    lines = []
    ridge = -law.curvature.lr_batch / (2 * law.curvature.lr_lr)
    for N in sorted({c.N for c in cells}):
        grid = [c for c in cells if c.N == N]
        T = np.array(sorted({t for c in grid for t in c.milestones}))
        free = law.batch(N, T)
        B = np.maximum(free, n_ctx)
        lr = law.lr(N, T) * (B / free) ** ridge
        spans = [f"{v.min():.3g} to {v.max():.3g}" for v in (lr, B, *np.array([(c.lr, c.B) for c in grid]).T)]
        lines.append(f"N {N:.4g}: lr {spans[0]}, batch {spans[1]}; the grid has lr {spans[2]}, batch {spans[3]}")
    return lines


def _why(reason: str) -> str:
    """A refusal without what differs from one simulation to the next: its count and its list of grids."""
    return re.sub(r"^only \d+ of", "fewer than three of", reason.partition("\n")[0])


def _predictions(law: Law, N: float, T: float, C: float, cost: allocation.Cost) -> dict[str, NDArray]:
    loss = law.drawn("loss")
    return {
        "N_opt": allocation.optimum(loss, C, cost),
        "B": law.drawn("batch")(N, T),
        "lr": law.drawn("lr")(N, T),
        "loss": loss(N, T),
    }


def text(expected: dict[str, Any]) -> str:
    """For people."""
    refused, fitted = sum(expected["refused"].values()), expected["fitted"]
    of = f"{fitted} of {expected['repeats']} simulations gave a law"
    if 2 * fitted < expected["repeats"]:
        spans = f"no intervals: only {of}" if fitted else "no intervals"
    else:
        spans = f"median 95 % interval; {of}" if refused else "median 95 % interval"
    lines = [
        f"{expected['runs']} runs at noise {expected['noise']:.2%}, simulated {expected['repeats']} times; "
        f"{expected['interior']:.1f} of {expected['grids']} grids interior",
        f"at {expected['C']:.3g} FLOPs, if the law is true ({spans}):",
    ]
    for name, form in (("N_opt", ".3g"), ("B", ".4g"), ("lr", ".3g"), ("loss", ".5g")):
        value = expected[name]
        span = f"[{value['low']:{form}}, {value['high']:{form}}]" if "low" in value else "not fitted"
        lines.append(f"  {name:<8}{value['value']:<12{form}}{span}")
    if not refused:
        return "\n".join(lines)
    lines.append(f"the fit would be refused in {refused} of {expected['repeats']} simulations:")
    lines += [f"  {count} times: {reason}" for reason, count in expected["refused"].items()]
    total = sum(expected["verdicts"].values())
    lines.append("the grids' verdicts, and what would mend them:")
    for verdict, count in expected["verdicts"].items():
        remedy = REMEDIES.get(verdict.split(" (")[0])
        lines.append(f"  {_share(count / total):>4} {verdict}" + (f": {remedy}" if remedy else ""))
    lines.append("where the law has the best cells:")
    return "\n".join(lines + [f"  {line}" for line in expected["where"]])


def _share(part: float) -> str:
    """Per cent, where what is there is not rounded to none, nor what is not all to all."""
    if 0 < part < 0.01:
        return "<1%"
    return ">99%" if 0.99 < part < 1 else f"{part:.0%}"
