"""Figures of the law's errors: predicted against measured losses, and what the errors depend on."""

import numpy as np

from videoscaling.scaling.checks.heldout import relative_error
from videoscaling.scaling.prediction import predict
from videoscaling.scaling.reporting.chart import Chart, Table, groups, rows
from videoscaling.scaling.reporting.sources import Sources
from videoscaling.scaling.reporting.style import ACCENT, BLUE, GREY, WIDTH, bars, log_axes, short
from videoscaling.utils.errors import UserError

NEAR = 0.05  # cells this near (relative) to their grid's best are predicted one by one
FEW = 80  # points whose intervals can be seen one by one
SPARSE = {"ms": 5, "elinewidth": 1}
DENSE = {"ms": 2.5, "alpha": 0.35, "elinewidth": 0.3, "capsize": 0}
ANNOTATED = 64  # grids beyond which their numbers would cover each other
USES = (("fitted", False, "o", BLUE), ("held out", True, "s", ACCENT))


def predictions(sources: Sources) -> Table:
    """N, T, loss, predicted, low, high (of one new run), error, excess, heldout and optimum of each point [points].

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


def predicted_measured(sources: Sources) -> Chart:
    """Left: measured over predicted losses. Right: their relative error. Intervals are of one new run."""
    points = predictions(sources)
    chart = Chart("predicted_measured", "Predicted and measured losses", columns=2, size=(WIDTH, 4.4))
    left, right = chart.axes[0]
    size = SPARSE if len(points["N"]) < FEW else DENSE
    for name, heldout, marker, colour in USES:
        if not (use := points["heldout"] == heldout).any():
            continue
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
    both = np.append(points["predicted"], points["loss"])
    ends = np.array([both.min(), both.max()])
    left.plot(ends, ends, color=GREY, lw=0.9, zorder=0)
    right.axhline(0, color=GREY, lw=0.9, zorder=0)
    around = ends * [0.97, 1.03]
    left.set(xlabel="predicted loss", ylabel="measured loss", xlim=around, ylim=around)
    margin, (low, high) = max(2.5 * float(np.abs(points["error"]).max()), 0.1), right.get_ylim()
    right.set(
        xlabel="predicted loss", ylabel="measured / predicted - 1, %", ylim=(max(low, -margin), min(high, margin))
    )
    left.legend(fontsize=8, loc="upper left")
    text = "Error is measured / predicted - 1. Bars are the law's 95 % interval of one new run; squares were held out."
    if not points["optimum"].all():
        text += " Hollow marks are best cells of grids without an optimum inside."
    held = points["heldout"]
    if np.isfinite(points["low"]).any() and held.any():
        inside = (points["loss"] >= points["low"]) & (points["loss"] <= points["high"])
        text += f" {int(inside[held].sum())} of {int(held.sum())} held-out losses lie in their interval."
    return sources.captioned(chart, text)


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
        for _, heldout, marker, colour in USES:
            use, fill = points["heldout"] == heldout, "none" if heldout else colour
            axis.plot(x[use], points["error"][use], marker, color=colour, ms=4, alpha=0.7, mew=0.8, mfc=fill)
        axis.set(xlabel=label, ylabel="measured / predicted - 1, %")
        log_axes(axis, form, None)
    for name, heldout, *_ in USES:
        chart.add(name, **rows(points, points["heldout"] == heldout))
    for N, of_size in groups(points, "N"):
        for T, own in groups(of_size, "T"):
            chart.add("grid", N=N, T=T, error=own["error"].mean(), heldout=own["heldout"].all())
    grids, axis = chart.of("grid"), chart.axes[1, 1]
    bound = max(float(np.abs(grids["error"]).max()), 1e-3)
    for _, heldout, marker, _ in USES:
        own = rows(grids, grids["heldout"] == heldout)
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
    text = (
        "Measured / predicted - 1 against parameters, tokens and the distance from the grid's best (or tokens per "
        "parameter), and its mean by grid. Squares were held out."
    )
    return sources.captioned(chart, text)
