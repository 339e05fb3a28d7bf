"""What the report's figures are made from: runs, their law, and what both say of losses, sizes, batches and rates."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.scaling.checks.heldout import paired
from videoscaling.scaling.estimates import Estimate
from videoscaling.scaling.fitting.grids.fit_points import STAND_IN, at_nominal, grid_optima
from videoscaling.scaling.fitting.grids.optimum import Optimum
from videoscaling.scaling.fitting.losses.forms import CONSTANTS, FORMULAS
from videoscaling.scaling.fitting.run_info import training_flops
from videoscaling.scaling.laws import EDGE, TOLERANCE, Law
from videoscaling.scaling.planning import allocation
from videoscaling.scaling.prediction import predict
from videoscaling.scaling.reporting.chart import Chart, Table
from videoscaling.scaling.reporting.measured_run import MeasuredRun
from videoscaling.scaling.runs import SAME_TOKENS, RunTable
from videoscaling.utils.errors import UserError, plural


@dataclass(frozen=True)
class Sources:
    """What the figures are made from.

    Attributes:
        runs: the runs, where there are grids at their common tokens.
        grids: the same with held-out grids as their check has them.
        law: fitted to those that are not held out.
        cost: training FLOPs per token of N parameters.
        optima: of the grids, by rising N, then T; empty where the rows are points.
        planned: a planned run against its predictions, or None.
        published: a law to draw next to this one, or None.
        made: the commit and the date of the report, as text.
        asked: by the N and T of a grid, the tokens asked for, which grids of other sizes share (``milestone``).
    """

    runs: RunTable
    grids: RunTable
    law: Law
    cost: allocation.Cost
    optima: tuple[Optimum, ...]
    planned: MeasuredRun | None = None
    published: Law | None = None
    made: str = ""
    asked: Mapping[tuple[float, float], float] = field(default_factory=dict)

    @staticmethod
    def of(table: RunTable, law: Law, cost: allocation.Cost, **more: Any) -> "Sources":
        """From all runs, as they were read."""
        has_grids = np.isfinite([table.B, table.lr]).all() and any(len(own) > 1 for _, _, own in table.grids())
        if not has_grids:
            return Sources(table, table, law, cost, (), **more)
        # As fits do: losses at the tokens that all runs of a grid have seen, and an optimum of each.
        asked, table = tokens_asked(table), at_nominal(table)
        optima = tuple(grid_optima(grids := paired(table)))
        return Sources(table, grids, law, cost, optima, asked=asked, **more)

    def milestone(self, N: float, T: float) -> float:
        """The tokens by which a grid is named, and grouped with those of other sizes.

        Its losses lie at ``T``, the fewest that any of its runs had seen after a whole step, which differ between
        sizes of other batches.
        """
        return self.asked.get((N, T), T)

    @property
    def stand_in(self) -> str:
        """The law's warning that best cells stand in for optima, or an empty text."""
        return next((text for text in self.law.fit.get("warnings") or () if text.startswith(STAND_IN)), "")

    def milestones(self) -> Table:
        """Run (a number), N, T, B, lr, C, loss, heldout and fitted of each milestone with a loss [points].

        Raises:
            UserError: there is none.
        """
        own = self.runs.rows(np.isfinite(self.runs.loss))
        if not len(own):
            raise UserError("no run ended with a loss")
        number, C = np.unique(own.run_id, return_inverse=True)[1], self.flops(own.N, own.nominal_T)
        return {
            "run": number,
            "N": own.N,
            "T": own.nominal_T,
            "B": own.B,
            "lr": own.lr,
            "C": C,
            "loss": own.loss,
            "heldout": own.heldout,
            "fitted": fitted(own, self.law),
        }

    def points(self, every: bool = False) -> Table:
        """N, T, loss, heldout, fitted and optimum [points]: what the loss law was fitted to, and held-out grids.

        ``every`` adds the other grids, which entered no law.
        ``optimum`` is 0 where a grid has none inside: the loss is then that of its best cell.
        """
        if not self.optima:
            runs = self.milestones()
            own = {name: runs[name] for name in ("N", "T", "loss", "heldout", "fitted")}
            return own | {"optimum": np.ones(len(runs["N"]), dtype=bool)}
        held = {(N, T): bool(self.grids.heldout[own].all()) for N, T, own in self.grids.grids()}
        in_fit = fitted(self.grids, self.law)
        entered = {(N, T): bool(in_fit[own].any()) for N, T, own in self.grids.grids()}
        shown = [o for o in self.optima if o.usable or (o.cells and (every or self.stand_in or held[o.N, o.T]))]
        found = [(o.N, o.T, o.loss, held[o.N, o.T], entered[o.N, o.T], o.usable) for o in shown]
        N, T, loss, *flags = np.array(found, dtype=float).reshape(-1, 6).T
        return {"N": N, "T": T, "loss": loss} | dict(zip(("heldout", "fitted", "optimum"), np.array(flags) > 0))

    def flops(self, N: NDArray, T: NDArray) -> NDArray[np.float64]:
        return training_flops(self.runs, N, T, self.cost)

    def curve(self, N: ArrayLike, T: ArrayLike) -> Table:
        """N, T and the law's loss with the ends of its 95 % interval, [points] or one number."""
        found = predict(self.law, N, T)
        return {"N": N, "T": T, "loss": found.predicted, "low": found.mean_low, "high": found.mean_high}

    def captioned(self, chart: Chart, text: str, formula: str | None = None) -> Chart:
        """The chart with its caption: the text, formula (by default of the loss), runs, commit and date."""
        runs = len(np.unique(self.runs.run_id))
        revision = str(self.law.provenance.get("git_revision") or "unknown")[:10]
        others = " to other runs" if of_other_runs(self.runs, self.law) else ""
        source = f"{plural(runs, 'run')}. Law {self.law.name!r}, fitted by commit {revision}{others}{self.made}."
        chart.caption = f"{text} {formula or loss_formula(self.law)}. {source}"
        return chart


def tokens_asked(table: RunTable) -> dict[tuple[float, float], float]:
    """The tokens asked for of each grid, by its N and the fewest tokens that any of its runs had seen.

    A table that was no sweep's folder names only the tokens seen, less than a step beyond those asked for: of grids
    that lie so close, the fewest.
    """
    found: dict[tuple[float, float], float] = {}
    start, sizes = 0.0, set()
    for T, N, rows in sorted(((T, N, rows) for N, T, rows in table.grids()), key=lambda grid: grid[:2]):
        apart = T - start >= min(table.B[rows].min(), SAME_TOKENS * start)
        # Two grids of one size are two milestones, however close.
        if apart or N in sizes:
            start, sizes = T, set()
        sizes.add(N)
        found.setdefault((N, float(table.T[rows].min())), start)
    return found


def of_other_runs(table: RunTable, law: Law) -> list[str]:
    """Why the table's runs are not those that the law was fitted to; empty where they may be."""
    own = table.rows(~table.heldout)
    apart = []
    if (known := _run_names(law)) and len(own) and not np.isin(own.run_id, known).any():
        apart.append("none of these is among them")
    for name in ("N", "T"):
        span, values = law.domain[name], getattr(own, name)
        # Grids without an optimum lie outside the law's domain too, but not most of them.
        if span and len(values) and np.mean((values > 0.9 * span[0]) & (values < 1.1 * span[1])) < 0.5:
            apart.append(f"it was fitted on {name} {_ends(*span)}, and these have {_ends(values.min(), values.max())}")
    clips = {int(n) for n in table.n_ctx if n > 0}
    if law.n_ctx and clips - {law.n_ctx}:
        apart.append(f"it has clips of {law.n_ctx} tokens, and these {', '.join(map(str, sorted(clips)))}")
    theirs = {key: value for key, value in table.recipe.items() if value is not None}
    differing = sorted(key for key in theirs if law.recipe.get(key) not in (None, theirs[key]))
    if differing:
        apart.append(f"its recipe differs in {', '.join(differing)}")
    return apart


def fitted(table: RunTable, law: Law) -> NDArray[np.bool_]:
    """Which rows the law was fitted to [rows]: as its file names the runs, or those of a sweep like its own."""
    if known := _run_names(law):
        return ~table.heldout & np.isin(table.run_id, known)
    return ~table.heldout & (not of_other_runs(table, law))


def _run_names(law: Law) -> list[str]:
    """The runs that the law was fitted to; empty where its file does not name them one by one."""
    known = law.provenance.get("runs") or []
    # Rows of a table that names no runs are a range of numbers there.
    return [] if any(name.startswith("row-") for name in known) else known


def _ends(low: float, high: float) -> str:
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def has_rates(law: Law) -> bool:
    """Whether the law has a best batch (or a surface's edge) and a best rate."""
    if law.surface is None:
        return law.batch is not None and law.lr is not None
    return law.surface.shape.batch != "none" and law.surface.cells.several_rates


def batch(law: Law, N: NDArray, T: NDArray) -> Estimate:
    """B_opt, or a surface's edge, in tokens."""
    return law.response.best_batch(N, T) if law.surface is None else law.surface.edge(T, N, EDGE)


def rate(law: Law, N: NDArray, T: NDArray) -> Estimate:
    """lr_opt at the batch that a plan takes."""
    return law.response.rate(N, T, law.response.wanted_batch(N, T, TOLERANCE))


def loss_formula(law: Law) -> str:
    """The heaviest form of the loss law with its constants."""
    if law.response.no_losses is not None:
        return "no loss law"
    losses = law.response.losses
    form, scale = losses.forms[0], losses.scale
    constants = ", ".join(f"{name} {v:.3g}" for name, v in zip(CONSTANTS[form.name], np.exp(form.theta)))
    return f"L = {FORMULAS[form.name]}; {constants}; N in {scale.N:.3g}, T in {scale.T:.3g}"


def rate_formula(law: Law) -> str:
    """The laws of the best batch and rate with their constants."""
    if law.surface is None:
        written = [
            f"{name} = {p.coefficient:.3g} (T / {p.scale['T']:.3g})^{p.T:.3g} (N / {p.scale['N']:.3g})^{p.N:.3g}"
            for name, p in (("B_opt", law.batch), ("lr_opt", law.lr))
            if p is not None
        ]
        return "; ".join(written) or "no laws of batch and rate"
    surface = law.surface
    if not has_rates(law):
        return "one batch, or one rate, in all runs"
    scale, exponents = surface.scale, surface.rate_exponents()
    terms = " ".join(f"({n[1]} / {getattr(scale, n[1]):.3g})^{float(v.value):.3g}" for n, v in exponents.items())
    return f"lr_opt = {float(surface.lr_opt(scale.B, scale.T, scale.N).value):.3g} {terms}"
