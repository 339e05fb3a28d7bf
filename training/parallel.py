"""One model over several processes: DDP or FSDP2, and full tensors into and out of shards."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from videoscaling.models.dit import VideoDiT
from videoscaling.utils.errors import DataFault, UserError

T = TypeVar("T")


def shard(model: VideoDiT) -> None:
    """Shard parameters in place over all processes (FSDP2): each block's are gathered while it computes.

    Parameters outside the blocks are resharded after each forward pass too: left gathered, they would not follow an
    EMA or optimiser step on the shards.
    """
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model, reshard_after_forward=True)


def replicate(model: VideoDiT, device: torch.device) -> nn.Module:
    """``model`` behind DDP where there are several processes, else itself."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return model
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def share_gradients(model: nn.Module, now: bool) -> None:
    """Set whether the next backward pass reduces gradients over the processes, or keeps them for a later one."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
    elif isinstance(model, DistributedDataParallel):
        model.require_backward_grad_sync = now


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This process's part of each tensor: its shard, or the tensor itself."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def gather_full(tensor: Tensor) -> Tensor:
    """The full tensor from all its shards; every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(named: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Full tensors on the CPU; every process must call it, and gets an empty dict without ``keep``."""
    gathered = {}
    for name, tensor in named.items():
        full = gather_full(tensor.detach())
        if keep:
            gathered[name] = full.to("cpu", copy=True)  # views of one buffer would be saved as one
    return gathered


def like(tensor: Tensor, value: Tensor) -> Tensor:
    """``value``, whole on every process, laid out as ``tensor`` is: on its device, and in its shards."""
    value = value.to(tensor.device)
    return distribute_tensor(value, tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else value


def all_reduce(tensor: Tensor, how: str) -> Tensor:
    """The "sum" or the "mean" of a tensor over the processes, the same on each; ``tensor`` is left as it is."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor.clone()
    total = tensor.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size() if how == "mean" else total


def from_first(make: Callable[[], T]) -> T:
    """What ``make`` gives on the first process, on all of them; a user's error there is one everywhere."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return make()
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = make()
        except UserError as error:
            outcome[1] = str(error)
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise UserError(outcome[1])
    return outcome[0]


def raise_together(fault: DataFault | None, device: torch.device) -> None:
    """Raise ``fault``, or that of another process, on all of them; every process must call."""
    several = dist.is_initialized() and dist.get_world_size() > 1
    if several and all_reduce(torch.full((), float(fault is not None), device=device), "sum").item():
        faults: list[DataFault | None] = [None] * dist.get_world_size()
        dist.all_gather_object(faults, fault)
        fault = next(each for each in faults if each is not None)
    if fault is not None:
        raise fault


def check_together(check: Callable[[], None], device: torch.device) -> None:
    """Call ``check`` on every process, and raise a data fault that one of them finds on all."""
    fault = None
    try:
        check()
    except DataFault as found:
        fault = found
    raise_together(fault, device)


def lost_process(error: RuntimeError) -> bool:
    """Whether ``error`` is from a collective that waited for a process that did not answer."""
    text = str(error).lower()
    collective = isinstance(error, dist.DistError) or "gloo" in text
    waited = ("timed out", "timeout", "connection closed", "connection reset", "peer")
    return dist.is_initialized() and collective and any(words in text for words in waited)
