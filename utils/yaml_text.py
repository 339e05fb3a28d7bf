"""YAML with plain decimal numbers, and with text kept as it was written.

YAML 1.1 reads 12:00:00 as 43200, 010 as 8 and ``no`` as false. So a run named 007 became the run "7", and one named
1e3 "1000.0". Here no number is to the base 60 or 8, and the caller names the keys whose values are text: their
unquoted values stay as written. Whole numbers such as 1e18 are integers, which do not pass through floats.
"""

import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from videoscaling.utils.errors import UserError, first_line
from videoscaling.utils.files import read_bounded

Values = dict[str, Any]  # keys and values of a configuration, nested or by dotted key, before they are typed
# Whether the value of a dotted key, such as "model.size", is text; the entries of a list are "log.prompts[]".
IsText = Callable[[str], bool]

MAX_BYTES = 1 << 24  # of a file: MAX_NODES values are a tenth of it
MAX_NODES = 200_000  # values of one file: aliases of aliases (a "billion laughs") would fill the memory
MAX_DIGITS = 400  # of a whole number: 1e999999999 has a billion, and no float has more than 309
_TAG = "tag:yaml.org,2002:"
_TRUE, _FALSE = ("yes", "true", "on"), ("no", "false", "off")
_RESOLVERS = {
    "bool": (rf"(?i:{'|'.join((*_TRUE, *_FALSE))})", "yYnNtTfFoO"),
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "int": (r"[-+]?(0x[0-9a-fA-F_]+|0b[01_]+|[0-9][0-9_]*)", "-+0123456789"),
    "float": (
        r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "merge": ("<<", "<"),
}


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the scalars of ``_RESOLVERS`` alone: no base-60 numbers, no octals, no dates."""

    yaml_implicit_resolvers: dict[str, list] = {}  # noqa: RUF012 (PyYAML's own name, filled below)


for _name, (_pattern, _first) in _RESOLVERS.items():
    firsts = ["" if character == "\0" else character for character in _first]
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})$"), firsts)


def read_yaml(path: Path, is_text: IsText) -> Any:
    """The values of the YAML file at ``path``; {} for an empty one.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is not readable or not YAML, in one line.
    """
    content = read_bounded(path, MAX_BYTES, "a YAML file")
    try:
        values = parse_yaml(content.decode("utf-8"), is_text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except RecursionError:
        raise UserError(f"{path}: not a YAML file (nested too deep)") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from None
    return {} if values is None else values


def parse_yaml(text: str, is_text: IsText, key: str = "") -> Any:
    """The values of a YAML text, whose top is the dotted ``key``.

    Raises:
        yaml.YAMLError: it is not YAML.
        UserError: a tag such as !!python, or more than MAX_NODES values.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _Values(loader, is_text).of(node, key)
    finally:
        loader.dispose()


def parse_override(word: str, is_text: IsText) -> Any:
    """The value in ``key=value``, read as in a file; of a text key it is the text as written.

    Quotes around a text are YAML's, as in a file: ``name="'null'"`` is a run named null.

    Raises:
        UserError: the value is not YAML, such as "[1,".
    """
    key, _, value = word.partition("=")
    if is_text(key) and value and (value == "~" or not _is_special(value, is_text(f"{key}[]"))):
        return value
    try:
        return parse_yaml(value, is_text, key)
    except RecursionError:
        raise UserError(f"{word[:60]}...: nested too deep") from None
    except yaml.YAMLError as error:
        raise UserError(f"{word}: not YAML ({first_line(error)}); put quotes around the value") from None


def _is_special(value: str, may_be_list: bool) -> bool:
    """Whether a text on the command line is more than itself: quoted, no value (null), or a list."""
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return quoted or value in ("null", "Null", "NULL") or (may_be_list and value.startswith("["))


class _Values:
    """Python's values of the nodes of one text."""

    def __init__(self, loader: _Loader, is_text: IsText) -> None:
        self._loader, self._is_text, self._count = loader, is_text, 0

    def of(self, node: yaml.Node, key: str) -> Any:
        self._count += 1
        if self._count > MAX_NODES:
            raise UserError(f"more than {MAX_NODES:,} values; a configuration has fewer")
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.of(entry, f"{key}[]") for entry in node.value]
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, key)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, key)
        raise UserError(f"{key or 'the file'}: the tag {node.tag} is not supported; write a plain value")

    def _mapping(self, node: yaml.MappingNode, key: str) -> Values:
        names = [name.value for name, _ in node.value if isinstance(name, yaml.ScalarNode)]
        again = next((name for name in names if name != "<<" and names.count(name) > 1), None)
        if again is not None:
            raise UserError(f"found duplicate key {again!r}; give it once")
        self._loader.flatten_mapping(node)  # merge keys: << takes another mapping's entries
        values = {}
        for name, value in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise UserError(f"{key or 'the file'}: a key must be a name, not a list or a group")
            values[name.value] = self.of(value, f"{key}.{name.value}" if key else name.value)
        return values

    def _scalar(self, node: yaml.ScalarNode, key: str) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        if kind == "null":
            return None
        if kind not in _RESOLVERS and kind != "str":
            raise UserError(f"{key or 'the file'}: the tag {node.tag} is not supported; write a plain value")
        if kind == "str" or (self._is_text(key) and node.style is None and kind in _RESOLVERS):
            return text
        try:
            if kind == "bool":
                return text.lower() in _TRUE
            if kind in ("int", "float"):
                return number(text.replace("_", ""))
        except ValueError:
            pass
        raise UserError(f"{key}: {text!r} is not of the type {node.tag}; write a plain value")


def number(text: str) -> int | float:
    """The number written as ``text``: an integer for 12, 0x1f and 0b101, and for 1e18, which no float holds exactly.

    Raises:
        ValueError: it is not a number, or a whole one of more than MAX_DIGITS digits.
    """
    sign, digits = (-1 if text.startswith("-") else 1), text.lstrip("+-").lower()
    if digits.startswith(("0x", "0b")):
        return sign * int(digits, 0)
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"{text[:20]}...: a number of {len(digits)} digits")
    if digits.isdecimal():
        return sign * int(digits)
    if digits in (".inf", ".nan"):
        return sign * float(digits[1:])
    value = float(digits)
    if 2**53 <= value < float("inf"):
        exact = Decimal(digits)
        if exact == exact.to_integral_value():
            return sign * int(exact)
    return sign * value
