"""The report's figures. Each function returns a matplotlib Figure; none touches global state or a display."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scaling.laws import Law
from scaling.optimum import Optimum
from scaling.planning import allocation
from scaling.runs import Ledger

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e7ec",
    "axes.edgecolor": "#98a2b3",
    "axes.labelcolor": "#344054",
    "axes.titlesize": 9,
    "xtick.color": "#475467",
    "ytick.color": "#475467",
    "legend.frameon": False,
    "figure.facecolor": "white",
}
ACCENT = "#d92d20"
# Panels of loss surfaces beside one another: more would be too small to read.
ABREAST = 4
# Loss given away, relative, in the range of sizes drawn; the planner's default too.
TOLERANCE = 1e-3


@contextmanager
def _figure(rows: int, columns: int, size: tuple[float, float]) -> Iterator[tuple["Figure", NDArray]]:
    # Imported here: matplotlib takes half a second that the planner must not spend.
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(rows, columns, squeeze=False)


def _colours(sizes: NDArray) -> dict[float, Any]:
    from matplotlib import colormaps

    return {float(N): colormaps["viridis"](x) for N, x in zip(sizes, np.linspace(0.05, 0.85, len(sizes)))}


def short(value: float) -> str:
    """A count in the reader's units: 131k, 1.05M, 2.4B."""
    for limit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def surfaces(ledger: Ledger, optima: tuple[Optimum, ...]) -> "Figure":
    """Loss over (lr, B), one panel per grid: cells, the quadratic's contours, the optimum and its 95 % ellipse.

    Panels stand in a table of N down and T across where every size has the same few T, else one after another.
    """
    sizes, tokens = np.unique([o.N for o in optima]), np.unique([o.T for o in optima])
    table = len(sizes) * len(tokens) == len(optima) and len(tokens) <= ABREAST
    columns = len(tokens) if table else min(ABREAST, len(optima))
    rows = -(-len(optima) // columns)
    by_grid = {(N, T): ledger.rows(at) for N, T, at in ledger.grids()}
    # A dense grid's losses differ by a per cent, a coarse one's by ten: nine tenths of the cells use the whole scale.
    excess = [100 * (c.loss[f] / c.loss[f].min() - 1) for c in by_grid.values() if (f := np.isfinite(c.loss)).any()]
    top = float(np.clip(np.quantile(np.concatenate(excess), 0.9), 0.01, 10)) if excess else 1.0
    with _figure(rows, columns, (2.9 * columns + 1.3, 2.7 * rows + 0.2)) as (figure, axes):
        for axis in axes.flat[len(optima) :]:
            axis.set_visible(False)
        # By rising N, then T, as the table has them.
        for axis, optimum in zip(axes.flat, sorted(optima, key=lambda o: (o.N, o.T))):
            marks = _surface(axis, by_grid[optimum.N, optimum.T], optimum, top)
        bar = figure.colorbar(marks, ax=axes, shrink=min(1.0, 2.4 / rows), aspect=30, extend="max")
        bar.set_label("loss above the grid's best cell, %")
        return figure


def _surface(axis: "Axes", cells: Ledger, optimum: Optimum, top: float) -> "PathCollection":
    finite = np.isfinite(cells.loss)
    excess = 100 * (cells.loss[finite] / cells.loss[finite].min(initial=np.inf) - 1)
    marks = axis.scatter(
        cells.lr[finite],
        cells.B[finite],
        c=excess,
        cmap="viridis_r",
        vmin=0,
        vmax=top,
        s=46,
        zorder=3,
        edgecolor="white",
    )
    axis.scatter(cells.lr[~finite], cells.B[~finite], marker="x", c="#98a2b3", s=30, zorder=3)
    if optimum.run_next:
        axis.scatter(*np.array(optimum.run_next).T, marker="s", facecolor="none", edgecolor=ACCENT, s=40, zorder=3)
    axis.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="batch, tokens")
    axis.margins(0.12)
    _ticks(axis.xaxis, np.unique(cells.lr), "{:.2g}".format, 3)
    _ticks(axis.yaxis, np.unique(cells.B), short, 4)
    limits = axis.get_xlim(), axis.get_ylim()
    grid = f"N {short(optimum.N)}, T {short(optimum.T)}: {optimum.verdict}"
    if optimum.verdict == "floor":
        axis.set_title(f"{grid}\n(one clip, the smallest batch)")
        error = 1.96 * np.sqrt(optimum.covariance[0, 0])
        ends = [optimum.lr * np.exp(-error), optimum.lr * np.exp(error)]
        axis.plot(ends, [optimum.B] * 2, color=ACCENT, lw=1, zorder=4)
    elif optimum.interior:
        axis.set_title(grid)
        _contours(axis, optimum, limits, top)
    else:
        axis.set_title(grid + (f"\n({', '.join(optimum.sides)})" if optimum.sides else ""), color=ACCENT)
    if optimum.usable:
        axis.plot(optimum.lr, optimum.B, "*", color=ACCENT, ms=9, mec="white", mew=0.6, zorder=4)
    # An interval far wider than the grid runs off the panel.
    axis.set(xlim=limits[0], ylim=limits[1])
    return marks


def _contours(axis: "Axes", optimum: Optimum, limits: tuple, top: float) -> None:
    """The quadratic's contours, labelled in per cent above its minimum, and the 95 % ellipse of where that lies."""
    x, y = np.meshgrid(*(np.geomspace(*limit, 60) for limit in limits))
    d = np.stack([np.log(x / optimum.lr), np.log(y / optimum.B)], axis=-1)
    above = 50 / optimum.loss * np.einsum("...i,ij,...j->...", d, optimum.hessian, d)
    levels = float(f"{top:.1g}") * np.array([0.125, 0.25, 0.5, 1, 2])
    lines = axis.contour(x, y, above, levels=levels, colors="#98a2b3", linewidths=0.7)
    axis.clabel(lines, fmt=lambda level: f"{level:.2g}", fontsize=7)
    roots, vectors = np.linalg.eigh(optimum.covariance)
    # 2.448 is the radius of a 95 % ellipse of a bivariate normal.
    turn = np.linspace(0, 2 * np.pi, 100)
    ring = 2.448 * vectors @ (np.sqrt(np.maximum(roots, 0))[:, None] * np.stack([np.cos(turn), np.sin(turn)]))
    axis.plot(optimum.lr * np.exp(ring[0]), optimum.B * np.exp(ring[1]), color=ACCENT, lw=1.2, zorder=5)


def hyperparameters(law: Law, optima: tuple[Optimum, ...], stand_in: bool = False) -> "Figure":
    """B_opt and lr_opt over T, one line per N, with 95 % bands and the grids' optima.

    ``stand_in``: whether best cells entered the laws where there is no optimum.
    """
    sizes = np.unique([o.N for o in optima])
    colours = _colours(sizes)
    with _figure(1, 2, (9.6, 3.9)) as (figure, axes):
        for axis, part, index, label in (
            (axes[0, 0], "batch", 1, "best batch, tokens"),
            (axes[0, 1], "lr", 0, "best rate"),
        ):
            T = np.geomspace(0.7 * min(o.T for o in optima), 3 * max(o.T for o in optima), 60)
            drawn = law.drawn(part)
            for N in sizes:
                axis.plot(T, getattr(law, part)(N, T), color=colours[N], lw=1.3)
                if drawn is not None:
                    low, high = np.quantile([drawn(N, t) for t in T], [0.025, 0.975], axis=1)
                    axis.fill_between(T, low, high, color=colours[N], alpha=0.12, lw=0)
            for o in (o for o in optima if o.cells):
                value = o.B if part == "batch" else o.lr
                if not (o.interior if part == "batch" else o.usable):
                    # At the floor of one clip the best batch lies below: an arrow, not a measurement.
                    axis.plot(o.T, value, "v" if o.usable else "o", mfc="none", color=colours[o.N], ms=6)
                    continue
                error = 1.96 * np.sqrt(o.covariance[index, index])
                bars = [[value * (1 - np.exp(-error))], [value * (np.exp(error) - 1)]]
                axis.errorbar(o.T, value, yerr=bars, fmt="o", color=colours[o.N], ms=5, capsize=2, lw=1)
            axis.set(xscale="log", yscale="log", xlabel="training tokens", ylabel=label)
            _log_ticks(axis.xaxis, short)
            _log_ticks(axis.yaxis, short if part == "batch" else "{:.1e}".format)
        handles = [_line(colours[N], f"N {short(N)}") for N in sizes]
        if any(not o.usable for o in optima):
            what = "the best cell stands in" if stand_in else "not fitted"
            handles.append(_line("#475467", f"no optimum inside: {what}", marker="o", mfc="none", lw=0))
        if any(o.usable and not o.interior for o in optima):
            handles.append(_line("#475467", "one clip, the smallest batch", marker="v", mfc="none", lw=0))
        figure.legend(handles=handles, loc="outside right center")
        return figure


def losses(law: Law, points: list[tuple[float, float, float, bool]], planned: dict[str, Any] | None) -> "Figure":
    """L(T) per N: measured optima (N, T, loss, heldout), the law with its 95 % band, the planned run."""
    sizes = np.unique([p[0] for p in points] + ([planned["N"]] if planned else []))
    colours = _colours(sizes)
    tokens = [p[1] for p in points] + ([m["T"] for m in planned["milestones"]] if planned else [])
    T = np.geomspace(0.7 * min(tokens), 1.6 * max(tokens), 80)
    drawn = law.drawn("loss")
    with _figure(1, 1, (9.6, 4.4)) as (figure, axes):
        axis = axes[0, 0]
        for N in sizes:
            axis.plot(T, law.loss(N, T), color=colours[N], lw=1.3)
            if drawn is not None:
                low, high = np.quantile([drawn(N, t) for t in T], [0.025, 0.975], axis=1)
                axis.fill_between(T, low, high, color=colours[N], alpha=0.12, lw=0)
        for N, tokens_seen, loss, heldout in points:
            axis.plot(
                tokens_seen, loss, "s" if heldout else "o", color=colours[N], ms=5, mfc="none" if heldout else None
            )
        handles = [_line(colours[N], f"N {short(N)}") for N in sizes]
        seen = [p[2] for p in points] + [float(law.loss(N, t)) for N in sizes for t in T[[0, -1]]]
        if planned:
            seen += [m["loss"] for m in planned["milestones"]]
            for m in planned["milestones"]:
                axis.errorbar(m["T"], m["loss"], yerr=1.96 * m["se"], fmt="D", color=ACCENT, ms=6, capsize=3, zorder=5)
            handles.append(_line(ACCENT, f"planned run, N {short(planned['N'])}", marker="D", lw=0))
        # A band that is many times wider than all that was seen would flatten it: it runs off the picture instead.
        margin = np.ptp(seen)
        axis.set(xscale="log", xlabel="training tokens", ylabel="validation loss")
        axis.set_ylim(max(min(seen) - margin, axis.get_ylim()[0]), min(max(seen) + margin, axis.get_ylim()[1]))
        _log_ticks(axis.xaxis, short)
        figure.legend(handles=handles, loc="outside right center")
        return figure


def sizes_for_budget(
    law: Law, cost: allocation.Cost, points: list[tuple[float, float, float, bool]], budget: float
) -> "Figure":
    """Left: isoFLOP curves, the law's with their minima and the sizes that cost little loss, and the measured losses
    (N, T, loss, heldout) between the T of each size. Right: N_opt(C) by estimator, its 95 % band, the same sizes."""
    low, high = law.domain["C"] or (1e17, 1e20)
    furthest = max(10 * high, budget)
    drawn = law.drawn("loss")
    with _figure(1, 2, (9.6, 3.9)) as (figure, axes):
        left, right = axes[0]
        budgets = np.geomspace(low, furthest, 5)
        for C, colour in zip(budgets, _colours(budgets).values()):
            best = float(allocation.optimum(law.loss, C, cost))
            N = best * np.geomspace(1 / 12, 12, 90)
            left.plot(N, law.loss(N, C / cost(N)), color=colour, lw=1.1, label=f"{C:.1e} FLOPs")
            N = np.geomspace(*allocation.within(law.loss, float(C), cost, TOLERANCE), 30)
            left.plot(N, law.loss(N, C / cost(N)), color=colour, lw=3.2, alpha=0.5)
            left.plot(best, law.loss(best, C / cost(np.array(best))), "o", color=colour, ms=5)
            for size, loss, heldout in _at_budget(points, cost, float(C)):
                left.plot(size, loss, "s" if heldout else "o", color=colour, ms=5, mfc="none")
        left.plot([], [], color="#98a2b3", lw=3.2, alpha=0.5, label=f"within {TOLERANCE:.1%} of the best")
        left.plot([], [], "o", color="#98a2b3", mfc="none", ms=5, label="measured, interpolated in T")
        left.set(xscale="log", xlabel="model parameters", ylabel="loss at that budget")
        _log_ticks(left.xaxis, short)
        # Room for the legend above the curves.
        bottom, top = left.get_ylim()
        left.set_ylim(bottom, top + 0.45 * (top - bottom))
        left.legend(fontsize=7, ncols=2, loc="upper center")
        C = np.geomspace(low, furthest, 50)
        right.plot(C, allocation.optimum(law.loss, C, cost), color="#175cd3", lw=1.6, label="loss law minimised")
        if drawn is not None:
            constants = np.stack([drawn.Tc, drawn.aT, drawn.Nc, drawn.aN, drawn.Linf], axis=-1)[:, None]
            band = np.quantile(allocation.minimise(constants, drawn.scale, C, cost), [0.025, 0.975], axis=0)
            right.fill_between(C, *band, color="#175cd3", alpha=0.13, lw=0, label="95 % interval")
        near = np.array([allocation.within(law.loss, float(c), cost, TOLERANCE) for c in C]).T
        for edge in near:
            right.plot(C, edge, color="#98a2b3", lw=0.8)
        right.plot([], [], color="#98a2b3", lw=0.8, label=f"loss within {TOLERANCE:.1%} of the best")
        for name, style in (("measured", "--"), ("predicted", ":")):
            size_law = (law.allocation or {}).get(name)
            if size_law is not None:
                right.plot(C, size_law(C), style, color="#475467", lw=1.3, label=f"{name} power law")
        right.axvspan(low, high, color="#f2f4f7", zorder=0, label="fitted compute")
        right.axvline(budget, color=ACCENT, lw=0.9, label=f"{budget:.1e} FLOPs")
        right.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel="best model parameters")
        _log_ticks(right.yaxis, short)
        right.legend(fontsize=7)
        return figure


def _at_budget(
    points: list[tuple[float, float, float, bool]], cost: allocation.Cost, C: float
) -> Iterator[tuple[float, float, bool]]:
    """(N, loss, heldout) at C FLOPs: each size's losses, interpolated in logs between the T around that budget."""
    for N in sorted({p[0] for p in points}):
        mine = sorted((T, loss, heldout) for n, T, loss, heldout in points if n == N)
        T, losses, heldout = (np.array(v) for v in zip(*mine))
        wanted = C / float(cost(np.array(N)))
        if len(T) > 1 and T[0] <= wanted * (1 + 1e-9) and wanted <= T[-1] * (1 + 1e-9):
            yield N, float(np.exp(np.interp(np.log(wanted), np.log(T), np.log(losses)))), bool(heldout.all())


def residuals(law: Law, points: list[tuple[float, float, float, bool]]) -> "Figure":
    """Measured over predicted loss, in per cent, over (N, T)."""
    N, T, loss, held = (np.array(v, dtype=float) for v in zip(*points))
    error = 100 * (loss / law.loss(N, T) - 1)
    bound = max(float(np.abs(error).max()), 1e-3)
    with _figure(1, 1, (9.6, 3.6)) as (figure, axes):
        axis = axes[0, 0]
        for shape, chosen in (("o", held == 0), ("s", held == 1)):
            marks = axis.scatter(
                T[chosen], N[chosen], c=error[chosen], marker=shape, cmap="RdBu_r", vmin=-bound, vmax=bound, s=240,
                edgecolor="#98a2b3",
            )  # fmt: skip
        for n, t, e in zip(N, T, error):
            axis.annotate(f"{e:+.2g}", (t, n), xytext=(0, 11), textcoords="offset points", ha="center", fontsize=8)
        axis.set(xscale="log", yscale="log", xlabel="training tokens", ylabel="model parameters")
        axis.margins(0.15, 0.25)
        _log_ticks(axis.xaxis, short)
        _log_ticks(axis.yaxis, short)
        figure.colorbar(marks).set_label("measured over predicted loss, %")
        return figure


def _ticks(axis: "Axis", values: NDArray, form: Callable[[float], str], most: int) -> None:
    """At most so many ticks, at values of the grid: the decades of a log axis say nothing about a narrow grid."""
    from matplotlib.ticker import NullLocator

    shown = values[:: max(1, -(-len(values) // most))]
    axis.set_ticks(shown, [form(v) for v in shown])
    axis.set_minor_locator(NullLocator())


def _log_ticks(axis: "Axis", form: Callable[[float], str]) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, labelled by ``form``."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    subs = (1, 2, 5) if decades < 1.7 else (1, 3) if decades < 3 else (1,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))
    axis.set_minor_locator(NullLocator())


def _line(colour: Any, label: str, **style: Any) -> "Line2D":
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, label=label, **style)
