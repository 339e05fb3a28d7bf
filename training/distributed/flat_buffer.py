"""Many small tensors as one: a small model's step waits for its optimiser's calls, not for their arithmetic."""

import torch
from torch import Tensor, nn

ALIGNMENT = 32  # numbers: each parameter begins where vector loads of 128 bytes may


def merge(parameters: list[nn.Parameter], slices: int = 1) -> nn.Parameter:
    """Move ``parameters`` and their gradients into one buffer of ``slices`` equal parts and make them views of it.

    An optimiser of the buffer updates them all. The buffer's gradient must be set to zero, never to None, because the
    parameters' gradients are views of it. The padding between two parameters is zero and stays zero.

    Returns:
        The buffer.
    """
    starts, size = [], 0
    for parameter in parameters:
        starts.append(size)
        size += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
    size += -size % (ALIGNMENT * slices)
    first = parameters[0]
    flat = nn.Parameter(torch.zeros(size, dtype=first.dtype, device=first.device), first.requires_grad)
    for parameter, start in zip(parameters, starts):
        here = flat.data[start : start + parameter.numel()].view(parameter.shape)
        parameter.data = here.copy_(parameter.data)
    if flat.requires_grad:  # made now that the parameters' former memory is free
        flat.grad = torch.zeros_like(flat)
        for parameter in parameters:
            parameter.grad = part_of(flat.grad, parameter)
    return flat


def part_of(flat: Tensor, parameter: Tensor) -> Tensor:
    """The view of ``parameter``'s part of ``flat``, which is laid out as its buffer (or as the parameter itself)."""
    if flat.shape == parameter.shape:
        return flat
    start = place_of(parameter, len(flat))
    return flat[start : start + parameter.numel()].view(parameter.shape)


def place_of(parameter: Tensor, length: int) -> int:
    """Where ``parameter`` begins in its buffer of ``length`` numbers, alone or a row of several."""
    return parameter.storage_offset() % length


@torch.no_grad()
def move_parameters(
    flat: nn.Parameter, parameters: list[nn.Parameter], to: Tensor, gradient: Tensor | None = None
) -> None:
    """Move a buffer, and the ``parameters`` that were merged into it, to ``to`` of the same length, such as a row.

    ``gradient`` holds its gradient from then on; the old gradient is not copied.
    """
    to.copy_(flat)
    for parameter in parameters:
        here = part_of(to, parameter)
        grad = None if gradient is None else part_of(gradient, parameter)
        parameter.data, parameter.grad = here, grad
    flat.data, flat.grad = to, gradient
