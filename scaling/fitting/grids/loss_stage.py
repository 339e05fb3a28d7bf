"""The loss law through points, with its error; exponents that these do not identify are the prior's, or refused."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.fitting.grids import jackknife, loss_law
from videoscaling.scaling.fitting.grids.fit_points import Points
from videoscaling.scaling.fitting.grids.hyper_law import between_grids
from videoscaling.scaling.fitting.grids.loss_law import AT
from videoscaling.scaling.fitting.losses import forms
from videoscaling.scaling.fitting.options import Options
from videoscaling.scaling.fitting.unsupported import Checks
from videoscaling.utils.errors import UserError, plural

# An exponent whose 95 % interval is wider than this share of its value is not identified.
LOOSE = 0.5
# One standard deviation of an assumed exponent, relative. Public laws for other data and models differ by about as
# much.
ASSUMED = 0.3
# Residual scatter over delta beyond which Huber's fit behaves like a median, and clusters a bootstrap needs.
MEDIAN_LIKE = 2.0
BOOTSTRAP_CLUSTERS = 30
JACKKNIFE = "delete-one-run jackknife, t quantiles"


@dataclass(frozen=True)
class LossStage:
    """The fitted loss law, and what its error is made of.

    Attributes:
        points: what it was fitted to.
        scale: units of T and N.
        fitted: the fit.
        held: its constants that were not fitted.
        thetas: [clusters, 5], ``fitted.theta`` with each cluster deleted.
        covariance: [5, 5] of theta from scatter beyond the points' own noise.
        assumed: exponents taken from the prior, which are uncertain themselves.
        bootstrap: [draws, 5], theta of resampled clusters, where the jackknife is not consistent; or None.
    """

    points: Points
    scale: dict[str, float]
    fitted: loss_law.LossFit
    held: dict[str, float]
    thetas: NDArray[np.float64]
    covariance: NDArray[np.float64]
    assumed: tuple[str, ...]
    bootstrap: NDArray[np.float64] | None = None

    @property
    def values(self) -> NDArray[np.float64]:
        """[clusters, points], ln of the law's value at each point with each cluster deleted."""
        return forms.evaluate("additive", self.thetas, *loss_law.logs(self.points.N, self.points.T, self.scale))[0]

    @property
    def misfit(self) -> NDArray[np.float64]:
        """[points, points], covariance of these values from scatter beyond the points' own noise."""
        return self.fitted.derivative @ self.covariance @ self.fitted.derivative.T

    @property
    def method(self) -> str:
        """How intervals come about, as text."""
        if self.bootstrap is not None:
            return "cluster bootstrap"
        method = f"{JACKKNIFE}, loss law refitted to each draw" + ("; assumed exponents drawn" if self.assumed else "")
        if self.points.clips is not None:
            method += f"; {self.points.clips.shape[1]} validation clips resampled"
        return method

    def draws(self, moved: NDArray) -> NDArray[np.float64]:
        """Draws of theta [draws, 5]: laws refitted to points whose losses are moved by their errors.

        The law's values at the points are known well and err evenly even where its constants are not and do not.
        Errors drawn in theta itself gave, where they were wide, exponents below zero, Linf above the losses, and bands
        of the loss that did not hold the law's own prediction.

        Args:
            moved: [draws, points], errors of ln of the law's values at the points. To these come, each drawn on its
                own, the exponents assumed (a wrong one is made up for by the other constants wherever there are data),
                and the validation clips, since other clips would move all losses together.
        """
        if self.bootstrap is not None:
            return self.bootstrap
        start = np.repeat(self.fitted.theta[None], len(moved), axis=0)
        half = np.random.default_rng(1).standard_normal((len(moved) // 2, len(self.assumed)))
        for name, steps in zip(self.assumed, np.concatenate([half, -half]).T):
            start[:, AT[name]] += steps * np.log1p(ASSUMED)
        exponents = [AT["aT"], AT["aN"]]
        start[:, exponents] = np.clip(start[:, exponents], *np.log(loss_law.EXPONENTS))
        clips = self.points.clips
        if clips is not None:
            count = clips.shape[1]
            weight = np.random.default_rng(2).multinomial(count, np.full(count, 1 / count), size=len(moved)) / count
            moved = moved + np.log1p(weight @ clips.T)
        drawn, _ = loss_law.descend(
            theta=start,
            N=self.points.N,
            T=self.points.T,
            loss=self.points.loss * np.exp(moved),
            noise=self.points.noise,
            delta=self.fitted.delta,
            fixed=self.held,
            scale=self.scale,
            steps=100,
            ceiling=_ceiling(self.points),
        )
        return drawn


def loss_stage(points: Points, options: Options, scale: dict[str, float], checks: Checks) -> LossStage:
    """The loss law with its errors; holds the prior's exponents that the data do not identify.

    Raises:
        UnsupportedFit: they do not, and there is no prior.
    """
    held, prior = options.held("loss"), options.prior.loss if options.prior is not None else None
    forcible = loss_law.unidentified(points.N, points.T, held) is None
    reason = _too_few(points, held)
    if reason is None or (prior is None and forcible and options.force):
        stage = _stage(points, options.delta, scale, held)
        reason = reason or _bounded(stage)
        if reason is None and _is_loose(stage):
            reason = "the exponents' intervals are wider than half their values"
            if prior is None:
                checks.warn(f"loss law: {reason}")
                return stage
        if reason is None:
            return stage
    if prior is None:
        if len(points.N) < len(AT) - len(held) and not points.optima:
            raise UserError(f"loss law: {reason}")
        checks.refuse(f"loss law: {reason}", "more sizes and tokens, or --prior, help", forcible)
        return stage
    taken = {name: getattr(prior, name) for name in ("aN", "aT") if name not in held}
    held = held | taken
    if len(held) == len(AT):
        checks.refuse(f"loss law: {reason}, and with the prior's exponents nothing is left to fit", forcible=False)
    named = ", ".join(f"{name} {value:g}" for name, value in taken.items())
    checks.warn(f"loss law: {named} assumed from {options.prior.name} ({reason})" if taken else f"loss law: {reason}")
    if reason := loss_law.unidentified(points.N, points.T, held):
        checks.refuse(f"loss law: {reason}, even with the exponents assumed", forcible=False)
    stage = _stage(points, options.delta, scale, held, tuple(taken))
    if bounded := _bounded(stage):
        checks.warn(f"loss law: {bounded}")
    return stage


def _stage(
    points: Points, delta: float | None, scale: dict[str, float], held: dict[str, float], assumed: tuple[str, ...] = ()
) -> LossStage:
    fitted = loss_law.fit(
        N=points.N, T=points.T, loss=points.loss, noise=points.noise, delta=delta, fixed=held, scale=scale
    )
    start = np.repeat(fitted.theta[None], len(points.present), axis=0)
    thetas, _ = loss_law.descend(
        theta=start,
        N=points.N,
        T=points.T,
        loss=np.exp(points.replicates["loss"]),
        noise=points.noise,
        delta=fitted.delta,
        fixed=held,
        scale=scale,
        weight=points.present.astype(float),
        steps=100,
    )
    stage = LossStage(
        points=points,
        scale=scale,
        fitted=fitted,
        held=held,
        thetas=thetas,
        covariance=_misfit(points, fitted, held),
        assumed=assumed,
    )
    return stage if points.optima or assumed else replace(stage, bootstrap=_bootstrap(stage))


def _bootstrap(stage: LossStage) -> NDArray[np.float64] | None:
    """Theta of resampled clusters of rows [draws, 5], or None where the jackknife will do.

    With delta far below the scatter, Huber's fit is nearly a median, for which the jackknife is no consistent estimate
    (on the Chinchilla points it misses the bootstrap's intervals by a third). The bootstrap needs enough clusters, and
    they must be rows: a run deleted from a grid leaves the points where they are.
    """
    points, fitted, clusters = stage.points, stage.fitted, len(stage.thetas)
    scatter = 1.4826 * float(np.median(np.abs(fitted.residuals)))
    if scatter < MEDIAN_LIKE * fitted.delta or clusters < BOOTSTRAP_CLUSTERS:
        return None
    random = np.random.default_rng(0)
    counts = random.multinomial(clusters, np.full(clusters, 1 / clusters), size=jackknife.DRAWS)
    # Rows belong to one cluster each: a row's weight is how often its cluster was drawn.
    weight = counts @ (~points.present).astype(float)
    start = np.repeat(fitted.theta[None], len(weight), axis=0)
    drawn, _ = loss_law.descend(
        theta=start,
        N=points.N,
        T=points.T,
        loss=points.loss,
        noise=points.noise,
        delta=fitted.delta,
        fixed=stage.held,
        scale=stage.scale,
        weight=weight,
        ceiling=_ceiling(points),
    )
    return drawn


def _ceiling(points: Points) -> float:
    """What Linf cannot exceed: the lowest loss, less what writing a draw with six digits may add."""
    return float(points.loss.min()) * (1 - 1e-5)


def _too_few(points: Points, held: dict[str, float]) -> str | None:
    reason = loss_law.unidentified(points.N, points.T, held)
    if reason is None and len(points.N) < len(AT) + 2 - len(held):
        optima, constants = plural(len(points.N), "optimum", "optima"), plural(len(AT) - len(held), "constant")
        reason = f"{optima} for {constants} leave nothing to check the fit by"
    return reason


def _bounded(stage: LossStage) -> str | None:
    names = stage.fitted.at_bound
    return f"{' and '.join(names)} ran to its bound" if names else None


def _is_loose(stage: LossStage) -> bool:
    """Whether an exponent scatters as much as is noise: the jackknife alone sees the cells' noise."""
    spread = jackknife.Spread(jackknife.deviations(stage.thetas), stage.covariance, len(stage.thetas) - 1)
    width = spread.half_width()
    return not all(width[AT[name]] <= LOOSE for name in ("aT", "aN"))


def _misfit(points: Points, fitted: loss_law.LossFit, held: dict[str, float]) -> NDArray[np.float64]:
    """Covariance [5, 5] of theta from the grids' scatter around the law (method of moments), and from the noise of
    samples that all cells of some grids share, which their scatter does not show."""
    free = [at for name, at in AT.items() if name not in held]
    spare = len(points.N) - len(free)
    if spare <= 0:
        return np.zeros((5, 5))
    known = points.noise is not None
    own = points.noise**2 if known else np.zeros(len(points.N))
    weight = 1 / own if known else np.ones(len(own))
    ratio = np.sum(weight * fitted.residuals**2) / spare
    excess = (ratio - 1) * len(own) / weight.sum()
    scatter = own + excess if known and ratio >= 1 else ratio / weight
    pull = np.zeros((5, len(own)))
    J = fitted.derivative[:, free] * np.sqrt(weight)[:, None]
    pull[free] = np.linalg.pinv(J, rcond=1e-12) * np.sqrt(weight)
    common = np.zeros((5, 1)) if points.streams is None else pull @ points.streams
    return between_grids(points, pull, own, scatter, spare) + common @ common.T
