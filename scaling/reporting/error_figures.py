"""Figures of the law's errors: predicted against measured losses, and what the errors depend on."""

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.checks.heldout import relative_error
from videoscaling.scaling.prediction import predict
from videoscaling.scaling.reporting.chart import Chart, Table, groups, rows
from videoscaling.scaling.reporting.sources import Sources, fitted
from videoscaling.scaling.reporting.style import (
    ACCENT,
    BLUE,
    GREY,
    LINE,
    WIDTH,
    bars,
    legend_above,
    limits,
    log_axes,
    short,
)
from videoscaling.utils.errors import UserError

NEAR = 0.05  # cells this near (relative) to their grid's best are predicted one by one
FEW = 80  # points whose intervals can be seen one by one
SPARSE = {"ms": 5, "elinewidth": 1}
DENSE = {"ms": 2.5, "alpha": 0.35, "elinewidth": 0.3, "capsize": 0}
ANNOTATED = 64  # grids beyond which their numbers would cover each other
REACH = 10.0  # of the intervals shown, in spans of the points
USES = (("fitted", "o", BLUE), ("other runs", "D", LINE), ("held out", "s", ACCENT))


def predictions(sources: Sources) -> Table:
    """N, T, loss, predicted, low, high (of one new run), error, excess and what ``uses`` reads of each point [points].

    Points of a surface are cells near their grid's best and all that were held out, at their own batch and rate; those
    of a loss law are ``Sources.points``.
    """
    law, table = sources.law, sources.runs
    if law.surface is None:
        found = sources.points()
        found |= {"excess": np.full(len(found["N"]), np.nan)}
    else:
        best = np.full(len(table), np.inf)
        for *_, own in table.grids():
            best[own] = np.min(table.loss[own])
        chosen = np.isfinite(table.loss) & (table.heldout | (table.loss <= best * (1 + NEAR)))
        cells = table.rows(chosen)
        found = {
            "N": cells.N,
            "T": cells.nominal_T,
            "B": cells.B,
            "lr": cells.lr,
            "loss": cells.loss,
            "heldout": cells.heldout,
            "fitted": fitted(cells, law),
            "optimum": np.ones(len(cells), dtype=bool),
            "excess": 100 * relative_error(cells.loss, best[chosen]),
        }
    if not len(found["N"]):
        raise UserError("there is nothing measured to compare with")
    said = predict(law, found["N"], found["T"], found.get("B", np.nan), found.get("lr", np.nan))
    return found | {
        "predicted": said.predicted,
        "low": said.low,
        "high": said.high,
        "error": 100 * relative_error(found["loss"], said.predicted),
    }


def uses(points: Table) -> list[tuple[str, str, str, NDArray[np.bool_]]]:
    """(Name, marker, colour, points) of what the law was fitted to, what was held out, and other runs, of which it
    knows as little."""
    chosen = (points["fitted"], ~points["fitted"] & ~points["heldout"], points["heldout"])
    return [(*use, own) for use, own in zip(USES, chosen) if own.any()]


def predicted_measured(sources: Sources) -> Chart:
    """Left: measured over predicted losses. Right: their relative error. Intervals are of one new run."""
    points = predictions(sources)
    chart = Chart("predicted_measured", "Predicted and measured losses", columns=2, size=(WIDTH, 4.4))
    left, right = chart.axes[0]
    size = SPARSE if len(points["N"]) < FEW else DENSE
    parts = []
    for name, marker, colour, use in uses(points):
        chart.add(name, **rows(points, use))
        for optimum, fill, label in ((True, colour, name), (False, "none", f"{name}, best cell")):
            own = rows(points, use & (points["optimum"] == optimum))
            if not len(own["N"]):
                continue
            style = {"fmt": marker, "color": colour, "mfc": fill, **size}
            # Horizontal: the interval is the prediction's.
            bars(left, own, "predicted", "loss", of="x", label=label, **style)
            interval = {"low": 100 * (own["loss"] / own["high"] - 1), "high": 100 * (own["loss"] / own["low"] - 1)}
            bars(right, own | interval, "predicted", "error", **style)
            parts.append(interval)
    both = np.append(points["predicted"], points["loss"])
    ends = np.array([both.min(), both.max()])
    left.plot(ends, ends, color=GREY, lw=0.9, zorder=0)
    right.axhline(0, color=GREY, lw=0.9, zorder=0)
    *around, cut = limits(both, np.append(points["low"], points["high"]), REACH)
    left.set(xlabel="predicted loss", ylabel="measured loss", xlim=around, ylim=around)
    errors = np.append(points["error"], 0.0)
    *around, cut_right = limits(errors, [end for part in parts for end in np.append(part["low"], part["high"])], REACH)
    right.set(xlabel="predicted loss", ylabel="measured / predicted - 1, %", ylim=around)
    legend_above(left)
    text = "Error is measured / predicted - 1. Bars are the law's 95 % interval of one new run."
    text += _marks(points)
    if not points["optimum"].all():
        text += " Hollow marks are best cells of grids without an optimum inside."
    if cut or cut_right:
        text += " The longest bars are cut at the axes."
    held = points["heldout"]
    if np.isfinite(points["low"]).any() and held.any():
        inside = (points["loss"] >= points["low"]) & (points["loss"] <= points["high"])
        text += f" {int(inside[held].sum())} of {int(held.sum())} held-out losses lie in their interval."
    return sources.captioned(chart, text)


def _marks(points: Table) -> str:
    """What squares and diamonds are, where there are any."""
    kinds = {"held out": "squares were held out", "other runs": "diamonds are other runs than the law was fitted to"}
    found = [kinds[name] for name, *_ in uses(points) if name in kinds]
    return f" {'; '.join(found).capitalize()}." if found else ""


def residuals(sources: Sources) -> Chart:
    """Relative errors against N, T and the distance from the best (or T / N), and their mean over (N, T)."""
    points = predictions(sources)
    if len(points["N"]) < 3:
        raise UserError("fewer than three losses")
    chart = Chart("residuals", "Residuals", rows=2, columns=2, size=(WIDTH, 6.4))
    third = points["excess"], "loss above the grid's best, %", None
    if not np.isfinite(points["excess"]).any():
        third = points["T"] / points["N"], "tokens per parameter", short
    against = ((points["N"], "model parameters", short), (points["T"], "training tokens", short), third)
    for axis, (x, label, form) in zip(chart.axes.flat, against):
        axis.axhline(0, color=GREY, lw=0.9)
        for name, marker, colour, use in uses(points):
            fill = colour if name == "fitted" else "none"
            axis.plot(x[use], points["error"][use], marker, color=colour, ms=4, alpha=0.7, mew=0.8, mfc=fill)
        axis.set(xlabel=label, ylabel="measured / predicted - 1, %")
        log_axes(axis, form, None)
    for name, *_, use in uses(points):
        chart.add(name, **rows(points, use))
    for N, of_size in groups(points, "N"):
        for T, own in groups(of_size, "T"):
            flags = {"heldout": own["heldout"].all(), "fitted": own["fitted"].any()}
            chart.add("grid", N=N, T=T, error=own["error"].mean(), **flags)
    grids, axis = chart.of("grid"), chart.axes[1, 1]
    bound = max(float(np.abs(grids["error"]).max()), 1e-3)
    for _, marker, _, use in uses(grids):
        own = rows(grids, use)
        marks = axis.scatter(
            own["T"],
            own["N"],
            c=own["error"],
            marker=marker,
            cmap="RdBu_r",
            vmin=-bound,
            vmax=bound,
            s=70,
            edgecolor=GREY,
        )
    if len(grids["N"]) <= ANNOTATED:
        for N, T, error in zip(grids["N"], grids["T"], grids["error"]):
            axis.annotate(f"{error:+.1f}", (T, N), xytext=(7, -3), textcoords="offset points", fontsize=7)
    axis.set(xlabel="training tokens", ylabel="model parameters")
    axis.margins(0.15, 0.2)
    log_axes(axis, short, short)
    chart.figure.colorbar(marks, ax=axis).set_label("mean error of the grid, %")
    distance = third[1].removesuffix(", %")
    text = f"Measured / predicted - 1 against parameters, tokens and {distance}, and its mean by grid." + _marks(
        points
    )
    return sources.captioned(chart, text)
