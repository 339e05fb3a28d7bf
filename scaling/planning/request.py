"""What a user fixes of a plan, checked."""

from dataclasses import dataclass

from videoscaling.scaling.laws import TOLERANCE
from videoscaling.utils.devices import GPUS, planned_peak
from videoscaling.utils.errors import UserError, nearest
from videoscaling.utils.options import check_bounds, option

ESTIMATORS = ("predicted", "measured", "direct", "minimised")
# What may be asked for: beyond these there is no such machine, and at last no such float.
LEAST, MOST_FLOPS, MOST_TOKENS, MOST_N_CTX = 1e-9, 1e33, 1e20, 1e9
FIXED = ("flops", "gpu_hours", "tokens", "loss", "params")


@dataclass(frozen=True)
class Request:
    """What the user fixes: FLOPs; or N with T or FLOPs; or T; or a loss to reach. FLOPs may come from GPU-hours."""

    flops: float | None = option(None, "training compute, e.g. 1e22", LEAST, MOST_FLOPS)
    gpu_hours: float | None = option(None, "training compute as hours of --gpu at --mfu", LEAST, 1e14)
    tokens: float | None = option(None, "training tokens T", LEAST, MOST_TOKENS)
    loss: float | None = option(None, "validation loss to reach", LEAST, 1e6)
    params: float | None = option(None, "model parameters N", LEAST, 1e14)
    batch: float | None = option(None, "batch in tokens, where memory dictates it; the rate follows", LEAST, 1e15)
    n_ctx: int | None = option(None, "tokens per clip (default: --base's, or the law's)", LEAST, MOST_N_CTX)
    estimator: str | None = option(None, f"how to choose N: {', '.join(ESTIMATORS)} (default: the law's)")
    tolerance: float = option(TOLERANCE, "loss given away, relative, for the range of N", LEAST, 1)
    batch_tolerance: float = option(
        TOLERANCE, "loss given away, relative, for a large batch, where the law is a surface", LEAST, 1
    )
    gpu: str = option("h100", f"one of {', '.join(GPUS)}", type=str.lower)
    mfu: float = option(0.4, "fraction of the GPU's peak reached", LEAST, 1)
    sampler_steps: int = option(50, "sampling steps per clip served", LEAST, 1e6)
    guidance: bool = True
    serve_clips: float | None = option(
        None,
        "clips to be served: minimise training plus serving at equal loss, which trains for longer than the budget",
        LEAST,
        1e18,
    )
    dtype: str = "auto"

    @property
    def passes(self) -> int:
        """Forward passes that sample one clip."""
        return self.sampler_steps * (2 if self.guidance else 1)

    def check(self) -> float | None:
        """The FLOPs given, directly or as GPU-hours; UserError for what makes no sense."""
        check_bounds(self)
        if self.gpu not in GPUS:
            raise UserError(f"unknown GPU {self.gpu!r}{nearest(self.gpu, list(GPUS))}: {', '.join(GPUS)}")
        if self.estimator is not None and self.estimator not in ESTIMATORS:
            near = nearest(self.estimator, list(ESTIMATORS))
            raise UserError(f"unknown estimator {self.estimator!r}{near}: {', '.join(ESTIMATORS)}")
        given = {name for name in FIXED if getattr(self, name) is not None}
        if len(given - {"params"}) != 1:
            said = " and ".join(f"--{name.replace('_', '-')}" for name in sorted(given))
            said += " do not fix a plan" if len(given) > 1 else " does not fix a plan" if given else "nothing is fixed"
            raise UserError(f"{said}: give --flops, --gpu-hours, --tokens or --loss, or --params and one of them")
        for name, what, other in (
            ("serve_clips", "chooses N", "params"),
            ("serve_clips", "trades tokens for size", "tokens"),
            ("estimator", "chooses N", "params"),
        ):
            if getattr(self, name) is not None and other in given:
                raise UserError(f"--{name.replace('_', '-')} {what}: it contradicts --{other}")
        if self.gpu_hours is not None:
            return self.gpu_hours * 3600 * planned_peak(self.gpu, self.dtype) * self.mfu
        return self.flops
