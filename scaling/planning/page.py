"""The planner as one HTML page without a server: plans of one or several laws over budgets and clips served.

Every position of its sliders is a plan made here, so that its numbers are those of ``tools/plan.py``. Only the hours
on a GPU are divided by the page.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from string import Template
from types import ModuleType
from typing import Any

from videoscaling.scaling.laws import Law
from videoscaling.scaling.planning.plan import plan
from videoscaling.scaling.planning.request import Request
from videoscaling.utils.devices import GPUS, planned_peak
from videoscaling.utils.errors import UserError, plural

PAGE = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
PER_DECADE = 5  # budgets; 35 of them, each with and without serving: 18 s for the paper's law and one with draws
# Budgets from the fitted ones' smallest over the first number to their largest times the second: 1e22 for the paper's.
BEYOND = (10.0, 1e4)
CLIPS = (None, 1e4, 1e6, 1e8)


def budgets(law: Law) -> list[float]:
    """The budgets in FLOPs that the page shows of ``law``, ``PER_DECADE`` of them in each decade.

    Raises:
        UserError: the law does not say what it was fitted on.
    """
    fitted = law.domain.get("C")
    if fitted is None:
        raise UserError(f"--html: law {law.name!r} does not say which budgets it was fitted on (domain.C)")
    ends = (math.log10(fitted[0] / BEYOND[0]), math.log10(fitted[1] * BEYOND[1]))
    steps = range(math.floor(PER_DECADE * ends[0]), math.ceil(PER_DECADE * ends[1]) + 1)
    return [float(f"{10 ** (step / PER_DECADE):.3g}") for step in steps]


def plans(law: Law, request: Request, ladder: ModuleType) -> dict[str, Any]:
    """``law``'s plans as JSON: by budget, one for each of ``CLIPS``; the error as text where there is none."""
    found: dict[str, list[dict[str, Any] | str]] = {}
    for C in budgets(law):
        found[repr(C)] = []
        for clips in CLIPS:
            try:
                made = plan(law, replace(request, flops=C, serve_clips=clips), ladder).to_dict()
            except UserError as error:
                made = str(error)
            found[repr(C)].append(made)
    return found


def page(laws: Mapping[str, Law], request: Request, ladder: ModuleType) -> str:
    """The page's HTML.

    Args:
        laws: by the names that the page shows.
        request: the options of all plans; its ``flops`` and ``serve_clips`` are where the sliders stand at first.
        ladder: the model's sizes (``models.sizes``).

    Raises:
        UserError: a law without the budgets that it was fitted on, or without any plan.
    """
    by_law = {name: plans(law, request, ladder) for name, law in laws.items()}
    for name, found in by_law.items():
        if not any(isinstance(made, dict) for row in found.values() for made in row):
            raise UserError(f"--html: law {name} gives no plan: {next(iter(found.values()))[0]}")
    data = {
        "laws": by_law,
        "clips": CLIPS,
        "fitted": {name: law.domain["C"] for name, law in laws.items()},
        "peaks": {gpu: planned_peak(gpu, request.dtype) for gpu in GPUS},
        "start": {"flops": request.flops, "clips": request.serve_clips, "gpu": request.gpu, "mfu": request.mfu},
        "sampling": f"{plural(request.sampler_steps, 'step')} {'with' if request.guidance else 'without'} guidance",
    }
    # In a script element only this could end the text.
    return PAGE.substitute(data=json.dumps(data, allow_nan=False).replace("</", "<\\/"))
