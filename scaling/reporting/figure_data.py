"""The numbers of the report's figures, computed apart from their drawing (``figures``)."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.checks.heldout import paired, relative_error
from videoscaling.scaling.fitting.grids.fit_points import STAND_IN, at_nominal, grid_optima
from videoscaling.scaling.fitting.grids.optimum import WINDOW, Optimum
from videoscaling.scaling.fitting.isoflop import interpolated, minimum
from videoscaling.scaling.fitting.run_info import training_flops
from videoscaling.scaling.laws import Law
from videoscaling.scaling.planning import allocation
from videoscaling.scaling.prediction import predict
from videoscaling.scaling.reporting import law_view
from videoscaling.scaling.reporting.plotted import LeftOut, Plotted, Table, rows, table
from videoscaling.scaling.reporting.style import short
from videoscaling.scaling.runs import RunTable
from videoscaling.utils.errors import UserError

CURVE = 60  # points of a curve
BUDGETS = 6  # isoFLOP curves drawn
NEAR = 0.05  # cells this near (relative) to their grid's best are predicted one by one


@dataclass(frozen=True)
class Sources:
    """What the figures are computed from.

    Attributes:
        runs: the runs, where there are grids at their common tokens.
        grids: the same with held-out grids as their check has them.
        law: fitted to those that are not held out.
        cost: training FLOPs per token of N parameters.
        optima: of the grids, by rising N, then T; empty where the rows are points.
        planned: a planned run against its prediction (``report.compare``), or None.
        published: a law to draw next to this one, or None.
        made: the commit and the date of the report, as text.
    """

    runs: RunTable
    grids: RunTable
    law: Law
    cost: allocation.Cost
    optima: tuple[Optimum, ...]
    planned: dict[str, Any] | None = None
    published: Law | None = None
    made: str = ""

    @staticmethod
    def of(table: RunTable, law: Law, cost: allocation.Cost, **more: Any) -> "Sources":
        """From all runs, as they were read."""
        has_grids = np.isfinite([table.B, table.lr]).all() and any(len(own) > 1 for _, _, own in table.grids())
        if not has_grids:
            return Sources(table, table, law, cost, (), **more)
        # As fits do: losses at the tokens that all runs of a grid have seen, optima by the law's own window.
        table = at_nominal(table)
        optima = tuple(grid_optima(grids := paired(table), law.fit.get("window", WINDOW)))
        return Sources(table, grids, law, cost, optima, **more)

    @property
    def stand_in(self) -> str:
        """The law's warning that best cells stand in for optima, or an empty text."""
        return next((text for text in self.law.fit.get("warnings") or () if text.startswith(STAND_IN)), "")

    def points(self, every: bool = False) -> Table:
        """N, T, loss, heldout and optimum [points]: what the loss law was fitted to, and every held-out grid.

        ``every`` adds the other grids, which entered no law.
        ``optimum`` is 0 where a grid has none inside: the loss is then that of its best cell.
        """
        if not self.optima:
            finite = self.runs.rows(np.isfinite(self.runs.loss))
            return {"N": finite.N, "T": finite.nominal_T, "loss": finite.loss, "heldout": finite.heldout,
                    "optimum": np.ones(len(finite), dtype=bool)}  # fmt: skip
        held = {(N, T): bool(self.grids.heldout[own].all()) for N, T, own in self.grids.grids()}
        shown = [o for o in self.optima if o.usable or (o.cells and (every or self.stand_in or held[o.N, o.T]))]
        found = [(o.N, o.T, o.loss, held[o.N, o.T], o.usable) for o in shown]
        columns = np.array(found, dtype=float).reshape(-1, 5).T
        return dict(zip(("N", "T", "loss"), columns)) | {
            "heldout": columns[3].astype(bool), "optimum": columns[4].astype(bool)
        }  # fmt: skip

    def flops(self, N: NDArray, T: NDArray) -> NDArray[np.float64]:
        return training_flops(self.runs, N, T, self.cost)

    def plotted(self, name: str, title: str, text: str, formula: str, *blocks: tuple[str, Table]) -> Plotted:
        """A figure's data, its caption ended by formula, runs, commit and date."""
        runs = len(np.unique(self.runs.run_id))
        revision = str(self.law.provenance.get("git_revision") or "unknown")[:10]
        source = f"{runs} runs. Law {self.law.name!r}, fitted by commit {revision}{self.made}."
        return Plotted(name, title, " ".join(part for part in (text, f"{formula}.", source) if part), table(*blocks))


def loss_over_flops(sources: Sources) -> Plotted:
    """All losses over training FLOPs, the lowest at each budget so far, and the law's best at each budget."""
    table = sources.runs.rows(np.isfinite(sources.runs.loss))
    if not len(table):
        raise LeftOut("no run ended with a loss")
    C = sources.flops(table.N, table.nominal_T)
    order = np.lexsort((table.loss, C))
    lowest = np.minimum.accumulate(table.loss[order])
    first = np.append(True, np.diff(lowest) < 0)
    blocks = [
        ("run", {"N": table.N, "T": table.nominal_T, "C": C, "loss": table.loss, "heldout": table.heldout}),
        ("frontier", {"N": table.N[order][first], "C": C[order][first], "loss": lowest[first]}),
    ]
    text = "Dots are losses of runs at their milestones, squares held out; the steps are the lowest loss so far."
    try:
        budgets = np.geomspace(C.min(), 10 * C.max(), CURVE)
        N = law_view.best_size(sources.law, budgets, sources.cost)
        blocks.append(("law", _curve(sources.law, N, budgets / sources.cost(N)) | {"C": budgets}))
        text += " The line is the law's loss at its best size, with a 95 % band."
    except LeftOut as reason:
        text += f" The law's frontier is left out: {reason}."
    formula = law_view.loss_formula(sources.law)
    return sources.plotted("loss_over_flops", "Loss over training FLOPs", text, formula, *blocks)


def _curve(law: Law, N: NDArray, T: NDArray) -> Table:
    return dict(zip(("N", "T", "loss", "low", "high"), (N, T, *law_view.losses(law, N, T))))


def isoflop(sources: Sources) -> Plotted:
    """Measured losses over N at equal FLOPs, with parabolas' minima and the law's curves."""
    if not sources.optima and not np.isfinite(sources.runs.loss).any():
        raise LeftOut("no run ended with a loss")
    points = sources.points(every=True)
    C = sources.flops(points["N"], points["T"])
    curves = interpolated(points["N"], C, points["loss"])
    if not curves:
        raise LeftOut("no budget is shared by three sizes")
    chosen = [curves[i] for i in np.unique(np.linspace(0, len(curves) - 1, BUDGETS).round().astype(int))]
    blocks = []
    for curve in chosen:
        blocks.append(("measured", {"C": curve.C, "N": curve.N, "loss": curve.loss}))
        found = minimum(curve)
        if found.inside:
            half = 1.96 * math.sqrt(found.sensitivity) * found.scatter if found.dof else math.nan
            ends = found.N_opt * np.exp([-half, half])
            # For its place on the picture: the parabola of all the budget's points.
            loss = np.exp(np.polyval(np.polyfit(*np.log([curve.N, curve.loss]), 2), math.log(found.N_opt)))
            blocks.append(("minimum", {"C": curve.C, "N": found.N_opt, "loss": loss, "low": ends[0], "high": ends[1]}))
    text = "Points are losses at equal training FLOPs, between each size's milestones; crosses, parabolas' minima."
    try:
        for curve in chosen:
            N = np.geomspace(curve.N.min() / 1.5, curve.N.max() * 1.5, CURVE // 2)
            blocks.append(("law", _curve(sources.law, N, curve.C / sources.cost(N)) | {"C": np.full(len(N), curve.C)}))
        text += " Lines are the law."
    except LeftOut as reason:
        text += f" The law's curves are left out: {reason}."
    return sources.plotted("isoflop", "isoFLOP curves", text, law_view.loss_formula(sources.law), *blocks)


def predictions(sources: Sources) -> Table:
    """N, T, measured, predicted, low, high (of one new run), error, excess and heldout of each point [points].

    Points of a surface are cells near their grid's best and all that were held out, at their own batch and rate; those
    of a loss law are ``Sources.points``.
    """
    law, table = sources.law, sources.runs
    if law.surface is None:
        points = sources.points()
        found = points | {"excess": np.full(len(points["N"]), np.nan)}
        at = (points["N"], points["T"])
    else:
        best = np.full(len(table), np.inf)
        for *_, own in table.grids():
            best[own] = np.min(table.loss[own])
        chosen = np.isfinite(table.loss) & (table.heldout | (table.loss <= best * (1 + NEAR)))
        cells = table.rows(chosen)
        found = {"N": cells.N, "T": cells.nominal_T, "B": cells.B, "lr": cells.lr, "loss": cells.loss,
                 "heldout": cells.heldout, "optimum": np.ones(len(cells), dtype=bool),
                 "excess": 100 * relative_error(cells.loss, best[chosen])}  # fmt: skip
        at = (cells.N, cells.nominal_T, cells.B, cells.lr)
    if not len(found["N"]):
        raise LeftOut("there is nothing measured to compare with")
    try:
        said = predict(law, *at)
    except UserError as error:
        raise LeftOut(str(error)) from None
    return found | {"predicted": said.predicted, "low": said.low, "high": said.high,
                    "error": 100 * relative_error(found["loss"], said.predicted)}  # fmt: skip


def predicted_measured(sources: Sources) -> Plotted:
    """Measured against predicted losses with intervals, held-out ones marked."""
    points = predictions(sources)
    held = points["heldout"]
    text = "Error is measured / predicted - 1. Bars are the law's 95 % interval of one new run; squares were held out."
    if not points["optimum"].all():
        text += " Hollow marks are best cells of grids without an optimum inside."
    if np.isfinite(points["low"]).any() and held.any():
        inside = (points["loss"] >= points["low"]) & (points["loss"] <= points["high"])
        text += f" {int(inside[held].sum())} of {int(held.sum())} held-out losses lie in their interval."
    formula = law_view.loss_formula(sources.law)
    return sources.plotted("predicted_measured", "Predicted and measured losses", text, formula, *_by_use(points))


def _by_use(points: Table) -> list[tuple[str, Table]]:
    uses = (("fitted", ~points["heldout"]), ("held out", points["heldout"]))
    return [(name, rows(points, mask)) for name, mask in uses if mask.any()]


def residuals(sources: Sources) -> Plotted:
    """Relative errors against N, T and the distance from the best, and their mean over (N, T)."""
    points = predictions(sources)
    if len(points["N"]) < 3:
        raise LeftOut("fewer than three losses")
    grids, number = np.unique(np.stack([points["N"], points["T"]]), axis=1, return_inverse=True)
    held = np.array([points["heldout"][number.ravel() == k].all() for k in range(grids.shape[1])])
    mean = np.array([points["error"][number.ravel() == k].mean() for k in range(grids.shape[1])])
    blocks = _by_use(points)
    blocks.append(("grid", {"N": grids[0], "T": grids[1], "error": mean, "heldout": held}))
    text = (
        "Measured / predicted - 1 against parameters, tokens and the distance from the grid's best (or tokens per "
        "parameter), and its mean by grid. Squares were held out."
    )
    return sources.plotted("residuals", "Residuals", text, law_view.loss_formula(sources.law), *blocks)


def training_curves(sources: Sources) -> Plotted:
    """Validation losses over tokens, run by run, and the law's at the best batch and rate."""
    table = sources.runs.rows(np.isfinite(sources.runs.loss))
    if not len(table):
        raise LeftOut("no run ended with a loss")
    runs = {"run": np.unique(table.run_id, return_inverse=True)[1], "N": table.N, "T": table.nominal_T}
    blocks = [("run", runs | {"B": table.B, "lr": table.lr, "loss": table.loss, "heldout": table.heldout})]
    if sources.optima:
        blocks.append(("optimum", {k: v for k, v in sources.points().items() if k != "optimum"}))
    tokens, sizes = table.nominal_T, np.unique(table.N)
    text = "Thin lines are runs at their milestones"
    text += ", marks the grids' optima (squares held out)." if sources.optima else "."
    if sources.planned:
        milestones = sources.planned["milestones"]
        tokens = np.append(tokens, [m["T"] for m in milestones])
        sizes = np.unique([*sizes, sources.planned["N"]])
        columns = {name: np.array([m[key] for m in milestones]) for name, key in (("T", "T"), ("loss", "loss"))}
        half = 1.96 * np.array([m["se"] for m in milestones])
        ends = {"low": columns["loss"] - half, "high": columns["loss"] + half}
        blocks.append(("planned run", {"N": np.full(len(half), sources.planned["N"])} | columns | ends))
    try:
        T = np.geomspace(0.7 * tokens.min(), 1.6 * tokens.max(), CURVE // 2)
        blocks += [("law", _curve(sources.law, np.full(len(T), N), T)) for N in sizes]
        text += " Thick lines are the law at the best batch and rate, with its 95 % band."
    except LeftOut as reason:
        text += f" The law is left out: {reason}."
    formula = law_view.loss_formula(sources.law)
    return sources.plotted("training_curves", "Loss over tokens", text, formula, *blocks)


def size_interval(sources: Sources) -> Plotted:
    """The N_opt of a budget with its interval, the sizes that cost little loss, and N_opt over budgets."""
    law, cost = sources.law, sources.cost
    span = law.domain["C"] or (1e17, 1e19)
    budget = (sources.planned or {}).get("C") or 10 * span[1]
    at, low, high = law_view.size_interval(law, budget, cost)
    near = law_view.sizes_within(law, budget, cost)
    N = np.geomspace(near[0] / 3, near[1] * 3, CURVE)
    lowest = float(law_view.losses(law, at, budget / cost(np.array(at)))[0, 0])
    over = 100 * (law_view.losses(law, N, budget / cost(N)) / lowest - 1)
    C = np.geomspace(span[0], max(10 * span[1], budget), CURVE // 6)
    best = np.array([law_view.size_interval(law, c, cost) for c in C]).T
    within = np.array([law_view.sizes_within(law, c, cost) for c in C]).T
    blocks = [
        ("loss at the budget", {"C": np.full(len(N), budget), "N": N, "excess": over[0]}),
        ("best at the budget", {"C": budget, "N": at, "low": low, "high": high}),
        ("little loss at the budget", {"C": budget, "low": near[0], "high": near[1]}),
        ("minimised", {"C": C, "N": best[0], "low": best[1], "high": best[2]}),
        ("little loss", {"C": C, "low": within[0], "high": within[1]}),
        ("fitted", {"low": span[0], "high": span[1]}),
    ]
    for name in ("direct", "measured", "predicted"):
        if (power := (law.allocation or {}).get(name)) is not None:
            blocks.append((f"{name} power law", {"C": C, "N": power(C)}))
    interval = "" if math.isnan(low) else f" (95 % interval {short(low)} to {short(high)})"
    text = (
        f"At {budget:.2g} FLOPs the loss law is lowest at {short(at)} parameters{interval}, and within "
        f"{law_view.TOLERANCE:.1%} of that from {short(near[0])} to {short(near[1])}: a smaller model costs little "
        "loss, and less to serve."
    )
    return sources.plotted("size_interval", "Model size for a budget", text, law_view.loss_formula(law), *blocks)
