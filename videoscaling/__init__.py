"""Scaling laws of video diffusion transformers: data, models, training, sweeps, and the laws fitted from results.

The names for notebooks are here, loaded when they are first used:

    from videoscaling import VideoDiT, VideoPipeline, fit, load_law, plan, predict, read_curve, read_runs

The packages lie at the root of the repository. In a checkout this one takes its modules from there, so that commands
run without an installation; in an installed wheel they are in this folder. Each has one name either way.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

IMPORT_PATH = Path(__file__).resolve().parents[1]  # what a new process needs in PYTHONPATH
INSTALLED = Path(__file__).with_name("data").is_dir()
ROOT = IMPORT_PATH / "videoscaling" if INSTALLED else IMPORT_PATH  # of the packages, train.py and configs/
__path__ = [str(ROOT)]


INTERFACE = ("fit", "load_law", "plan", "predict", "read_runs")  # of scaling/api.py


def __getattr__(name: str) -> Any:
    if name in ("VideoDiT", "VideoPipeline"):
        return getattr(import_module("videoscaling.training.pipeline"), name)
    if name == "read_curve":
        return import_module("videoscaling.training.logs.curves").read_curve
    if name in INTERFACE:
        return getattr(import_module("videoscaling.scaling.api"), name)
    if not name.startswith("_") and name in (interface := import_module("videoscaling.scaling")).__all__:
        return getattr(interface, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
