"""Sharded checkpoints: each process writes its own pieces of the tensors, and any layout reads them.

checkpoints/step_0000100/   model.piece-0-of-4.safetensors ... optimizer.piece-3-of-4.safetensors  state.json ...

A piece is a range of a tensor's numbers in their order: a shard of FSDP2 along the first side, a slice of ZeRO-1's
buffer, or an equal part of what all processes hold. In the processes' order a tensor's pieces are the tensor, whose
shape is in state.json under "shapes". No process holds a whole tensor to save it, nor more than one to read them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from videoscaling.training.distributed.flat_buffer import part_of, place_of
from videoscaling.training.distributed.parallel import gather_full, is_parallel, like, local, node_count
from videoscaling.utils.errors import UserError

Named = Mapping[str, Mapping[str, Tensor]]  # tensors by kind and name


class Part(NamedTuple):
    """Which of the ``count`` processes with different pieces this is; of processes with the same one, one writes."""

    index: int
    count: int
    writes: bool = True

    def file(self, kind: str) -> str:
        """The name of this process's file."""
        return f"{kind}.piece-{self.index}-of-{self.count}"


def part_of_process(parallel: str) -> Part | None:
    """This process's part in writing checkpoints; None where the first process writes them alone."""
    if parallel == "ddp" or not is_parallel():
        return None
    rank, world = dist.get_rank(), dist.get_world_size()
    count = world // (node_count() if parallel == "hsdp" else 1)
    return Part(rank % count, count, rank < count)


def piece_of(tensor: Tensor, part: Part) -> Tensor:
    """This process's numbers of a tensor: its shard, or an equal part of one that all processes hold."""
    if isinstance(tensor, DTensor):
        return tensor.to_local().detach().flatten()
    return tensor.detach().flatten().tensor_split(part.count)[part.index]


def pieces_of(named: Mapping[str, Tensor], part: Part) -> dict[str, Tensor]:
    """``piece_of`` each tensor."""
    return {name: piece_of(tensor, part) for name, tensor in named.items()}


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state by parameter name: {"exp_avg.<name>", "exp_avg_sq.<name>", "step.<name>"}.

    Moments are views of the state, but of copies where processes hold slices of it; every process must call then.
    """
    return _optimizer_tensors(model, optimizer)[0]


def _optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
    """``optimizer_tensors``, and each slice of a moment with the copy of the whole."""
    named: dict[str, Tensor] = {}
    whole: dict[nn.Parameter, dict[str, Tensor]] = {}
    sliced: list[tuple[Tensor, Tensor]] = []
    for name, parameter in model.named_parameters():
        flat = optimised(parameter, optimizer)
        if flat not in whole:
            state = {kind: optimizer.state[flat][kind] for kind in ("exp_avg", "exp_avg_sq")}
            whole[flat] = state if flat is parameter else {kind: gather_full(value) for kind, value in state.items()}
            sliced += [(state[kind], value) for kind, value in whole[flat].items() if value is not state[kind]]
        named[f"step.{name}"] = optimizer.state[flat]["step"]
        named |= {f"{kind}.{name}": part_of(value, parameter) for kind, value in whole[flat].items()}
    return named, sliced


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of ``optimizer_tensors``."""
    named, sliced = _optimizer_tensors(model, optimizer)
    with torch.no_grad():
        for name, tensor in named.items():
            tensor.copy_(like(tensor, tensors[name]))
        for part, value in sliced:
            part.copy_(like(part, value))


def optimizer_pieces(model: nn.Module, optimizer: torch.optim.Optimizer, part: Part) -> dict[str, Tensor]:
    """This process's numbers of what ``optimizer_tensors`` has whole."""
    named = {}
    for name, parameter in model.named_parameters():
        flat = optimised(parameter, optimizer)
        state = optimizer.state[flat]
        named[f"step.{name}"] = piece_of(state["step"], part)
        for kind in ("exp_avg", "exp_avg_sq"):
            mine = piece_of(state[kind], part)
            if flat is not parameter:
                mine = _within(mine, parameter, part)
            named[f"{kind}.{name}"] = mine
    return named


def optimised(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> nn.Parameter:
    """What the optimiser steps for a parameter: itself, or the buffer that it was merged into (or a slice of that)."""
    if parameter in optimizer.state:
        return parameter
    place = parameter.untyped_storage().data_ptr()
    return next(flat for flat in optimizer.state if local([flat])[0].untyped_storage().data_ptr() == place)


def _within(mine: Tensor, parameter: Tensor, part: Part) -> Tensor:
    """A parameter's numbers in this process's slice of the flat buffer that it was merged into."""
    start, low = place_of(parameter, len(mine) * part.count), len(mine) * part.index
    begin, end = (min(max(place - low, 0), len(mine)) for place in (start, start + parameter.numel()))
    return mine[begin:end]


def shapes_of(model: nn.Module) -> dict[str, dict[str, list[int]]]:
    """The shapes of a model's checkpoint by kind and name, as state.json has them."""
    weights = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    parameters = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    optimizer = {f"step.{name}": [] for name in parameters}
    for kind in ("exp_avg", "exp_avg_sq"):
        optimizer |= {f"{kind}.{name}": shape for name, shape in parameters.items()}
    return {"model": weights, "ema": weights, "optimizer": optimizer}


class Assembled(Mapping[str, Tensor]):
    """A kind's tensors on the CPU, each put together from its pieces when it is asked for."""

    def __init__(self, path: Path, kind: str, shapes: Mapping[str, list[int]]) -> None:
        self._shapes = shapes
        found = path.glob(f"{kind}.piece-*.safetensors")
        self._files = sorted(found, key=lambda file: int(file.name.split("-")[1]))

    def __getitem__(self, name: str) -> Tensor:
        pieces = []
        for file in self._files:
            try:
                with safe_open(file, "pt") as opened:
                    pieces.append(opened.get_tensor(name))
            except (OSError, SafetensorError) as error:
                raise UserError(f"{file}: not readable ({error}); the checkpoint is damaged") from None
        return torch.cat(pieces).view(self._shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def collect_facts(facts: dict[str, Any], error: OSError | None, group: dist.ProcessGroup) -> dict[str, Any]:
    """On the first process the facts of all processes' files; elsewhere {}. Every process of ``group`` must call.

    Raises:
        OSError: this process's own, or on the first one another's.
    """
    given = (facts, None if error is None else (error.errno, error.strerror, error.filename))
    found: list[Any] | None = [None] * dist.get_world_size(group) if dist.get_rank(group) == 0 else None
    dist.gather_object(given, found, group=group)
    if error is not None:
        raise error
    together: dict[str, Any] = {}
    for each, failed in found or ():
        if failed is not None:
            raise OSError(*failed)
        together |= each
    return together
