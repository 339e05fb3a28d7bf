"""A checksum inside a JSON file, of the rest of it, so that a file with a flipped bit is never read as another one."""

import zlib
from pathlib import Path
from typing import Any

from utils.files import json_text, read_json

KEY = "crc32"


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """``content`` and the CRC-32 of its text, to be written by ``utils.files.write_json``."""
    return content | {KEY: zlib.crc32(json_text(content).encode())}


def read_sealed(path: Path) -> dict[str, Any] | None:
    """The content of the sealed file at ``path``, without its checksum; None where it is not as it was written.

    Raises:
        UserError: the file is missing, or is not JSON.
    """
    content = read_json(path)
    try:
        del content[KEY]
        as_written = json_text(sealed(content)) == path.read_text(encoding="utf-8")
    except (KeyError, TypeError, ValueError):  # no checksum, no mapping, or a number too large for one
        as_written = False
    return content if as_written else None
