"""From a run table to what laws are fitted on: one optimum per (N, T), and the same with each run left out."""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.fitting.grids import loss_law
from videoscaling.scaling.fitting.grids.clip_losses import clip_losses
from videoscaling.scaling.fitting.grids.optimum import Optimum, find, refit
from videoscaling.scaling.fitting.table_kind import swept
from videoscaling.scaling.fitting.unsupported import Checks
from videoscaling.scaling.runs import RunTable

# All grids' scatter counts as this many spare cells of each.
SHRINKAGE = 10
# Clusters that the jackknife deletes, where each row is a point: t quantiles change no more beyond this.
MOST_CLUSTERS = 300
# A loss is not known better than this: losses without any scatter are somebody's formula.
LEAST_NOISE = 1e-7
# Of the variance of a run's noise, what runs on the same samples have in common: their losses' correlation, measured
# (docs/stacked_runs.md: 0.25 to 0.39).
SHARED = 1 / 3
# How a warning begins that best cells entered a law: what a report shows depends on it.
STAND_IN = "best cells stand in for the"
# Grids without an optimum that a refusal lists, a line each.
LISTED = 12


@dataclass(frozen=True)
class Points:
    """What the laws are fitted to: one optimum per (N, T). Arrays [points]; variances None where unknown.

    ``noise`` is relative, of the loss. ``replicates`` holds ln B, ln lr and ln loss with each cluster deleted, each
    [clusters, points], and ``present`` [clusters, points] whether a point is still there. Only ``interior`` points
    give batches; they and the ``usable`` ones (at the floor of one clip) give rates; all give losses. ``clips``
    [points, clips] is the relative loss by validation clip around the point's, or None where it is unknown.
    ``streams`` [points, streams]: how far (relative) a standard deviation of the noise of each stream of samples moves
    the point's loss, for streams that several runs share; no scatter within a grid shows it. None where nothing is.
    """

    N: NDArray[np.float64]
    T: NDArray[np.float64]
    B: NDArray[np.float64]
    lr: NDArray[np.float64]
    loss: NDArray[np.float64]
    interior: NDArray[np.bool_]
    usable: NDArray[np.bool_]
    variance_B: NDArray[np.float64] | None
    variance_lr: NDArray[np.float64] | None
    noise: NDArray[np.float64] | None
    replicates: dict[str, NDArray[np.float64]]
    present: NDArray[np.bool_]
    optima: tuple[Optimum, ...]
    clips: NDArray[np.float64] | None = None
    streams: NDArray[np.float64] | None = None

    def inside(self, symbol: str) -> NDArray[np.bool_]:
        """Which points inform "B" or "lr"."""
        return self.interior if symbol == "B" else self.usable


def grid_optima(table: RunTable) -> list[Optimum]:
    """The optimum of each grid of the run table, along "lr", "B" or both, as the grids vary.

    ``used`` counts rows of the run table.
    """
    axes, optima = swept(table), []
    for N, T, rows in table.grids():
        cells = (column[rows] for column in (table.lr, table.B, table.loss, table.loss_se))
        found = find(N, T, *cells, floor=float(table.n_ctx[rows].max()), axes=axes)
        optima.append(replace(found, used=rows[found.used]))
    return optima


def at_nominal(table: RunTable) -> RunTable:
    """Losses moved from the tokens a run had really seen to the fewest that any run of its grid had.

    A large batch overshoots its milestone further than a small one, which would flatter it. The slope of ln loss in
    ln T is the run's own, between its milestones. Runs with one milestone take the median of the others'; where all
    have one, their size's best losses give it. The common T is what was seen, not what was asked for: a table has no
    milestones, and must give the folder's law. Milestones that all runs of a grid passed by the same step are one
    measurement, and one row.
    """
    common = table.nominal_T.copy()
    for _, _, rows in table.grids():
        common[rows] = table.T[rows].min()
    asked: dict[tuple, float] = {}
    keys = zip(table.run_id.tolist(), table.N, table.B, table.lr, table.T, common)
    once = np.array(
        [asked.setdefault(key, nominal) == nominal for key, nominal in zip(keys, table.nominal_T)], dtype=bool
    )
    table = replace(table, nominal_T=common).rows(once)
    slope = np.full(len(table), np.nan)
    for run in np.unique(table.run_id):
        rows = np.flatnonzero((table.run_id == run) & np.isfinite(table.loss))
        x, first = np.unique(np.log(table.T[rows]), return_index=True)
        if len(x) > 1:
            # A milestone's own slope: steeper early than late.
            local = np.gradient(np.log(table.loss[rows[first]]), x)
            slope[rows] = np.interp(np.log(table.T[rows]), x, local)
    if np.all(np.isnan(slope)):
        slope = _slopes_of_best(table)
    if np.all(np.isnan(slope)):
        return table
    slope = np.where(np.isnan(slope), np.nanmedian(slope), slope)
    return replace(table, loss=table.loss * (table.nominal_T / table.T) ** slope)


def _slopes_of_best(table: RunTable) -> NDArray[np.float64]:
    """Of ln loss in ln T [rows], between the best losses of a size's grids; nan where a size has one grid."""
    slope = np.full(len(table), np.nan)
    for size in np.unique(table.N):
        rows = np.flatnonzero((size == table.N) & np.isfinite(table.loss))
        tokens = np.unique(table.nominal_T[rows])
        if len(tokens) > 1:
            of_grid = [rows[table.nominal_T[rows] == T] for T in tokens]
            best = np.array([own[np.argmin(table.loss[own])] for own in of_grid])
            local = np.clip(np.gradient(np.log(table.loss[best]), np.log(tokens)), -1.0, 0.0)
            slope[rows] = np.interp(np.log(table.nominal_T[rows]), np.log(tokens), local)
    return slope


def points_of_grids(table: RunTable, optima: tuple[Optimum, ...], checks: Checks, lenient: bool = False) -> Points:
    """Points from interior optima and those at the floor, or from every grid where there are fewer than three of them.

    Args:
        lenient: with few such optima, let best cells of the other grids stand in for the loss (never for the batch
            and the rate); without it, or with none of them, that is refused. Where it is forced with none, they stand
            in for the batch and the rate too.
    """
    refused = [optimum for optimum in optima if not optimum.usable]
    chosen = [optimum for optimum in optima if optimum.usable]
    if floored := sum(optimum.verdict == "floor" for optimum in chosen):
        checks.warn(
            f"{floored} of {len(optima)} grids are best at one clip, the smallest batch there is: an edge that bounds "
            "the batch's law from above"
        )
    verdicts = ", ".join(f"{sum(o.verdict == v for o in refused)} {v}" for v in sorted({o.verdict for o in refused}))
    if refused:
        checks.warn(f"{len(refused)} of {len(optima)} grids have no interior optimum ({verdicts})")
    if len(chosen) < 3:
        if not (chosen and lenient):
            listed = [f"\n  {o.describe()}" for o in refused[:LISTED]]
            if len(refused) > LISTED:
                listed.append(f"\n  and {len(refused) - LISTED} more; in all {verdicts}")
            checks.refuse(f"only {len(chosen)} of {len(optima)} grids have an interior optimum{''.join(listed)}")
        chosen = [o for o in optima if o.cells]
        what = "losses" if any(o.usable for o in chosen) else "losses, batches and rates"
        checks.warn(f"{STAND_IN} {what} of grids without an interior optimum")
    interior, usable = (np.array([getattr(o, name) for o in chosen]) for name in ("interior", "usable"))
    if not usable.any():
        interior[:] = usable[:] = True
    by_clip = clip_losses(table)
    clips = None if by_clip is None else np.array([by_clip[o.used].mean(axis=0) for o in chosen])
    variance_B, variance_lr, noise = _pooled_variance(chosen)
    clusters = np.unique(table.run_id[np.concatenate([o.used for o in chosen])])
    values = {
        "B": np.log([o.B for o in chosen]),
        "lr": np.log([o.lr for o in chosen]),
        "loss": np.log([o.loss for o in chosen]),
    }
    replicates = {name: np.tile(value, (len(clusters), 1)) for name, value in values.items()}
    for g, optimum in enumerate(chosen):
        for run in np.unique(table.run_id[optimum.used]):
            kept = optimum.used[table.run_id[optimum.used] != run]
            if len(kept):
                new = refit(optimum, table.lr[kept], table.B[kept], table.loss[kept], table.loss_se[kept])
                k = np.searchsorted(clusters, run)
                replicates["lr"][k, g], replicates["B"][k, g], replicates["loss"][k, g] = np.log(new)
    return Points(
        N=np.array([o.N for o in chosen]),
        T=np.array([o.T for o in chosen]),
        B=np.exp(values["B"]),
        lr=np.exp(values["lr"]),
        loss=np.exp(values["loss"]),
        interior=interior,
        usable=usable,
        variance_B=variance_B,
        variance_lr=variance_lr,
        noise=noise,
        replicates=replicates,
        present=np.ones((len(clusters), len(chosen)), dtype=bool),
        optima=tuple(chosen),
        clips=clips,
        streams=_streams(table, chosen),
    )


def _streams(table: RunTable, optima: list[Optimum]) -> NDArray[np.float64] | None:
    """``Points.streams``. A grid's scatter is of what its cells do not share: the rest of their noise."""
    pooled = pooled_scatter(optima)
    used = np.concatenate([o.used for o in optima])
    _, first = np.unique(table.run_id[used], return_index=True)
    of_runs = table.stream[used][first]
    shared = [stream for stream in np.unique(of_runs[of_runs >= 0]) if np.sum(of_runs == stream) > 1]
    if not pooled or not shared:
        return None
    parts = [[float(np.mean(table.stream[o.used] == stream)) for stream in shared] for o in optima]
    return pooled * math.sqrt(SHARED / (1 - SHARED)) * np.array(parts)


def pooled_scatter(optima: list[Optimum]) -> float:
    """Relative scatter of runs around their grids' quadratics; 0 where no grid has cells to spare."""
    known = [o for o in optima if o.usable and o.spare]
    spare = sum(o.spare for o in known)
    return math.sqrt(sum(o.spare * (o.scatter / o.loss) ** 2 for o in known) / spare) if spare else 0.0


def _pooled_variance(optima: list[Optimum]) -> tuple[NDArray | None, NDArray | None, NDArray | None]:
    """Variances of ln B and ln lr and relative noise of the loss, each grid's scatter shrunk to that of all grids.

    A few spare cells estimate a scatter badly, and a grid that looks precise by luck would rule the fit.
    """
    known = [o for o in optima if o.usable]
    if len(known) < len(optima) or not known:
        return None, None, None
    spare = np.array([o.spare for o in known])
    relative = np.array([o.scatter / o.loss for o in known])
    pooled = pooled_scatter(known)
    if pooled < 1e-12:
        return None, None, None
    shrunk = np.sqrt((SHRINKAGE * pooled**2 + spare * relative**2) / (SHRINKAGE + spare))
    ratio = shrunk / np.maximum(relative, 1e-15)
    covariance = np.array([o.covariance for o in known]) * ratio[:, None, None] ** 2
    noise = np.array([o.loss_se / o.loss for o in known]) * ratio
    return covariance[:, 1, 1], covariance[:, 0, 0], noise


def points_of_rows(table: RunTable) -> Points:
    """Each row as an optimum already; plain least squares unless losses have errors. Clusters are runs.

    Errors of losses count by their ratios; their size is that of the scatter, as in grids: a folder's are mostly of
    the validation clips, which all rows share.
    """
    table = table.rows(~np.isinf(table.loss))
    runs, cluster = np.unique(table.run_id, return_inverse=True)
    clusters = np.arange(min(len(runs), MOST_CLUSTERS))
    # Many runs are deleted by the group: the jackknife stays valid, and quadratic cost stays away.
    group = np.random.default_rng(0).permutation(len(runs)) % len(clusters)
    present = group[cluster][None, :] != clusters[:, None]
    noise = table.loss_se / table.loss
    noise = _scattered(table, noise) if np.all(np.isfinite(noise)) else None
    values = {"B": np.log(table.B), "lr": np.log(table.lr), "loss": np.log(table.loss)}
    every = np.ones(len(table), dtype=bool)
    return Points(
        N=table.N,
        T=table.T,
        B=table.B,
        lr=table.lr,
        loss=table.loss,
        interior=every,
        usable=every,
        variance_B=None,
        variance_lr=None,
        noise=noise,
        replicates={name: np.tile(value, (len(clusters), 1)) for name, value in values.items()},
        present=present,
        optima=(),
        clips=clip_losses(table),
    )


def _scattered(table: RunTable, noise: NDArray) -> NDArray[np.float64]:
    """Relative errors of losses, scaled to how the losses scatter around a loss law; as they are where none fits."""
    constants = len(loss_law.CONSTANTS)
    spare = len(table) - constants
    if spare < 2 or loss_law.unidentified(table.N, table.T, {}) or np.ptp(table.loss) == 0:
        return noise
    scale = {name: float(np.exp(np.log(getattr(table, name)).mean())) for name in ("T", "N")}
    # A delta that no residual reaches: least squares.
    residuals = loss_law.fit(table.N, table.T, table.loss, noise, 1.0, scale=scale).residuals
    size = 1.4826 * float(np.median(np.abs(residuals / noise))) * math.sqrt(len(table) / spare)
    return np.maximum(size * noise, LEAST_NOISE)
