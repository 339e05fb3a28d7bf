"""What the rows of a run table are: cells of grids, one optimum for each (N, T), or repeats of one."""

import numpy as np

from videoscaling.scaling.fitting.grids.edges import BOTH
from videoscaling.scaling.fitting.grids.optimum import COEFFICIENTS
from videoscaling.scaling.fitting.unsupported import Checks, UnsupportedFit
from videoscaling.scaling.runs import RunTable
from videoscaling.utils.errors import UserError

# Losses of one (N, T), of rows without a batch and a rate, that differ by less are repeats: seeds move a loss by 0.1
# to 0.5 %, and a sweep over rates by more. Known standard errors widen it, to this many of a difference.
REPEAT_SPREAD, REPEAT_SIGMAS = 0.01, 4.0
LISTED = 12  # of what a refusal names, a line each


def most_cells(table: RunTable) -> int:
    """The largest number of different (lr, B) of one grid."""
    cells = np.stack([np.log(table.lr), np.log(table.B)], axis=1).round(6)
    return max(len(np.unique(cells[rows], axis=0)) for *_, rows in table.grids())


def swept(table: RunTable) -> tuple[str, ...]:
    """Which of lr and B vary inside the grids of a run table; both where neither does, or where they are unknown."""
    if not np.isfinite([table.lr, table.B]).all():
        return BOTH
    grids = [rows for *_, rows in table.grids()]
    varying = [name for name in BOTH if any(np.ptp(np.log(getattr(table, name)[rows])) > 1e-6 for rows in grids)]
    return tuple(varying) or BOTH


def check_line(table: RunTable, axis: str) -> None:
    """Refuse grids with one batch each (or one rate) where these differ.

    Raises:
        UnsupportedFit: the batches (or rates) differ from grid to grid.
    """
    other = "B" if axis == "lr" else "lr"
    values = getattr(table, other)
    if np.ptp(np.log(values)) > 1e-6:
        raise UnsupportedFit(
            f"each (N, T) has one {other}, and these differ ({values.min():.4g} to {values.max():.4g}): whether the "
            f"best {axis} follows {other}, or N and T, is unidentified (sweep at one {other}, or several in each "
            "grid)",
            forcible=False,
        )


def check_repeats(table: RunTable, checks: Checks) -> None:
    """Refuse several losses of one (N, T) that are no repeats of one measurement; each is named."""
    error = table.loss_se / table.loss
    known = error[np.isfinite(error)]
    least = REPEAT_SIGMAS * 2**0.5 * float(np.median(known)) if len(known) else 0.0
    found = []
    for N, T, rows in table.grids():
        losses = table.loss[rows][np.isfinite(table.loss[rows])]
        if len(losses) > 1 and losses.max() / losses.min() - 1 > max(REPEAT_SPREAD, least):
            shown = ", ".join(f"{loss:.5g}" for loss in losses[:3]) + (", ..." if len(losses) > 3 else "")
            found.append(f"N {N:.4g}, T {T:.4g}: {len(losses)} losses, {shown}")
    if not found:
        return
    text = f"{len(found)} (N, T) have several losses that differ by more than repeats of one run do"
    listed = [f"\n  {line}" for line in found[:LISTED]]
    if len(found) > LISTED:
        listed.append(f"\n  and {len(found) - LISTED} more")
    advice = "keep one row of each"
    if np.isnan([table.B, table.lr]).any():
        advice = "name the columns B and lr with --columns if these differ, or keep one row of each"
    checks.refuse(f"{text}: {advice}{''.join(listed)}")


def check_optima(table: RunTable) -> None:
    """Raise UserError where rows are a grid's cells, not its optimum; repeats of one (B, lr) may stand."""
    groups = [(N, T, rows) for N, T, rows in table.grids() if len(rows) > 1]
    for N, T, rows in sorted(groups, key=lambda group: -len(group[2])):
        cells = {(str(table.B[row]), str(table.lr[row])) for row in rows}
        if len(cells) > 1:
            way = "leave --optima out to fit grids" if len(cells) >= COEFFICIENTS[2] else "keep the best row of each"
            raise UserError(
                f"{table.source}: --optima wants one row for each (N, T), but N {N:.4g}, T {T:.4g} has {len(rows)}: "
                f"{way} (only repeats of one (B, lr) may stand)"
            )
