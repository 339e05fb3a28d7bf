"""Steps of a training in processes of their own, with an account of what they send and what they keep."""

import functools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models.test_dit import build, inputs, trained
from tests.training.graphs import is_of_a_model
from tests.training.planning.test_dry_run import kept_bytes
from videoscaling.models.dit import DiTConfig, VideoDiT
from videoscaling.training.config import load_config
from videoscaling.training.distributed.parallel import all_reduce, local, sequence_shards
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
        if operation in ("allgather_base", "reduce_scatter_base", "all_to_all_single"):
            whole = max(args[: 1 if operation == "all_to_all_single" else 2], key=torch.Tensor.numel)
            name = f"{operation.removesuffix('_base')} {str(whole.dtype).removeprefix('torch.')}"
            self.calls[name] += 1
            self.bytes[name] += whole.nbytes
        return function(*args, **(kwargs or {}))


def watch(overrides: list[str], path: str) -> int:
    """Take three steps; write what the second sends, what a forward pass keeps of the weights, and the EMA's bytes."""
    trainer = Trainer(*prepare(load_config(None, overrides)))
    step, batch = trainer.train_step, trainer.config.train.batch_tokens
    step.run(trainer.loader.batch(0), 0)
    with Collectives() as sent:
        step.run(trainer.loader.batch(1), batch)
    average = [bytes_of([*trainer.ema.parameters(), *step.ema])]
    step.gather_slices()
    average.append(bytes_of([*trainer.ema.parameters(), *step.ema]))
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
    counts = {"calls": sent.calls, "bytes": sent.bytes, "seen": len(kept), "held": held, "average": average}
    if trainer.main:
        Path(path).write_text(json.dumps(counts | {"parameters": sum(p.numel() for p in trainer.model.parameters())}))
    torch.distributed.destroy_process_group()
    return 0


def bytes_of(tensors: list[torch.Tensor]) -> int:
    """The memory of what this process has of the tensors."""
    return sum({each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in local(tensors)}.values())


def watch_shards(path: str, compiled: bool) -> int:
    """Compare a model on shards of its tokens with one on all; write their differences, exchanges and kept bytes."""
    torch.distributed.init_process_group("gloo")
    shards, found = sequence_shards(2, torch.device("cpu")), {}
    whole, model = trained(build()), trained(build())
    model.sequence_shards = shards
    if compiled:
        model.compile(fullgraph=True, dynamic=False, backend="aot_eager")
    for recompute in (False, "selective"):
        predictions = []
        for each in (whole, model):
            each.recompute = recompute
            predictions.append(each(*inputs()))
            predictions[-1].square().mean().backward()
        torch.testing.assert_close(*predictions, rtol=1e-5, atol=1e-6)
        for ours, theirs in zip(model.parameters(), whole.parameters()):
            torch.testing.assert_close(all_reduce(ours.grad, "mean"), theirs.grad, rtol=1e-4, atol=1e-6)
            ours.grad = theirs.grad = None
    if not compiled:
        half = trained(build(dtype=torch.bfloat16))
        half.sequence_shards = shards
        with Collectives() as sent:
            half(*inputs()).sum().backward()
        large = VideoDiT(DiTConfig(4, 128, 2, 4, (1, 1, 1), 64))
        large.sequence_shards = shards
        found = {"calls": sent.calls, "bytes": sent.bytes, "kept": kept_bytes(large, 3, 96, 16)}
    if shards.rank == 0:
        Path(path).write_text(json.dumps(found))
    torch.distributed.destroy_process_group()
    return 0


def count_graphs(overrides: list[str], path: str) -> int:
    """Take two steps of a compiled training; write how many graphs of the model were compiled."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(module: torch.fx.GraphModule, examples: list[Any]) -> Any:
        if is_of_a_model(module):
            graphs.append(module)
        return module.forward

    torch.compile = functools.partial(torch.compile, backend=backend)
    trainer = Trainer(*prepare(load_config(None, overrides)))
    for step in range(2):
        trainer.train_step.run(trainer.loader.batch(step), step * trainer.config.train.batch_tokens)
    if trainer.main:
        Path(path).write_text(str(len(graphs)))
    torch.distributed.destroy_process_group()
    return 0
