"""Metadata of configuration keys, defined at each key: meaning, range, and how it enters a run's id.

A schema is nested dataclasses whose fields are made by ``key``. Run ids outlive changes of the schema: the keys of
the first study are always hashed, a key added later only where it differs from what every run did before it existed.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from videoscaling.utils.errors import UserError, nearest, shown
from videoscaling.utils.yaml_text import Values

# How a key enters a run's id, ``key(identity=...)``.
ALWAYS = "always"  # hashed as it is: the keys that the first committed runs were hashed with
CHANGED = "changed"  # hashed where it differs from its value before the key existed
WITH_DECAY = "with decay"  # as ALWAYS, but not at a constant rate, where a run may grow
NEVER = "never"  # paths, logging, checkpoints, and the layout of a step


@dataclass(frozen=True)
class Bound:
    """The allowed range of a key's numbers, and its name in an error. Every number must be finite."""

    text: str
    holds: Callable[[float], bool]


MAX_INTEGER = 2**63 - 1  # of any key: the largest int64

POSITIVE = Bound("a positive number", lambda value: value > 0)
NOT_NEGATIVE = Bound("a number, and not negative", lambda value: value >= 0)
FRACTION = Bound("at least 0 and below 1", lambda value: 0 <= value < 1)
FINITE = Bound("a finite number", lambda value: True)


@dataclass(frozen=True)
class KeyInfo:
    """The metadata of a key, in addition to its type and default.

    Attributes:
        help: its meaning, from which the documentation is generated.
        identity: ALWAYS, CHANGED, WITH_DECAY or NEVER.
        before: what every run did before the key existed: a configuration recorded without the key means this value,
            and a CHANGED key of this value is not hashed.
        matters: whether a CHANGED key has an effect in a resolved configuration; without one it is not hashed.
        bound: of the key's numbers, of each one in a list.
        choices: the values it may have.
        differs_in_stack: whether runs that are trained together may each have their own.
        formerly: the name that the key is hashed under, where it was renamed.
        aliases: its names in other trainers, by the last part of a dotted name; an unknown key of such a name is
            answered with this one.
        path: whether it is a file or folder, whose leading ~ is the home directory.
    """

    help: str
    identity: str
    before: Any
    matters: Callable[[Any], bool] | None
    bound: Bound | None
    choices: tuple[str | bool, ...]
    differs_in_stack: bool
    formerly: str | None
    aliases: tuple[str, ...]
    path: bool


_UNSET = object()


def key(
    default: Any,
    help: str,
    *,
    identity: str = CHANGED,
    before: Any = _UNSET,
    matters: Callable[[Any], bool] | None = None,
    bound: Bound | None = None,
    choices: tuple[str | bool, ...] = (),
    differs_in_stack: bool = False,
    formerly: str | None = None,
    aliases: str = "",
    path: bool = False,
) -> Any:
    """A configuration key; the arguments are ``KeyInfo``'s, with ``aliases`` as words between blanks.

    A new key is ``key(default, help)``: its default is what runs did before. A later change of that default passes the
    first default as ``before``, so that the ids of older runs stay.
    """
    before = default if before is _UNSET else before
    info = KeyInfo(
        help=help,
        identity=identity,
        before=before,
        matters=matters,
        bound=bound,
        choices=choices,
        differs_in_stack=differs_in_stack,
        formerly=formerly,
        aliases=tuple(aliases.split()),
        path=path,
    )
    value = {"default_factory": default.copy} if isinstance(default, (list, dict)) else {"default": default}
    return field(**value, metadata={"info": info})


@functools.cache
def keys_of(schema: type, prefix: str = "") -> dict[str, dataclasses.Field]:
    """Every dotted key of ``schema`` with its field."""
    keys: dict[str, dataclasses.Field] = {}
    for entry in dataclasses.fields(schema):
        if dataclasses.is_dataclass(entry.type):
            keys |= keys_of(entry.type, f"{prefix}{entry.name}.")
        else:
            keys[prefix + entry.name] = entry
    return keys


@functools.cache
def info_of(schema: type) -> dict[str, KeyInfo]:
    """The metadata of every dotted key of ``schema``."""
    return {name: entry.metadata["info"] for name, entry in keys_of(schema).items()}


def check_value(name: str, value: Any, info: KeyInfo) -> None:
    """Refuse a value of key ``name`` outside its bound or its choices; None is for keys that may be left open."""
    values = value if isinstance(value, list) else [value]
    if any(type(number) is int and abs(number) > MAX_INTEGER for number in values):
        raise UserError(f"{name}={shown(value)}: too large; a whole number is at most {MAX_INTEGER:.3g}")
    for each in values if info.choices else ():
        if each not in info.choices:
            choices = [str(choice).lower() if isinstance(choice, bool) else choice for choice in info.choices]
            raise UserError(f"{name}={value}: one of {', '.join(choices)}{nearest(str(each), choices)}")
    if info.bound is not None and any(
        number is not None and not (math.isfinite(number) and info.bound.holds(number)) for number in values
    ):
        each = "each " if isinstance(value, list) else ""
        raise UserError(f"{name}={value}: {each}must be {info.bound.text}")


def older_values(schema: type) -> Values:
    """Values for the keys that a recorded configuration lacks, {dotted key: value}, where they are not the default."""
    infos, entries = info_of(schema), keys_of(schema)
    return {name: info.before for name, info in infos.items() if info.before != default_of(entries[name])}


def default_of(entry: dataclasses.Field) -> Any:
    """A field's default value."""
    return entry.default if entry.default is not dataclasses.MISSING else entry.default_factory()
