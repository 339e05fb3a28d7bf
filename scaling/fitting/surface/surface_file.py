"""A surface as the ``surface`` and ``lack_of_fit`` keys of a law file: its constants, their errors, and its runs.

docs/laws.md has the keys and the formulas. Cells, covariances and draws are written with nine digits; levels of single
grids are left out, since no rate, batch or loss is read off them.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.fitting.losses import forms
from videoscaling.scaling.fitting.surface import diagnostics, least_squares, noise, selection, shape
from videoscaling.scaling.fitting.surface.cells import Cells
from videoscaling.scaling.fitting.surface.surface import Member, Surface
from videoscaling.utils.errors import UserError, nearest

DIGITS = 9
FORMULA = {
    "logs": "n, t, beta, rate: ln of N, T, B, lr over the reference; z = beta - (b + bT t + bN n)",
    "lr_opt": "rate = a + aB beta + aT t + aN n - 2 r ln cosh(z / 2)",
    "loss": "ln L = ln f(N, T) + cost of the rate + cost of the batch (docs/laws.md)",
}
KEYS = ("formula", "reference", "n_ctx", "freedom", "no_form", "domain", "shapes", "forms", "cells")
CELLS = ("N", "T", "B", "lr", "loss")
# Constants are logarithms and exponents: e to a larger one is no float.
MOST = 1e3


def to_dict(surface: Surface) -> dict[str, Any]:
    """The keys ``surface`` and ``lack_of_fit`` of a law file."""
    reference = {name: getattr(surface.scale, name) for name in "NTB"} | {"lr": surface.lr_scale}
    drawn = iter(surface.draws)
    cells = {name: _rounded(np.where(np.isfinite(v := getattr(surface.cells, name)), v, -1)) for name in CELLS}
    cells["loss"] = [None if loss < 0 else loss for loss in cells["loss"]]
    return {
        "surface": {
            "formula": FORMULA,
            "reference": reference,
            "n_ctx": surface.cells.n_ctx,
            "freedom": surface.freedom,
            "no_form": surface.no_form,
            "domain": {name: list(span) for name, span in surface.domain.items()},
            "shapes": [_shape_dict(c, next(drawn)[1]) for c in surface.shapes if c.weight > 0],
            "forms": [_member_dict(member) for member in surface.members],
            "cells": cells,
        },
        "lack_of_fit": [
            {"against": test.against, "size": test.size, "p": test.p, "failed": bool(test.failed)}
            for test in surface.lack_of_fit
        ],
    }


def from_dict(raw: Any, lack_of_fit: Any = None) -> Surface:
    """The surface in a parsed law file.

    Raises:
        UserError: a key is missing, unknown, or holds what it cannot.
    """
    _keys(raw, "surface", KEYS)
    _keys(raw["reference"], "surface.reference", (*"NTB", "lr"))
    reference = {name: _number(v, f"surface.reference.{name}", 0) for name, v in raw["reference"].items()}
    _keys(raw["domain"], "surface.domain", (*"NTB", "lr"))
    domain = {name: tuple(_array(v, f"surface.domain.{name}", (2,)).tolist()) for name, v in raw["domain"].items()}
    for name, (low, high) in domain.items():
        if not 0 < low <= high:
            raise UserError(f"surface.domain.{name} must be [lowest, highest], above 0")
    shapes = [_candidate(v, f"surface.shapes[{i}]") for i, v in enumerate(_list(raw["shapes"], "surface.shapes"))]
    cells = _cells(raw["cells"], _number(raw["n_ctx"], "surface.n_ctx", 0, above=False))
    lowest = float(np.log(cells.loss.min()))
    listed = enumerate(_list(raw["forms"], "surface.forms"))
    members = tuple(_member(v, f"surface.forms[{i}]", lowest) for i, v in listed)
    if not shapes:
        raise UserError("surface.shapes must have at least one shape")
    for name, weights in (("shapes", [one.weight for one, _ in shapes]), ("forms", [one.weight for one in members])):
        if weights and abs(sum(weights) - 1) > 1e-6:
            raise UserError(f"surface.{name}: their weights must add up to 1, not {sum(weights):.6g}")
    if not (raw["no_form"] is None or isinstance(raw["no_form"], str)) or (raw["no_form"] is None) != bool(members):
        raise UserError("surface.no_form must say why there are no forms, and be null where there are")
    scale = forms.Scale(reference["N"], reference["T"], reference["B"])
    surface = Surface(
        cells=cells,
        scale=scale,
        lr_scale=reference["lr"],
        shapes=tuple(candidate for candidate, _ in shapes),
        members=members,
        no_form=raw["no_form"],
        domain=domain,
        freedom=_number(raw["freedom"], "surface.freedom", 0),
        lack_of_fit=_tests(lack_of_fit),
    )
    surface.__dict__["draws"] = [pair for pair in shapes if pair[0].weight > 0]  # as drawn, not drawn again
    return surface


def _shape_dict(candidate: selection.Candidate, draws: NDArray) -> dict[str, Any]:
    model, own = candidate.solution.model, len(candidate.solution.model.level_names)
    return {
        "batch": candidate.batch,
        "bent": candidate.bent,
        "error": None if np.isnan(candidate.error) else candidate.error,
        "weight": candidate.weight,
        "held": sorted(model.held),
        **_constants_dict(candidate.solution, own),
        "draw_columns": list(model.names[own:]),
        "draws": _rounded(draws[:, own:]),
    }


def _member_dict(member: Member) -> dict[str, Any]:
    solution = member.solution
    return {
        "form": member.form,
        "batch": solution.model.batch,
        "weight": member.weight,
        "held": sorted(solution.model.held),
        **_constants_dict(solution, 0),
        "noise": dict(zip(noise.NAMES, _rounded(solution.phi))),
        "inflation": solution.outliers,
        "steps": [
            {"by": s.by, "value": s.value, "reach": s.reach, "error": _rounded(s.error), "sd": _rounded(s.sd)}
            for s in member.steps
        ],
    }


def _constants_dict(solution: least_squares.Solution, first: int) -> dict[str, Any]:
    names = solution.model.names[first:]
    return {
        "parameters": dict(zip(names, _rounded(solution.theta[first:]))),
        "covariance": _rounded(solution.covariance[first:, first:]),
    }


def _rounded(values: NDArray) -> list:
    flat = np.array([float(f"{v:.{DIGITS}g}") for v in np.ravel(values)])
    return flat.reshape(np.shape(values)).tolist()


def _candidate(raw: Any, where: str) -> tuple[selection.Candidate, NDArray[np.float64]]:
    """The shape and its draws [draws, constants]."""
    keys = ("batch", "bent", "error", "weight", "held", "parameters", "covariance", "draw_columns", "draws")
    _keys(raw, where, keys)
    solution = _solution(raw, where, shape.LEVELS)
    names = solution.model.names
    if raw["draw_columns"] != list(names):
        raise UserError(f"{where}.draw_columns must be {', '.join(names)}")
    draws = _array(raw["draws"], f"{where}.draws", (None, len(names)), MOST)
    if not isinstance(raw["bent"], bool):
        raise UserError(f"{where}.bent must be true or false")
    error = np.nan if raw["error"] is None else _number(raw["error"], f"{where}.error", 0, above=False)
    weight = _number(raw["weight"], f"{where}.weight", 0)
    return selection.Candidate(raw["batch"], raw["bent"], error, weight, solution), draws


def _member(raw: Any, where: str, lowest: float) -> Member:
    keys = ("form", "batch", "weight", "held", "parameters", "covariance", "noise", "inflation", "steps")
    _keys(raw, where, keys)
    if not isinstance(raw["form"], str) or raw["form"] not in forms.CONSTANTS:
        raise UserError(f"{where}.form must be one of {', '.join(forms.CONSTANTS)}")
    steps = []
    for number, step in enumerate(_list(raw["steps"], f"{where}.steps")):
        at = f"{where}.steps[{number}]"
        _keys(step, at, ("by", "value", "reach", "error", "sd"))
        error, sd = (_array(step[name], f"{at}.{name}", (None,)) for name in ("error", "sd"))
        if step["by"] not in ("N", "T") or len(error) != len(sd) or np.any(sd <= 0):
            raise UserError(f"{at} must have by N or T, and an sd above 0 for each error")
        value = _number(step["value"], f"{at}.value", 0)
        steps.append(selection.Step(step["by"], value, error, sd, _number(step["reach"], f"{at}.reach")))
    solution = _solution(raw, where, raw["form"], lowest)
    return Member(raw["form"], _number(raw["weight"], f"{where}.weight", 0), solution, tuple(steps))


def _solution(raw: dict[str, Any], where: str, form: str, lowest: float = 0.0) -> least_squares.Solution:
    """The constants with their errors: what a fit knows of its rows stays empty."""
    if not isinstance(raw["batch"], str) or raw["batch"] not in shape.BATCH:
        raise UserError(f"{where}.batch must be one of {', '.join(shape.BATCH)}")
    names = shape.Model(form, raw["batch"]).names
    theta = _values(raw["parameters"], f"{where}.parameters", names)
    held = _list(raw["held"], f"{where}.held")
    if not all(isinstance(name, str) and name in names for name in held):
        raise UserError(f"{where}.held must be names of its parameters")
    values = {name: float(theta[names.index(name)]) for name in held}
    model = shape.Model(form, raw["batch"], held=values, lowest=lowest)
    covariance = _array(raw["covariance"], f"{where}.covariance", (len(names), len(names)))
    phi, inflation = noise.START.copy(), 1.0
    if "noise" in raw:
        phi = _values(raw["noise"], f"{where}.noise", noise.NAMES)
        inflation = _number(raw["inflation"], f"{where}.inflation", 0)
    none, nobody = np.zeros(0), np.zeros(0, dtype=np.int64)
    rows = noise.Rows(n=none, t=none, h=none, grid=nobody, size=nobody, run=nobody, stream=nobody, time=nobody)
    mean = shape.Mean(none, np.zeros((0, len(names))), none, none, none, np.zeros((0, 0), dtype=bool))
    structure = noise.Structure(rows, (), nobody, least_squares.effects_of(model))
    inflated = np.array([inflation * least_squares.NORMAL])
    return least_squares.Solution(
        model=model,
        theta=theta,
        covariance=covariance,
        phi=phi,
        structure=structure,
        inflation=inflated,
        mean=mean,
        cost=float("nan"),
    )


def _cells(raw: Any, n_ctx: float) -> Cells:
    _keys(raw, "surface.cells", CELLS)
    loss = [np.inf if v is None else v for v in _list(raw["loss"], "surface.cells.loss")]
    finite = _array([1.0 if v == np.inf else v for v in loss], "surface.cells.loss", (None,))
    if not loss:
        raise UserError("surface.cells.loss must have at least one run")
    columns = [_array(raw[name], f"surface.cells.{name}", (len(loss),)) for name in CELLS[:-1]]
    losses = np.where([v == np.inf for v in loss], np.inf, finite)
    return Cells.of_arrays(*columns, losses, n_ctx=n_ctx)


def _tests(raw: Any) -> tuple[diagnostics.Test, ...]:
    found = []
    for number, test in enumerate(_list([] if raw is None else raw, "lack_of_fit")):
        at = f"lack_of_fit[{number}]"
        _keys(test, at, ("against", "size", "p", "failed"))
        if not isinstance(test["against"], str):
            raise UserError(f"{at}.against must be a text")
        size, p = _number(test["size"], f"{at}.size"), _number(test["p"], f"{at}.p", 0, above=False)
        found.append(diagnostics.Test(test["against"], size, p))
    return tuple(found)


def _keys(raw: Any, where: str, keys: Sequence[str]) -> None:
    if not isinstance(raw, dict):
        raise UserError(f"{where} must be an object with {', '.join(keys)}")
    for key in raw:
        if key not in keys:
            raise UserError(f"unknown key {where}.{key}{nearest(key, list(keys))}")
    if missing := [key for key in keys if key not in raw]:
        raise UserError(f"{where}: {', '.join(missing)} missing")


def _list(raw: Any, where: str) -> list:
    if not isinstance(raw, list):
        raise UserError(f"{where} must be a list")
    return raw


def _number(raw: Any, where: str, low: float = -sys.float_info.max, above: bool = True) -> float:
    good = isinstance(raw, int | float) and not isinstance(raw, bool) and abs(raw) <= sys.float_info.max
    if not good or raw < low or (above and raw == low):
        bound = "" if low < 0 else " above 0" if above else " of at least 0"
        raise UserError(f"{where} must be a number{bound}, not {raw!r:.40}")
    return float(raw)


def _values(raw: Any, where: str, names: Sequence[str]) -> NDArray[np.float64]:
    """The constants of an object, in the order of ``names``."""
    _keys(raw, where, names)
    values = np.array([_number(raw[name], f"{where}.{name}") for name in names])
    if np.any(np.abs(values) > MOST):
        name = names[int(np.argmax(np.abs(values) > MOST))]
        raise UserError(f"{where}.{name} must be between {-MOST:g} and {MOST:g}, not {raw[name]:g}")
    return values


def _array(
    raw: Any, where: str, size: tuple[int | None, ...], most: float = sys.float_info.max
) -> NDArray[np.float64]:
    """Numbers of a shape, in which None is any length, none larger than ``most``."""
    try:
        values = np.array(raw)
        if not all(type(v) in (int, float) for v in np.array(raw, dtype=object).ravel()):  # true is no number
            values = np.array("text")
    except (ValueError, OverflowError):
        values = np.array("ragged")
    if values.ndim == 1 and values.size == 0 and len(size) == 1 and size[0] in (None, 0):
        return np.zeros(0)
    right = values.ndim == len(size) and all(want in (None, have) for want, have in zip(size, values.shape))
    if not right or values.dtype.kind not in "if" or not np.all(np.abs(values) <= most):
        text = " by ".join("any number" if want is None else str(want) for want in size)
        raise UserError(f"{where} must be {text} numbers" + (f" between {-most:g} and {most:g}" if most < 1e9 else ""))
    return values.astype(float)
