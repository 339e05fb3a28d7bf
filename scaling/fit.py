"""From a ledger to a law: optima of grids, hyper-parameter laws, the loss law, N_opt, and the error of it all."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scaling import allocation, hyper, jackknife, loss_law
from scaling.laws import Curvature, GivenBatch, Law, SizeLaw
from scaling.optimum import WINDOW, Optimum
from scaling.points import Points, Untrusted, at_nominal, grid_optima, points_of_grids, points_of_rows
from scaling.runs import Ledger
from utils.errors import UserError

PARTS = ("hyperparameters", "loss", "allocation", "all")
# With a prior at hand, an exponent whose 95 % interval is wider than +- this is the prior's to give.
LOOSE = 0.5
# One standard deviation of an assumed exponent: absolute in the hyper-parameter laws, relative in the loss law. Public
# laws for other data and models differ by about as much.
ASSUMED_POWER = 0.15
ASSUMED_LOSS = 0.3
COLUMNS = [f"{part}.{name}" for part in ("batch", "lr") for name in hyper.CONSTANTS] + [
    f"loss.{name}" for name in loss_law.CONSTANTS
]
_LOGGED = np.array([name.endswith(("coefficient", "Tc", "Nc", "Linf")) for name in COLUMNS])


@dataclass(frozen=True)
class Options:
    """What the user may choose. ``fixed`` maps "B.N", "lr.T" or "loss.aT" to the value held."""

    fixed: dict[str, float] = field(default_factory=dict)
    prior: Law | None = None
    window: float | None = WINDOW
    delta: float | None = None
    force: bool = False
    optima: bool = False


@dataclass(frozen=True)
class Fitted:
    """A law with all that a report wants beside it."""

    law: Law
    points: Points
    optima: tuple[Optimum, ...]
    warnings: tuple[str, ...]
    residuals: NDArray[np.float64] | None


def fit(ledger: Ledger, part: str, options: Options, cost: allocation.Cost, provenance: dict[str, Any]) -> Fitted:
    """Fit ``part`` of the laws ("all" for every one) to the rows not held out.

    Raises:
        UserError: nothing to fit.
        Untrusted: the data do not identify what was asked, or only at the edge of their grids.
    """
    ledger = at_nominal(ledger.rows(~ledger.heldout))
    warnings: list[str] = []
    optima: tuple[Optimum, ...] = ()
    single = all(len(rows) == 1 for _, _, rows in ledger.grids())
    if options.optima or single:
        if part in ("hyperparameters", "all") and not options.optima:
            raise UserError("every (N, T) has one cell: if each is an optimum already, say so with --optima")
        points = points_of_rows(ledger)
    else:
        optima = tuple(grid_optima(ledger, options.window))
        points = points_of_grids(ledger, optima, options.force or options.prior is not None, warnings)
    scale = {"T": _round_scale(points.T), "N": _round_scale(points.N)}
    constants: dict[str, Any] = {"batch": None, "lr": None, "loss": None}
    unknown: dict[str, str] = {}
    centre, replicates = np.full(len(COLUMNS), np.nan), np.full((len(points.present), len(COLUMNS)), np.nan)
    extra = np.zeros((len(COLUMNS), len(COLUMNS)))
    if part in ("hyperparameters", "all"):
        for offset, name, symbol in ((0, "batch", "B"), (3, "lr", "lr")):
            power, assumption = _hyper_law(points, name, symbol, options, scale, warnings)
            constants[name] = power.law
            centre[offset : offset + 3] = power.beta
            place = slice(offset, offset + 3)
            replicates[:, place] = _hyper_replicates(points, symbol, power)
            # Grids scatter around the law beyond their own noise, which deleting single cells does not show.
            extra[place, place] = power.between * power.pull @ power.pull.T + assumption
    residuals, fitted, shifts = None, None, np.zeros((jackknife.DRAWS, len(COLUMNS)))
    if part in ("loss", "allocation", "all"):
        fitted, thetas, misfit, shifts[:, 6:] = _loss_law(points, options, scale, warnings)
        constants["loss"], residuals = fitted.law, fitted.residuals
        centre[6:], replicates[:, 6:], extra[6:, 6:] = fitted.theta, thetas, misfit
    for name in constants:
        if constants[name] is None:
            unknown[name] = "not fitted: only part of the laws was asked for"
    draws, intervals = _uncertainty(centre, replicates, extra, shifts)
    sizes = _allocation(ledger, points, constants["loss"], cost, warnings)
    if sizes is None:
        unknown["allocation"] = "needs the loss law"
    curvature, given = _curvature(points.optima)
    if curvature is None:
        unknown |= {"curvature": "no grids to take it from", "lr_given_batch": "no grids to take it from"}
    if draws is None:
        unknown["draws"] = "fewer than three clusters"
    law = Law(
        name=str(provenance.get("name", "law")),
        **constants,
        allocation=sizes,
        curvature=curvature,
        lr_given_batch=given,
        n_ctx=int(ledger.n_ctx[0]) if len(set(ledger.n_ctx)) == 1 and ledger.n_ctx[0] > 0 else None,
        domain=_domain(ledger, points, cost),
        recipe=ledger.recipe,
        fit={
            "objective": None if fitted is None else fitted.objective,
            "delta": None if fitted is None else fitted.delta,
            "points": len(points.N),
            "window": options.window,
            "draw_columns": [name for name, value in zip(COLUMNS, centre) if not math.isnan(value)],
            "intervals": intervals,
            "method": f"delete-one-run jackknife over {len(points.present)} runs, t quantiles, 95 %",
            "verdicts": [optimum.describe() for optimum in optima],
            "warnings": list(warnings),
        },
        draws=draws,
        provenance=provenance
        | {"unknown": unknown, "source": ledger.source, "runs": sorted(set(ledger.run_id.tolist()))},
    )
    return Fitted(law, points, optima, tuple(warnings), residuals)


def _hyper_law(points, name, symbol, options, scale, warnings) -> tuple[hyper.PowerFit, NDArray]:
    """The fit, and the covariance [3, 3] that exponents assumed from the prior add."""
    inside = points.interior
    N, T, value = points.N[inside], points.T[inside], getattr(points, symbol)[inside]
    variance = getattr(points, f"variance_{symbol}")
    variance = None if variance is None else variance[inside]
    fixed = {key.partition(".")[2]: v for key, v in options.fixed.items() if key.partition(".")[0] == symbol}
    prior = getattr(options.prior, name) if options.prior is not None else None
    assumed: list[str] = []
    while True:
        free = [exponent for exponent in ("T", "N") if exponent not in fixed]
        reason = hyper.unidentified(N, T, fixed)
        if reason is None:
            power = hyper.fit_power(N, T, value, variance, fixed, scale)
            width = jackknife.t_quantile(power.spare) * np.sqrt(np.diag(power.covariance))
            loose = [e for e in free if not width[hyper.CONSTANTS.index(e)] <= LOOSE]
            if not loose or prior is None:
                if loose:
                    warnings.append(
                        f"{symbol}'s exponent in {' and '.join(loose)} is known to no better than +-{LOOSE}"
                    )
                return power, _assumption(points, power, assumed, scale)
            hold = max(loose, key=lambda e: np.nan_to_num(width[hyper.CONSTANTS.index(e)], nan=math.inf))
            reason = "too few optima to fix it"
        elif prior is None:
            raise Untrusted(f"{symbol}_opt: {reason} (hold one with --fix {symbol}.N=..., or give --prior)")
        else:
            hold = min(free, key=lambda e: np.ptp(np.log(getattr(points, e))))
        fixed[hold] = getattr(prior, hold)
        assumed.append(hold)
        warnings.append(f"{symbol}'s exponent in {hold} assumed from {options.prior.name}: {fixed[hold]:g} ({reason})")


def _hyper_replicates(points: Points, symbol: str, power: hyper.PowerFit) -> NDArray:
    """The law's beta with each cluster deleted, [clusters, 3]."""
    inside = points.interior
    logs, present = points.replicates[symbol][:, inside], points.present[:, inside]
    if present.all():
        return power.beta + (logs - np.log(getattr(points, symbol)[inside])) @ power.pull.T
    fixed = {name: float(power.beta[hyper.CONSTANTS.index(name)]) for name in power.law.assumed}
    replicates = np.tile(power.beta, (len(present), 1))
    for k, kept in enumerate(present):
        N, T = points.N[inside][kept], points.T[inside][kept]
        if hyper.unidentified(N, T, fixed) is None:
            again = hyper.fit_power(N, T, np.exp(logs[k, kept]), 1 / power.weights[kept], fixed, power.law.scale)
            replicates[k] = again.beta
    return replicates


def _assumption(points: Points, power: hyper.PowerFit, assumed: list[str], scale: dict[str, float]) -> NDArray:
    """How the constants would move if the assumed exponents were wrong by ASSUMED_POWER: a covariance [3, 3]."""
    covariance = np.zeros((3, 3))
    for name in assumed:
        moved = -power.pull @ np.log(getattr(points, name)[points.interior] / scale[name])
        moved[hyper.CONSTANTS.index(name)] = 1.0
        covariance += ASSUMED_POWER**2 * np.outer(moved, moved)
    return covariance


def _loss_law(points, options, scale, warnings) -> tuple[loss_law.LossFit, NDArray, NDArray, NDArray]:
    """The fit, its delete-one thetas [clusters, 5], its misfit's covariance, and shifts from assumed exponents."""
    held = {key.partition(".")[2]: v for key, v in options.fixed.items() if key.startswith("loss.")}
    prior = options.prior.loss if options.prior is not None else None
    exponents = {} if prior is None else {"aT": prior.aT, "aN": prior.aN}
    reason = loss_law.unidentified(points.N, points.T, held)
    if reason is None and len(points.N) < 7 - len(held):
        reason = f"{len(points.N)} optima for {5 - len(held)} constants leave nothing to check the fit by"
    if reason is None or (prior is None and options.force):
        fitted, thetas = _fit_loss(points, options, held, scale)
        width = jackknife.t_quantile(len(thetas) - 1) * np.linalg.norm(jackknife.deviations(thetas), axis=0)
        if fitted.at_bound:
            reason = f"{' and '.join(fitted.at_bound)} ran to its bound"
        elif any(width[i] > LOOSE * abs(fitted.theta[i]) for i in (1, 3)):
            reason = "the exponents' intervals are wider than half their values"
            if prior is None:
                warnings.append(f"loss law: {reason}")
                reason = None
        if reason is None or (prior is None and options.force):
            return fitted, thetas, _misfit(points, fitted, held), np.zeros((jackknife.DRAWS, 5))
    if prior is None:
        raise Untrusted(f"loss law: {reason}")
    held = exponents | held
    named = ", ".join(f"{name} {value:g}" for name, value in sorted(held.items()))
    warnings.append(f"loss law: {named} assumed from {options.prior.name} ({reason})")
    reason = loss_law.unidentified(points.N, points.T, held)
    if reason:
        raise Untrusted(f"loss law: {reason}, even with the exponents assumed")
    fitted, thetas = _fit_loss(points, options, held, scale)
    if fitted.at_bound:
        warnings.append(f"loss law: {' and '.join(fitted.at_bound)} ran to its bound")
    shifts = _assumed_shifts(points, fitted, held, sorted(set(exponents) & set(held)), scale)
    return fitted, thetas, _misfit(points, fitted, held), shifts


def _assumed_shifts(points, fitted, held, assumed, scale) -> NDArray:
    """How theta moves [draws, 5] where the assumed exponents are drawn around their values and the rest fitted again.

    Refitted rather than linearised: a wrong exponent is made up for by the other constants wherever there are data.
    """
    random = np.random.default_rng(1)
    half = random.standard_normal((jackknife.DRAWS // 2, len(assumed)))
    factors = (1 + ASSUMED_LOSS) ** np.concatenate([half, -half])
    start = np.repeat(fitted.theta[None], len(factors), axis=0)
    for name, factor in zip(assumed, factors.T):
        start[:, loss_law.CONSTANTS.index(name)] *= factor
    precision, _ = loss_law.precisions(points.noise, len(points.N))
    held = held | dict.fromkeys(assumed, math.nan)
    thetas, _ = loss_law.descend(
        start, points.N, points.T, points.loss, precision, fitted.delta, held, scale, steps=100
    )
    return thetas - fitted.theta


def _fit_loss(points, options, held, scale) -> tuple[loss_law.LossFit, NDArray]:
    fitted = loss_law.fit(points.N, points.T, points.loss, points.noise, options.delta, held, scale)
    precision, _ = loss_law.precisions(points.noise, len(points.N))
    start = np.repeat(fitted.theta[None], len(points.present), axis=0)
    replicates, weight = np.exp(points.replicates["loss"]), points.present.astype(float)
    thetas, _ = loss_law.descend(
        start, points.N, points.T, replicates, precision, fitted.delta, held, scale, weight, steps=100
    )
    return fitted, thetas


def _misfit(points: Points, fitted: loss_law.LossFit, held: dict[str, float]) -> NDArray:
    """Covariance of theta from scatter around the law beyond the points' own noise (method of moments), [5, 5]."""
    covariance = np.zeros((5, 5))
    free = [i for i, name in enumerate(loss_law.CONSTANTS) if name not in held]
    spare = len(points.N) - len(free)
    if points.noise is None or not points.optima or spare <= 0:
        return covariance
    weight = points.noise**-2
    excess = (np.sum(weight * fitted.residuals**2) - spare) / weight.sum() * len(points.N) / spare
    if excess > 0:
        J = fitted.derivative[:, free] * np.sqrt(weight)[:, None]
        pull = np.linalg.pinv(J, rcond=1e-12) * np.sqrt(weight)
        covariance[np.ix_(free, free)] = excess * pull @ pull.T
    return covariance


def _uncertainty(centre, replicates, extra, shifts) -> tuple[list | None, dict[str, list[float]]]:
    """(joint draws, 95 % interval by constant)."""
    known = np.flatnonzero(~np.isnan(centre))
    if len(replicates) < 3:
        return None, {}
    fits = jackknife.Spread(
        jackknife.deviations(replicates[:, known]), extra[np.ix_(known, known)], len(replicates) - 1
    )
    whole = replace(fits, extra=fits.extra + np.cov(shifts[:, known], rowvar=False))
    middle, width, logged = centre[known], whole.half_width(), _LOGGED[known]
    ends = {
        COLUMNS[i]: [float(np.exp(v)) if log else float(v) for v in (m - w, m + w)]
        for i, m, w, log in zip(known, middle, width, logged)
    }
    draws = fits.draws(middle) + shifts[:, known]
    exponents = [j for j, i in enumerate(known) if COLUMNS[i] in ("loss.aT", "loss.aN")]
    draws[:, exponents] = np.clip(draws[:, exponents], *loss_law.EXPONENTS)
    draws = np.where(logged, np.exp(np.clip(draws, -700, 700)), draws)
    return [[float(f"{v:.6g}") for v in row] for row in draws], ends


def _allocation(ledger, points, loss, cost, warnings) -> dict[str, Any] | None:
    if loss is None:
        return None
    C = points.T * cost(points.N)
    sizes: dict[str, Any] = {"measured": None, "predicted": None, "default": "predicted"}
    sizes["predicted"] = allocation.predicted(loss, (float(C.min()), 10 * float(C.max())), cost)
    sizes["measured"] = _measured(points, C)
    if sizes["measured"] is not None:
        at = 10 * C.max()
        ratio = float(sizes["measured"](at) / sizes["predicted"](at))
        if not 0.5 < ratio < 2:
            warnings.append(f"at {at:.2g} FLOPs the measured N_opt is {ratio:.2g} times the predicted one")
    return sizes


def _measured(points: Points, C: NDArray) -> SizeLaw | None:
    """N_opt through isoFLOP parabolas at budgets that three sizes span; losses interpolated along each size."""
    curves = []
    for N in np.unique(points.N):
        rows = np.flatnonzero(points.N == N)
        order = rows[np.argsort(C[rows])]
        curves.append((N, np.log(C[order]), np.log(points.loss[order])))
    found = []
    for log_C in np.linspace(np.log(C.min()), np.log(C.max()), 12):
        spanning = [(N, np.interp(log_C, c, y)) for N, c, y in curves if len(c) > 1 and c[0] <= log_C <= c[-1]]
        if len(spanning) >= 3:
            sizes, losses = np.array(spanning).T
            optimum = allocation.parabola(float(np.exp(log_C)), sizes, np.exp(losses))
            if optimum.interior:
                found.append(optimum)
    if len(found) < 3:
        return None
    law = allocation.size_law([o.C for o in found], [o.N_opt for o in found])
    return law if law.exponent > 0 else None


def _curvature(optima: tuple[Optimum, ...]) -> tuple[Curvature | None, GivenBatch | None]:
    """Median curvature of the interior grids, relative to their losses, and the ridge's slope it implies."""
    hessians = [o.hessian / o.loss for o in optima if o.interior]
    if not hessians:
        return None, None
    middle = np.median(hessians, axis=0)
    curvature = Curvature(float(middle[0, 0] / 2), float(middle[1, 1] / 2), float(middle[0, 1]))
    return curvature, GivenBatch(float(-middle[0, 1] / middle[0, 0]))


def _domain(ledger: Ledger, points: Points, cost: Callable) -> dict[str, list[float]]:
    C = points.T * cost(points.N)
    spans = {"N": points.N, "T": points.T, "B": ledger.B, "C": C}
    return {name: [float(np.min(v)), float(np.max(v))] for name, v in spans.items()}


def _round_scale(values: NDArray) -> float:
    """The power of ten nearest the geometric middle: there the coefficients are least tangled with the exponents."""
    return float(10.0 ** round(float(np.mean(np.log10(values)))))
