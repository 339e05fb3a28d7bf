"""The drawing of the report's figures. Each function turns ``figure_data``'s numbers into a matplotlib Figure."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.reporting.plotted import Plotted, rows
from videoscaling.scaling.reporting.style import (
    ACCENT,
    GREY,
    LINE,
    WIDTH,
    band,
    bars,
    colours,
    flops,
    line,
    log_axes,
    panels,
    short,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 0.97  # of the losses that a figure shows: the rest went wrong
FEW = 80  # points whose intervals can be seen one by one
SPARSE = {"ms": 5, "elinewidth": 1}
DENSE = {"ms": 2.5, "alpha": 0.35, "elinewidth": 0.3, "capsize": 0}
ANNOTATED = 64  # grids beyond which their numbers would cover each other


def loss_over_flops(data: Plotted) -> "Figure":
    """Losses over training FLOPs with the lowest so far and the law's."""
    runs = data.of("run")
    shades = colours(runs["N"])
    with panels(1, 1, (WIDTH, 4.4)) as (figure, axes):
        axis = axes[0, 0]
        for N, own in data.groups("run", "N"):
            _dots(axis, own["C"], own["loss"], own["heldout"] > 0, shades[N])
        frontier = data.of("frontier")
        axis.step(frontier["C"], frontier["loss"], where="post", color="black", lw=1.1)
        handles = [line(shades[N], f"N {short(N)}", marker="o", lw=0, ms=4) for N in shades]
        handles += [line("black", "lowest loss so far"), *_held_out_handle(runs["heldout"])]
        law = data.of("law")
        if len(law["C"]):
            axis.plot(law["C"], law["loss"], color=ACCENT, lw=1.3)
            band(axis, law["C"], law["low"], law["high"], ACCENT)
            handles.append(line(ACCENT, "law at its best size"))
        _loss_axis(axis, [*frontier["loss"], *law["loss"]], runs["loss"])
        axis.set(xlabel="training FLOPs")
        log_axes(axis, flops, None)
        figure.legend(handles=handles, loc="outside right center")
        return figure


def _dots(axis: "Axes", x: NDArray, y: NDArray, held: NDArray, colour: object) -> None:
    axis.plot(x[~held], y[~held], "o", color=colour, ms=3, alpha=0.55, mew=0)
    axis.plot(x[held], y[held], "s", color=colour, ms=4, mfc="none")


def _held_out_handle(heldout: NDArray) -> list:
    return [line(LINE, "held out", marker="s", mfc="none", lw=0, ms=4)] if np.any(heldout > 0) else []


def _loss_axis(axis: "Axes", good: list[float], other: NDArray | None = None) -> None:
    """Show all the ``good`` losses and most of the others: bands and runs that went wrong would flatten them."""
    low, high = min(good), max(good)
    if other is not None:
        low, high = min(low, other.min()), max(high, float(np.quantile(other, MOST)))
    margin = 0.06 * (high - low)
    axis.set(ylim=(low - margin, high + margin), ylabel="validation loss")


def training_curves(data: Plotted) -> "Figure":
    """Losses over tokens, run by run, with the law and a planned run."""
    runs, planned = data.of("run"), data.of("planned run")
    shades = colours([*runs["N"], *planned["N"]])
    with panels(1, 1, (WIDTH, 4.4)) as (figure, axes):
        axis = axes[0, 0]
        for _, own in data.groups("run", "run"):
            order = np.argsort(own["T"])
            held = own["heldout"][0] > 0
            axis.plot(
                own["T"][order], own["loss"][order], "--" if held else "-",
                color=shades[own["N"][0]], lw=0.5, alpha=0.4, marker="." if len(order) == 1 else "", ms=3,
            )  # fmt: skip
        for N, own in data.groups("law", "N"):
            axis.plot(own["T"], own["loss"], color=shades[N], lw=1.6)
            band(axis, own["T"], own["low"], own["high"], shades[N])
        if "optimum" in data.table["series"]:
            for N, own in data.groups("optimum", "N"):
                held = own["heldout"] > 0
                axis.plot(own["T"][~held], own["loss"][~held], "o", color=shades[N], ms=5)
                axis.plot(own["T"][held], own["loss"][held], "s", color=shades[N], ms=5, mfc="white", zorder=4)
        handles = [line(shades[N], f"N {short(N)}") for N in shades] + _held_out_handle(runs["heldout"])
        if len(planned["T"]):
            bars(axis, planned["T"], planned["loss"], planned["low"], planned["high"], fmt="D", color=ACCENT, ms=6)
            handles.append(line(ACCENT, f"planned run, N {short(planned['N'][0])}", marker="D", lw=0))
        _loss_axis(axis, [*data.of("law")["loss"], *planned["loss"], runs["loss"].min()], runs["loss"])
        axis.set(xlabel="training tokens")
        log_axes(axis, short, None)
        figure.legend(handles=handles, loc="outside right center")
        return figure


def isoflop(data: Plotted) -> "Figure":
    """Losses over N at equal FLOPs."""
    shades = colours(data.of("measured")["C"])
    with panels(1, 1, (WIDTH, 4.2)) as (figure, axes):
        axis = axes[0, 0]
        for C, own in data.groups("measured", "C"):
            axis.plot(own["N"], own["loss"], "o", color=shades[C], ms=5, zorder=3)
        for C, own in data.groups("law", "C"):
            axis.plot(own["N"], own["loss"], color=shades[C], lw=1.2)
        for C, own in data.groups("minimum", "C"):
            known = np.nan_to_num(np.abs([own["N"] - own["low"], own["high"] - own["N"]]))
            axis.errorbar(own["N"], own["loss"], xerr=known, fmt="X", color=shades[C], ms=8, mec="white", zorder=4)
        handles = [line(shades[C], f"{C:.2g} FLOPs".replace("e+", "e"), marker="o", ms=4) for C in shades]
        if len(data.of("minimum")["C"]):
            handles.append(line(LINE, "parabola's minimum", marker="X", lw=0))
        _loss_axis(axis, [*data.of("measured")["loss"], *data.of("minimum")["loss"]])
        axis.set(xlabel="model parameters")
        log_axes(axis, short, None)
        figure.legend(handles=handles, loc="outside right center")
        return figure


def size_interval(data: Plotted) -> "Figure":
    """Left: loss over N at the budget, with N_opt's interval. Right: N_opt over budgets."""
    with panels(1, 2, (WIDTH, 3.9)) as (figure, axes):
        left, right = axes[0]
        over, best = data.of("loss at the budget"), data.of("best at the budget")
        near, C = data.of("little loss at the budget"), best["C"][0]
        left.plot(over["N"], over["excess"], color="#175cd3", lw=1.6)
        left.axvspan(near["low"][0], near["high"][0], color="#d0d5dd", zorder=0, lw=0, label="0.1 % more loss")
        if np.isfinite(best["low"][0]):
            left.axvspan(best["low"][0], best["high"][0], color="#175cd3", alpha=0.1, lw=0, label="95 % interval")
        left.axvline(best["N"][0], color=ACCENT, lw=1, label=f"N_opt {short(best['N'][0])}")
        left.set(xlabel="model parameters", ylabel=f"loss above the best at {flops(C)} FLOPs, %", ylim=(0, None))
        log_axes(left, short, None)
        left.legend(fontsize=7, loc="upper center", frameon=True, edgecolor="none")
        curve, within, fitted = data.of("minimised"), data.of("little loss"), data.of("fitted")
        right.plot(curve["C"], curve["N"], color="#175cd3", lw=1.6, label="loss law minimised")
        band(right, curve["C"], curve["low"], curve["high"], "#175cd3")
        for number, edge in enumerate(("low", "high")):
            right.plot(within["C"], within[edge], color=GREY, lw=0.8, label="" if number else "0.1 % more loss")
        for name, style in (("direct", "-."), ("measured", "--"), ("predicted", ":")):
            power = data.of(f"{name} power law")
            if len(power["C"]):
                right.plot(power["C"], power["N"], style, color=LINE, lw=1.3, label=f"{name} power law")
        right.axvspan(fitted["low"][0], fitted["high"][0], color="#eaecf0", zorder=0, label="fitted compute")
        right.axvline(C, color=ACCENT, lw=0.9, label=f"{flops(C)} FLOPs")
        right.set(xlabel="training FLOPs", ylabel="best model parameters")
        log_axes(right, flops, short)
        right.legend(fontsize=7)
        return figure


def predicted_measured(data: Plotted) -> "Figure":
    """Left: measured over predicted losses. Right: their relative error, with intervals."""
    with panels(1, 2, (WIDTH, 4.4)) as (figure, axes):
        left, right = axes[0]
        values, few = [], len(data.table["series"]) < FEW
        for series, marker, colour in (("fitted", "o", "#175cd3"), ("held out", "s", ACCENT)):
            points = data.of(series)
            values += [*points["predicted"], *points["loss"]]
            for shown, fill in ((points["optimum"] > 0, colour), (points["optimum"] <= 0, "none")):
                own = rows(points, shown)
                if not len(own["N"]):
                    continue
                style = {"fmt": marker, "color": colour, "mfc": fill, **(SPARSE if few else DENSE)}
                label = series if fill == colour else f"{series}, best cell"
                # Horizontal: the interval is the prediction's.
                known = np.nan_to_num(np.abs([own["predicted"] - own["low"], own["high"] - own["predicted"]]))
                left.errorbar(own["predicted"], own["loss"], xerr=known, lw=0, label=label, **style)
                ends = [100 * (own["loss"] / own[end] - 1) for end in ("high", "low")]
                bars(right, own["predicted"], own["error"], *ends, **style)
        ends = [min(values), max(values)]
        left.plot(ends, ends, color=GREY, lw=0.9, zorder=0)
        right.axhline(0, color=GREY, lw=0.9, zorder=0)
        left.set(xlabel="predicted loss", ylabel="measured loss")
        right.set(xlabel="predicted loss", ylabel="measured / predicted - 1, %")
        errors = np.concatenate([data.of(name)["error"] for name in ("fitted", "held out")])
        margin = max(2.5 * float(np.abs(errors).max()), 0.1)
        low, high = right.get_ylim()
        right.set_ylim(max(low, -margin), min(high, margin))
        left.set(xlim=(ends[0] * 0.97, ends[1] * 1.03), ylim=(ends[0] * 0.97, ends[1] * 1.03))
        left.legend(fontsize=8, loc="upper left")
        return figure


def residuals(data: Plotted) -> "Figure":
    """Relative errors against N, T and the distance from the best, and their mean by grid."""
    both = [data.of("fitted"), data.of("held out")]
    distances = np.isfinite(np.concatenate([part["excess"] for part in both])).any()
    with panels(2, 2, (WIDTH, 6.4)) as (figure, axes):
        third = ("excess", "loss above the grid's best, %", None)
        if not distances:
            third = ("ratio", "tokens per parameter", short)
        against = (("N", "model parameters", short), ("T", "training tokens", short), third)
        for axis, (name, label, form) in zip(axes.flat, against):
            axis.axhline(0, color=GREY, lw=0.9)
            for points, marker, colour in zip(both, "os", ("#175cd3", ACCENT)):
                x = points["T"] / points["N"] if name == "ratio" else points[name]
                fill = "none" if marker == "s" else colour
                axis.plot(x, points["error"], marker, color=colour, ms=4, alpha=0.7, mew=0.8, mfc=fill)
            axis.set(xlabel=label, ylabel="measured / predicted - 1, %")
            log_axes(axis, form, None)
        axis, grids = axes[1, 1], data.of("grid")
        bound = max(float(np.abs(grids["error"]).max()), 1e-3)
        for held, marker in ((False, "o"), (True, "s")):
            own = rows(grids, (grids["heldout"] > 0) == held)
            marks = axis.scatter(
                own["T"], own["N"], c=own["error"], marker=marker, cmap="RdBu_r", vmin=-bound, vmax=bound, s=70,
                edgecolor=GREY,
            )  # fmt: skip
        if len(grids["N"]) <= ANNOTATED:
            for n, t, e in zip(grids["N"], grids["T"], grids["error"]):
                axis.annotate(f"{e:+.1f}", (t, n), xytext=(7, -3), textcoords="offset points", fontsize=7)
        axis.set(xlabel="training tokens", ylabel="model parameters")
        axis.margins(0.15, 0.2)
        log_axes(axis, short, short)
        figure.colorbar(marks, ax=axis).set_label("mean error of the grid, %")
        return figure
