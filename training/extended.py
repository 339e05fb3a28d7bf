"""Cells that were added to a sweep after its YAML: ``extended.json`` in its folder, written by ``extend`` alone."""

from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import read_json, write_json

NAME = "extended.json"
KEYS = {"size": str, "lr": float, "batch_tokens": int, "repeat": int, "milestones": list, "why": str}


def read(directory: Path) -> list[dict[str, Any]]:
    """The cells added so far, none where there is no file.

    Each has its size, lr, batch_tokens, repeat (0 is the first run of a cell), milestones in tokens, and why it was
    added.

    Raises:
        UserError: the file is none that ``add`` wrote.
    """
    path = directory / NAME
    if not path.exists():
        return []
    value = read_json(path)
    cells = value.get("cells") if isinstance(value, dict) else None
    if not isinstance(cells, list) or not all(_is_cell(cell) for cell in cells):
        raise UserError(f"{path}: not a list of cells that extend wrote; remove it, and extend again")
    return cells


def add(directory: Path, cells: list[dict[str, Any]]) -> None:
    """Append to the cells; the caller holds ``directory``. A cell that is there already gets the later milestones."""
    known = {_key(cell): cell for cell in read(directory)}
    for cell in cells:
        before = known.get(_key(cell), {"milestones": []})["milestones"]
        known[_key(cell)] = cell | {"milestones": sorted({*before, *cell["milestones"]})}
    write_json(directory / NAME, {"cells": list(known.values())})


def _key(cell: dict[str, Any]) -> tuple:
    return tuple(cell[name] for name in ("size", "lr", "batch_tokens", "repeat"))


def _is_cell(cell: Any) -> bool:
    return (
        isinstance(cell, dict)
        and set(cell) == set(KEYS)
        and all(type(cell[name]) is kind for name, kind in KEYS.items())
        and all(type(tokens) is int and tokens > 0 for tokens in cell["milestones"])
        and bool(cell["milestones"])
        and cell["repeat"] >= 0
    )
