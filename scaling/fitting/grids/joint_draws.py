"""Joint draws of all laws' constants and their 95 % intervals, as runs err in every law at once."""

from dataclasses import dataclass

import numpy as np

from videoscaling.scaling.fitting.grids import jackknife
from videoscaling.scaling.fitting.grids.hyper_law import PARTS, HyperLaw
from videoscaling.scaling.fitting.grids.loss_law import AT
from videoscaling.scaling.fitting.grids.loss_stage import LossStage
from videoscaling.scaling.laws import LossLaw, PowerLaw, constants_of

# Of the loss law: theta's order is another one.
CONSTANTS = constants_of(LossLaw)
_LOGGED = ("coefficient", "Tc", "Nc", "Linf")


@dataclass(frozen=True)
class JointDraws:
    """Constants of all laws: their names, draws [draws][constants] or None, and 95 % intervals by name."""

    columns: list[str]
    draws: list[list[float]] | None
    intervals: dict[str, list[float]]


def joint_draws(hypers: dict[str, HyperLaw], stage: LossStage | None, clusters: int, freedom: int) -> JointDraws:
    """Draws of the fitted laws.

    Args:
        hypers: laws of "B" and "lr", as far as they are fitted.
        stage: the loss law's, or None.
        clusters: how many the jackknife deletes.
        freedom: degrees of freedom of its errors.
    """
    columns = [f"{PARTS[symbol]}.{name}" for symbol in hypers for name in constants_of(PowerLaw)]
    columns += [f"loss.{name}" for name in CONSTANTS] if stage else []
    if clusters < 3 or not columns:
        return JointDraws(columns, None, {})
    # Runs err in all laws at once: the loss law's values at the points are drawn with the others' constants.
    parts = [(law.beta, law.replicates, law.extra) for law in hypers.values()]
    if stage is not None:
        parts.append((np.zeros(len(stage.misfit)), stage.values, stage.misfit))
    middle = np.concatenate([centre for centre, _, _ in parts])
    extra, start = np.zeros((len(middle), len(middle))), 0
    for _, _, own in parts:
        place = slice(start, start := start + len(own))
        extra[place, place] = own
    spread = jackknife.Spread(
        np.hstack([jackknife.deviations(replicates) for _, replicates, _ in parts]), extra, freedom
    )
    count = 3 * len(hypers)
    width, draws = spread.half_width()[:count], spread.draws(middle)
    low, high = middle[:count] - width, middle[:count] + width
    if stage is not None:
        # The loss law's constants are not distributed as t: their intervals are those of the draws.
        thetas = stage.draws(draws[:, count:])[:, [AT[name] for name in CONSTANTS]]
        exponents = [CONSTANTS.index("aT"), CONSTANTS.index("aN")]
        thetas[:, exponents] = np.exp(thetas[:, exponents])
        ends = np.quantile(thetas, [0.025, 0.975], axis=0)
        low, high = np.concatenate([low, ends[0]]), np.concatenate([high, ends[1]])
        draws = np.hstack([draws[:, :count], thetas])
    logged = np.array([name.endswith(_LOGGED) for name in columns])
    low, high, draws = (np.where(logged, np.exp(np.clip(v, -700, 700)), v) for v in (low, high, draws))
    # A constant that nothing moves is held or bounded, not known exactly: it has no interval.
    spans = zip(columns, low, high)
    intervals = {name: [float(a), float(b)] for name, a, b in spans if b - a > 1e-9 * abs(a)}
    return JointDraws(columns, [[float(f"{v:.6g}") for v in row] for row in draws], intervals)
