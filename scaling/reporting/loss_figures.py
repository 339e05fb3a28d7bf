"""Figures of losses and sizes: over training FLOPs and tokens, at equal FLOPs, and the best size for a budget."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.scaling.fitting.isoflop import interpolated, minimum
from videoscaling.scaling.laws import TOLERANCE
from videoscaling.scaling.planning import allocation
from videoscaling.scaling.reporting.chart import Chart, groups, rows
from videoscaling.scaling.reporting.sources import Sources
from videoscaling.scaling.reporting.style import (
    ACCENT,
    BLUE,
    GREY,
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
    short,
)
from videoscaling.utils.errors import UserError, plural

CURVE = 60  # points of a curve
BUDGETS = 6  # isoFLOP curves drawn
MOST = 0.97  # of the losses that a figure shows: the rest went wrong
REACH = 0.5  # of a band shown, in spans of the losses
UNBOUNDED = 1e3  # a range of sizes without an end is drawn to so many times the best size


def loss_over_flops(sources: Sources) -> Chart:
    """All losses over training FLOPs, the lowest at each budget so far, and the law's best at each budget."""
    chart = Chart("loss_over_flops", "Loss over training FLOPs", size=(WIDTH, 4.4))
    axis, runs = chart.axes[0, 0], chart.add("run", **sources.milestones())
    shades = colours(runs["N"])
    for N, own in groups(runs, "N"):
        held = own["heldout"]
        axis.plot(own["C"][~held], own["loss"][~held], "o", color=shades[N], ms=3, alpha=0.55, mew=0)
        axis.plot(own["C"][held], own["loss"][held], "s", color=shades[N], ms=4, mfc="none")
    ordered = rows(runs, np.lexsort((runs["loss"], runs["C"])))
    lower = np.append(True, np.diff(np.minimum.accumulate(ordered["loss"])) < 0)
    frontier = chart.add("frontier", **{name: ordered[name][lower] for name in ("N", "C", "loss")})
    axis.step(frontier["C"], frontier["loss"], where="post", color="black", lw=1.1)
    handles = [line(shades[N], f"N {short(N)}", marker="o", lw=0, ms=4) for N in shades]
    handles += [line("black", "lowest loss so far"), *_held_out_handle(runs["heldout"])]
    held_out = ", squares held out" if runs["heldout"].any() else ""
    text = f"Dots are losses of runs at their milestones{held_out}; the steps are the lowest loss so far."
    good, bands = frontier["loss"], []
    try:
        C = np.geomspace(runs["C"].min(), 10 * runs["C"].max(), CURVE)
        N = allocation.optimum(sources.law.response.losses, C, sources.cost)
        law = chart.add("law", **sources.curve(N, C / sources.cost(N)), C=C)
        axis.plot(C, law["loss"], color=ACCENT, lw=1.3)
        band(axis, C, law["low"], law["high"], ACCENT)
        handles.append(line(ACCENT, "law at its best size"))
        good, bands = np.append(good, law["loss"]), [law["low"], law["high"]]
        text += " The line is the law's loss at its best size, with a 95 % band."
    except UserError as reason:
        text += f" The law's frontier is left out: {reason}."
    text += _loss_axis(chart, "training FLOPs", flops, handles, good=good, bands=bands, other=runs["loss"])
    return sources.captioned(chart, text)


def training_curves(sources: Sources) -> Chart:
    """Validation losses over tokens, run by run, and the law's at the best batch and rate; a planned run."""
    chart = Chart("training_curves", "Loss over tokens", size=(WIDTH, 4.4))
    axis, runs = chart.axes[0, 0], chart.add("run", **sources.milestones())
    planned = sources.planned
    sizes, tokens = np.unique(runs["N"]), runs["T"]
    if planned:
        sizes, tokens = np.unique([*sizes, planned.N]), np.append(tokens, [m.T for m in planned.milestones])
    shades = colours(sizes)
    for _, own in groups(runs, "run"):
        order = np.argsort(own["T"])
        axis.plot(
            own["T"][order],
            own["loss"][order],
            "--" if own["heldout"][0] else "-",
            color=shades[own["N"][0]],
            lw=0.5,
            alpha=0.4,
            marker="." if len(order) == 1 else "",
            ms=3,
        )
    text, good, bands = "Thin lines are runs at their milestones", [runs["loss"].min()], []
    if runs["heldout"].any():
        text += " (dashed: held out)"
    if sources.optima:
        for N, own in groups(chart.add("optimum", **sources.points()), "N"):
            for held, style in ((False, {"fmt": "o"}), (True, {"fmt": "s", "mfc": "white", "zorder": 4})):
                at = own["heldout"] == held
                axis.errorbar(own["T"][at], own["loss"][at], color=shades[N], ms=5, lw=0, **style)
        text += ", marks the grids' optima" + " (squares held out)" * bool(runs["heldout"].any())
    handles = [line(shades[N], f"N {short(N)}") for N in shades] + _held_out_handle(runs["heldout"])
    try:
        T = np.geomspace(0.7 * tokens.min(), 1.6 * tokens.max(), CURVE // 2)
        for N in sizes:
            law = chart.add("law", **sources.curve(N, T))
            axis.plot(T, law["loss"], color=shades[N], lw=1.6)
            band(axis, T, law["low"], law["high"], shades[N])
            good += [*law["loss"]]
            bands += [law["low"], law["high"]]
        text += ". Thick lines are the law at the best batch and rate, with its 95 % band."
    except UserError as reason:
        text += f". The law's curves are left out: {reason}."
    if planned:
        T, loss, se = np.array([(m.T, m.loss, m.se) for m in planned.milestones]).T
        own = chart.add("planned run", N=planned.N, T=T, loss=loss, low=loss - 1.96 * se, high=loss + 1.96 * se)
        bars(axis, own, "T", "loss", fmt="D", color=ACCENT, ms=6)
        handles.append(line(ACCENT, f"planned run, N {short(planned.N)}", marker="D", lw=0))
        good += [*loss]
        bands += [own["low"], own["high"]]
    text += _loss_axis(chart, "training tokens", short, handles, good=good, bands=bands, other=runs["loss"])
    return sources.captioned(chart, text)


def isoflop(sources: Sources) -> Chart:
    """Measured losses over N at equal FLOPs, with parabolas' minima and the law's curves."""
    points = sources.points(every=True)
    curves = interpolated(points["N"], sources.flops(points["N"], points["T"]), points["loss"])
    if not curves:
        raise UserError("no budget is shared by three sizes")
    chart = Chart("isoflop", "isoFLOP curves", size=(WIDTH, 4.2))
    axis, good, curves_of_law = chart.axes[0, 0], [], []
    chosen = [curves[i] for i in np.unique(np.linspace(0, len(curves) - 1, BUDGETS).round().astype(int))]
    shades = colours(curve.C for curve in chosen)
    handles = [line(shades[C], f"{flops(C)} FLOPs", marker="o", ms=4) for C in shades]
    for curve in chosen:
        measured = chart.add("measured", C=curve.C, N=curve.N, loss=curve.loss)
        axis.plot(curve.N, curve.loss, "o", color=shades[curve.C], ms=5, zorder=3)
        good += [*measured["loss"]]
        found = minimum(curve)
        if found.inside:
            half = 1.96 * math.sqrt(found.sensitivity) * found.scatter if found.dof else math.nan
            low, high = found.N_opt * np.exp([-half, half])
            # For its place on the picture: the parabola of all the budget's points.
            loss = np.exp(np.polyval(np.polyfit(*np.log([curve.N, curve.loss]), 2), math.log(found.N_opt)))
            best = chart.add("minimum", C=curve.C, N=found.N_opt, loss=loss, low=low, high=high)
            bars(axis, best, "N", "loss", of="x", fmt="X", color=shades[curve.C], ms=8, mec="white", zorder=4)
            good.append(loss)
    if chart.of("minimum"):
        handles.append(line(LINE, "parabola's minimum", marker="X", lw=0))
    text = "Points are losses at equal training FLOPs, between each size's milestones; crosses, parabolas' minima"
    known = chart.of("minimum") and np.isfinite(chart.of("minimum")["low"]).any()
    text += ", with 95 % intervals." if known else "."
    try:
        for curve in chosen:
            N = np.geomspace(curve.N.min() / 1.5, curve.N.max() * 1.5, CURVE // 2)
            law = chart.add("law", **sources.curve(N, curve.C / sources.cost(N)), C=curve.C)
            axis.plot(N, law["loss"], color=shades[curve.C], lw=1.2)
            curves_of_law.append(law["loss"])
        text += " Lines are the law."
    except UserError as reason:
        text += f" The law's curves are left out: {reason}."
    text += _loss_axis(chart, "model parameters", short, handles, good=good, bands=curves_of_law)
    return sources.captioned(chart, text)


def size_interval(sources: Sources) -> Chart:
    """Left: loss over N at a budget, N_opt with its interval, and sizes that cost little loss. Right: over budgets."""
    law, losses, cost = sources.law, sources.law.response.losses, sources.cost
    span = law.domain["C"] or (1e17, 1e19)
    budget = (sources.planned and sources.planned.milestones[-1].flops) or 10 * span[1]

    def best_at(C: float) -> tuple[float, ...]:
        """N_opt with its interval, and the sizes within TOLERANCE of its loss; nan where an end is no bound."""
        found = allocation.minimised(losses, C, cost)
        ends = (float(end) if 0 < end < np.inf else math.nan for end in (found.low, found.high))
        near = allocation.within(losses, C, cost, TOLERANCE)
        return (float(found.value), *ends, *(math.nan if end is None else end for end in near))

    at, low, high, *near = best_at(budget)
    chart = Chart("size_interval", "Model size for a budget", columns=2, size=(WIDTH, 3.9))
    left, right = chart.axes[0]
    unbounded = np.isnan(near)
    N = np.geomspace(*np.where(unbounded, [at / UNBOUNDED, at * UNBOUNDED], near) * [1 / 3, 3], CURVE)
    loss, lowest = (sources.curve(N, budget / cost(N))["loss"] for N in (N, np.array([at])))
    over = chart.add("loss at the budget", C=budget, N=N, excess=100 * (loss / lowest - 1))
    chart.add("best at the budget", C=budget, N=at, low=low, high=high)
    chart.add("little loss at the budget", C=budget, low=near[0], high=near[1])
    left.plot(N, over["excess"], color=BLUE, lw=1.6)
    flat = np.where(unbounded, N[[0, -1]], near)
    left.axvspan(*flat, color="#d0d5dd", zorder=0, lw=0, label=f"{TOLERANCE:.1%} more loss")
    if math.isfinite(low) and math.isfinite(high):
        left.axvspan(low, high, color=BLUE, alpha=0.1, lw=0, label="95 % interval")
    left.axvline(at, color=ACCENT, lw=1, label=f"N_opt {short(at)}")
    left.set(xlabel="model parameters", ylabel=f"loss above the best at {flops(budget)} FLOPs, %", ylim=(0, None))
    log_axes(left, short, None)
    legend_above(left)
    C = np.geomspace(span[0], max(10 * span[1], budget), CURVE // 6)
    N, low_N, high_N, *ends = np.array([best_at(c) for c in C]).T
    curve = chart.add("minimised", C=C, N=N, low=low_N, high=high_N)
    chart.add("little loss", C=C, low=ends[0], high=ends[1])
    chart.add("fitted", low=span[0], high=span[1])
    right.plot(C, N, color=BLUE, lw=3, alpha=0.6, label="loss law minimised")
    band(right, C, curve["low"], curve["high"], BLUE, label="95 % interval")
    right.plot(C, np.transpose(ends), color=GREY, lw=0.8, label=[f"{TOLERANCE:.1%} more loss", ""])
    for name, dashes in (("direct", "-."), ("measured", "--"), ("predicted", ":")):
        if (power := (law.allocation or {}).get(name)) is not None:
            own = chart.add(f"{name} power law", C=C, N=power(C))
            right.plot(C, own["N"], dashes, color="black", lw=1.3, label=f"{name} power law")
    right.axvspan(*span, color="#eaecf0", zorder=0, label="fitted compute")
    right.axvline(budget, color=ACCENT, lw=0.9, label=f"{flops(budget)} FLOPs")
    right.set(xlabel="training FLOPs", ylabel="best model parameters")
    log_axes(right, flops, short)
    legend_above(right)
    sizes = " to ".join(allocation.range_text(*allocation.within(losses, budget, cost, TOLERANCE), short))
    span_text = allocation.minimised(losses, budget, cost).span(short)
    interval = f" (95 % interval {span_text})" if span_text else ""
    text = (
        f"At {flops(budget)} FLOPs the loss law is lowest at {short(at)} parameters{interval}, and within "
        f"{TOLERANCE:.1%} of that from {sizes}: a smaller model costs little loss, and "
        "less to serve."
    )
    return sources.captioned(chart, text)


def _held_out_handle(heldout: NDArray) -> list:
    return [line(LINE, "held out", marker="s", mfc="none", lw=0, ms=4)] if heldout.any() else []


def _loss_axis(
    chart: Chart,
    label: str,
    form: object,
    handles: list,
    *,
    good: ArrayLike,
    bands: Sequence[NDArray] = (),
    other: NDArray | None = None,
) -> str:
    """Show all ``good`` losses, most of the others, and ``bands`` (or a law's curves) where they do not flatten these.

    Returns:
        What is not shown, as text.
    """
    axis, others = chart.axes[0, 0], np.asarray([] if other is None else other)
    shown = others[others <= np.quantile(others, MOST)] if len(others) else others
    low, high, cut = limits(np.append(good, shown), np.concatenate([[], *bands]), REACH)
    axis.set(ylim=(low, high), ylabel="validation loss", xlabel=label)
    log_axes(axis, form, None)
    chart.figure.legend(handles=handles, loc="outside right center")
    above = int(np.sum(others > high))
    text = f" Not shown: {above} of {plural(len(others), 'loss')}, above the axis." if above else ""
    return text + (" What lies further off is cut at the axis." if cut else "")
