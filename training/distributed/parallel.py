"""One model over several processes: DDP, ZeRO-1 or FSDP2, and full tensors into and out of shards."""

import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from videoscaling.models.dit import VideoDiT
from videoscaling.models.sequence_shards import SequenceShards
from videoscaling.training.planning.memory_formula import keeps_gathered
from videoscaling.utils.errors import DataFault, UserError

T = TypeVar("T")


def shard(model: VideoDiT, nodes: int = 1) -> None:
    """Shard parameters in place over all processes (FSDP2): each block's are gathered while it computes.

    The blocks' matrices are gathered in the model's compute dtype, so that autograd keeps no cast copies of them;
    their gradients are reduced in float32. Everything else, norms and modulation tables of the blocks too, is one
    group of float32. It is also resharded after each forward pass: left gathered, it would not follow an EMA or
    optimiser step on the shards.

    Args:
        nodes: equal parts of the processes, each of which holds all shards (HSDP); 1: shards over all processes.
    """
    mesh = None
    if nodes > 1:
        kind, shape = next(model.parameters()).device.type, (nodes, dist.get_world_size() // nodes)
        mesh = init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard"))
    matrices = {value for name, value in model.blocks.named_parameters() if name.endswith(".weight")}
    # The root first, or FSDP2 would leave out the blocks' norms and tables.
    fully_shard(model, mesh=mesh, reshard_after_forward=True, ignored_params=matrices)
    policy = MixedPrecisionPolicy(model.dtype, torch.float32, cast_forward_inputs=False)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=set(model.parameters()) - matrices)


class Slices:
    """One process's slices of flat buffers that all processes hold (ZeRO stage 1, arXiv 1910.02054).

    The optimiser's state exists for the slices alone. A step reduces gradients and gathers weights once, however many
    micro-batches it has: 8 bytes a parameter, as many as DDP's one reduction; 6 of those gathered in bfloat16.

    Args:
        flats: the buffers.
        dtype: in which steps gather the first of them. Others' slices then hold numbers of that dtype until
            ``gather`` is asked for exact ones; a process's own slice is always exact.

    Attributes:
        parameters: the slices, as shards: what the optimiser steps.
    """

    def __init__(self, flats: Iterable[nn.Parameter], mesh: DeviceMesh, dtype: torch.dtype = torch.float32) -> None:
        self._flats, self._world = list(flats), mesh.size()
        self._dtypes = [dtype, *(flat.dtype for flat in self._flats[1:])]

        def own(flat: Tensor) -> Tensor:
            return DTensor.from_local(self._part(flat, mesh.get_local_rank()), mesh, [Shard(0)], run_check=False)

        self.parameters = [nn.Parameter(own(flat.data), flat.requires_grad) for flat in self._flats]
        for flat, part in zip(self._flats, self.parameters):
            part.grad = None if flat.grad is None else own(flat.grad)

    def _part(self, flat: Tensor, rank: int) -> Tensor:
        return flat.chunk(self._world)[rank]

    @torch.no_grad()
    def reduce_gradients(self) -> None:
        """Average the slices' gradients over the processes."""
        for flat, part in zip(self._flats, self.parameters):
            gradient = part.grad.to_local()
            dist.reduce_scatter_tensor(gradient, flat.grad)
            gradient /= self._world

    @torch.no_grad()
    def gather(self, exact: bool = True) -> None:
        """Fill each whole buffer from all slices."""
        for flat, part, dtype in zip(self._flats, self.parameters, self._dtypes):
            own = part.to_local()
            if exact or dtype == flat.dtype:
                dist.all_gather_into_tensor(flat.data, own)
                continue
            whole, kept = torch.empty_like(flat, dtype=dtype), own.clone()
            dist.all_gather_into_tensor(whole, own.to(dtype))
            flat.copy_(whole)
            own.copy_(kept)


class LooseSlices(Slices):
    """``Slices`` of buffers that are in memory as a whole only until ``release``, and again from ``gather`` on."""

    def _part(self, flat: Tensor, rank: int) -> Tensor:
        return super()._part(flat, rank).clone()

    @torch.no_grad()
    def release(self) -> None:
        """Keep what this process's parts of the buffers hold, which may be new, and free the buffers' memory."""
        for flat, part in zip(self._flats, self.parameters):
            own = part.to_local()
            own.copy_(super()._part(flat, part.device_mesh.get_local_rank()))
            flat.untyped_storage().resize_(0)

    def gather(self, exact: bool = True) -> None:
        for flat in self._flats:
            flat.untyped_storage().resize_(flat.nbytes)
        super().gather(exact)


def is_parallel() -> bool:
    """Whether several processes train together."""
    return dist.is_initialized() and dist.get_world_size() > 1


def node_count() -> int:
    """The nodes of equally many processes; UserError if there are none such."""
    world, each = dist.get_world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", torch.cuda.device_count()))
    if not each or world % each:
        raise UserError(f"train.parallel=hsdp: processes ({world}) are not nodes of {each} each; use fsdp")
    return world // each


def replicate(model: VideoDiT, device: torch.device) -> nn.Module:
    """``model`` behind DDP where there are several processes, else itself."""
    if not is_parallel():
        return model
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def sequence_shards(size: int, device: torch.device) -> SequenceShards | None:
    """This process's share of the tokens of clips that ``size`` consecutive processes divide; None for 1."""
    if size == 1:
        return None
    shape = (dist.get_world_size() // size, size)
    return SequenceShards(
        init_device_mesh(device.type, shape, mesh_dim_names=("data", "context")).get_group("context")
    )


def begin_micro_batch(model: nn.Module, *, last: bool, several: bool) -> None:
    """Prepare the next forward and backward pass of a step; only its ``last`` one reduces gradients over processes.

    Of ``several`` the first gathers FSDP2's shards, and they stay gathered to the end of the step, with whole
    gradients: 6 bytes a parameter in bfloat16 instead of two gathers for each micro-batch. A model too large for that
    (``keeps_gathered``) is gathered and reduced in each.
    """
    if isinstance(model, DistributedDataParallel):
        model.require_backward_grad_sync = last
    elif isinstance(model, FSDPModule) and several and keeps_gathered(sum(p.numel() for p in model.parameters())):
        model.set_requires_gradient_sync(last)
        model.set_reshard_after_forward(False)
        model.set_reshard_after_backward(last)


def end_micro_batches(model: nn.Module) -> None:
    """Shard again after each forward pass, as validation does."""
    if isinstance(model, FSDPModule):
        model.set_reshard_after_forward(True)


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This process's part of each tensor: its shard, or the tensor itself."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def gather_full(tensor: Tensor) -> Tensor:
    """The full tensor from all its shards; every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def all_reduce(tensor: Tensor, how: str) -> Tensor:
    """The "sum" or the "mean" of a tensor over the processes, the same on each; ``tensor`` is left as it is."""
    if not is_parallel():
        return tensor.clone()
    total = tensor.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size() if how == "mean" else total


def from_first(make: Callable[[], T]) -> T:
    """What ``make`` gives on the first process, on all of them; a user's error there is one everywhere."""
    if not is_parallel():
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
    if is_parallel() and all_reduce(torch.full((), float(fault is not None), device=device), "sum").item():
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


def lost_process(error: BaseException) -> bool:
    """Whether ``error`` is from a collective that waited for a process that did not answer."""
    text = str(error).lower()
    collective = isinstance(error, dist.DistError) or "gloo" in text
    waited = ("timed out", "timeout", "connection closed", "connection reset", "peer")
    return dist.is_initialized() and collective and any(words in text for words in waited)
