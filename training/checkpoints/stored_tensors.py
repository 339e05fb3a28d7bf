"""A checkpoint's tensors of one kind on disk, whole or in pieces, of which a process reads the ranges that it holds.

At 1.1e9 parameters a state has 18 GB, and one of 8 processes with shards holds 2.2 of it. Files are read, not mapped
into memory: a disk that fails is then an error in one line, where a mapped page would end the process by SIGBUS.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from videoscaling.utils.errors import OwnError, UserError
from videoscaling.utils.files import parse_json
from videoscaling.utils.os_errors import with_filename

FLOAT32 = 4  # bytes a number: checkpoints hold no other type
MAX_HEADER_BYTES = 100_000_000  # as safetensors allows


def read_header(file: BinaryIO) -> bytes:
    """What a safetensors file begins with: the length of its JSON in eight bytes, and the JSON."""
    length = file.read(8)
    return length + file.read(min(int.from_bytes(length, "little"), MAX_HEADER_BYTES))


class _Place(NamedTuple):
    """Where a file holds ``count`` numbers of a tensor: ``start`` in bytes."""

    file: Path
    start: int
    count: int


class StoredTensors(Mapping[str, Tensor]):
    """Float32 tensors by name, on the CPU, each read from its files whenever it is asked for.

    Args:
        files: a whole file; or files of pieces in the processes' order, of which a tensor is the concatenation.
        shapes: of the tensors in pieces; None: as the whole file has them.

    Raises:
        OwnError: a file is no checkpoint's; also where tensors are read.
    """

    def __init__(self, files: Sequence[Path], shapes: Mapping[str, list[int]] | None = None) -> None:
        self._places: dict[str, list[_Place]] = {}
        found: dict[str, list[int]] = {}
        for file in files:
            for name, (shape, start) in _tensors_of(file).items():
                found[name] = shape
                self._places.setdefault(name, []).append(_Place(file, start, math.prod(shape)))
        self._files = files
        self.shapes = {name: tuple(shape) for name, shape in (found if shapes is None else shapes).items()}

    def read(self, name: str, begin: int, count: int) -> Tensor:
        """``count`` of a tensor's numbers in their order from the ``begin``-th on, float32 [count]."""
        numbers = torch.empty(count, dtype=torch.float32)
        content, at = numbers.view(torch.uint8).numpy(), 0
        for file, start, there in self._places_of(name):
            low, high = max(begin, at), min(begin + count, at + there)
            if low < high:
                target = content[FLOAT32 * (low - begin) : FLOAT32 * (high - begin)]
                with with_filename(file), file.open("rb") as opened:
                    opened.seek(start + FLOAT32 * (low - at))
                    if opened.readinto(target) < len(target):
                        raise _damaged(file, f"ends within {name}")
            at += there
        return numbers

    def _places_of(self, name: str) -> list[_Place]:
        places = self._places.get(name, [])
        if sum(place.count for place in places) != math.prod(self.shapes[name]):
            raise _damaged(self._files[-1], f"{name} is not whole")
        return places

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name, 0, math.prod(self.shapes[name])).view(self.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def _tensors_of(file: Path) -> dict[str, tuple[list[int], int]]:
    """The shape of each tensor in a file, and the byte at which its numbers begin."""
    with with_filename(file), file.open("rb") as opened:
        head = read_header(opened)
    try:
        header = parse_json(head[8:], "no safetensors header", dict)
        found = {name: facts for name, facts in header.items() if name != "__metadata__"}
        if wrong := next((facts["dtype"] for facts in found.values() if facts["dtype"] != "F32"), None):
            raise UserError(f"holds {wrong}, and checkpoints F32 alone")
        return {name: (facts["shape"], len(head) + facts["data_offsets"][0]) for name, facts in found.items()}
    except (UserError, KeyError, TypeError) as error:
        raise _damaged(file, str(error)) from None


def _damaged(file: Path, why: str) -> OwnError:
    return OwnError(f"{file}: not readable ({why}); the checkpoint is damaged")
