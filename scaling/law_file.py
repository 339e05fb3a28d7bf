"""The law file: JSON (docs/laws.md names its keys), checked when it is read and before it is written.

Published constants stay as printed: ``scale`` says in what unit T and N enter. Numbers that are unknown are null, and
``provenance.unknown`` gives the reason.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from videoscaling import ROOT
from videoscaling.scaling.laws import (
    ESTIMATORS,
    UNITS,
    Allocation,
    Curvature,
    GivenBatch,
    Law,
    LossLaw,
    PowerLaw,
    SizeLaw,
    constants_of,
)
from videoscaling.utils.errors import UserError, nearest, nearest_path, shown
from videoscaling.utils.files import read_json, write_json

OPTIONAL = ("surface", "lack_of_fit")  # keys that files of a surface have
_PARTS = {
    "batch": PowerLaw,
    "lr": PowerLaw,
    "loss": LossLaw,
    "curvature": Curvature,
    "lr_given_batch": GivenBatch,
}
# Constants whose root or logarithm is taken, or without which there is no optimum; the rest may have any sign.
_ABOVE_0 = ("coefficient", "exponent", "Tc", "aT", "Nc", "aN", "lr_lr", "batch_batch")
_NOT_BELOW_0 = ("Linf",)


def _finite(value: Any) -> bool:
    # Whole numbers beyond the range of floats are numbers in JSON, but not to any law.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _positive(value: Any) -> bool:
    return _finite(value) and value > 0


def _not_negative(value: Any) -> bool:
    return _finite(value) and value >= 0


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _span(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_finite, value)) and value[0] <= value[1]


def _object(value: Any) -> bool:
    return isinstance(value, dict)


def _each(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether ``holds`` is true of every value of an object."""
    return lambda value: isinstance(value, dict) and all(map(holds, value.values()))


def _with(**keys: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether an object has these keys, each with a value that its test allows."""
    return lambda value: _object(value) and set(value) == set(keys) and all(keys[key](value[key]) for key in value)


_size_errors = _each(_with(log_C=_not_negative, sd=_not_negative, sd_exponent=_not_negative, quantile=_not_negative))
# What else the planner and the report read: a test, and its rule as text. Keys with a dot may be missing or null.
_SHAPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (lambda value: _text(value) and value != "", "a name"),
    "n_ctx": (lambda value: value is None or (isinstance(value, int) and _positive(value)), "a positive integer"),
    "domain": (_object, "an object"),
    "recipe": (_object, "an object"),
    "fit": (_object, "an object"),
    "fit.window": (lambda value: _positive(value) and value < 1, "a fraction between 0 and 1"),
    "fit.floor": (_positive, "a positive number of tokens"),
    "fit.along": (
        lambda value: _with(B=_positive)(value) or _with(lr=_positive)(value),
        'an object with the one "B" or "lr" of all runs',
    ),
    "fit.flops_per_parameter_token": (_positive, "a number above 0"),
    "fit.size_errors": (
        lambda value: _size_errors(value) and set(value) <= set(ESTIMATORS),
        "an object with log_C, sd, sd_exponent and quantile by estimator",
    ),
    "fit.scatter": (
        _with(points=_positive, run=lambda value: value is None or _positive(value), freedom=_positive),
        "an object with points, run and freedom",
    ),
    "fit.method": (_text, "words"),
    "fit.warnings": (lambda value: isinstance(value, list) and all(map(_text, value)), "a list of words"),
    "fit.intervals": (_each(_span), "an object of [lowest, highest] by constant"),
    "provenance": (_object, "an object"),
    "provenance.unknown": (_each(_text), "an object of reasons by key"),
}


def load(path: str | Path) -> Law:
    """Read and check a law file.

    Raises:
        UserError: missing file, not JSON, another schema, or a constant missing or out of its range.
    """
    if not Path(path).exists() and (near := nearest_path(path, shipped())):
        raise UserError(f"{path}: no such file{near}")
    raw = read_json(path, dict)
    try:
        return from_dict(raw)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def shipped() -> list[Path]:
    """The laws that the repository has, as paths from the current folder where they lie below it."""
    here = Path.cwd()
    laws = sorted((ROOT / "configs" / "laws").glob("*.json"))
    return [law.relative_to(here) if law.is_relative_to(here) else law for law in laws]


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
        raise UserError(f"units must be {UNITS}, not {shown(raw['units'])}")
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
            raise UserError(f"{key} must be {words}, not {shown(value)}")
    _check_domain(raw["domain"])
    if raw["draws"] is not None:
        _check_draws(raw["draws"], raw["fit"].get("draw_columns"))
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
            assumed = raw.get(name, [])
            if not (isinstance(assumed, list) and all(held in constants_of(kind) for held in assumed)):
                raise UserError(f"{part}.assumed must be a list of its constants' names, not {shown(assumed)}")
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
        raise UserError(f"{where} must be a number, not {shown(value)}")
    if (name in _ABOVE_0 and value <= 0) or (name in _NOT_BELOW_0 and value < 0):
        raise UserError(f"{where} must {'be above 0' if name in _ABOVE_0 else 'not be negative'}, not {value!r}")


def _allocation(raw: Any) -> Allocation | None:
    if raw is None:
        return None
    if not isinstance(raw, dict) or raw.get("default") not in ESTIMATORS:
        raise UserError(f"allocation.default must be one of {', '.join(ESTIMATORS)}")
    if raw.get(raw["default"]) is None:
        raise UserError(f"allocation.{raw['default']} is the default, but missing or null")
    checked: Allocation = {"default": raw["default"]}
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
            raise UserError(f"domain.{key} must be [lowest, highest], above 0, or null, not {shown(value)}")


def _check_draws(rows: Any, columns: Any) -> None:
    known = [f"{part}.{name}" for part in ("batch", "lr", "loss") for name in constants_of(_PARTS[part])]
    if not (isinstance(columns, list) and columns and all(columns.count(c) == 1 and c in known for c in columns)):
        raise UserError(f"fit.draw_columns must list each of the drawn constants once, out of {', '.join(known)}")
    if not (isinstance(rows, list) and rows):
        raise UserError("draws must be a list of rows, or null")
    for number, row in enumerate(rows, start=1):
        if not (isinstance(row, list) and len(row) == len(columns)):
            raise UserError(f"draws: row {number} needs one number per name in fit.draw_columns ({len(columns)})")
        for column, value in zip(columns, row):
            _check_constant(f"draws: row {number}, {column}", value)
