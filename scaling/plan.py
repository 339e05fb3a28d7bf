"""From a budget to a run: N, T, B, lr, steps, loss and cost, each with an interval where the law has draws."""

import math
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scaling import allocation
from scaling.jackknife import interval
from scaling.laws import Law
from scaling.plan_warnings import plan_warnings
from utils.devices import PEAK_FLOPS, best_dtype, planned_peak
from utils.errors import UserError, nearest

ESTIMATORS = ("predicted", "measured", "direct", "minimised")
# Rounding to whole clips moves a batch by less than this, in ln; along one batch a rate is for no other.
SAME_BATCH = 0.1
# What may be asked for: beyond these there is no such machine, and at last no such float.
LEAST = 1e-9
MOST = {
    "flops": 1e33, "params": 1e14, "tokens": 1e20, "loss": 1e6, "gpu_hours": 1e14, "mfu": 1, "batch": 1e15,
    "n_ctx": 1e9, "tolerance": 1, "sampler_steps": 1e6, "serve_clips": 1e18,
}  # fmt: skip
LOWEST_C, HIGHEST_C = 1e6, 1e40


@dataclass(frozen=True)
class Request:
    """What the user fixes: FLOPs; or N with T or FLOPs; or T; or a loss to reach. FLOPs may come from GPU-hours."""

    flops: float | None = None
    params: float | None = None
    tokens: float | None = None
    loss: float | None = None
    gpu_hours: float | None = None
    gpu: str = "h100"
    mfu: float = 0.4
    batch: float | None = None
    n_ctx: int | None = None
    estimator: str | None = None
    tolerance: float = 1e-3
    sampler_steps: int = 50
    guidance: bool = True
    serve_clips: float | None = None
    dtype: str = "auto"


@np.errstate(all="ignore")  # what is not finite is refused by name
def plan(law: Law, request: Request, ladder: ModuleType) -> dict[str, Any]:
    """The plan as one object, in the planner's JSON form.

    Args:
        law: needs a loss law; the rest is used where it has it. A law without a batch or a rate gives a plan whose B,
            lr and steps are None.
        request: what is fixed.
        ladder: the model's sizes (``models.sizes``): ``shape_for``, ``parameters`` and so on.

    Raises:
        UserError: contradictory or impossible requests, or a law without what they need.
    """
    budget = _check(request)
    law.require("loss")
    n_ctx = request.n_ctx or law.n_ctx
    if n_ctx is None:
        raise UserError(f"law {law.name!r} does not know n_ctx: give --n-ctx, the tokens per clip")
    cost = allocation.c_token(n_ctx, ladder.smooth_width)
    wanted, budget = _wanted_size(law, request, budget, cost)
    if request.serve_clips and request.params is None:
        wanted, budget = _cheapest_lifetime(law, request, budget, n_ctx, cost)
    shape = ladder.shape_for(wanted)
    parameters = ladder.parameters(shape.layers, shape.width)
    # The law's sizes are quoted to two or three digits: a shape that near is the size itself.
    N = wanted if abs(math.log(parameters / wanted)) <= ladder.SAME_SIZE else float(parameters)
    per_token = ladder.flops_per_token(N, n_ctx, shape.width)
    if request.tokens is not None:
        T = request.tokens
    elif request.loss is not None or (request.serve_clips and request.params is None):
        target = request.loss if request.loss is not None else float(law.loss(wanted, budget / cost(np.array(wanted))))
        T = float(law.loss.tokens_for(N, target))
        if MOST["tokens"] < T:
            limit = float(law.loss(N, math.inf))
            raise UserError(
                f"N {N:.4g} never reaches loss {target:.8g} (in {MOST['tokens']:g} tokens): by law {law.name!r} its "
                f"limit is {limit:.8g}"
            )
        if request.loss is not None and law.batch is not None:
            T = _with_batch(law, N, T, target, n_ctx, request.batch)
    else:
        T = budget / per_token
    if not n_ctx <= T:
        raise UserError(f"{T:.3g} tokens is less than one clip of {n_ctx}: the budget is too small for N {N:.3g}")
    C = T * per_token
    B_opt = None if law.batch is None else float(law.batch(N, T))
    _check_finite(law, {"B_opt": B_opt})
    B, off, penalty = _whole_batch(law, N, T, n_ctx, request.batch)
    slope = law.lr_given_batch.slope if law.lr_given_batch else 0.0
    forward = n_ctx * per_token / 3
    draws = _draws(law, N, T, B, C, slope, cost)
    if "loss" in draws:
        draws["loss"] = draws["loss"] * penalty
    by_estimator = _by_estimator(law, C, cost, draws)
    value = {
        "N": N,
        "T": T,
        "B": B,
        "lr": _rate(law, N, T, B, off),
        "steps": None if B is None else math.ceil(T / B),
        "loss": float(law.loss(N, T)) * penalty,
        "C": C,
        "n_ctx": n_ctx,
        "size": shape.name,
        "layers": shape.layers,
        "width": shape.width,
        "heads": shape.heads,
        "parameters": parameters,
        "gpu_hours": C / (planned_peak(request.gpu, request.dtype) * request.mfu) / 3600,
        "inference_flops_per_clip": forward * request.sampler_steps * (2 if request.guidance else 1),
        "B_opt": B_opt,
        "N_opt": by_estimator,
        "N_within_tolerance": _within(law, C, cost, request.tolerance),
        "assumptions": {
            "law": law.name,
            "estimator": _estimator(law, request) if request.params is None else None,
            "gpu": request.gpu,
            "mfu": request.mfu,
            "dtype": best_dtype(request.gpu) if request.dtype == "auto" else request.dtype,
            "sampler_steps": request.sampler_steps,
            "guidance": request.guidance,
            "serve_clips": request.serve_clips,
        },
        "extrapolation": _extrapolation(law, {"N": N, "T": T, "B": B, "C": C}),
    }
    if request.serve_clips is not None:
        value["serving"] = _serving(value, plan(law, replace(request, serve_clips=None), ladder))
    for name in ("lr", "loss", "B_opt"):
        if name in draws and value[name] is not None:
            low, high = interval(draws[name])
            value[name] = {"value": value[name], "low": low, "high": high}
    _check_finite(law, value)
    value["warnings"] = plan_warnings(law, value, n_ctx)
    return value


def _along(law: Law, name: str) -> float | None:
    """The one "B" or "lr" that all the law's runs had, where it was fitted along it."""
    return (law.fit.get("along") or {}).get(name)


def _whole_batch(law: Law, N: float, T: float, n_ctx: int, given: float | None) -> tuple[int | None, float, float]:
    """``_batch`` at one T, checked; B is None where neither the law nor the request has one."""
    if law.batch is None:
        fixed = given or _along(law, "B")
        if fixed is None:
            return None, 0.0, 1.0
        B, off, penalty = (fixed if given else max(round(fixed / n_ctx), 1) * n_ctx), 0.0, 1.0
    else:
        B, off, penalty = (float(value) for value in _batch(law, N, T, n_ctx, given))
    _check_finite(law, {"B": B, "distance from the best batch": off, "loss": penalty})
    _check_batch(B, n_ctx, T, given)
    return int(B), off, penalty


def _rate(law: Law, N: float, T: float, B: int | None, off: float) -> float | None:
    """The rate at a batch that lies ``off`` (in ln) from the law's; None where it is unknown.

    A law along one batch has no rate for another.
    """
    if law.lr is None:
        return _along(law, "lr")
    fixed = _along(law, "B")
    if law.batch is None and (B is None or (fixed is not None and abs(math.log(B / fixed)) > SAME_BATCH)):
        return None
    slope = law.lr_given_batch.slope if law.lr_given_batch else 0.0
    return float(law.lr(N, T) * np.exp(slope * off))


def _batch(law: Law, N: float, T: ArrayLike, n_ctx: int, given: float | None) -> tuple[NDArray, NDArray, NDArray]:
    """(B, its distance from the batch of the law's rates in logs, the factor that this puts on the loss), as T."""
    B_opt = law.batch(N, T)
    B = np.full_like(B_opt, given) if given else np.maximum(np.round(B_opt / n_ctx), 1) * n_ctx
    # Rates and losses at the floor of one clip were measured at one clip, and not at the smaller batch they wanted.
    off = np.log(B / np.maximum(B_opt, law.fit.get("floor") or 0))
    slope = law.lr_given_batch.slope if law.lr_given_batch else 0.0
    return B, off, 1 + (law.curvature(slope * off, off) if law.curvature else 0 * off)


def _check_batch(B: float, n_ctx: int, T: float, given: float | None) -> None:
    """UserError for a batch that is no whole number of clips, or more than the run."""
    if B % n_ctx:
        low = max(int(B // n_ctx), 1) * n_ctx
        raise UserError(f"a batch of {B:g} tokens is no whole number of clips: nearest {low} and {low + n_ctx}")
    if math.ceil(T) < B:
        whose = "--batch" if given else "the law's batch,"
        raise UserError(
            f"{whose} {B:.0f} is more than the run's {T:.4g} tokens: give a smaller --batch or more tokens"
        )


def _with_batch(law: Law, N: float, least: float, loss: float, n_ctx: int, given: float | None) -> float:
    """The fewest tokens that reach ``loss`` at what the batch costs; ``least`` do where it costs nothing."""

    def short(T: ArrayLike) -> NDArray:
        return law.loss(N, T) * _batch(law, N, T, n_ctx, given)[2] - loss

    # What a given batch costs falls with T until it is the best one, and rises again: the first crossing is sought.
    grid = np.geomspace(least, MOST["tokens"], 4001)
    reached = np.flatnonzero(short(grid) <= 0)
    if not len(reached):
        raise UserError(
            f"batches of {given or n_ctx:.4g} tokens never bring N {N:.4g} to loss {loss:.8g}: give another"
        )
    low, high = grid[max(reached[0] - 1, 0)], grid[reached[0]]
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if short(middle) <= 0 else (middle, high)
    return float(high)


def _check_finite(law: Law, numbers: dict[str, Any]) -> None:
    """Raise UserError where a law's constants or draws lead out of the range of numbers."""
    for name, value in numbers.items():
        if isinstance(value, dict):
            _check_finite(law, {f"{name} ({key})": v for key, v in value.items()})
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"law {law.name!r} gives no {name} here: its constants or draws are out of range")


def _check(request: Request) -> float | None:
    """The FLOPs given, directly or as GPU-hours; UserError for what makes no sense."""
    for name, most in MOST.items():
        given = getattr(request, name)
        if given is not None and not LEAST <= given <= most:
            option = name.replace("_", "-")
            raise UserError(f"--{option} must be a positive number, at least {LEAST:g} and at most {most:g}")
    if request.gpu not in PEAK_FLOPS:
        raise UserError(
            f"unknown GPU {request.gpu!r}{nearest(request.gpu, list(PEAK_FLOPS))}: {', '.join(PEAK_FLOPS)}"
        )
    if request.estimator is not None and request.estimator not in ESTIMATORS:
        raise UserError(f"unknown estimator {request.estimator!r}: {', '.join(ESTIMATORS)}")
    given = {name for name in ("flops", "params", "tokens", "loss", "gpu_hours") if getattr(request, name) is not None}
    allowed = [{"flops"}, {"gpu_hours"}, {"tokens"}, {"loss"}]
    allowed += [{"params", other} for other in ("tokens", "flops", "gpu_hours", "loss")]
    if given not in allowed:
        said = " and ".join(f"--{name.replace('_', '-')}" for name in sorted(given))
        said += " do not fix a plan" if len(given) > 1 else " does not fix a plan" if given else "nothing is fixed"
        raise UserError(f"{said}: give --flops, --gpu-hours, --tokens or --loss, or --params and one of them")
    if request.serve_clips is not None and "params" in given:
        raise UserError("--serve-clips chooses N: it contradicts --params")
    if request.serve_clips is not None and "tokens" in given:
        raise UserError("--serve-clips trades tokens for size: it contradicts --tokens")
    if request.estimator is not None and "params" in given:
        raise UserError("--estimator chooses N: it contradicts --params")
    if request.gpu_hours is not None:
        return request.gpu_hours * 3600 * planned_peak(request.gpu, request.dtype) * request.mfu
    return request.flops


def _estimator(law: Law, request: Request) -> str:
    return request.estimator or (law.allocation or {}).get("default", "minimised")


def _size(law: Law, estimator: str, C: float, cost: allocation.Cost) -> float:
    size_law = (law.allocation or {}).get(estimator)
    if estimator != "minimised" and size_law is None:
        raise UserError(f"law {law.name!r} has no {estimator} N_opt; try --estimator minimised")
    N = float(allocation.optimum(law.loss, C, cost) if size_law is None else size_law(C))
    _check_finite(law, {f"N_opt ({estimator})": N})
    return N


def _wanted_size(
    law: Law, request: Request, budget: float | None, cost: allocation.Cost
) -> tuple[float, float | None]:
    """(N before it is rounded to a shape, FLOPs)."""
    if request.params is not None:
        return request.params, budget
    estimator = _estimator(law, request)
    if budget is None:
        if request.loss is not None and request.loss <= law.loss.Linf:
            raise UserError(f"no model reaches loss {request.loss:g}: the law's floor is {law.loss.Linf:g}")

        def excess(log_C: float) -> float:
            N = _size(law, estimator, math.exp(log_C), cost)
            T = math.exp(log_C) / float(cost(np.array(N)))
            return T - request.tokens if request.loss is None else request.loss - float(law.loss(N, T))

        low, high = math.log(LOWEST_C), math.log(HIGHEST_C)
        if excess(low) > 0 or excess(high) < 0:
            asked = f"--tokens {request.tokens:g}" if request.loss is None else f"--loss {request.loss:g}"
            raise UserError(f"{asked} is no plan's: no budget from {LOWEST_C:g} to {HIGHEST_C:g} FLOPs leads there")
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (low, middle) if excess(middle) > 0 else (middle, high)
        budget = math.exp((low + high) / 2)
    return _size(law, estimator, budget, cost), budget


def _cheapest_lifetime(
    law: Law, request: Request, budget: float, n_ctx: int, cost: allocation.Cost
) -> tuple[float, float]:
    """(N, training FLOPs) that reach the budget's best loss at the least training plus serving FLOPs."""
    start = _size(law, _estimator(law, request), budget, cost)
    target = float(law.loss(start, budget / cost(np.array(start))))
    N = start * np.exp(np.linspace(-6, 2, 2001))
    per_token = cost(N)
    training = law.loss.tokens_for(N, target) * per_token
    passes = request.sampler_steps * (2 if request.guidance else 1)
    best = int(np.argmin(training + request.serve_clips * n_ctx * per_token / 3 * passes))
    return float(N[best]), float(training[best])


def _draws(
    law: Law, N: float, T: float, B: int | None, C: float, slope: float, cost: allocation.Cost
) -> dict[str, NDArray]:
    """What each joint draw of the law says of this run: [draws] by name."""
    drawn = allocation.drawn(law, C, cost)
    loss, batch, lr = law.drawn("loss"), law.drawn("batch"), law.drawn("lr")
    if loss is not None:
        drawn["loss"] = loss(N, T)
    if batch is not None:
        drawn["B_opt"] = batch(N, T)
    if law.batch is None and lr is not None:
        drawn["lr"] = lr(N, T)
    elif batch is not None and lr is not None:
        # The rate follows the batch actually used, along the ridge through each draw's own optimum.
        drawn["lr"] = lr(N, T) * (B / np.maximum(drawn["B_opt"], law.fit.get("floor") or 0)) ** slope
    return drawn


def _by_estimator(law: Law, C: float, cost: allocation.Cost, draws: dict[str, NDArray]) -> dict[str, Any]:
    sizes: dict[str, Any] = {}
    for name in ESTIMATORS:
        if name == "minimised" or (law.allocation or {}).get(name) is not None:
            sizes[name] = _size(law, name, C, cost)
    for name, size in sizes.items():
        span = interval(draws[name]) if name in draws else allocation.size_interval(law, name, C)
        if span is not None:
            sizes[name] = {"value": size, "low": span[0], "high": span[1]}
    return sizes


def _within(law: Law, C: float, cost: allocation.Cost, tolerance: float) -> dict[str, float]:
    low, high = allocation.within(law.loss, C, cost, tolerance)
    return {"low": low, "high": high, "tolerance": tolerance}


def _serving(plan: dict[str, Any], alone: dict[str, Any]) -> dict[str, Any]:
    """What serving costs, and what choosing the size for it saves against the plan ``alone``, made without."""
    clips = plan["assumptions"]["serve_clips"]
    served, without = (p["C"] + clips * p["inference_flops_per_clip"] for p in (plan, alone))
    return {
        "flops": served - plan["C"],
        "total_flops": served,
        "training_excess": plan["C"] / alone["C"] - 1,
        "saved": 1 - served / without,
        "without": {"N": alone["N"], "C": alone["C"], "total_flops": without},
    }


def _extrapolation(law: Law, run: dict[str, float | None]) -> dict[str, float | None]:
    """N, T, B and C as multiples of the fitted maximum."""
    spans = {name: law.domain.get(name) for name in run}
    return {name: None if at is None or spans[name] is None else at / spans[name][1] for name, at in run.items()}
