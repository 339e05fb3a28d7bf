"""Checks of text that a user gives: names, paths and the values of configuration keys."""

import os
import unicodedata
from typing import Any

from videoscaling.utils.errors import UserError, shown

_CONTROL = ("Cc", "Zl", "Zp")  # Unicode's control characters, line separator and paragraph separator


def check_printable(name: str, value: Any, allowed: str = "") -> None:
    """Refuse control characters in ``value``, a text, or a list or mapping of them.

    A newline in a sweep's name was a command of its own in the batch script that Slurm ran.

    Args:
        name: the key, for the error.
        allowed: control characters that are let through.

    Raises:
        UserError: there is one.
    """
    for text in _texts(value):
        for character in text:
            if unicodedata.category(character) in _CONTROL and character not in allowed:
                raise UserError(f"{name}={shown(text)}: holds the control character {character!r}; leave it out")


def check_literal(name: str, value: Any) -> None:
    """Refuse OmegaConf's interpolations and its mark of a missing value in ``value``, or anywhere inside it.

    ``${oc.env:TOKEN}`` would be written out with the results, which are committed.

    Raises:
        UserError: there is one.
    """
    for text in _texts(value):
        if text == "???":
            raise UserError(f"{name}=???: stands for a value that is not given; give one, or leave the key out")
        if "${" in text:
            raise UserError(
                f"{name}={shown(text)}: ${{...}} is not replaced here, since configurations are kept with results; "
                "write the value itself (on a command line the shell can put it in)"
            )


def expand_home(value: Any) -> Any:
    """``value`` with the home directory for a leading ~, in a list too; anything but text as it is."""
    if isinstance(value, list):
        return [expand_home(entry) for entry in value]
    return os.path.expanduser(value) if isinstance(value, str) else value  # noqa: PTH111 (text, such as a hub id)


def _texts(value: Any) -> list[str]:
    """All texts in ``value``: itself, or those in its lists and mappings, names included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in _texts(part)]
    return [text for entry in value for text in _texts(entry)] if isinstance(value, list) else []
