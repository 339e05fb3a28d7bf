"""Values as text for readers: numbers with four digits, intervals in brackets, rows as aligned tables."""

from collections.abc import Mapping, Sequence
from typing import Any

INTERVAL = ("value", "low", "high")


def text_of(value: Any) -> str:
    """A value as text: ``{"value", "low", "high", ...}`` as ``value [low, high] (...)``, None as unknown."""
    if value is None:
        return "unknown"
    if isinstance(value, dict):
        rest = ", ".join(f"{name} {text_of(item)}" for name, item in value.items() if name not in INTERVAL)
        ends = [value.get(name) for name in INTERVAL[1:]]
        span = "" if ends == [None, None] else f" [{', '.join('no bound' if e is None else f'{e:.4g}' for e in ends)}]"
        return f"{text_of(value['value'])}{span}{f' ({rest})' if rest else ''}"
    if isinstance(value, list | tuple):
        return ", ".join(map(text_of, value))
    return format(value, ".4g") if isinstance(value, float) else str(value)


def flat(value: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested named values with dotted names; intervals stay whole."""
    found: dict[str, object] = {}
    for name, item in value.items():
        nested = isinstance(item, dict) and item and "value" not in item
        found |= flat(item, f"{prefix}{name}.") if nested else {f"{prefix}{name}": item}
    return found


def table(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Rows of named values as lines under their names, columns aligned."""
    rows = [flat(row) for row in rows]
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([text_of(row.get(name)) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]


def outline(value: Mapping[str, object], indent: str = "") -> list[str]:
    """Nested named values as indented lines, lists of rows as tables."""
    lines = []
    for name, item in value.items():
        if isinstance(item, list) and item and isinstance(item[0], dict):
            lines += [f"{indent}{name}", *(f"{indent}  {line}" for line in table(item))]
        elif isinstance(item, dict) and "value" not in item:
            lines += [f"{indent}{name}", *outline(item, f"{indent}  ")]
        else:
            lines.append(f"{indent}{name}: {text_of(item)}")
    return lines
