"""The numbers of the figures of batches and rates: heat maps, laws of the best pair, the price of a fixed pair."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.checks.fixed_pair import compare
from videoscaling.scaling.checks.fixed_pair import prices as pair_prices
from videoscaling.scaling.checks.heldout import relative_error
from videoscaling.scaling.fitting.grids.optimum import Optimum, cell_means
from videoscaling.scaling.fitting.unsupported import UnsupportedFit
from videoscaling.scaling.laws import Law
from videoscaling.scaling.reporting import law_view
from videoscaling.scaling.reporting.figure_data import CURVE, Sources
from videoscaling.scaling.reporting.plotted import LeftOut, Plotted, Table
from videoscaling.scaling.runs import RunTable
from videoscaling.utils.errors import UserError

RASTER = 24  # points along each axis of a contour


def heat_maps(sources: Sources) -> Plotted:
    """Losses over (lr, B) for each (N, T), as per cent above the grid's best, with contours and the best rate."""
    if not sources.optima:
        raise LeftOut("the rows have no grids over (lr, B)")
    blocks: list[tuple[str, Table]] = []
    for optimum, (N, T, own) in zip(sources.optima, sources.grids.grids()):
        grid, at = sources.grids.rows(own), {"N": N, "T": T}
        mean = cell_means(grid.lr, grid.B, grid.loss)
        _, first = np.unique(np.log(np.stack([grid.lr, grid.B])).round(6), axis=1, return_index=True)
        best = np.min(mean[first], where=np.isfinite(mean[first]), initial=np.inf)
        excess = np.where(np.isfinite(mean[first]), 100 * relative_error(mean[first], min(best, 1e9)), np.inf)
        cells = at | {"lr": grid.lr[first], "B": grid.B[first], "loss": mean[first], "excess": excess}
        blocks.append(("cell", cells | {"verdict": np.full(len(first), optimum.verdict)}))
        surface = _surface if sources.law.surface is not None else _quadratic
        blocks += [(name, at | columns) for name, columns in surface(sources.law, optimum, grid)]
    text = "Numbers are per cent above the grid's best cell; x: all its runs diverged. "
    if not all(o.usable for o in sources.optima):
        text += "A grid with a red title has no optimum inside. "
    if sources.law.surface is None:
        text += "Contours and the star are of the quadratic through the grid's own cells, with its 95 % ellipse."
        formula = "ln L quadratic in ln lr and ln B near the best cell"
    else:
        text += (
            f"Contours are of the surface; the line is its best rate at each batch, and the star the largest batch "
            f"within {law_view.TOLERANCE:.1%} of the best."
        )
        formula = law_view.rate_formula(sources.law)
    return sources.plotted("heat_maps", "Loss over rate and batch", text, formula, *blocks)


def _box(grid: RunTable) -> tuple[NDArray, NDArray]:
    """Rates and batches [RASTER] a little beyond a grid's."""
    return tuple(
        np.geomspace(v.min() / margin, v.max() * margin, RASTER)
        for v in (grid.lr, grid.B)
        for margin in [max((v.max() / v.min()) ** 0.12, 1.1)]
    )


def _surface(law: Law, optimum: Optimum, grid: RunTable) -> list[tuple[str, Table]]:
    surface, (lr, B) = law.surface, _box(grid)
    if not law_view.has_rates(law):
        return []
    found = []
    if surface.members:
        x, y = (v.ravel() for v in np.meshgrid(lr, B))
        loss, lowest = (
            law_view.losses(law, optimum.N, optimum.T, y, x)[0],
            law_view.losses(law, optimum.N, optimum.T)[0],
        )
        found.append(("contour", {"lr": x, "B": y, "excess": 100 * relative_error(loss, lowest)}))
    found.append(("ridge", {"lr": surface.lr_opt(B, optimum.T, optimum.N).value, "B": B}))
    pair = surface.best(np.array([optimum.N]), np.array([optimum.T]), tolerance=law_view.TOLERANCE)
    return [*found, ("best", {"lr": pair.lr.value, "B": pair.B.value})]


def _quadratic(law: Law, optimum: Optimum, grid: RunTable) -> list[tuple[str, Table]]:
    if not optimum.usable:
        return []
    found = [("best", {"lr": np.array([optimum.lr]), "B": np.array([optimum.B])})]
    if not optimum.interior or len(optimum.axes) < 2:
        return found
    lr, B = (v.ravel() for v in np.meshgrid(*_box(grid)))
    distance = np.stack([np.log(lr / optimum.lr), np.log(B / optimum.B)], axis=-1)
    excess = 50 / optimum.loss * np.einsum("...i,ij,...j->...", distance, optimum.hessian, distance)
    roots, vectors = np.linalg.eigh(optimum.covariance)
    turn = np.linspace(0, 2 * np.pi, CURVE)
    # 2.448 is the radius of a 95 % ellipse of a bivariate normal.
    ring = 2.448 * vectors @ (np.sqrt(np.maximum(roots, 0))[:, None] * np.stack([np.cos(turn), np.sin(turn)]))
    ellipse = {"lr": optimum.lr * np.exp(ring[0]), "B": optimum.B * np.exp(ring[1])}
    return [("contour", {"lr": lr, "B": B, "excess": excess}), ("ellipse", ellipse), *found]


def hyperparameters(sources: Sources) -> Plotted:
    """Best batch (or the batch's edge) and best rate over T and over N, the grids' optima, and a published law."""
    law, optima = sources.law, sources.optima
    if not optima:
        raise LeftOut("the rows have no grids over (lr, B)")
    if not law_view.has_rates(law):
        raise LeftOut("the law has no best batch or no best rate")
    sizes, tokens = np.unique([o.N for o in optima]), np.unique([o.T for o in optima])
    blocks: list[tuple[str, Table]] = []
    reads: dict[str, tuple[Law, Callable]] = {"batch": (law, law_view.batch), "lr": (law, law_view.rate)}
    if sources.published is not None and sources.published.name != law.name:
        reads |= {f"published {n}": (sources.published, read) for n, (_, read) in reads.items()}
    for name, (from_law, read) in reads.items():
        for along, fixed, span in (("T", sizes, tokens), ("N", tokens, sizes)):
            x = np.geomspace(0.7 * span.min(), 3 * span.max(), CURVE // 3)
            of_fixed, of_x = np.repeat(fixed, len(x)), np.tile(x, len(fixed))
            N, T = (of_fixed, of_x) if along == "T" else (of_x, of_fixed)
            value, low, high = read(from_law, N, T)
            columns = {"N": N, "T": T, "value": value, "low": low, "high": high}
            blocks.append((name, {"along": np.full(len(N), along), **columns}))
    for o in (o for o in optima if o.cells):
        for name, index, value, known in (("batch", 1, o.B, o.interior), ("lr", 0, o.lr, o.usable)):
            half = 1.96 * math.sqrt(o.covariance[index, index]) if known else math.nan
            kind = "grid" if known else "one clip" if o.usable else "no optimum"
            ends = value * np.exp([-half, half])
            blocks.append((f"{kind} {name}", {"N": o.N, "T": o.T, "value": value, "low": ends[0], "high": ends[1]}))
    text = "Lines are the law with its 95 % band, marks the grids' own optima with theirs."
    if law.surface is not None:
        text += (
            f" The batch is that beyond which the loss is {law_view.EDGE:.0%} above the best, the rate that at the "
            f"largest batch within {law_view.TOLERANCE:.1%} of it; marks are quadratics of single grids."
        )
    if any(not o.usable for o in optima):
        text += " Hollow marks are best cells, no optima"
        text += ", and were fitted all the same." if "rates" in sources.stand_in else ", and enter no law of grids."
    if len(reads) > 2:
        text += f" Dashed: {sources.published.name}."
    title = "Best batch and rate" if law.surface is None else "Largest good batch, and best rate"
    return sources.plotted("hyperparameters", title, text, law_view.rate_formula(law), *blocks)


def fixed_pair(sources: Sources) -> Plotted:
    """What one (lr, B) for all costs at each (N, T), and the N_opt that runs at that pair would ask for."""
    try:
        (lr, B), found = pair_prices(sources.runs)
    except (UnsupportedFit, UserError) as reason:
        raise LeftOut(str(reason).splitlines()[0]) from None
    known = [(row["N"], row["T"], *row["price"].values()) for row in found if row["price"] is not None]
    if not known:
        raise LeftOut("the pair lies outside every grid's cells near its best")
    columns = np.array(known, dtype=float).T
    prices = dict(zip(("N", "T"), columns[:2])) | dict(zip(("price", "low", "high"), 100 * columns[2:]))
    blocks = [("price", prices)]
    text = f"One pair for all, lr {lr:.3g} and B {B:.4g}: its loss over that of each grid's optimum, 95 % intervals."
    try:
        c = compare(sources.runs, sources.cost, (lr, B))
        C = c.C * np.geomspace(0.1, 1, CURVE)
        for name, N, exponent in (("optimal pair", c.N_opt, c.exponent), ("fixed pair", c.N_fixed, c.exponent_fixed)):
            blocks.append((name, {"C": C, "N": N * (C / c.C) ** exponent}))
        text += (
            f" Right: N_opt by the loss laws through both; at {c.C:.3g} FLOPs the fixed one asks for {c.ratio[0]:.3g} "
            f"times the size [{c.ratio[1]:.3g}, {c.ratio[2]:.3g}]."
        )
    except (UnsupportedFit, UserError) as reason:
        text += f" Its N_opt is left out: {str(reason).splitlines()[0]}."
    formula = "Price = loss at the pair / loss at the optimum - 1"
    return sources.plotted("fixed_pair", "One pair for all", text, formula, *blocks)
