"""The laws as values: power laws of N and T, the loss law, N_opt, and the whole of what a law file holds."""

from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.utils.errors import UserError

if TYPE_CHECKING:
    from videoscaling.scaling.fitting.losses.average import LossLaws
    from videoscaling.scaling.fitting.surface.surface import Surface  # with scipy: loaded where a file has one
    from videoscaling.scaling.response import Response

UNITS = {"N": "parameters", "T": "tokens", "B": "tokens", "C": "FLOPs"}
ESTIMATORS = ("direct", "measured", "predicted")
TOLERANCE = 1e-3  # loss given away, relative, for a large batch
EDGE = 0.01  # a loss this much (relative) above the best one ends the range of batches
# Rates and batches (tokens) that a run can have.
POSSIBLE = {"lr": (1e-15, 1e6), "B": (1e-3, 1e15)}


@dataclass(frozen=True)
class PowerLaw:
    """``coefficient * (T / scale.T)^T * (N / scale.N)^N``: B_opt in tokens (eq. 5), or lr_opt (eq. 6)."""

    coefficient: float
    T: float
    N: float
    scale: dict[str, float]
    assumed: tuple[str, ...] = ()

    def __call__(self, N: ArrayLike, T: ArrayLike) -> NDArray[np.float64]:
        """The law at N parameters and T tokens (arrays broadcast)."""
        with np.errstate(all="ignore"):  # constants out of range give what is not finite, which callers refuse
            relative_T, relative_N = np.divide(T, self.scale["T"]), np.divide(N, self.scale["N"])
            return self.coefficient * relative_T**self.T * relative_N**self.N


@dataclass(frozen=True)
class LossLaw:
    """``L(T, N) = Tc / (T / scale.T)^aT + Nc / (N / scale.N)^aN + Linf`` (eq. 9; Chinchilla's form with scale 1)."""

    Tc: float
    aT: float
    Nc: float
    aN: float
    Linf: float
    scale: dict[str, float]
    assumed: tuple[str, ...] = ()

    def __call__(self, N: ArrayLike, T: ArrayLike) -> NDArray[np.float64]:
        """The loss at N parameters and T tokens (arrays broadcast)."""
        relative_T, relative_N = np.divide(T, self.scale["T"]), np.divide(N, self.scale["N"])
        return self.Tc * relative_T**-self.aT + self.Nc * relative_N**-self.aN + self.Linf


@dataclass(frozen=True)
class SizeLaw:
    """``N_opt = coefficient * C^exponent``, parameters from FLOPs (eq. 14 and 18)."""

    coefficient: float
    exponent: float

    def __call__(self, C: ArrayLike) -> NDArray[np.float64]:
        return self.coefficient * np.power(C, self.exponent)


@dataclass(frozen=True)
class Curvature:
    """Relative loss around the optimum, ``lr_lr x^2 + batch_batch y^2 + lr_batch x y``.

    x = ln(lr / lr_opt), y = ln(B / B_opt).
    """

    lr_lr: float
    batch_batch: float
    lr_batch: float

    def __call__(self, x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
        return self.lr_lr * np.square(x) + self.batch_batch * np.square(y) + self.lr_batch * np.multiply(x, y)


@dataclass(frozen=True)
class GivenBatch:
    """The best rate for a batch dictated by memory: ``lr_opt(N, T) * (B / B_opt(N, T))^slope``."""

    slope: float


def constants_of(kind: type) -> list[str]:
    """Names of a part's numbers."""
    return [f.name for f in fields(kind) if f.name not in ("scale", "assumed")]


Recipe = dict[str, str | float | list | None]  # configuration keys of the runs, by dotted key, and their values


class Allocation(TypedDict, total=False):
    """N_opt by estimator; ``default`` names the one that plans take."""

    default: str
    direct: SizeLaw | None
    measured: SizeLaw | None
    predicted: SizeLaw | None


class FitInfo(TypedDict, total=False):
    """How a law was fitted: what plans, predictions and reports read of it (docs/laws.md)."""

    floor: float | None
    along: dict[str, float]
    flops_per_parameter_token: float | None
    size_errors: dict[str, dict[str, float]]
    scatter: dict[str, float | None] | None
    draw_columns: list[str] | None
    intervals: dict[str, list[float]]
    method: str
    warnings: list[str]


class Provenance(TypedDict, total=False):
    """Where a law is from, and why parts of it are unknown."""

    name: str
    command: str
    git_revision: str
    flops: str
    prior: str | None
    columns: dict[str, str]
    source: str
    runs: list[str]
    unknown: dict[str, str]


@dataclass(frozen=True)
class Law:
    """A whole law file. What is None is unknown, and ``provenance["unknown"]`` says why."""

    name: str
    batch: PowerLaw | None
    lr: PowerLaw | None
    loss: "LossLaw | LossLaws | None"
    allocation: Allocation | None
    curvature: Curvature | None
    lr_given_batch: GivenBatch | None
    n_ctx: int | None
    domain: dict[str, list[float] | None]
    recipe: Recipe
    fit: FitInfo
    draws: list[list[float]] | None
    provenance: Provenance
    units: dict[str, str] = field(default_factory=lambda: dict(UNITS))
    surface: "Surface | None" = None

    @cached_property
    def response(self) -> "Response":
        """What the law says of runs, whatever it consists of."""
        if self.surface is None:
            from videoscaling.scaling.response import PowerLaws

            return PowerLaws(self)
        from videoscaling.scaling.fitting.surface.response import SurfaceResponse

        return SurfaceResponse(self.surface)

    def best_pair(self, N: float, T: float, tolerance: float = TOLERANCE, n_ctx: int = 0) -> tuple[float, float]:
        """The rate and the batch in tokens that a plan takes; the rate is the best one at that batch.

        Args:
            n_ctx: tokens per clip: the batch is ``Response.batch``, whole clips. 0: it is ``Response.wanted_batch``.

        Raises:
            UserError: the law has none, or its constants lead beyond what any run can have.
        """
        self.require_pair()
        with np.errstate(all="ignore"):  # what is not finite is refused by name, the batch before its rate
            if n_ctx:
                B = float(self.response.batch(N, T, n_ctx, tolerance))
            else:
                # Rates at the floor of one clip are that clip's, and not those of the smaller batch that is wanted.
                B = max(float(self.response.wanted_batch(N, T, tolerance)), self.fit.get("floor") or 0)
            pair = {"B": B, "lr": float(self.response.rate(N, T, B).value)}
        for name, value in pair.items():
            low, high = POSSIBLE[name]
            if not low <= value <= high:
                raise UserError(
                    f"law {self.name!r} gives {name} {value:.4g} at N {N:.4g}, T {T:.4g}, outside {low:g} to "
                    f"{high:g}; its constants are out of range; fit it again, or hold exponents with fit.py --fix"
                )
        return pair["lr"], pair["B"]

    def require_pair(self) -> None:
        """Raise UserError where the law gives no batch or no rate, with the reason."""
        if self.surface is None:
            self.require("batch", "lr")

    def require(self, *parts: str) -> None:
        """Raise UserError if one of ``parts`` is null, with the reason the file gives."""
        for part in parts:
            if getattr(self, part) is None:
                raise UserError(f"law {self.name!r} has no {part} ({self.reason(part)}), which this needs")

    def reason(self, key: str) -> str:
        """Why ``key`` is null, as the file says."""
        return (self.provenance.get("unknown") or {}).get(key, "no reason given")

    def drawn(self, part: str) -> Any:
        """``part`` with fitted constants as arrays [draws], so a call gives one value per draw; None without draws."""
        law = getattr(self, part)
        if law is None or not self.draws or not hasattr(law, "scale"):
            return None
        columns = dict(zip(self.fit["draw_columns"], np.array(self.draws, dtype=float).T))
        if not any(name.startswith(f"{part}.") for name in columns):
            return None
        held = {name: np.full(len(self.draws), getattr(law, name)) for name in constants_of(type(law))}
        return replace(law, **{name: columns.get(f"{part}.{name}", same) for name, same in held.items()})


def with_hyperparameters(law: Law, prior: Law) -> Law:
    """``law`` with the batch and rate laws of ``prior``, every constant marked as assumed, where it has neither.

    What a batch off the best one costs comes with them.
    """
    if law.batch is not None or law.lr is not None or prior.batch is None or prior.lr is None:
        return law
    marked = {part: replace(getattr(prior, part), assumed=("N", "T", "coefficient")) for part in ("batch", "lr")}
    unknown = {key: why for key, why in (law.provenance.get("unknown") or {}).items() if key not in ("batch", "lr")}
    note = f"batch and rate are those of the law {prior.name!r}, and not measured"
    return replace(
        law,
        **marked,
        curvature=law.curvature or prior.curvature,
        lr_given_batch=law.lr_given_batch or prior.lr_given_batch,
        fit=law.fit | {"warnings": [note, *(law.fit.get("warnings") or [])]},
        provenance=law.provenance | {"unknown": unknown},
    )
