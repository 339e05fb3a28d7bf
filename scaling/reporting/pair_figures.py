"""The drawing of the figures of batches and rates, from ``pair_data``'s numbers."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.reporting.plotted import Plotted, Table, rows
from videoscaling.scaling.reporting.style import (
    ACCENT,
    LINE,
    WIDTH,
    band,
    bars,
    colours,
    flops,
    line,
    log_axes,
    panels,
    rate,
    short,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

SMALLEST = 2.5  # points of type: cells of a denser grid have colours only
ABREAST = 4  # heat maps next to one another: more would be too small to read


def heat_maps(data: Plotted) -> "Figure":
    """Losses over (lr, B), sizes down and tokens across where most have the same few T, else one after another."""
    cells = data.of("cell")
    grids = np.unique(np.stack([cells["N"], cells["T"]]), axis=1).T
    sizes, tokens = np.unique(grids[:, 0]), np.unique(grids[:, 1])
    table = len(tokens) <= ABREAST + 1 and len(grids) > len(sizes) * len(tokens) / 2
    columns = len(tokens) if table else min(ABREAST, len(grids))
    count = len(sizes) if table else -(-len(grids) // columns)
    finite = cells["excess"][np.isfinite(cells["excess"])]
    # A dense grid's losses differ by a per cent, a coarse one's by ten: nine tenths of the cells use the whole scale.
    top = float(np.clip(np.quantile(finite, 0.9), 0.01, 10)) if len(finite) else 1.0
    with panels(count, columns, (max(2.3 * columns + 1.0, 4), 2.1 * count + 0.2)) as (figure, axes):
        for axis in axes.flat:
            axis.set_visible(False)
        for number, (N, T) in enumerate(grids):
            place = np.searchsorted(sizes, N) * columns + np.searchsorted(tokens, T) if table else number
            axes.flat[place].set_visible(True)
            own = rows(data.table, (data.table["N"] == N) & (data.table["T"] == T))
            colour = _heat_map(axes.flat[place], Plotted(data.name, "", "", own), top)
        bar = figure.colorbar(colour, ax=axes, shrink=min(1.0, 2.4 / count), aspect=30, extend="max")
        bar.set_label("loss above the grid's best cell, %")
        return figure


def _heat_map(axis: "Axes", data: Plotted, top: float) -> "ScalarMappable":
    """One grid: its distinct rates and batches are columns and rows of equal width, and lines bend with them."""
    cells = data.of("cell")
    levels = [np.unique(cells[name]) for name in ("lr", "B")]
    values = np.full((len(levels[1]), len(levels[0])), np.nan)
    x, y = (np.searchsorted(known, cells[name]) for known, name in zip(levels, ("lr", "B")))
    values[y, x] = np.minimum(cells["excess"], 1e3)
    colour = axis.pcolormesh(values, cmap="viridis_r", vmin=0, vmax=top, edgecolors="white", lw=0.4)
    size = min(6.0, 46 / max(values.shape))
    for i, j, excess in zip(x, y, cells["excess"]) if size >= SMALLEST else ():
        text = "x" if np.isinf(excess) else f"{excess:.1f}" if excess < 9.95 else f"{excess:.0f}"
        tone = "white" if excess > 0.45 * top else "#101828"
        axis.text(i + 0.5, j + 0.5, text, ha="center", va="center", fontsize=size, color=tone, zorder=5).set_in_layout(
            False
        )

    def placed(name: str) -> list[NDArray]:
        """A series in columns and rows."""
        own = data.of(name)
        return [_position(known, own[axis_name]) for known, axis_name in zip(levels, ("lr", "B"))]

    contour = data.of("contour")
    if len(contour["lr"]):
        shape = len(np.unique(contour["B"])), len(np.unique(contour["lr"]))
        excess = contour["excess"].reshape(shape)
        steps = float(f"{top:.1g}") * np.array([0.125, 0.25, 0.5, 1, 2])
        if excess.min() < steps[-1] and excess.max() > steps[0]:
            # Without labels: the cells have numbers, and labels of steep contours overflow the renderer.
            place = (v.reshape(shape) for v in placed("contour"))
            axis.contour(*place, excess, levels=steps, colors=LINE, linewidths=0.6)
    for name in ("ellipse", "ridge"):
        axis.plot(*placed(name), color=ACCENT, lw=1.1, zorder=4)
    axis.plot(*placed("best"), "*", color=ACCENT, ms=9, mec="white", mew=0.6, zorder=7)
    for of, known, form in ((axis.xaxis, levels[0], rate), (axis.yaxis, levels[1], short)):
        shown = np.arange(len(known))[:: max(1, -(-len(known) // (4 if of is axis.xaxis else 8)))]
        of.set_ticks(shown + 0.5, [form(v) for v in known[shown]], fontsize=6.5)
    axis.grid(False)
    axis.set(xlim=(0, len(levels[0])), ylim=(0, len(levels[1])))  # an interval far wider than the grid runs off
    axis.set_xlabel("learning rate", fontsize=7)
    axis.set_ylabel("batch, tokens", fontsize=7)
    verdict = str(cells["verdict"][0])
    title = f"N {short(cells['N'][0])}, T {short(cells['T'][0])}: {verdict}"
    axis.set_title(title, color="#101828" if verdict in ("interior", "floor") else ACCENT, fontsize=7.5)
    return colour


def _position(known: NDArray, values: NDArray) -> NDArray[np.float64]:
    """Where values lie among columns that stand for the ``known`` ones, beyond them too, by their logarithms."""
    if len(known) == 1:
        return 0.5 + np.log(values / known[0]) / np.log(2)
    x, at = np.log(known), np.log(values)
    inside = np.interp(at, x, np.arange(len(known)))
    below = (at - x[0]) / (x[1] - x[0])
    above = len(known) - 1 + (at - x[-1]) / (x[-1] - x[-2])
    return 0.5 + np.where(at < x[0], below, np.where(at > x[-1], above, inside))


def hyperparameters(data: Plotted) -> "Figure":
    """Batch and rate over T (a line for each N) and over N (a line for each T)."""
    with panels(2, 2, (WIDTH, 6.6)) as (figure, axes):
        for row, (name, form) in zip(axes, (("batch", short), ("lr", rate))):
            for axis, along, other, label in zip(row, "TN", "NT", ("training tokens", "model parameters")):
                _laws(axis, data, name, along, other)
                axis.set(xlabel=label, ylabel={"batch": "batch, tokens", "lr": "learning rate"}[name])
                log_axes(axis, short, form)
        for axis, other in zip(axes[0], "NT"):
            shades = colours(_of_grids(data, "batch")[other])
            handles = [line(shades[v], f"{other} {short(v)}", marker="o", ms=4) for v in shades]
            axis.legend(handles=handles, fontsize=7, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        return figure


def _of_grids(data: Plotted, name: str) -> Table:
    series = data.table["series"]
    return rows(data.table, np.isin(series, [f"{kind} {name}" for kind in ("grid", "one clip", "no optimum")]))


def _laws(axis: "Axes", data: Plotted, name: str, along: str, other: str) -> None:
    grids, law = _of_grids(data, name), data.of(name)
    shades = colours(grids[other])
    law = rows(law, law["along"] == along)
    published = data.of(f"published {name}")
    published = rows(published, published["along"] == along)
    for value, colour in shades.items():
        own, reference = rows(law, np.isclose(law[other], value)), rows(published, np.isclose(published[other], value))
        axis.plot(own[along], own["value"], color=colour, lw=1.3)
        band(axis, own[along], own["low"], own["high"], colour)
        axis.plot(reference[along], reference["value"], "--", color=colour, lw=0.9)
    for kind, marker, fill in (("grid", "o", None), ("one clip", "v", "none"), ("no optimum", "o", "none")):
        marks = data.of(f"{kind} {name}")
        for value, colour in shades.items():
            own = rows(marks, marks[other] == value)
            bars(axis, own[along], own["value"], own["low"], own["high"], fmt=marker, color=colour, mfc=fill, ms=5)
    values = [*grids["value"], *law["value"], *published["value"]]
    axis.set_ylim(min(values) / 1.6, max(values) * 1.6)


def fixed_pair(data: Plotted) -> "Figure":
    """Left: the pair's price by grid. Right: N_opt by the optimal and the fixed pair."""
    optimal, fixed = data.of("optimal pair"), data.of("fixed pair")
    with panels(1, 2 if len(fixed["C"]) else 1, (WIDTH if len(fixed["C"]) else 0.6 * WIDTH, 3.9)) as (figure, axes):
        axis, shades = axes[0, 0], colours(data.of("price")["N"])
        for number, (N, own) in enumerate(data.groups("price", "N")):
            apart = 1 + 0.03 * (number - len(shades) / 2)  # intervals at one T stand side by side
            axis.plot(own["T"] * apart, own["price"], color=shades[N], lw=0.8)
            bars(axis, own["T"] * apart, own["price"], own["low"], own["high"], fmt="o", color=shades[N], ms=5)
        axis.set(xlabel="training tokens", ylabel="loss above the optimum, %")
        log_axes(axis, short, None)
        axis.legend(handles=[line(shades[N], f"N {short(N)}", marker="o", ms=4) for N in shades], fontsize=7)
        if len(fixed["C"]):
            right = axes[0, 1]
            right.plot(optimal["C"], optimal["N"], color="#175cd3", lw=1.6, label="optimal pair")
            right.plot(fixed["C"], fixed["N"], color=ACCENT, lw=1.6, label="fixed pair")
            right.set(xlabel="training FLOPs", ylabel="best model parameters")
            log_axes(right, flops, short)
            right.legend(fontsize=8)
        return figure
