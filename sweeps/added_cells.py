"""Cells that were added to a sweep after its YAML: ``extended.json`` in its folder, written by ``extend`` alone."""

from pathlib import Path
from typing import Any

from videoscaling.utils.errors import UserError
from videoscaling.utils.files import read_json, write_json

NAME = "extended.json"
KEYS = {"size": str, "lr": float, "batch_tokens": int, "repeat": int, "milestones": list, "why": str}


def read(directory: Path, results: str | None = None) -> list[dict[str, Any]]:
    """The cells added so far, none where there is no file.

    Each has its size, lr, batch_tokens, repeat (0 is the first run of a cell), milestones in tokens, and why it was
    added.

    Args:
        results: a folder of committed results: cells that were added on another machine count too.

    Raises:
        UserError: a file is none that ``add`` wrote.
    """
    folders = [Path(results), directory] if results else [directory]
    return _joined([cell for folder in folders for cell in _read(folder / NAME)])


def add(directory: Path, cells: list[dict[str, Any]]) -> None:
    """Append to the cells; the caller has locked ``directory``. An existing cell gets the later milestones."""
    write_json(directory / NAME, {"cells": _joined([*_read(directory / NAME), *cells])})


def export_added(directory: Path, results: str) -> None:
    """Add a sweep's added cells to those in a folder of committed results."""
    if (directory / NAME).exists():
        write_json(Path(results) / NAME, {"cells": read(directory, results)})


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    cells = read_json(path, dict, "a list of cells that extend wrote").get("cells")
    if not isinstance(cells, list) or not all(_is_cell(cell) for cell in cells):
        raise UserError(f"{path}: not a list of cells that extend wrote; remove it, and extend again")
    return cells


def _joined(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    known: dict[tuple, dict[str, Any]] = {}
    for cell in cells:
        before = known.get(_key(cell), {"milestones": []})["milestones"]
        known[_key(cell)] = cell | {"milestones": sorted({*before, *cell["milestones"]})}
    return list(known.values())


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
