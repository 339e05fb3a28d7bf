"""Averaged loss forms as the key ``loss`` of a law file: ``{"forms": [{"form", "weight", constants, ...}], ...}``.

docs/laws.md has the keys and the formulas. Constants are written as they are; draws are logarithms, with six digits.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.fitting.losses import forms
from videoscaling.scaling.fitting.losses.average import LossLaws, Member
from videoscaling.scaling.fitting.surface.surface_file import _array, _keys, _list, _number
from videoscaling.utils.errors import UserError

KEYS = ("forms", "scale", "rows", "domain", "trends")
SPANS = ("N", "T", "N T")
OF_FORM = ("form", "weight", "noise", "window_error", "calibration", "covariance", "draws")
# Logarithms of constants beyond which there is no float.
MOST = 300.0


def to_dict(laws: LossLaws) -> dict[str, Any]:
    """The key ``loss`` of a law file."""
    scale = laws.members[0].fit.scale
    return {
        "forms": [_form_dict(member) for member in laws.members],
        "scale": {name: getattr(scale, name) for name in "NTB"},
        "rows": laws.rows,
        "domain": {name: list(laws.domain[name]) for name in SPANS},
        "trends": laws.trends,
    }


def _form_dict(member: Member) -> dict[str, Any]:
    fit = member.fit
    return {
        "form": fit.form,
        "weight": member.weight,
        **{name: float(f"{value:.9g}") for name, value in fit.constants.items()},
        "noise": fit.noise,
        "window_error": None if np.isnan(member.window_error) else member.window_error,
        "calibration": member.calibration,
        "covariance": fit.covariance.tolist(),
        "draws": None if fit.draws is None else [[float(f"{v:.6g}") for v in row] for row in fit.draws],
    }


def from_dict(raw: Any) -> LossLaws:
    """The averaged forms in a parsed law file.

    Raises:
        UserError: a key is missing, unknown, or holds what it cannot.
    """
    _keys(raw, "loss", KEYS)
    _keys(raw["scale"], "loss.scale", tuple("NTB"))
    scale = forms.Scale(*(_number(raw["scale"][name], f"loss.scale.{name}", 0) for name in "NTB"))
    _keys(raw["domain"], "loss.domain", SPANS)
    domain = {}
    for name in SPANS:
        low, high = _array(raw["domain"][name], f"loss.domain.{name}", (2,)).tolist()
        if not 0 < low <= high:
            raise UserError(f"loss.domain.{name} must be [lowest, highest], above 0")
        domain[name] = (low, high)
    if not isinstance(raw["trends"], dict):
        raise UserError("loss.trends must be an object")
    trends = {str(name): _number(size, f"loss.trends.{name}") for name, size in raw["trends"].items()}
    members = tuple(_member(one, f"loss.forms[{i}]", scale) for i, one in enumerate(_list(raw["forms"], "loss.forms")))
    if not members or abs(sum(member.weight for member in members) - 1) > 1e-6:
        raise UserError("loss.forms must be a list of forms whose weights add up to 1")
    return LossLaws(members, None, int(_number(raw["rows"], "loss.rows", 0)), domain, trends)


def _member(raw: Any, where: str, scale: forms.Scale) -> Member:
    form = raw.get("form") if isinstance(raw, dict) else None
    if not isinstance(form, str) or form not in forms.CONSTANTS:
        raise UserError(f"{where}.form must be one of {', '.join(forms.CONSTANTS)}")
    names = forms.CONSTANTS[form]
    _keys(raw, where, (*OF_FORM, *names))
    theta = np.log([_number(raw[name], f"{where}.{name}", 0) for name in names])
    if np.any(np.abs(theta) > MOST):
        raise UserError(f"{where}: its constants are out of range")
    covariance = _array(raw["covariance"], f"{where}.covariance", (len(names), len(names)))
    draws: NDArray | None = None
    if raw["draws"] is not None:
        draws = _array(raw["draws"], f"{where}.draws", (None, len(names)), MOST)
    fit = forms.FormFit(form, theta, scale, _number(raw["noise"], f"{where}.noise", 0), covariance, draws)
    error = np.nan if raw["window_error"] is None else _number(raw["window_error"], f"{where}.window_error", 0)
    weight, calibration = (_number(raw[name], f"{where}.{name}", 0) for name in ("weight", "calibration"))
    return Member(fit, weight, error, calibration)
