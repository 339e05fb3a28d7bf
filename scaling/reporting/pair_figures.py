"""Figures of batches and rates: heat maps, laws of the best pair, the price of a fixed pair."""

import math
from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.checks.fixed_pair import compare, with_surface
from videoscaling.scaling.checks.heldout import relative_error
from videoscaling.scaling.checks.noise_scale import noise_scales
from videoscaling.scaling.checks.pair_prices import prices
from videoscaling.scaling.fitting.grids.optimum import Optimum, cell_means
from videoscaling.scaling.fitting.unsupported import UnsupportedFit
from videoscaling.scaling.laws import EDGE, TOLERANCE
from videoscaling.scaling.prediction import predict
from videoscaling.scaling.reporting.chart import Chart, Table
from videoscaling.scaling.reporting.sources import (
    Sources,
    batch,
    has_rates,
    rate,
    rate_formula,
)
from videoscaling.scaling.reporting.style import (
    ACCENT,
    BLUE,
    LINE,
    WIDTH,
    band,
    bars,
    colours,
    flops,
    legend_above,
    limits,
    line,
    log_axes,
    rate_text,
    short,
)
from videoscaling.scaling.runs import RunTable
from videoscaling.utils.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

CURVE = 60  # points of a curve
RASTER = 24  # points along each axis of a contour
SMALLEST = 2.5  # points of type: cells of a denser grid have colours only
ABREAST = 4  # heat maps next to one another: more would be too small to read
RADIUS = 2.448  # of a 95 % ellipse of a bivariate normal
REACH = 0.5  # of an interval shown, in spans of what it is of
VERDICTS = {  # of a grid without an optimum inside, for captions
    "floor": "the best batch is one clip, the smallest there is",
    "edge": "the best cell is at the grid's edge",
    "flat": "the cells place no optimum",
    "saddle": "the cells bend to no minimum",
    "misfit": "a quadratic does not follow the cells",
}


def heat_maps(sources: Sources) -> Chart:
    """Losses over (lr, B) for each (N, T), as per cent above the grid's best, with contours and the best rate.

    Sizes go down and tokens across where most sizes have the same few T; else grids follow one after another.
    """
    # One cell is no map.
    grids = [sources.grids.rows(own) for _, _, own in sources.grids.grids()] if sources.optima else []
    shown = [(o, grid, _cells(grid)) for o, grid in zip(sources.optima, grids)]
    shown = [one for one in shown if len(one[2][0]) > 1]
    if not shown:
        raise UserError("the rows have no grids over (lr, B)")
    optima = [optimum for optimum, _, _ in shown]
    asked = [sources.milestone(o.N, o.T) for o in optima]
    sizes, tokens = np.unique([o.N for o in optima]), np.unique(asked)
    aligned = len(tokens) <= ABREAST + 1 and len(optima) > len(sizes) * len(tokens) / 2
    columns = len(tokens) if aligned else min(ABREAST, len(optima))
    count = len(sizes) if aligned else -(-len(optima) // columns)
    size = max(2.3 * columns + 1.0, 4), 2.0 * count + 0.4
    chart = Chart("heat_maps", "Loss over rate and batch", rows=count, columns=columns, size=size)
    finite = np.concatenate([excess[np.isfinite(excess)] for _, _, (*_, excess) in shown])
    # A dense grid's losses differ by a per cent, a coarse one's by ten: nine tenths of the cells use the whole scale.
    top = float(np.clip(np.quantile(finite, 0.9), 0.01, 10)) if len(finite) else 1.0
    for axis in chart.axes.flat:
        axis.set_visible(False)
    lines = _of_surface if sources.law.surface is not None else _of_quadratic
    for number, ((optimum, grid, own), T) in enumerate(zip(shown, asked)):
        place = np.searchsorted(sizes, optimum.N) * columns + np.searchsorted(tokens, T) if aligned else number
        axis = chart.axes.flat[place]
        axis.set_visible(True)
        at = {"N": optimum.N, "T": optimum.T}
        lr, B, loss, excess = own
        chart.add("cell", **at, lr=lr, B=B, loss=loss, excess=excess, verdict=optimum.verdict)
        drawn = lines(sources, optimum, grid)
        star = next((np.ravel([lr, B]) for name, lr, B, _ in drawn if name == "best"), None)
        colour, size = _heat_map(axis, own, top, star)
        axis.set_title(
            f"N {short(optimum.N)}, T {short(T)}: {optimum.verdict}",
            color="#101828" if optimum.usable else ACCENT,
            fontsize=9,
        )
        for name, lr, B, excess in drawn:
            chart.add(name, **at, lr=lr, B=B, **({} if excess is None else {"excess": excess}))
            if name == "best":
                axis.plot(lr, B, "*", color=ACCENT, ms=np.clip(1.2 * size, 7, 9), mec="white", mew=0.5, zorder=7)
            elif excess is None:
                axis.plot(lr, B, color=ACCENT, lw=1.1, zorder=4)
            else:
                # Without labels: the cells have numbers, and labels of steep contours overflow the renderer.
                levels = float(f"{top:.1g}") * np.array([0.125, 0.25, 0.5, 1, 2])
                if excess.min() < levels[-1] and excess.max() > levels[0]:
                    axis.contour(lr, B, excess, levels=levels, colors=LINE, linewidths=0.6)
    bar = chart.figure.colorbar(colour, ax=chart.axes, shrink=min(1.0, 2.4 / count), aspect=30, extend="max")
    bar.set_label("loss above the grid's best cell, %")
    chart.figure.supxlabel("learning rate", fontsize=10, color="#344054")
    chart.figure.supylabel("batch, tokens", fontsize=10, color="#344054")
    text = "Numbers are per cent above the grid's best cell"
    text += "; x: all its runs diverged. " if np.isinf(chart.of("cell")["excess"]).any() else ". "
    if not all(o.usable for o in optima):
        text += "A grid with a red title has no optimum inside. "
    verdicts = dict.fromkeys(o.verdict for o in optima)
    if said := [f"{name}: {VERDICTS[name]}" for name in verdicts if name in VERDICTS]:
        text += f"In titles, {'; '.join(said)}. "
    if sources.law.surface is None:
        text += "Contours and the star are of the quadratic through the grid's own cells, with its 95 % ellipse."
        return sources.captioned(chart, text, "ln L quadratic in ln lr and ln B near the best cell")
    text += (
        "Contours are of the surface; the line is its best rate at each batch, and the star the largest batch within "
        f"{TOLERANCE:.1%} of the best. Both are of all runs, and may lie off a grid's own lowest cell."
    )
    return sources.captioned(chart, text, rate_formula(sources.law))


def _cells(grid: RunTable) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """lr, B, mean loss and per cent above the best of each cell of a grid; inf where all its runs diverged."""
    _, first = np.unique(np.log(np.stack([grid.lr, grid.B])).round(6), axis=1, return_index=True)
    loss = cell_means(grid.lr, grid.B, grid.loss)[first]
    best = np.min(loss, where=np.isfinite(loss), initial=np.inf)
    excess = np.where(np.isfinite(loss), 100 * relative_error(loss, min(best, 1e9)), np.inf)
    return grid.lr[first], grid.B[first], loss, excess


def _heat_map(
    axis: "Axes", cells: tuple[NDArray, ...], top: float, star: NDArray | None
) -> tuple["ScalarMappable", float]:
    """One grid, its distinct rates and batches at equal distances, and the size of its numbers in points.

    Args:
        cells: as of ``_cells``.
        star: (lr, B) of a mark that no number may cover, or None.
    """
    from matplotlib.patheffects import withStroke

    lr, B, _, excess = cells
    levels = [np.unique(lr), np.unique(B)]
    values = np.full((len(levels[1]), len(levels[0])), np.nan)
    values[np.searchsorted(levels[1], B), np.searchsorted(levels[0], lr)] = np.minimum(excess, 1e3)
    scales = [_equal_widths(known) for known in levels]
    edges = [inverse(np.arange(len(known) + 1) - 0.5) for (_, inverse), known in zip(scales, levels)]
    axis.set(xlim=edges[0][[0, -1]], ylim=edges[1][[0, -1]], autoscale_on=False)
    axis.set_xscale("function", functions=scales[0])
    axis.set_yscale("function", functions=scales[1])
    colour = axis.pcolormesh(*edges, values, cmap="viridis_r", vmin=0, vmax=top, edgecolors="white", lw=0.4)
    size = min(8.0, 64 / max(values.shape))
    places = np.stack([scale(v) for (scale, _), v in zip(scales, (lr, B))], axis=1)
    off = np.full_like(places, np.inf) if star is None else [s(v) for (s, _), v in zip(scales, star)] - places
    for (x, y), (dx, dy), percent in zip(places, off, excess) if size >= SMALLEST else ():
        text = "x" if np.isinf(percent) else f"{percent:.1f}" if percent < 9.95 else f"{percent:.0f}"
        tone = "white" if percent > 0.45 * top else "#101828"
        if max(abs(dx), abs(dy)) < 0.6:  # the star is here: the number goes to the cell's other half
            y -= math.copysign(0.3, dy)
        at = scales[0][1](x), scales[1][1](y)
        label = axis.text(*at, text, ha="center", va="center", fontsize=size, color=tone, zorder=5)
        # Lines pass behind it.
        label.set_path_effects([withStroke(linewidth=size / 4, foreground=colour.to_rgba(min(percent, 1e3)))])
        label.set_in_layout(False)
    for of, known, form, most in ((axis.xaxis, levels[0], rate_text, 4), (axis.yaxis, levels[1], short, 8)):
        shown = known[:: -(-len(known) // most)]
        of.set_ticks(shown, [form(v) for v in shown], fontsize=8)
        of.set_ticks([], minor=True)
    axis.grid(False)
    return colour, size


def _equal_widths(known: NDArray) -> tuple[Callable, Callable]:
    """The functions of an axis, to and fro, on which rising values stand at equal distances, others by logarithms."""
    logs = np.log(known)
    gaps = np.diff(logs) if len(logs) > 1 else np.log([2.0])
    far, count = 9, len(logs)  # an interval far wider than the grid runs off
    logs = np.concatenate([[logs[0] - far * gaps[0]], logs, [logs[-1] + far * gaps[-1]]])
    places = np.array([-far, *range(count), count - 1 + far])
    return lambda v: np.interp(np.log(np.maximum(v, 1e-99)), logs, places), lambda place: np.exp(
        np.interp(place, places, logs)
    )


def _raster(grid: RunTable) -> tuple[NDArray, NDArray]:
    """Rates and batches [RASTER, RASTER] a little beyond a grid's."""
    margins = [max((v.max() / v.min()) ** 0.12, 1.1) for v in (grid.lr, grid.B)]
    return np.meshgrid(*(np.geomspace(v.min() / m, v.max() * m, RASTER) for v, m in zip((grid.lr, grid.B), margins)))


def _of_surface(sources: Sources, optimum: Optimum, grid: RunTable) -> list[tuple]:
    """(Name, lr, B, per cent above the best or None) of a surface's contours, its best rate and a plan's pair."""
    law, (lr, B), found = sources.law, _raster(grid), []
    if not has_rates(law):
        return []
    if law.surface.members:
        loss = predict(law, optimum.N, optimum.T, B, lr).predicted.reshape(lr.shape)
        lowest = predict(law, optimum.N, optimum.T).predicted
        found.append(("contour", lr, B, 100 * relative_error(loss, lowest)))
    found.append(("ridge", law.surface.lr_opt(B[:, 0], optimum.T, optimum.N).value, B[:, 0], None))
    best_B, best_lr = law.surface.best(np.array([optimum.N]), np.array([optimum.T]), TOLERANCE)
    return [*found, ("best", best_lr, best_B, None)]


def _of_quadratic(sources: Sources, optimum: Optimum, grid: RunTable) -> list[tuple]:
    """(Name, lr, B, per cent above the best or None) of a grid's quadratic, its ellipse and its minimum."""
    if not optimum.usable:
        return []
    best = ("best", optimum.lr, optimum.B, None)
    if not optimum.interior or len(optimum.axes) < 2:
        return [best]
    lr, B = _raster(grid)
    distance = np.stack([np.log(lr / optimum.lr), np.log(B / optimum.B)], axis=-1)
    excess = 50 / optimum.loss * np.einsum("...i,ij,...j->...", distance, optimum.hessian, distance)
    roots, vectors = np.linalg.eigh(optimum.covariance)
    turn = np.linspace(0, 2 * np.pi, CURVE)
    ring = RADIUS * vectors @ (np.sqrt(np.maximum(roots, 0))[:, None] * np.stack([np.cos(turn), np.sin(turn)]))
    ellipse = ("ellipse", optimum.lr * np.exp(ring[0]), optimum.B * np.exp(ring[1]), None)
    return [("contour", lr, B, excess), ellipse, best]


def hyperparameters(sources: Sources) -> Chart:
    """Best batch (or the batch's edge) and best rate over T and over N, the grids' optima, and a published law."""
    law, optima, published = sources.law, sources.optima, sources.published
    if not optima:
        raise UserError("the rows have no grids over (lr, B)")
    if not has_rates(law):
        raise UserError("the law has no best batch or no best rate")
    laws = [("", law)]
    if published is not None and published.name != law.name:
        laws.append(("published ", published))
    grids = {(o.N, o.T): sources.milestone(o.N, o.T) for o in optima if o.cells}
    sizes, tokens = np.unique([N for N, _ in grids]), np.unique(list(grids.values()))
    chart = Chart("hyperparameters", "Best batch and rate", rows=2, columns=2, size=(WIDTH, 6.6))
    if law.surface is not None:
        chart.title = "Largest good batch, and best rate"
    scales = [found for found in noise_scales(sources.runs) if found[:2] in grids]
    clip, cut, below = float(sources.runs.n_ctx.max()), False, False
    reads = (("batch", batch, short, "batch, tokens"), ("lr", rate, rate_text, "learning rate"))
    for (name, read, form, label), row in zip(reads, chart.axes):
        marks = [_mark(chart, o, name) for o in optima if o.cells]
        if name == "batch":
            marks += [_noise_mark(chart, *found) for found in scales]
        seen, ends = (
            [points[name] for _, points in marks for name in names] for names in (("value",), ("low", "high"))
        )
        for axis, along, fixed, span in zip(row, "TN", (sizes, tokens), (tokens, sizes)):
            other, shades = "N" if along == "T" else "T", colours(fixed)
            x = np.geomspace(0.7 * span.min(), 3 * span.max(), CURVE // 3)
            for (prefix, of), value in product(laws, fixed):
                at = {along: x, other: np.full(len(x), value)}
                found = read(of, at["N"], at["T"])
                at |= {"value": found.value, "low": found.low, "high": found.high}
                curve = chart.add(f"{prefix}{name}", along=along, **at)
                # No run has a batch of less than a clip.
                drawn = curve["value"] >= (clip if prefix and name == "batch" else 0)
                below |= not drawn.all()
                style = {"color": shades[value], "lw": 0.9 if prefix else 1.3}
                axis.plot(x[drawn], curve["value"][drawn], "--" if prefix else "-", **style)
                seen.append(curve["value"][drawn])
                if not prefix:
                    band(axis, x, curve["low"], curve["high"], shades[value])
                    ends += [curve["low"], curve["high"]]
            for marker, points in marks:
                key = points["N"][0] if other == "N" else grids[points["N"][0], points["T"][0]]
                bars(axis, points, along, "value", color=shades[key], ms=5, **marker)
            axis.set(xlabel={"T": "training tokens", "N": "model parameters"}[along], ylabel=label)
        *around, outside = limits(np.concatenate(seen), np.concatenate(ends), REACH, log=True)
        cut |= outside
        for axis in row:
            axis.set_ylim(around)
            log_axes(axis, short, form)
    for axis, other, fixed in zip(chart.axes[0], "NT", (sizes, tokens)):
        legend_above(axis, [line(c, f"{other} {short(v)}", marker="o", ms=4) for v, c in colours(fixed).items()])
    text = "Lines are the law with its 95 % band, marks the grids' own optima with theirs."
    if law.surface is not None:
        text += (
            f" The batch is that beyond which the loss is {EDGE:.0%} above the best, the rate that at the largest "
            f"batch within {TOLERANCE:.1%} of it; marks are quadratics of single grids."
        )
    if any(o.usable and not o.interior for o in optima):
        text += f" Hollow triangles: {VERDICTS['floor']}."
    if any(not o.usable for o in optima):
        text += " Hollow circles are best cells, no optima"
        text += ", and were fitted all the same." if "rates" in sources.stand_in else ", and enter no law of grids."
    if len(laws) > 1:
        text += f" Dashed: {published.name}"
        text += f", whose batches below one clip, {clip:.0f} tokens, are left out." if below else "."
    if scales:
        text += " Crosses are the noise scale of the gradient in the runs near their grid's best loss."
    if cut:
        text += " Wider bands and bars are cut at the axes."
    return sources.captioned(chart, text, rate_formula(law))


def _mark(chart: Chart, o: Optimum, name: str) -> tuple[dict[str, str], Table]:
    """The marker of a grid's own best batch or rate, and the recorded point with its interval."""
    index, value, known = (1, o.B, o.interior) if name == "batch" else (0, o.lr, o.usable)
    half = 1.96 * math.sqrt(o.covariance[index, index]) if known else math.nan
    kind = "grid" if known else "one clip" if o.usable else "no optimum"
    marker = {"grid": {"fmt": "o"}, "one clip": {"fmt": "v", "mfc": "none"}, "no optimum": {"fmt": "o", "mfc": "none"}}
    low, high = value * np.exp([-half, half])
    return marker[kind], chart.add(f"{kind} {name}", N=o.N, T=o.T, value=value, low=low, high=high)


def _noise_mark(chart: Chart, N: float, T: float, tokens: float) -> tuple[dict[str, str], Table]:
    """The marker of a grid's gradient noise scale, and the recorded point."""
    return {"fmt": "x"}, chart.add("noise scale", N=N, T=T, value=tokens, low=math.nan, high=math.nan)


def fixed_pair(sources: Sources) -> Chart:
    """Left: what one (lr, B) for all costs at each (N, T). Right: N_opt by the optimal and by the fixed pair."""
    (lr, B), found = prices(sources.runs)
    known = np.array([(row["N"], row["T"], *row["price"].values()) for row in found if row["price"]], dtype=float)
    if not len(known):
        raise UserError("the pair lies outside every grid's cells near its best")
    text = f"Rate {lr:.3g}, batch {B:.4g}: loss over that of each grid's optimum, 95 % intervals."
    try:
        c = compare(with_surface(sources.law, sources.runs, sources.cost), sources.cost, (lr, B))
        text += (
            f" Right: N_opt by the surface along both; at {flops(c.C)} FLOPs the fixed one asks for {c.ratio[0]:.3g} "
            f"times the size [{c.ratio[1]:.3g}, {c.ratio[2]:.3g}]."
        )
    except (UnsupportedFit, UserError) as reason:
        c = None
        text += f" Its N_opt is left out: {str(reason).splitlines()[0]}."
    columns = 2 if c else 1
    chart = Chart("fixed_pair", "One pair for all", columns=columns, size=(WIDTH if c else 0.6 * WIDTH, 3.9))
    axis, shades = chart.axes[0, 0], colours(known[:, 0])
    for number, N in enumerate(shades):
        T, price, low, high = known[known[:, 0] == N, 1:].T * [[1], [100], [100], [100]]
        own = chart.add("price", N=N, T=T, price=price, low=low, high=high)
        # Intervals at one T stand side by side.
        own = own | {"T": T * (1 + 0.03 * (number - len(shades) / 2))}
        axis.plot(own["T"], price, color=shades[N], lw=0.8)
        bars(axis, own, "T", "price", fmt="o", color=shades[N], ms=5)
    axis.set(xlabel="training tokens", ylabel="loss above the optimum, %")
    log_axes(axis, short, None)
    legend_above(axis, [line(shades[N], f"N {short(N)}", marker="o", ms=4) for N in shades])
    if c:
        right, C = chart.axes[0, 1], c.C * np.geomspace(0.1, 1, CURVE)
        # Where both are one line, both are seen.
        for name, N, exponent, style in (
            ("optimal pair", c.N_opt, c.exponent, {"color": BLUE, "lw": 2.4}),
            ("fixed pair", c.N_fixed, c.exponent_fixed, {"color": ACCENT, "lw": 1.4, "ls": "--"}),
        ):
            own = chart.add(name, C=C, N=N * (C / c.C) ** exponent)
            right.plot(C, own["N"], label=name, **style)
        right.set(xlabel="training FLOPs", ylabel="best model parameters")
        log_axes(right, flops, short)
        legend_above(right)
    return sources.captioned(chart, text, "Price = loss at the pair / loss at the optimum - 1")
