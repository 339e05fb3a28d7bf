"""Sharded checkpoints: each process writes its own pieces of the tensors, and any layout reads them.

checkpoints/step_0000100/   model.piece-0-of-4.safetensors ... optimizer.piece-3-of-4.safetensors  state.json ...

A piece is a range of a tensor's numbers in their order: a shard of FSDP2 along the first side, a slice of ZeRO-1's
buffer, or an equal part of what all processes hold. In the processes' order a tensor's pieces are the tensor, whose
shape is in state.json under "shapes". No process holds a whole tensor to save it, and to resume it reads the range of
each that it holds.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from videoscaling.training.distributed.flat_buffer import place_of
from videoscaling.training.distributed.parallel import is_parallel, local, node_count

MOMENTS = ("exp_avg", "exp_avg_sq")
Named = Mapping[str, Mapping[str, Tensor]]  # tensors by kind and name


class Part(NamedTuple):
    """Which of the ``count`` processes with different pieces this is; of processes with the same one, one writes."""

    index: int
    count: int
    writes: bool = True

    def file(self, kind: str) -> str:
        """The name of this process's file."""
        return f"{kind}.piece-{self.index}-of-{self.count}"


WHOLE = Part(0, 1)  # the part of a process that holds all of a tensor, and wants all of it


def part_of_process(parallel: str) -> Part | None:
    """This process's part in writing checkpoints; None where the first process writes them alone."""
    if parallel == "ddp" or not is_parallel():
        return None
    rank, world = dist.get_rank(), dist.get_world_size()
    count = world // (node_count() if parallel == "hsdp" else 1)
    return Part(rank % count, count, rank < count)


class Piece(NamedTuple):
    """A process's numbers of a tensor, a view [count], and where in the tensor, in the numbers' order, they begin."""

    numbers: Tensor
    begin: int

    def within(self, parameter: Tensor, flat: Tensor) -> "Piece":
        """Of a piece of ``flat`` the numbers of ``parameter``, which was merged into a buffer laid out as ``flat``."""
        if flat.shape == parameter.shape:
            return self
        start = place_of(parameter, flat.numel())
        first, end = (min(max(at - self.begin, 0), len(self.numbers)) for at in (start, start + parameter.numel()))
        return Piece(self.numbers[first:end], min(max(self.begin - start, 0), parameter.numel()))

    def over(self, other: "Piece") -> "Piece":
        """Of this piece the numbers at the places of another one of a tensor of the same shape."""
        first = other.begin - self.begin
        return Piece(self.numbers[first : first + len(other.numbers)], other.begin)


def piece_of(tensor: Tensor, part: Part = WHOLE) -> Piece:
    """This process's piece of a tensor: its shard, or an equal part of one that all processes hold."""
    if not isinstance(tensor, DTensor):
        numbers = tensor.detach().view(-1).tensor_split(part.count)[part.index]
        return Piece(numbers, numbers.storage_offset() - tensor.storage_offset())
    mesh, axis = tensor.device_mesh, tensor.device_mesh.ndim - 1  # hsdp's first axis is the nodes, which hold copies
    rows = -(-len(tensor) // mesh.size(axis)) * mesh.get_local_rank(axis)
    return Piece(tensor.to_local().detach().view(-1), min(rows, len(tensor)) * (tensor.numel() // len(tensor)))


def pieces_of(named: Mapping[str, Tensor], part: Part) -> dict[str, Tensor]:
    """The numbers of this process's piece of each tensor."""
    return {name: piece_of(tensor, part).numbers for name, tensor in named.items()}


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state by parameter name: {"exp_avg.<name>", "exp_avg_sq.<name>", "step.<name>"}, views of what a process
    without shards holds."""
    shapes = shapes_of(model)["optimizer"]
    return {name: piece.numbers.view(shapes[name]) for name, piece in optimizer_pieces(model, optimizer).items()}


def optimizer_pieces(model: nn.Module, optimizer: torch.optim.Optimizer, part: Part = WHOLE) -> dict[str, Piece]:
    """This process's pieces of AdamW's state, by names as ``optimizer_tensors``."""
    pieces = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state[optimised(parameter, optimizer)]
        pieces[f"step.{name}"] = piece_of(state["step"], part)
        for kind in MOMENTS:
            pieces[f"{kind}.{name}"] = piece_of(state[kind], part).within(parameter, state[kind])
    return pieces


def pieces_to_read(model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Piece]]:
    """What this process reads of a checkpoint, by kind and name: the numbers that it holds of each tensor.

    With slices of the optimiser's state they are its slices of the weights too, which are whole in its memory: it gets
    the others' from the others (``training.step.TrainStep.share_slices``).
    """
    pieces = {"optimizer": optimizer_pieces(model, optimizer)}
    for kind, each in (("model", model), ("ema", ema)):
        named = each.named_parameters()
        pieces[kind] = {name: piece_of(own).over(pieces["optimizer"][f"{MOMENTS[0]}.{name}"]) for name, own in named}
    return pieces


def optimised(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> nn.Parameter:
    """What the optimiser steps for a parameter: itself, or the buffer that it was merged into (or a slice of that)."""
    if parameter in optimizer.state:
        return parameter
    place = parameter.untyped_storage().data_ptr()
    return next(flat for flat in optimizer.state if local([flat])[0].untyped_storage().data_ptr() == place)


def shapes_of(model: nn.Module) -> dict[str, dict[str, list[int]]]:
    """The shapes of a model's checkpoint by kind and name, as state.json has them."""
    weights = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    parameters = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    optimizer = {f"step.{name}": [] for name in parameters}
    for kind in MOMENTS:
        optimizer |= {f"{kind}.{name}": shape for name, shape in parameters.items()}
    return {"model": weights, "ema": weights, "optimizer": optimizer}


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
