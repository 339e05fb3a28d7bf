"""Cells that were added to a sweep after its YAML: ``extended.json`` in its folder, written by ``extend`` alone."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_origin

from videoscaling.utils.errors import UserError
from videoscaling.utils.files import read_json, write_json

NAME = "extended.json"


@dataclass(frozen=True)
class AddedCell:
    """A run that was added, and why; ``repeat`` is 0 for the first run of its cell, ``milestones`` are in tokens."""

    size: str
    lr: float
    batch_tokens: int
    repeat: int
    milestones: list[int]
    why: str


def read(directory: Path, results: str | None = None) -> list[AddedCell]:
    """The cells added so far, none where there is no file.

    Args:
        results: a folder of committed results: cells that were added on another machine count too.

    Raises:
        UserError: a file is none that ``add`` wrote.
    """
    folders = [Path(results), directory] if results else [directory]
    return _joined([cell for folder in folders for cell in _read(folder / NAME)])


def add(directory: Path, cells: list[AddedCell]) -> None:
    """Append to the cells; the caller has locked ``directory``. An existing cell gets the later milestones."""
    _write(directory / NAME, _joined([*_read(directory / NAME), *cells]))


def export_added(directory: Path, results: str) -> None:
    """Add a sweep's added cells to those in a folder of committed results."""
    if (directory / NAME).exists():
        _write(Path(results) / NAME, read(directory, results))


def _write(path: Path, cells: list[AddedCell]) -> None:
    write_json(path, {"cells": [asdict(cell) for cell in cells]})


def _read(path: Path) -> list[AddedCell]:
    if not path.exists():
        return []
    cells = read_json(path, dict, "a list of cells that extend wrote").get("cells")
    if not isinstance(cells, list) or not all(_is_cell(cell) for cell in cells):
        raise UserError(f"{path}: not a list of cells that extend wrote; remove it, and extend again")
    return [AddedCell(**cell) for cell in cells]


def _joined(cells: list[AddedCell]) -> list[AddedCell]:
    known: dict[tuple, AddedCell] = {}
    for cell in cells:
        key = (cell.size, cell.lr, cell.batch_tokens, cell.repeat)
        before = known[key].milestones if key in known else []
        known[key] = replace(cell, milestones=sorted({*before, *cell.milestones}))
    return list(known.values())


def _is_cell(cell: Any) -> bool:
    kinds = {entry.name: get_origin(entry.type) or entry.type for entry in fields(AddedCell)}
    return (
        isinstance(cell, dict)
        and set(cell) == set(kinds)
        and all(type(cell[name]) is kind for name, kind in kinds.items())
        and all(type(tokens) is int and tokens > 0 for tokens in cell["milestones"])
        and bool(cell["milestones"])
        and cell["repeat"] >= 0
    )
