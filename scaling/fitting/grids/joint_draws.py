"""Joint draws of all laws' constants and their 95 % intervals, as runs err in every law at once."""

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.fitting.grids import jackknife, loss_law, power_law
from videoscaling.scaling.fitting.grids.fit_points import Points
from videoscaling.scaling.fitting.grids.law_fits import LossStage, loss_draws

COLUMNS = [f"{part}.{name}" for part in ("batch", "lr") for name in power_law.CONSTANTS] + [
    f"loss.{name}" for name in loss_law.CONSTANTS
]
_LOGGED = ("coefficient", "Tc", "Nc", "Linf")


def joint_draws(
    points: Points,
    hypers: tuple[NDArray, NDArray, NDArray],
    stage: LossStage | None,
    freedom: int,
    scale: dict[str, float],
) -> tuple[list[str], list | None, dict[str, list[float]]]:
    """(names of the constants drawn, joint draws, 95 % interval by constant).

    Args:
        hypers: beta [6] of the hyper-parameter laws, nan where not fitted; the same with each cluster deleted
            [clusters, 6]; and the covariance [6, 6] that deleting clusters does not show.
        stage: the loss law's, or None.
    """
    centre, replicates, extra = hypers
    known = np.flatnonzero(~np.isnan(centre))
    columns = np.array(COLUMNS)[[*known, *(range(6, 11) if stage else ())]]
    if len(replicates) < 3:
        return columns.tolist(), None, {}
    # Runs err in all laws at once: the loss law's values at the points are drawn with the others' constants.
    count = len(known)
    deviations, middle, covariance = jackknife.deviations(replicates[:, known]), centre[known], extra[known][:, known]
    if stage is not None:
        deviations = np.hstack([deviations, jackknife.deviations(stage.values)])
        middle = np.concatenate([middle, np.zeros(len(points.N))])
        covariance = np.pad(covariance, (0, len(points.N)))
        covariance[count:, count:] = stage.misfit
    spread = jackknife.Spread(deviations, covariance, freedom)
    width, draws = spread.half_width()[:count], spread.draws(middle)
    low, high = middle[:count] - width, middle[:count] + width
    if stage is not None:
        # The loss law's constants are not distributed as t: their intervals are those of the draws.
        thetas = loss_draws(points, stage, draws[:, count:], scale)
        ends = np.quantile(thetas, [0.025, 0.975], axis=0)
        low, high = np.concatenate([low, ends[0]]), np.concatenate([high, ends[1]])
        draws = np.hstack([draws[:, :count], thetas])
    logged = np.array([name.endswith(_LOGGED) for name in columns], dtype=bool)
    low, high, draws = (np.where(logged, np.exp(np.clip(v, -700, 700)), v) for v in (low, high, draws))
    # A constant that nothing moves is held or bounded, not known exactly: it has no interval.
    spans = zip(columns, low, high)
    intervals = {str(name): [float(a), float(b)] for name, a, b in spans if b - a > 1e-9 * abs(a)}
    return columns.tolist(), [[float(f"{v:.6g}") for v in row] for row in draws], intervals
