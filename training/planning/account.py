"""`train.py --dry-run --account`: size, memory and time of a run by formula, without a cache, a GPU or a step.

Parameters are counted by formula, and compared with one block on PyTorch's meta device, which holds no numbers.
"""

import dataclasses
import json
from typing import Any, NamedTuple

import torch

from videoscaling.diffusion.process import Process
from videoscaling.diffusion.timesteps import draw_timesteps
from videoscaling.models.attention import BACKENDS, choose_backend
from videoscaling.models.dit import DiTConfig, VideoDiT
from videoscaling.models.sizes import exact_flops
from videoscaling.training.checks import check_share
from videoscaling.training.config import Config, to_dict
from videoscaling.training.planning.layout import MAX_MEMORY_SHARE, check_machine, choose_layout, gpus_needed
from videoscaling.training.planning.memory_formula import (
    ClipShape,
    Layout,
    ModelShape,
    even_size,
    parameter_groups,
    training_memory,
)
from videoscaling.training.planning.planned_config import clip_shape
from videoscaling.training.run import Run, clip_tokens, encoded_shape, resolve, run_warnings
from videoscaling.utils.devices import GPUS, best_dtype, planned_peak
from videoscaling.utils.errors import UserError, nearest, plural

MOST_TOKENS = 10**9


class Machine(NamedTuple):
    """The assumed machine: GPUs by name, the share of their peak that training reaches, memory in GB."""

    gpu: str = "h100"
    gpus: int = 1
    mfu: float = 0.4
    memory_gb: float | None = None

    def check(self) -> None:
        """UserError for values that no machine has."""
        if self.gpu not in GPUS:
            raise UserError(f"unknown GPU {self.gpu!r}{nearest(self.gpu, list(GPUS))}: {', '.join(GPUS)}")
        if not 0 < self.mfu <= 1:
            raise UserError(f"--mfu {self.mfu:g}: must be a number above 0 and at most 1")
        check_machine(self.gpus, self.memory_gb)


def account(config: Config, n_ctx: int | None, machine: Machine) -> dict[str, Any]:
    """The report as one object.

    Args:
        config: as train.py takes it; its data.cache need not be there.
        n_ctx: tokens per clip, where there is no cache.

    Raises:
        UserError: the configuration cannot be trained, or the tokens per clip are missing or contradict the cache.
    """
    machine.check()
    run = _resolved(config, n_ctx, machine.gpu)
    check_share(run, machine.gpus)
    keys, train = run.config.model, run.config.train
    check_names(run.config)
    clip, assumed = clip_shape(run.config, run.n_ctx)
    form = DiTConfig(keys.layers, keys.width, keys.heads, clip.latent_shape[0], tuple(keys.patch), clip.text_dim)
    shape = ModelShape(keys.layers, keys.width, keys.heads, form.token_dim, clip.text_dim)
    groups = parameter_groups(shape)
    count = sum(groups.values())
    assert count == _built_parameters(form, shape), "the formula is another model's"
    micro_batch, context = train.micro_batch or run.clips, train.context_parallel
    layout = Layout(machine.gpus, train.parallel, micro_batch, train.activation_checkpointing, context=context)
    plain = keys.attention == "plain"
    memory = training_memory(shape, clip, layout, clips=run.clips, dtype=train.dtype, plain_attention=plain)
    whole = machine.memory_gb or GPUS[machine.gpu].memory_gb
    tokens = run.steps * train.batch_tokens
    training = exact_flops(keys.layers, keys.width, run.n_ctx, form.token_dim, clip.text_tokens, clip.text_dim)
    C = tokens * run.flops_per_token
    seconds = C / (planned_peak(machine.gpu, train.dtype) * machine.mfu)
    return {
        "config": to_dict(run.config),
        "N": run.N,
        "parameters": {**groups, "total": count},
        "n_ctx": run.n_ctx,
        "tokens": tokens,
        "steps": run.steps,
        "clips_per_step": run.clips,
        "flops": {"C": C, "C_token": run.flops_per_token, "exact": run.steps * run.clips * training},
        "memory": memory,
        "memory_gb": memory["total"] / 1e9,
        "time": {"gpu_hours": seconds / 3600, "hours": seconds / 3600 / machine.gpus},
        "assumptions": {
            "gpu": machine.gpu,
            "gpus": machine.gpus,
            "gpu_memory_gb": whole,
            "mfu": machine.mfu,
            "peak_flops": planned_peak(machine.gpu, train.dtype),
            "data": assumed,
        },
        "warnings": [
            *run_warnings(run.config, form.token_dim),
            *_memory_warnings(run, shape, clip, memory["total"], whole, machine.gpus),
        ],
    }


def check_names(config: Config) -> None:
    """Refuse a process, a distribution of t or an attention backend that does not exist."""
    Process(config.diffusion.process, config.diffusion.target)
    draw_timesteps(torch.zeros(1, dtype=torch.int64), 0, config.diffusion.timesteps)
    if config.model.attention not in BACKENDS:
        choose_backend(config.model.attention, "cpu", torch.float32)


def _built_parameters(form: DiTConfig, shape: ModelShape) -> int:
    """The number of parameters, from a model with one block on the meta device: all blocks are alike."""
    with torch.device("meta"):
        model = VideoDiT(dataclasses.replace(form, layers=1))
    block = sum(parameter.numel() for parameter in model.blocks[0].parameters())
    return sum(parameter.numel() for parameter in model.parameters()) + (shape.layers - 1) * block


def _resolved(config: Config, n_ctx: int | None, gpu: str) -> Run:
    """``config`` with nothing left open, for clips of the cache's tokens or of ``n_ctx``, on such a GPU."""
    shape = encoded_shape(config)
    if shape is None and n_ctx is None:
        raise UserError("--account: no latent cache in data.cache, so the tokens per clip are not known; give --n-ctx")
    if n_ctx is not None and not 1 <= n_ctx <= MOST_TOKENS:
        raise UserError(f"--n-ctx {n_ctx}: must be a whole number from 1 to {MOST_TOKENS}")
    if shape is not None and n_ctx not in (None, found := clip_tokens(config, shape)):
        raise UserError(f"--n-ctx {n_ctx}: the clips of {config.data.cache} have {found} tokens; leave it out")
    if shape is None:
        frames, *sides = config.model.patch
        shape = [0, frames * n_ctx, *sides]  # the channels are not known, and no width is refused for them
    meta = {"latent_shape": shape, "fingerprint": config.data.fingerprint}
    return resolve(config, meta, bfloat16=lambda: best_dtype(gpu) == "bfloat16")


def _memory_warnings(
    run: Run, shape: ModelShape, clip: ClipShape, total: int, memory_gb: float, gpus: int
) -> list[str]:
    """Where ``total`` bytes are too many for a GPU: the layout, or the number of GPUs, that fits."""
    if total <= MAX_MEMORY_SHARE * 1e9 * memory_gb:
        return []
    needed = {"clips": run.clips, "gpus": gpus, "dtype": run.config.train.dtype, "memory": 1e9 * memory_gb}
    needed |= {"context": run.config.train.context_parallel, "plain_attention": run.config.model.attention == "plain"}
    best = choose_layout(shape, clip, **needed)
    if best.fits:
        instead = f"{_keys(best.layout)} would"
    else:
        more = gpus_needed(shape, clip, batch_moves=False, **needed)
        instead = f"--gpus {more.processes} would, with {_keys(more)}" if more else "no number of such GPUs would"
    limit = f"{memory_gb:g}, of which {MAX_MEMORY_SHARE:.0%} may be filled"
    return [f"does not fit: {total / 1e9:.4g} GB of {limit}; {instead}"]


def _keys(layout: Layout) -> str:
    """A layout as keys of a command line."""
    recompute = str(layout.activation_checkpointing).lower()
    divided = f" train.context_parallel={layout.context}" if layout.context > 1 else ""
    return (
        f"train.parallel={layout.parallel}{divided} train.micro_batch={layout.micro_batch} "
        f"train.activation_checkpointing={recompute}"
    )


def print_account(config: Config, n_ctx: int | None, machine: Machine, as_json: bool) -> int:
    """Print ``account``; returns the exit status."""
    report = account(config, n_ctx, machine)
    print(json.dumps(report, indent=1, allow_nan=False) if as_json else table(report))
    return 0


def table(report: dict[str, Any]) -> str:
    """The report for readers."""
    keys, train, flops, used = (
        report["config"]["model"],
        report["config"]["train"],
        report["flops"],
        report["assumptions"],
    )
    groups = [(name, number) for name, number in report["parameters"].items() if name != "total"]
    parts = [f"{name} {size / 1e9:.3g}" for name, size in report["memory"].items() if name != "total" and size]
    size = even_size(report["clips_per_step"] * train["context_parallel"] // used["gpus"], train["micro_batch"])
    divided = f"clips over {train['context_parallel']}, " if train["context_parallel"] > 1 else ""
    recompute = {True: "with", False: "no"}.get(train["activation_checkpointing"], train["activation_checkpointing"])
    rows = [
        ("model", f"{keys['size']}, {plural(keys['heads'], 'head')}, {train['dtype']}"),
        ("parameters", f"{report['parameters']['total']:,}"),
        *(("", f"{number:>15,} {name}{' = N' if number == report['N'] else ''}") for name, number in groups),
        (
            "length",
            f"{report['tokens']:,} tokens in {plural(report['steps'], 'step')} of "
            f"{plural(report['clips_per_step'], 'clip')} of {report['n_ctx']:,} tokens",
        ),
        ("FLOPs", f"C {flops['C']:.4g} (C_token {flops['C_token']:.4g}); exact {flops['exact']:.4g}"),
        (
            "layout",
            f"{used['gpus']} x {used['gpu']}, {train['parallel']}, {divided}micro-batch of {size}, {recompute} "
            "activation checkpointing",
        ),
        (
            "memory",
            f"{report['memory_gb']:.3g} of {used['gpu_memory_gb']:g} GB on each GPU, by formula: {', '.join(parts)}",
        ),
        (
            "time",
            f"{report['time']['hours']:.4g} hours, {report['time']['gpu_hours']:.4g} GPU-hours: C at MFU "
            f"{used['mfu']:g} of {used['peak_flops']:.4g} FLOP/s, without validation",
        ),
    ]
    if used["data"]:
        rows.append(("assumed", ", ".join(used["data"])))
    lines = [f"{label:<12}{text}" for label, text in rows]
    return "\n".join(lines + [f"warning: {text}" for text in report["warnings"]])
