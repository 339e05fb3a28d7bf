"""From a budget to a run: N, T, B, lr, steps, loss and cost, each with an interval where the law has one.

Laws answer through ``Law.response``, so that a plan is made in one way by published constants, by averaged loss forms
and by a surface.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.scaling.estimates import Estimate
from videoscaling.scaling.laws import Law
from videoscaling.scaling.planning import allocation
from videoscaling.scaling.planning.request import MOST_TOKENS, Request
from videoscaling.scaling.planning.warnings import plan_warnings
from videoscaling.utils.devices import best_dtype, planned_peak
from videoscaling.utils.errors import UserError

LOWEST_C, HIGHEST_C = 1e6, 1e40
# Token counts, spaced evenly in logs, among which the first that reaches a loss at its batch is sought.
SCANNED = 401
# N that cost least to train and serve lie within these factors of the budget's N_opt.
SERVED_SIZES = (math.exp(-6), math.exp(2))


class Unserved(TypedDict):
    """The plan that counts training alone, and what it costs with serving, in FLOPs."""

    N: float
    C: float
    total_flops: float


class Serving(TypedDict):
    """What serving costs, and what choosing the size for it saves against the plan ``without``."""

    flops: float
    total_flops: float
    training_excess: float
    saved: float
    without: Unserved


@dataclass
class Plan:
    """A planned run, as ``tools/plan.py`` prints it; what the law does not know is None.

    Attributes:
        N, T, B, lr, steps, loss, C: of the run; B in tokens, C in training FLOPs.
        parameters: of the shape ``size``, of so many layers, width and heads, whose N it is.
        gpu_hours: at the peak of the GPU and the share of it that ``assumptions`` name.
        B_opt, N_opt: the law's best batch, and its best size at C FLOPs by estimator.
        N_within_tolerance: low and high, the sizes whose loss at C FLOPs is that near the best; None for an end beyond
            ``allocation.SIZES``.
        extrapolation: N, T, B and C as multiples of the fitted maximum.
        unknown: why B, lr or B_opt are None.
        serving: what serving costs and what choosing the size for it saves, where clips are served.
        layout: on GPUs (``training.planning.layout.add_layout``); its keys stand next to the others in JSON.
    """

    N: float
    T: float
    B: int | None
    lr: Estimate | None
    steps: int | None
    loss: Estimate
    C: float
    n_ctx: int
    size: str
    layers: int
    width: int
    heads: int
    parameters: int
    gpu_hours: float
    inference_flops_per_clip: float
    B_opt: Estimate | None
    N_opt: dict[str, Estimate]
    N_within_tolerance: dict[str, float | None]
    assumptions: dict[str, str | float | list[str] | None]
    extrapolation: dict[str, float | None]
    unknown: dict[str, str]
    serving: Serving | None = None
    warnings: list[str] = field(default_factory=list)
    layout: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The object of ``tools/plan.py --json``: estimates have intervals where known."""
        found = {name: _as_json(value) for name, value in vars(self).items() if name != "layout"}
        for name in ("unknown", "serving"):
            if not found[name]:
                del found[name]
        return found | self.layout


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_json(item) for name, item in value.items()}
    return value.as_json() if isinstance(value, Estimate) else value


@np.errstate(all="ignore")  # what is not finite is refused by name
def plan(law: Law, request: Request, ladder: ModuleType, shape: Any = None) -> Plan:
    """The run that a law plans.

    Args:
        law: needs a loss; the rest is used where it has it. A law without a batch or a rate gives a plan whose B, lr
            and steps are None.
        request: what is fixed.
        ladder: the model's sizes (``models.sizes``): ``shape_for``, ``parameters`` and so on.
        shape: of the model; by default the ladder's that is nearest to the best N.

    Raises:
        UserError: contradictory or impossible requests, or a law without what they need.
    """
    budget = request.check()
    losses = law.response.losses
    n_ctx = request.n_ctx or law.n_ctx
    if n_ctx is None:
        raise UserError(f"law {law.name!r} does not know n_ctx: give --n-ctx, the tokens per clip")
    cost = allocation.c_token(n_ctx, ladder.smooth_width)
    planner = _Planner(law, request, n_ctx, cost)
    wanted, budget = planner.wanted_size(budget)
    serves = bool(request.serve_clips) and request.params is None
    if serves:
        wanted, budget = planner.cheapest_lifetime(budget)
    shape = shape or ladder.shape_for(wanted)
    parameters = ladder.parameters(shape.layers, shape.width)
    # The law's sizes are quoted to two or three digits: a shape that near is the size itself.
    N = wanted if abs(math.log(parameters / wanted)) <= ladder.SAME_SIZE else float(parameters)
    per_token = ladder.flops_per_token(N, n_ctx, shape.width)
    if request.tokens is not None:
        T = request.tokens
    elif request.loss is not None:
        T = planner.tokens_with_batch(N, request.loss)
    elif serves:
        T = planner.tokens_for(N, float(losses(wanted, budget / cost(np.array(wanted)))))
    else:
        T = budget / per_token
    if not n_ctx <= T:
        raise UserError(f"{T:.3g} tokens is less than one clip of {n_ctx}: the budget is too small for N {N:.3g}")
    C, B = T * per_token, planner.checked_batch(N, T)
    at = math.nan if B is None else B
    best, rate = law.response.best_batch(N, T), law.response.rate(N, T, at)
    unknown = {} if best is not None else {"B_opt": law.response.no_best_batch}
    unknown |= {
        name: law.reason(part) for name, part, found in (("B", "batch", B), ("lr", "lr", rate)) if found is None
    }
    low, high = allocation.within(losses, C, cost, request.tolerance)
    run = {"N": N, "T": T, "B": B, "C": C}
    found = Plan(
        **run,
        lr=rate,
        steps=None if B is None else math.ceil(T / B),
        loss=law.response.loss(N, T, at),
        n_ctx=n_ctx,
        size=shape.name,
        layers=shape.layers,
        width=shape.width,
        heads=shape.heads,
        parameters=parameters,
        gpu_hours=C / (planned_peak(request.gpu, request.dtype) * request.mfu) / 3600,
        inference_flops_per_clip=n_ctx * per_token / 3 * request.passes,
        B_opt=best,
        N_opt=allocation.estimates(law, C, cost),
        N_within_tolerance={"low": low, "high": high, "tolerance": request.tolerance},
        assumptions={
            "law": law.name,
            "estimator": planner.estimator if request.params is None else None,
            "gpu": request.gpu,
            "mfu": request.mfu,
            "dtype": best_dtype(request.gpu) if request.dtype == "auto" else request.dtype,
            "sampler_steps": request.sampler_steps,
            "guidance": request.guidance,
            "serve_clips": request.serve_clips,
            **({"batch_tolerance": request.batch_tolerance} if law.response.takes_tolerance else {}),
        },
        extrapolation={
            name: None if value is None or law.domain.get(name) is None else value / law.domain[name][1]
            for name, value in run.items()
        },
        unknown=unknown,
    )
    if request.serve_clips is not None:
        found.serving = _serving(found, plan(law, replace(request, serve_clips=None), ladder), request.serve_clips)
    _check_finite(law, found.to_dict())
    found.warnings = plan_warnings(law, found)
    return found


@dataclass(frozen=True)
class _Planner:
    """What the steps of one plan share: ``cost`` is the training FLOPs per token of N."""

    law: Law
    request: Request
    n_ctx: int
    cost: allocation.Cost

    @property
    def estimator(self) -> str:
        """The estimator of N_opt by which N is chosen."""
        return self.request.estimator or (self.law.allocation or {}).get("default", "minimised")

    def size(self, C: float) -> float:
        """N_opt at C FLOPs."""
        size_law = (self.law.allocation or {}).get(self.estimator)
        if self.estimator != "minimised" and size_law is None:
            raise UserError(f"law {self.law.name!r} has no {self.estimator} N_opt; try --estimator minimised")
        N = float(allocation.optimum(self.law.response.losses, C, self.cost) if size_law is None else size_law(C))
        _check_finite(self.law, {f"N_opt ({self.estimator})": N})
        return N

    def wanted_size(self, budget: float | None) -> tuple[float, float | None]:
        """(N before it is rounded to a shape, FLOPs): of the budget, or of that which the tokens or the loss need."""
        request, losses = self.request, self.law.response.losses
        if request.params is not None:
            return request.params, budget
        if budget is None:
            if request.loss is not None and request.loss <= (floor := float(losses.limit())):
                raise UserError(f"no model reaches loss {request.loss:g}: the law's floor is {floor:g}")

            def excess(log_C: float) -> float:
                N = self.size(math.exp(log_C))
                T = math.exp(log_C) / float(self.cost(np.array(N)))
                if request.loss is None:
                    return math.log(T / request.tokens)
                return math.log(request.loss / float(losses(N, T)))

            budget = _root(excess, LOWEST_C, HIGHEST_C)
            if budget is None:
                asked = f"--tokens {request.tokens:g}" if request.loss is None else f"--loss {request.loss:g}"
                raise UserError(
                    f"{asked} is no plan's: no budget from {LOWEST_C:g} to {HIGHEST_C:g} FLOPs leads there"
                )
        return self.size(budget), budget

    def cheapest_lifetime(self, budget: float) -> tuple[float, float]:
        """(N, training FLOPs) that reach the budget's best loss at the least training plus serving FLOPs."""
        from scipy.optimize import minimize_scalar  # not at the top: most plans do without

        losses, start = self.law.response.losses, self.size(budget)
        target = float(losses(start, budget / self.cost(np.array(start))))

        def training(N: float) -> float:
            return losses.tokens_for(N, target) * float(self.cost(np.array(N)))

        def lifetime(log_N: float) -> float:
            N = math.exp(log_N)
            per_clip = self.n_ctx * float(self.cost(np.array(N))) / 3 * self.request.passes
            return math.log(training(N) + self.request.serve_clips * per_clip)

        # Below the size whose loss on endless tokens is the target no training gets there.
        least, most = (start * factor for factor in SERVED_SIZES)
        least = _root(lambda log_N: math.log(target / float(losses.limit(math.exp(log_N)))), least, start) or least
        found = minimize_scalar(lifetime, bounds=(math.log(least), math.log(most)), method="bounded")
        N = math.exp(found.x)
        return N, training(N)

    def tokens_for(self, N: float, loss: float) -> float:
        """Tokens at which N parameters reach ``loss`` at the best batch and rate."""
        T = self.law.response.losses.tokens_for(N, loss)
        if MOST_TOKENS < T:
            raise UserError(
                f"N {N:.4g} never reaches loss {loss:.8g} (in {MOST_TOKENS:g} tokens): by law {self.law.name!r} "
                f"its limit is {float(self.law.response.losses.limit(N)):.8g}"
            )
        return T

    def tokens_with_batch(self, N: float, loss: float) -> float:
        """The fewest tokens that reach ``loss`` at what the batch costs."""
        response, least = self.law.response, self.tokens_for(N, loss)

        def reached(T: ArrayLike) -> NDArray:
            B = self.batch(N, T)
            return math.log(loss) - np.log(response.losses(N, T) * (1 if B is None else response.penalty(N, T, B)))

        if float(reached(least)) >= 0:
            return least
        # What a given batch costs falls with T until it is the best one, and rises again: the first crossing counts.
        tokens = np.geomspace(least, MOST_TOKENS, SCANNED)
        crossed = np.flatnonzero(reached(tokens) >= 0)
        if not len(crossed):
            raise UserError(
                f"batches of {self.request.batch or self.n_ctx:.4g} tokens never bring N {N:.4g} to loss {loss:.8g}: "
                "give another"
            )
        high = crossed[0]
        return _root(lambda log_T: float(reached(math.exp(log_T))), tokens[max(high - 1, 0)], tokens[high]) or least

    def batch(self, N: float, T: ArrayLike) -> NDArray[np.float64] | None:
        """The batch in tokens at each T: the one that is given, or the law's; None where both are unknown."""
        if self.request.batch is not None:
            return np.full(np.shape(T), self.request.batch)
        return self.law.response.batch(N, T, self.n_ctx, self.request.batch_tolerance)

    def checked_batch(self, N: float, T: float) -> int | None:
        """``batch``; UserError where it is not finite, no whole number of clips, or more than the run."""
        found, n_ctx, given = self.batch(N, T), self.n_ctx, self.request.batch
        if found is None:
            return None
        B = float(found)
        _check_finite(self.law, {"B": B})
        if B % n_ctx:
            low = max(int(B // n_ctx), 1) * n_ctx
            raise UserError(f"a batch of {B:g} tokens is no whole number of clips: nearest {low} and {low + n_ctx}")
        if math.ceil(T) < B:
            whose = f"--batch {B:.0f}" if given else f"the law's batch of {B:.0f}"
            raise UserError(f"{whose} is more than the run's {T:.4g} tokens: give a smaller --batch or more tokens")
        return int(B)


def _root(function: Any, low: float, high: float) -> float | None:
    """Where a function of ln x turns from below 0 to above, between two x; None where it does not."""
    ends = math.log(low), math.log(high)
    if not function(ends[0]) <= 0 <= function(ends[1]):
        return None
    from scipy.optimize import brentq  # not at the top: most plans do without

    return math.exp(brentq(function, *ends, xtol=1e-13))


def _check_finite(law: Law, numbers: Mapping[str, object]) -> None:
    """Raise UserError where a law's constants or draws lead out of the range of numbers."""
    for name, value in numbers.items():
        if isinstance(value, dict):
            _check_finite(law, {f"{name} ({key})": v for key, v in value.items()})
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"law {law.name!r} gives no {name} here: its constants or draws are out of range")


def _serving(served: Plan, alone: Plan, clips: float) -> Serving:
    total, without = (one.C + clips * one.inference_flops_per_clip for one in (served, alone))
    return {
        "flops": total - served.C,
        "total_flops": total,
        "training_excess": served.C / alone.C - 1,
        "saved": 1 - total / without,
        "without": {"N": alone.N, "C": alone.C, "total_flops": without},
    }
