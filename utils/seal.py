"""A checksum inside a JSON file, of the rest of it, so that a file with a flipped bit is never read as another one."""

import zlib
from collections.abc import Mapping
from pathlib import Path

from videoscaling.utils.files import json_text, read_json

KEY = "crc32"


def sealed(content: Mapping[str, object]) -> dict[str, object]:
    """``content`` and the CRC-32 of its text, to be written by ``utils.files.write_json``."""
    return {**content, KEY: zlib.crc32(json_text(content).encode())}


def unsealed(content: Mapping[str, object]) -> dict[str, object] | None:
    """The content given to ``sealed``, without the checksum; None if the checksum is missing or wrong.

    Values are compared, not bytes: a program that indents the file otherwise leaves it as good as it was.
    """
    rest = {name: value for name, value in content.items() if name != KEY}
    try:
        return rest if KEY in content and sealed(rest)[KEY] == content[KEY] else None
    except RecursionError:  # nested deeper than json writes, so json did not write it
        return None


def read_sealed(path: Path) -> dict[str, object] | None:
    """The content of the sealed file at ``path``, without its checksum; None if any byte was altered.

    Raises:
        UserError: the file is missing, or is no JSON object.
    """
    content = read_json(path, dict)
    rest = unsealed(content)
    return rest if rest is not None and json_text(content).encode() == path.read_bytes() else None
