"""Steps of a training in processes of their own, with an account of what they send and what they keep."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from videoscaling.training.config import load_config
from videoscaling.training.train import prepare
from videoscaling.training.trainer import Trainer


class Collectives(TorchDispatchMode):
    """Counts calls and bytes of collective operations, by their name and dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        operation = function._schema.name.partition("::")[2].strip("_")
        if operation in ("allgather_base", "reduce_scatter_base"):
            whole = max(args[:2], key=torch.Tensor.numel)
            name = f"{operation.removesuffix('_base')} {str(whole.dtype).removeprefix('torch.')}"
            self.calls[name] += 1
            self.bytes[name] += whole.nbytes
        return function(*args, **(kwargs or {}))


def watch(overrides: list[str], path: str) -> int:
    """Take three steps; write what the last one sends, and what its forward pass keeps of the weights."""
    trainer = Trainer(*prepare(load_config(None, overrides)))
    step, batch = trainer.train_step, trainer.config.train.batch_tokens
    step.run(trainer.loader.batch(0), 0)
    with Collectives() as sent:
        step.run(trainer.loader.batch(1), batch)
    shapes = {tuple(parameter.shape) for parameter in trainer.model.parameters() if parameter.dim() == 2}
    shapes |= {shape[::-1] for shape in shapes}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in shapes:
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    samples = trainer.loader.batch(2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        prediction = trainer.model(samples.x0, samples.t, samples.context, samples.mask)
    held = sum(storage.nbytes() for storage in kept.values())
    prediction.sum().backward()
    counts = {"calls": sent.calls, "bytes": sent.bytes, "seen": len(kept), "held": held}
    if trainer.main:
        Path(path).write_text(json.dumps(counts | {"parameters": sum(p.numel() for p in trainer.model.parameters())}))
    torch.distributed.destroy_process_group()
    return 0
