"""A plan as a text table."""

from typing import Any

import numpy as np

from videoscaling.scaling.estimates import Estimate
from videoscaling.scaling.planning.allocation import range_text
from videoscaling.scaling.planning.plan import Plan
from videoscaling.utils.errors import plural

MIN_HOURS = 0.01  # less is 36 seconds, which a process takes to start
QUANTITIES = {
    "N": ("parameters", ".4g"),
    "size": ("layers x width", "s"),
    "heads": ("heads", "d"),
    "T": ("tokens", ".4g"),
    "B": ("tokens per batch", "d"),
    "lr": ("learning rate", ".3g"),
    "steps": ("steps", "d"),
    "loss": ("predicted loss", ".5g"),
    "C": ("training FLOPs", ".4g"),
    "gpu_hours": ("GPU-hours", ".4g"),
    "inference_flops_per_clip": ("inference FLOPs per clip", ".4g"),
}


def _text(value: Any, form: str) -> str:
    if value is None:
        return "unknown"
    if not isinstance(value, Estimate):
        return f"{value:{form}}"
    return f"{value.value:{form}}  {value.span(form)}".rstrip()


def _hours(hours: float) -> str:
    """Hours by the peak of a GPU, which says nothing of a run of seconds there, hours on a CPU though it may take."""
    return f"{hours:.4g}" if hours >= MIN_HOURS else f"below {MIN_HOURS:g}"


def table(plan: Plan) -> str:
    """The plan as text, a line for each quantity."""
    rows = {label: _text(getattr(plan, name), form) for name, (label, form) in QUANTITIES.items()}
    if plan.gpu_hours < MIN_HOURS:
        rows["GPU-hours"] = f"{_hours(plan.gpu_hours)}; train.py --dry-run measures the time on a machine of yours"
    if plan.B_opt is not None:
        rows["tokens per batch"] += f"  best {_text(plan.B_opt, '.4g')}"
    bare = "  (no interval known)" if any(not np.isnan(size.low) for size in plan.N_opt.values()) else ""
    for name, size in plan.N_opt.items():
        rows[f"N_opt, {name}"] = f"{_text(size, '.4g')}{bare if np.isnan(size.low) else ''} at {plan.C:.4g} FLOPs"
    near, used = plan.N_within_tolerance, plan.assumptions
    label = f"N within {near['tolerance']:.2%} of loss"
    low, high = range_text(near["low"], near["high"], lambda N: f"{N:.4g}")
    rows[label] = f"{low} (cheapest to serve) to {high}"
    if cost := plan.serving:
        rows["serving"] = (
            f"{cost['flops']:.4g} FLOPs for {used['serve_clips']:g} clips, {cost['total_flops']:.4g} with training: "
            f"{cost['saved']:.1%} less than the plan without serving (N {cost['without']['N']:.4g}, "
            f"{cost['without']['C']:.4g} FLOPs of training)"
        )
    if layout := plan.layout:
        clips, recompute = layout["micro_batch"], "with" if layout["activation_checkpointing"] else "no"
        rows["hours"] = f"{_hours(layout['hours'])} on {layout['gpus']} x {used['gpu']}"
        rows["layout"] = (
            f"{layout['parallel']}, micro-batch of {plural(clips, 'clip')}, {recompute} activation checkpointing"
        )
        assumed = f"; assumed {', '.join(used['memory'])}" if used["memory"] else ""
        rows["memory"] = f"{layout['memory_gb']:.3g} of {used['gpu_memory_gb']:g} GB on each GPU, by formula{assumed}"
    rows["assumed"] = (
        f"{used['gpu']} at MFU {used['mfu']:g} in {used['dtype']}; {plural(used['sampler_steps'], 'step')} "
        f"{'with' if used['guidance'] else 'without'} guidance"
    )
    beyond = ", ".join(f"{name} {v:.3g}x" for name, v in plan.extrapolation.items() if v is not None)
    rows["of the fitted maximum"] = beyond or "unknown"
    return "\n".join([f"{label:<26}{text}" for label, text in rows.items()] + [f"warning: {w}" for w in plan.warnings])
