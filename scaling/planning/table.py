"""A plan as a text table."""

from typing import Any


def table(plan: dict[str, Any]) -> str:
    """The plan as text, a line for each quantity."""
    names = {
        "N": ("parameters", ".4g"), "size": ("layers x width", "s"), "heads": ("heads", "d"), "T": ("tokens", ".4g"),
        "B": ("tokens per batch", "d"), "lr": ("learning rate", ".3g"), "steps": ("steps", "d"),
        "loss": ("predicted loss", ".5g"), "C": ("training FLOPs", ".4g"), "gpu_hours": ("GPU-hours", ".4g"),
        "inference_flops_per_clip": ("inference FLOPs per clip", ".4g"),
    }  # fmt: skip

    def show(value: Any, form: str) -> str:
        if value is None:
            return "unknown"
        if isinstance(value, dict):
            return f"{value['value']:{form}}  [{value['low']:{form}}, {value['high']:{form}}]"
        return f"{value:{form}}"

    lines = [f"{label:<26}{show(plan[name], form)}" for name, (label, form) in names.items()]
    best = "" if plan["B_opt"] is None else f"  best {show(plan['B_opt'], '.4g')}"
    lines = [f"{line}{best}" if line.startswith("tokens per batch") else line for line in lines]
    bare = "  (no interval known)" if any(isinstance(value, dict) for value in plan["N_opt"].values()) else ""
    lines += [
        f"{'N_opt, ' + name:<26}{show(value, '.4g')}{'' if isinstance(value, dict) else bare} at {plan['C']:.4g} FLOPs"
        for name, value in plan["N_opt"].items()
    ]
    near = plan["N_within_tolerance"]
    label = f"N within {near['tolerance']:.2%} of loss"
    lines.append(f"{label:<26}{near['low']:.4g} (cheapest to serve) to {near['high']:.4g}")
    used = plan["assumptions"]
    if "serving" in plan:
        cost = plan["serving"]
        lines.append(
            f"{'serving':<26}{cost['flops']:.4g} FLOPs for {used['serve_clips']:g} clips, {cost['total_flops']:.4g} "
            f"with training: {cost['saved']:.1%} less than the plan without serving (N {cost['without']['N']:.4g}, "
            f"{cost['without']['C']:.4g} FLOPs of training)"
        )
    if "gpus" in plan:
        size, recompute = plan["micro_batch"], "with" if plan["activation_checkpointing"] else "no"
        assumed = f"; assumed {', '.join(used['memory'])}" if used["memory"] else ""
        lines += [
            f"{'hours':<26}{plan['hours']:.4g} on {plan['gpus']} x {used['gpu']}",
            f"{'layout':<26}{plan['parallel']}, micro-batch of {size} clip{'s' * (size > 1)}, {recompute} activation "
            "checkpointing",
            f"{'memory':<26}{plan['memory_gb']:.3g} of {used['gpu_memory_gb']:g} GB on each GPU, by formula{assumed}",
        ]
    guidance = "with" if used["guidance"] else "without"
    lines.append(
        f"{'assumed':<26}{used['gpu']} at MFU {used['mfu']:g} in {used['dtype']}; {used['sampler_steps']} steps "
        f"{guidance} guidance"
    )
    beyond = ", ".join(f"{name} {v:.3g}x" for name, v in plan["extrapolation"].items() if v is not None)
    lines.append(f"{'of the fitted maximum':<26}{beyond or 'unknown'}")
    return "\n".join(lines + [f"warning: {text}" for text in plan["warnings"]])
