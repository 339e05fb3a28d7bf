"""Trainings in processes of their own that save and restore without a step, and what a restore reads and holds."""

import json
import os
from pathlib import Path

import torch

from videoscaling.training.checkpoints.checkpoint import find_checkpoint, read_tensors
from videoscaling.training.config import load_config
from videoscaling.training.distributed.parallel import local
from videoscaling.training.train import prepare
from videoscaling.training.trainer import Trainer

KINDS = ("model", "ema", "optimizer")


def save(overrides: list[str]) -> int:
    """Write a checkpoint of a model that has made no step, with moments that are not zero."""
    trainer = _trainer(overrides)
    for state in trainer.train_step.optimizer.state.values():
        for moment in local([state["exp_avg"], state["exp_avg_sq"]]):
            moment.uniform_()
    _save(trainer)
    torch.distributed.destroy_process_group()
    return 0


def measure(overrides: list[str], path: str) -> int:
    """Restore; write what this process read, and how far its memory rose meanwhile, in bytes, to ``path``.<rank>.

    Both are the kernel's counts. Pages of mapped files count as memory, and not as bytes read.
    """
    trainer = _trainer(overrides)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark is now what the process has
    read, memory = _number("io", "rchar"), _number("status", "VmHWM")
    trainer.restore()
    found = {
        "read": _number("io", "rchar") - read,
        "memory": 1024 * (_number("status", "VmHWM") - memory),
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
    }
    Path(f"{path}.{trainer.rank}").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()
    return 0


def relay(overrides: list[str], layouts: list[str]) -> int:
    """Each of ``layouts`` in turn restores what the one before saved, and saves it again: no bit changes."""
    os.environ["LOCAL_WORLD_SIZE"] = "2"  # hsdp: the processes of a node
    directory = load_config(None, overrides).run_dir
    wanted = {kind: dict(read_tensors(find_checkpoint(directory), kind)) for kind in KINDS}
    before = "the first"
    for layout in layouts:
        trainer = _trainer([*overrides, f"train.parallel={layout}"])
        trainer.restore()
        if not trainer.sharded:  # before a save, which gathers slices
            assert all(torch.equal(value, wanted["model"][name]) for name, value in trainer.model.state_dict().items())
        _save(trainer)
        torch.distributed.barrier()
        for kind, tensors in wanted.items():
            found = read_tensors(find_checkpoint(directory), kind)
            assert found.keys() == tensors.keys()
            changed = [name for name, tensor in tensors.items() if not torch.equal(found[name], tensor)]
            assert not changed, f"{before} to {layout}: {kind} {changed}"
        torch.distributed.barrier()
        before = layout
    torch.distributed.destroy_process_group()
    return 0


def _trainer(overrides: list[str]) -> Trainer:
    return Trainer(*prepare(load_config(None, overrides)))


def _save(trainer: Trainer) -> None:
    trainer._save()
    trainer.writer.wait()


def _number(file: str, name: str) -> int:
    lines = Path("/proc/self", file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
