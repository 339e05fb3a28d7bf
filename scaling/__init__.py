"""The laws: how they are fitted from runs, checked, and turned into plans.

The Python interface, loaded when it is first used:

    from videoscaling import Cells, fit_surface, load_law, predict, read_runs

    surface = fit_surface(Cells.of_table(read_runs("results/mini/cells")))
    surface.lr_opt(B=320, T=3e6, N=2e5)           # value, low, high
    predict(load_law("law.json"), N=[1e8, 2e8], T=1e10).predicted
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from videoscaling import ROOT

if TYPE_CHECKING:
    from videoscaling.scaling.fitting.surface.cells import Cells
    from videoscaling.scaling.fitting.surface.fit import fit_surface
    from videoscaling.scaling.law_file import load as load_law
    from videoscaling.scaling.prediction import predict
    from videoscaling.scaling.runs import read as read_runs

PAPER = ROOT / "configs" / "laws" / "paper.json"  # the paper's own law
__all__ = ["PAPER", "Cells", "fit_surface", "load_law", "predict", "read_runs"]
_PLACES = {
    "Cells": ("videoscaling.scaling.fitting.surface.cells", "Cells"),
    "fit_surface": ("videoscaling.scaling.fitting.surface.fit", "fit_surface"),
    "load_law": ("videoscaling.scaling.law_file", "load"),
    "predict": ("videoscaling.scaling.prediction", "predict"),
    "read_runs": ("videoscaling.scaling.runs", "read"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)
