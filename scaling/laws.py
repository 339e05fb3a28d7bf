"""The laws as values, and the law file.

A law file is JSON (docs and the design name its keys). Published constants stay as printed: ``scale`` says in what
unit T and N enter. Numbers that are unknown are null, and ``provenance.unknown`` gives the reason.
"""

import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from utils.errors import UserError, nearest
from utils.files import read_json, write_json

UNITS = {"N": "parameters", "T": "tokens", "B": "tokens", "C": "FLOPs"}
ESTIMATORS = ("measured", "predicted")


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
    loss: LossLaw | None
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

    def require(self, *parts: str) -> None:
        """Raise UserError if one of ``parts`` is null, with the reason the file gives."""
        for part in parts:
            if getattr(self, part) is None:
                reason = self.provenance.get("unknown", {}).get(part, "no reason given")
                raise UserError(f"law {self.name!r} has no {part} ({reason}), which this needs")

    def drawn(self, part: str) -> Any:
        """``part`` with fitted constants as arrays [draws], so a call gives one value per draw; None without draws."""
        law = getattr(self, part)
        if law is None or not self.draws:
            return None
        columns = dict(zip(self.fit["draw_columns"], np.array(self.draws).T))
        drawn = {name.partition(".")[2]: values for name, values in columns.items() if name.startswith(f"{part}.")}
        return replace(law, **drawn)


_PARTS = {
    "batch": PowerLaw,
    "lr": PowerLaw,
    "loss": LossLaw,
    "curvature": Curvature,
    "lr_given_batch": GivenBatch,
}


def load(path: str | Path) -> Law:
    """Read and check a law file.

    Raises:
        UserError: missing file, not JSON, another schema, or a constant missing or out of its range.
    """
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a law file is one JSON object")
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
    raw = asdict(law)
    for part in ("batch", "lr", "loss"):
        if raw[part] is not None:
            raw[part]["assumed"] = list(raw[part]["assumed"])
            if not raw[part]["assumed"]:
                del raw[part]["assumed"]
    return {"name": raw.pop("name"), "units": raw.pop("units"), **raw}


def from_dict(raw: dict[str, Any]) -> Law:
    """The law in a parsed law file; UserError names what is wrong with it."""
    known = [f.name for f in fields(Law)]
    for key in raw:
        if key not in known:
            raise UserError(f"unknown key {key!r} in a law file{nearest(key, known)}")
    missing = [key for key in known if key not in raw]
    if missing:
        raise UserError(f"not a law file of this schema: {', '.join(missing)} missing (unknown is null)")
    if raw["units"] != UNITS:
        raise UserError(f"units must be {UNITS}, not {raw['units']}")
    values = dict(raw)
    for part, kind in _PARTS.items():
        if raw[part] is not None:
            values[part] = _part(part, kind, raw[part])
    for part in ("domain", "recipe", "fit", "provenance"):
        if not isinstance(raw[part], dict):
            raise UserError(f"{part} must be an object")
    _check_signs(values)
    values["allocation"] = _allocation(raw["allocation"])
    _check_domain(raw["domain"])
    if raw["n_ctx"] is not None and not (isinstance(raw["n_ctx"], int) and raw["n_ctx"] > 0):
        raise UserError(f"n_ctx must be a positive integer, not {raw['n_ctx']!r}")
    if raw["draws"] is not None:
        columns = raw["fit"].get("draw_columns") or []
        if not columns or any(len(row) != len(columns) for row in raw["draws"]):
            raise UserError("draws: each row needs one number per name in fit.draw_columns")
    return Law(**values)


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
            values[name] = tuple(raw.get(name, ()))
        elif name not in raw:
            raise UserError(f"constant {part}.{name} is missing")
        elif name == "scale":
            scale = raw[name]
            if not isinstance(scale, dict) or set(scale) != {"T", "N"} or not all(map(_positive, scale.values())):
                raise UserError(f'{part}.scale must be {{"T": number, "N": number}}, both above 0')
        elif not _finite(raw[name]):
            raise UserError(f"constant {part}.{name} must be a number, not {raw[name]!r}")
    return kind(**values)


def _check_signs(values: dict[str, Any]) -> None:
    for part in ("batch", "lr"):
        if values[part] is not None and values[part].coefficient <= 0:
            raise UserError(f"{part}.coefficient must be above 0")
    loss = values["loss"]
    if loss is not None:
        for name in ("Tc", "aT", "Nc", "aN"):
            if getattr(loss, name) <= 0:
                raise UserError(f"loss.{name} must be above 0: loss falls with T and with N")
        if loss.Linf < 0:
            raise UserError("loss.Linf must not be negative")


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
        if checked[name] is not None and not (checked[name].coefficient > 0 and checked[name].exponent > 0):
            raise UserError(f"allocation.{name}: coefficient and exponent must be above 0")
    return checked


def _check_domain(raw: dict[str, Any]) -> None:
    for key, value in raw.items():
        if key not in UNITS:
            raise UserError(f"unknown key domain.{key}; the domain has N, T, B and C")
        ordered = value is None or (
            isinstance(value, list) and len(value) == 2 and all(map(_positive, value)) and value[0] <= value[1]
        )
        if not ordered:
            raise UserError(f"domain.{key} must be [lowest, highest] or null, not {value!r}")


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _positive(value: Any) -> bool:
    return _finite(value) and value > 0
