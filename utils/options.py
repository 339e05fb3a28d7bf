"""A command's options as fields of a dataclass: default, help and bounds of each in one place."""

import argparse
from collections.abc import Callable
from dataclasses import field, fields
from types import UnionType
from typing import Any, TypeVar, get_args

from videoscaling.utils.errors import UserError

Options = TypeVar("Options")


def option(default: Any, text: str, least: float | None = None, most: float | None = None, **parser: Any) -> Any:
    """A field with its help text, the bounds of its number (or numbers), and more for argparse."""
    return field(default=default, metadata={"help": text, "bounds": (least, most), "parser": parser})


def number(kind: type, least: float, most: float) -> Callable[[str], Any]:
    """An argparse type: a number within bounds."""

    def bounded(text: str) -> Any:
        value = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value!s:.12} must be a number from {least:g} to {most:g}")
        return value

    bounded.__name__ = kind.__name__  # in argparse's message on what is no number
    return bounded


def pixels_text(height: int, width: int) -> str:
    """The sides of a picture, in the order of --size."""
    return f"{height}x{width} pixels" + ("" if height == width else " (height x width)")


def height_and_width(text: str) -> tuple[int, int]:
    """An argparse type of --size: the side of a square, or height x width, in pixels."""
    sides = [int(side) for side in text.lower().split("x") if side.isdecimal()]
    if len(sides) != text.lower().count("x") + 1 or len(sides) > 2 or min(sides) < 1:
        raise UserError(f"--size {text}: neither a number of pixels nor height x width, such as 64 or 48x80")
    return sides[0], sides[-1]


def add_options(parser: argparse.ArgumentParser, kind: type) -> None:
    """Add an option for each field of a dataclass that has a help text; defaults are named in it."""
    for one in fields(kind):
        if "help" in one.metadata:
            base = get_args(one.type)[0] if isinstance(one.type, UnionType) else one.type
            shown = one.default if isinstance(one.default, list | tuple) else [one.default]
            texts = ["x".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in shown]
            default = "" if shown == [None] else f" (default {' '.join(texts)})"
            more = {"type": base, "default": one.default} | one.metadata["parser"]
            parser.add_argument(_flag(one.name), help=one.metadata["help"] + default, **more)


def options_of(kind: type[Options], arguments: argparse.Namespace, **more: Any) -> Options:
    """The dataclass by parsed arguments, and ``more``."""
    given = vars(arguments)
    return kind(**{one.name: given[one.name] for one in fields(kind) if one.name in given} | more)


def check_range(name: str, value: float | None, least: float, most: float) -> None:
    """Raise UserError where the number of the option ``name`` is given and beyond its bounds."""
    if value is not None and not least <= value <= most:
        raise UserError(f"{_flag(name)} {value!s:.12}: must be a number from {least:g} to {most:g}")


def check_bounds(options: Any) -> None:
    """Raise UserError for a number beyond its bounds."""
    for one in fields(options):
        least, most = one.metadata.get("bounds", (None, None))
        value = getattr(options, one.name)
        for number in value if isinstance(value, list | tuple) else [value]:
            if least is not None:
                check_range(one.name, number, least, most)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
