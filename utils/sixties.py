"""Times such as 12:00:00, which YAML reads as numbers to the base 60."""

import re
from pathlib import Path

import yaml

from utils.errors import UserError

SIXTIES = re.compile(r"[-+]?[1-9][0-9_]*(:[0-5]?[0-9])+")


def plain(override: str) -> str:
    """``override`` such as time=12:00:00 with its value in quotes, so that it stays what was written."""
    name, _, value = override.partition("=")
    return f"{name}='{value}'" if SIXTIES.fullmatch(value) else override


def refuse_sixties(path: Path) -> None:
    """Refuse a YAML file with a time that is not in quotes: who reads 12:00:00 as 43200 may take it for minutes.

    Raises:
        UserError: there is one.
    """
    text = path.read_text(encoding="utf-8")
    if SIXTIES.search(text) is None:
        return
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.ScalarEvent) and event.style is None and SIXTIES.fullmatch(event.value):
            raise UserError(f'{path}: YAML reads {event.value} as a number; put it in quotes: "{event.value}"')
