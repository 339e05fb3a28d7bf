"""What a user fixes of a plan, checked."""

from dataclasses import dataclass

from videoscaling.scaling.laws import TOLERANCE
from videoscaling.utils.devices import PEAK_FLOPS, planned_peak
from videoscaling.utils.errors import UserError, nearest

ESTIMATORS = ("predicted", "measured", "direct", "minimised")
# What may be asked for: beyond these there is no such machine, and at last no such float.
LEAST = 1e-9
MOST = {
    "flops": 1e33, "params": 1e14, "tokens": 1e20, "loss": 1e6, "gpu_hours": 1e14, "mfu": 1, "batch": 1e15,
    "n_ctx": 1e9, "tolerance": 1, "batch_tolerance": 1, "sampler_steps": 1e6, "serve_clips": 1e18,
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What the user fixes: FLOPs; or N with T or FLOPs; or T; or a loss to reach. FLOPs may come from GPU-hours.

    ``tolerance`` is the loss given away, relative, for the range of N; ``batch_tolerance`` that for a large batch.
    """

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
    batch_tolerance: float = TOLERANCE
    sampler_steps: int = 50
    guidance: bool = True
    serve_clips: float | None = None
    dtype: str = "auto"

    def check(self) -> float | None:
        """The FLOPs given, directly or as GPU-hours; UserError for what makes no sense."""
        for name, most in MOST.items():
            given = getattr(self, name)
            if given is not None and not LEAST <= given <= most:
                option = name.replace("_", "-")
                raise UserError(f"--{option} must be a positive number, at least {LEAST:g} and at most {most:g}")
        if self.gpu not in PEAK_FLOPS:
            raise UserError(f"unknown GPU {self.gpu!r}{nearest(self.gpu, list(PEAK_FLOPS))}: {', '.join(PEAK_FLOPS)}")
        if self.estimator is not None and self.estimator not in ESTIMATORS:
            raise UserError(f"unknown estimator {self.estimator!r}: {', '.join(ESTIMATORS)}")
        fixed = ("flops", "params", "tokens", "loss", "gpu_hours")
        given = {name for name in fixed if getattr(self, name) is not None}
        allowed = [{"flops"}, {"gpu_hours"}, {"tokens"}, {"loss"}]
        allowed += [{"params", other} for other in ("tokens", "flops", "gpu_hours", "loss")]
        if given not in allowed:
            said = " and ".join(f"--{name.replace('_', '-')}" for name in sorted(given))
            said += " do not fix a plan" if len(given) > 1 else " does not fix a plan" if given else "nothing is fixed"
            raise UserError(f"{said}: give --flops, --gpu-hours, --tokens or --loss, or --params and one of them")
        if self.serve_clips is not None and "params" in given:
            raise UserError("--serve-clips chooses N: it contradicts --params")
        if self.serve_clips is not None and "tokens" in given:
            raise UserError("--serve-clips trades tokens for size: it contradicts --tokens")
        if self.estimator is not None and "params" in given:
            raise UserError("--estimator chooses N: it contradicts --params")
        if self.gpu_hours is not None:
            return self.gpu_hours * 3600 * planned_peak(self.gpu, self.dtype) * self.mfu
        return self.flops
