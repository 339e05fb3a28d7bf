"""The laws as values, and the law file.

A law file is JSON (docs/laws.md names its keys). Published constants stay as printed: ``scale`` says in what
unit T and N enter. Numbers that are unknown are null, and ``provenance.unknown`` gives the reason.
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.utils.errors import UserError, nearest
from videoscaling.utils.files import read_json, write_json

if TYPE_CHECKING:
    from videoscaling.scaling.fitting.losses.average import LossLaws
    from videoscaling.scaling.fitting.surface.surface import Surface  # with scipy: loaded where a file has one
    from videoscaling.scaling.response import Response

UNITS = {"N": "parameters", "T": "tokens", "B": "tokens", "C": "FLOPs"}
ESTIMATORS = ("direct", "measured", "predicted")
TOLERANCE = 1e-3  # loss given away, relative, for a large batch
OPTIONAL = ("surface", "lack_of_fit")  # keys that files of a surface have
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

    def tokens_for(self, N: ArrayLike, loss: float) -> NDArray[np.float64]:
        """Tokens at which N parameters reach ``loss``; infinite where no number of tokens does."""
        gap = np.asarray(loss - self.Linf - self.Nc * np.divide(N, self.scale["N"]) ** -self.aN)
        reachable = np.where(gap > 0, gap, 1.0)
        return np.where(gap > 0, self.scale["T"] * (self.Tc / reachable) ** (1 / self.aT), np.inf)


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


@dataclass(frozen=True)
class Law:
    """A whole law file. What is None is unknown, and ``provenance["unknown"]`` says why."""

    name: str
    batch: PowerLaw | None
    lr: PowerLaw | None
    loss: "LossLaw | LossLaws | None"
    allocation: dict[str, Any] | None
    curvature: Curvature | None
    lr_given_batch: GivenBatch | None
    n_ctx: int | None
    domain: dict[str, list[float] | None]
    recipe: dict[str, Any]
    fit: dict[str, Any]
    draws: list[list[float]] | None
    provenance: dict[str, Any]
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

    def best_pair(self, N: float, T: float, tolerance: float = TOLERANCE) -> tuple[float, float]:
        """The rate and the batch in tokens that a plan takes (``Response.wanted_batch``), not rounded to clips.

        Raises:
            UserError: the law has none, or its constants lead beyond what any run can have.
        """
        self.require_pair()
        # Rates at the floor of one clip are that clip's, and not those of the smaller batch that the law wants.
        B = max(float(self.response.wanted_batch(N, T, tolerance)), self.fit.get("floor") or 0)
        with np.errstate(all="ignore"):  # what is not finite is refused by name, the batch before its rate
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
        held = {name: np.full(len(self.draws), getattr(law, name)) for name in _constants(type(law))}
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


_PARTS = {
    "batch": PowerLaw,
    "lr": PowerLaw,
    "loss": LossLaw,
    "curvature": Curvature,
    "lr_given_batch": GivenBatch,
}
# Constants of which a root or a logarithm is taken, or without which there is no optimum; the rest may have any sign.
_ABOVE_0 = ("coefficient", "exponent", "Tc", "aT", "Nc", "aN", "lr_lr", "batch_batch")
_NOT_BELOW_0 = ("Linf",)
_OBJECT = (lambda value: isinstance(value, dict), "an object")
# What else the planner and the report read: a test, and in words what it asks. Keys with a dot may be missing or null.
_SHAPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (lambda value: isinstance(value, str) and value != "", "a name"),
    "n_ctx": (lambda value: value is None or (isinstance(value, int) and _positive(value)), "a positive integer"),
    "domain": _OBJECT,
    "recipe": _OBJECT,
    "fit": _OBJECT,
    "fit.window": (lambda value: _positive(value) and value < 1, "a fraction between 0 and 1"),
    "fit.floor": (lambda value: _positive(value), "a positive number of tokens"),
    "fit.along": (
        lambda value: (
            isinstance(value, dict) and list(value) in (["B"], ["lr"]) and all(map(_positive, value.values()))
        ),
        'an object with the one "B" or "lr" of all runs',
    ),
    "fit.flops_per_parameter_token": (lambda value: _positive(value), "a number above 0"),
    "fit.size_errors": (
        lambda value: (
            isinstance(value, dict) and all(key in ESTIMATORS and _size_errors(v) for key, v in value.items())
        ),
        "an object with log_C, sd, sd_exponent and quantile by estimator",
    ),
    "fit.scatter": (
        lambda value: (
            isinstance(value, dict)
            and set(value) == {"points", "run", "freedom"}
            and _positive(value["points"])
            and _positive(value["freedom"])
            and (value["run"] is None or _positive(value["run"]))
        ),
        "an object with points, run and freedom",
    ),
    "fit.method": (lambda value: isinstance(value, str), "words"),
    "fit.warnings": (lambda value: isinstance(value, list) and _all_words(value), "a list of words"),
    "fit.intervals": (
        lambda value: isinstance(value, dict) and all(map(_span, value.values())),
        "an object of [lowest, highest] by constant",
    ),
    "provenance": _OBJECT,
    "provenance.unknown": (
        lambda value: isinstance(value, dict) and _all_words(value.values()),
        "an object of reasons by key",
    ),
}


def load(path: str | Path) -> Law:
    """Read and check a law file.

    Raises:
        UserError: missing file, not JSON, another schema, or a constant missing or out of its range.
    """
    raw = read_json(path, dict)
    try:
        return from_dict(raw)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def save(law: Law, path: str | Path) -> None:
    """Write ``law``, checked, whole or not at all."""
    raw = to_dict(law)
    from_dict(raw)
    write_json(path, raw)


def to_dict(law: Law) -> dict[str, Any]:
    """The law as the file's JSON object, keys in the file's order."""
    forms = None if law.loss is None or isinstance(law.loss, LossLaw) else law.loss
    raw = asdict(replace(law, surface=None, loss=None if forms else law.loss))
    del raw["surface"]
    if forms:
        from videoscaling.scaling.fitting.losses import loss_file

        raw["loss"] = loss_file.to_dict(forms)
    for part in ("batch", "lr", "loss"):
        if raw[part] is not None and "forms" not in raw[part]:
            raw[part]["assumed"] = list(raw[part]["assumed"])
            if not raw[part]["assumed"]:
                del raw[part]["assumed"]
    if law.surface is not None:
        from videoscaling.scaling.fitting.surface import surface_file

        raw |= surface_file.to_dict(law.surface)
    return {"name": raw.pop("name"), "units": raw.pop("units"), **raw}


def from_dict(raw: dict[str, Any]) -> Law:
    """The law in a parsed law file; UserError names what is wrong with it."""
    if "status" in raw and "config" in raw:
        raise UserError("a run's result, not a law; tools/fit.py fits laws to the results of many runs")
    known = [f.name for f in fields(Law)] + ["lack_of_fit"]
    for key in raw:
        if key not in known:
            raise UserError(f"unknown key {key!r} in a law file{nearest(key, known)}")
    missing = [key for key in known if key not in raw and key not in OPTIONAL]
    if missing:
        raise UserError(f"not a law file of this schema: {', '.join(missing)} missing (unknown is null)")
    if raw["units"] != UNITS:
        raise UserError(f"units must be {UNITS}, not {_shown(raw['units'])}")
    values = {key: value for key, value in raw.items() if key not in OPTIONAL}
    if raw.get("surface") is not None:
        from videoscaling.scaling.fitting.surface import surface_file

        values["surface"] = surface_file.from_dict(raw["surface"], raw.get("lack_of_fit"))
    for part, kind in _PARTS.items():
        if part == "loss" and isinstance(raw[part], dict) and "forms" in raw[part]:
            from videoscaling.scaling.fitting.losses import loss_file

            values[part] = loss_file.from_dict(raw[part])
        elif raw[part] is not None:
            values[part] = _part(part, kind, raw[part])
    bend = values["curvature"]
    if bend is not None and 4 * bend.lr_lr * bend.batch_batch <= bend.lr_batch * bend.lr_batch:
        raise UserError("curvature: no minimum: lr_batch^2 must be below 4 lr_lr batch_batch")
    values["allocation"] = _allocation(raw["allocation"])
    for key, (holds, words) in _SHAPES.items():
        part, _, inner = key.partition(".")
        value = raw[part].get(inner) if inner else raw[part]
        if not (holds(value) or (inner and value is None)):
            raise UserError(f"{key} must be {words}, not {_shown(value)}")
    _check_domain(raw["domain"])
    if raw["draws"] is not None:
        _check_draws(raw["draws"], raw["fit"].get("draw_columns"))
    return Law(**values)


def _constants(kind: type) -> list[str]:
    """Names of a part's numbers."""
    return [f.name for f in fields(kind) if f.name not in ("scale", "assumed")]


def _part(part: str, kind: type, raw: Any) -> Any:
    names = [f.name for f in fields(kind)]
    if not isinstance(raw, dict):
        raise UserError(f"{part} must be an object with {', '.join(names)}")
    for key in raw:
        if key not in names:
            raise UserError(f"unknown key {part}.{key}{nearest(key, names)}")
    values = dict(raw)
    for name in names:
        if name == "assumed":
            assumed = raw.get(name, [])
            if not (isinstance(assumed, list) and all(held in _constants(kind) for held in assumed)):
                raise UserError(f"{part}.assumed must be a list of its constants' names, not {_shown(assumed)}")
            values[name] = tuple(assumed)
        elif name not in raw:
            raise UserError(f"constant {part}.{name} is missing")
        elif name == "scale":
            scale = raw[name]
            if not isinstance(scale, dict) or set(scale) != {"T", "N"} or not all(map(_positive, scale.values())):
                raise UserError(f'{part}.scale must be {{"T": number, "N": number}}, both above 0')
        else:
            _check_constant(f"{part}.{name}", raw[name])
    return kind(**values)


def _check_constant(where: str, value: Any) -> None:
    """``where`` ends in the constant's name, which says what sign it must have."""
    name = where.rpartition(".")[2]
    if not _finite(value):
        raise UserError(f"{where} must be a number, not {_shown(value)}")
    if (name in _ABOVE_0 and value <= 0) or (name in _NOT_BELOW_0 and value < 0):
        raise UserError(f"{where} must {'be above 0' if name in _ABOVE_0 else 'not be negative'}, not {value!r}")


def _allocation(raw: Any) -> dict[str, Any] | None:
    if raw is None:
        return None
    if not isinstance(raw, dict) or raw.get("default") not in ESTIMATORS:
        raise UserError(f"allocation.default must be one of {', '.join(ESTIMATORS)}")
    if raw.get(raw["default"]) is None:
        raise UserError(f"allocation.{raw['default']} is the default, but missing or null")
    checked: dict[str, Any] = {"default": raw["default"]}
    for name, value in raw.items():
        if name == "default":
            continue
        if name not in ESTIMATORS:
            raise UserError(f"unknown key allocation.{name}{nearest(name, list(ESTIMATORS))}")
        checked[name] = None if value is None else _part(f"allocation.{name}", SizeLaw, value)
    return checked


def _check_domain(raw: dict[str, Any]) -> None:
    for key in raw:
        if key not in UNITS:
            raise UserError(f"unknown key domain.{key}; the domain has N, T, B and C")
    missing = [f"domain.{key}" for key in UNITS if key not in raw]
    if missing:
        raise UserError(f"{', '.join(missing)} missing (unknown is null)")
    for key, value in raw.items():
        if value is not None and not (_span(value) and value[0] > 0):
            raise UserError(f"domain.{key} must be [lowest, highest], above 0, or null, not {_shown(value)}")


def _check_draws(rows: Any, columns: Any) -> None:
    known = [f"{part}.{name}" for part in ("batch", "lr", "loss") for name in _constants(_PARTS[part])]
    if not (isinstance(columns, list) and columns and all(columns.count(c) == 1 and c in known for c in columns)):
        raise UserError(f"fit.draw_columns must list each of the drawn constants once, out of {', '.join(known)}")
    if not (isinstance(rows, list) and rows):
        raise UserError("draws must be a list of rows, or null")
    for number, row in enumerate(rows, start=1):
        if not (isinstance(row, list) and len(row) == len(columns)):
            raise UserError(f"draws: row {number} needs one number per name in fit.draw_columns ({len(columns)})")
        for column, value in zip(columns, row):
            _check_constant(f"draws: row {number}, {column}", value)


def _finite(value: Any) -> bool:
    # Whole numbers beyond the range of floats are numbers in JSON, but not to any law.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _positive(value: Any) -> bool:
    return _finite(value) and value > 0


def _span(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_finite, value)) and value[0] <= value[1]


def _size_errors(value: Any) -> bool:
    names = ("log_C", "sd", "sd_exponent", "quantile")
    return isinstance(value, dict) and set(value) == set(names) and all(_finite(v) and v >= 0 for v in value.values())


def _all_words(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
