"""The report's figures. Each function returns a matplotlib Figure; none touches global state or a display."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scaling import allocation
from scaling.laws import Law
from scaling.optimum import Optimum
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
    """Loss over (lr, B), one panel per grid: cells, the quadratic's contours, the optimum and its 95 % ellipse."""
    sizes, tokens = np.unique([o.N for o in optima]), np.unique([o.T for o in optima])
    with _figure(len(sizes), len(tokens), (3.1 * len(tokens) + 0.8, 2.7 * len(sizes))) as (figure, axes):
        by_grid = {(N, T): rows for N, T, rows in ledger.grids()}
        for axis in axes.flat:
            axis.set_visible(False)
        for optimum in optima:
            axis = axes[np.searchsorted(sizes, optimum.N), np.searchsorted(tokens, optimum.T)]
            axis.set_visible(True)
            marks = _surface(axis, ledger.rows(by_grid[optimum.N, optimum.T]), optimum)
        bar = figure.colorbar(marks, ax=axes, shrink=0.6, aspect=40)
        bar.set_label("loss above the grid's best cell, %")
        return figure


def _surface(axis: "Axes", cells: Ledger, optimum: Optimum) -> "PathCollection":
    finite = np.isfinite(cells.loss)
    excess = 100 * (cells.loss[finite] / cells.loss[finite].min() - 1)
    marks = axis.scatter(
        cells.lr[finite],
        cells.B[finite],
        c=excess,
        cmap="viridis_r",
        vmin=0,
        vmax=10,
        s=46,
        zorder=3,
        edgecolor="white",
    )
    axis.scatter(cells.lr[~finite], cells.B[~finite], marker="x", c="#98a2b3", s=30, zorder=3, label="diverged")
    axis.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="batch, tokens")
    axis.margins(0.12)
    _ticks(axis.xaxis, np.unique(cells.lr), "{:.2g}".format)
    _ticks(axis.yaxis, np.unique(cells.B), short)
    axis.set_title(f"N {short(optimum.N)}, T {short(optimum.T)}: {optimum.verdict}", color="#101828")
    if optimum.verdict == "edge":
        axis.set_title(f"N {short(optimum.N)}, T {short(optimum.T)}: edge\n({', '.join(optimum.sides)})", color=ACCENT)
    elif optimum.verdict == "floor":
        axis.set_title(f"N {short(optimum.N)}, T {short(optimum.T)}: floor\n(one clip, the smallest batch)")
        error = 1.96 * np.sqrt(optimum.covariance[0, 0])
        ends = [optimum.lr * np.exp(-error), optimum.lr * np.exp(error)]
        axis.plot(ends, [optimum.B] * 2, color=ACCENT, lw=1, zorder=4)
        axis.plot(optimum.lr, optimum.B, "*", color=ACCENT, ms=11, mec="white", zorder=5)
    elif not optimum.interior:
        axis.title.set_color(ACCENT)
    if not optimum.interior:
        return marks
    limits = axis.get_xlim(), axis.get_ylim()
    x, y = np.meshgrid(*(np.geomspace(*limit, 60) for limit in limits))
    d = np.stack([np.log(x / optimum.lr), np.log(y / optimum.B)], axis=-1)
    above = 50 / optimum.loss * np.einsum("...i,ij,...j->...", d, optimum.hessian, d)
    axis.contour(x, y, above, levels=[0.5, 1, 2, 4, 8], colors="#98a2b3", linewidths=0.7)
    roots, vectors = np.linalg.eigh(optimum.covariance)
    # 2.448 is the radius of a 95 % ellipse of a bivariate normal.
    turn = np.linspace(0, 2 * np.pi, 100)
    ring = 2.448 * vectors @ (np.sqrt(np.maximum(roots, 0))[:, None] * np.stack([np.cos(turn), np.sin(turn)]))
    axis.plot(optimum.lr * np.exp(ring[0]), optimum.B * np.exp(ring[1]), color=ACCENT, lw=1, zorder=4)
    axis.plot(optimum.lr, optimum.B, "*", color=ACCENT, ms=11, mec="white", zorder=5)
    axis.set(xlim=limits[0], ylim=limits[1])
    return marks


def hyperparameters(law: Law, optima: tuple[Optimum, ...]) -> "Figure":
    """B_opt and lr_opt over T, one line per N, with 95 % bands and the grids' optima."""
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
            for o in optima:
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
            handles.append(_line("#475467", "no optimum inside: not fitted", marker="o", mfc="none", lw=0))
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


def sizes_for_budget(law: Law, cost: allocation.Cost, C_planned: float | None) -> "Figure":
    """Left: isoFLOP curves of the law with their minima. Right: N_opt(C) by estimator, its 95 % band, and the sizes
    that cost little loss."""
    low, high = law.domain["C"] or (1e17, 1e20)
    furthest = max(10 * high, C_planned or 0)
    drawn = law.drawn("loss")
    with _figure(1, 2, (9.6, 3.9)) as (figure, axes):
        left, right = axes[0]
        budgets = np.geomspace(low, furthest, 5)
        for C, colour in zip(budgets, _colours(budgets).values()):
            best = float(allocation.optimum(law.loss, C, cost))
            N = best * np.geomspace(1 / 12, 12, 90)
            left.plot(N, law.loss(N, C / cost(N)), color=colour, lw=1.3, label=f"{C:.1e} FLOPs")
            left.plot(best, law.loss(best, C / cost(np.array(best))), "o", color=colour, ms=5)
        left.set(xscale="log", xlabel="model parameters", ylabel="loss at that budget, by the law")
        _log_ticks(left.xaxis, short)
        left.legend(fontsize=8)
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
        right.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel="best model parameters")
        _log_ticks(right.yaxis, short)
        right.legend(fontsize=8)
        return figure


def residuals(law: Law, points: list[tuple[float, float, float, bool]]) -> "Figure":
    """Measured over predicted loss, in per cent, over (N, T)."""
    N, T, loss, _ = (np.array(v, dtype=float) for v in zip(*points))
    error = 100 * (loss / law.loss(N, T) - 1)
    bound = max(float(np.abs(error).max()), 1e-3)
    with _figure(1, 1, (9.6, 3.6)) as (figure, axes):
        axis = axes[0, 0]
        marks = axis.scatter(T, N, c=error, cmap="RdBu_r", vmin=-bound, vmax=bound, s=240, edgecolor="#98a2b3")
        for n, t, e in zip(N, T, error):
            axis.annotate(f"{e:+.2g}", (t, n), xytext=(0, 11), textcoords="offset points", ha="center", fontsize=8)
        axis.set(xscale="log", yscale="log", xlabel="training tokens", ylabel="model parameters")
        axis.margins(0.15, 0.25)
        _log_ticks(axis.xaxis, short)
        _log_ticks(axis.yaxis, short)
        figure.colorbar(marks).set_label("measured over predicted loss, %")
        return figure


def _ticks(axis: "Axis", values: NDArray, form: Callable[[float], str]) -> None:
    """At most four ticks, at values of the grid itself: the decades of a log axis say nothing about a narrow grid."""
    from matplotlib.ticker import NullLocator

    shown = values[:: max(1, -(-len(values) // 4))]
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
