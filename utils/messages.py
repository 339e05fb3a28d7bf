"""Warnings and errors on stderr: one line each, whatever characters their names hold."""

import os
import re
import sys

# Names hold any character: a newline made two lines of a message, and an escape sequence moved the cursor.
CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]")


def escaped(text: str) -> str:
    """``text`` with control characters written as in Python's source."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def is_first_process() -> bool:
    """Whether this process is alone, or the first of a torchrun: it says what all of them would say alike."""
    return os.environ.get("RANK", "0") == "0"


def warn(text: str) -> None:
    """Print a warning, on one line."""
    print(f"warning: {escaped(text)}", file=sys.stderr, flush=True)
