"""Users' mistakes: one clear line and exit status 2, never a traceback."""

import argparse
import errno
import io
import os
import select
import signal
import sys
from collections.abc import Callable
from difflib import get_close_matches
from typing import NoReturn


class UserError(Exception):
    """Something the user gave is wrong. The message names the thing and the fix, in one line.

    Of several processes the first of each node tells it.
    """


class OwnError(UserError):
    """A UserError that the other processes may not have met, in its share of the data or its GPU's memory: it is told
    by whichever process met it."""


class Parser(argparse.ArgumentParser):
    """A command's options, whose mistakes are UserErrors: one line, without the usage that argparse prints first."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def nearest(word: str, known: list[str], cutoff: float = 0.5) -> str:
    """``"; did you mean 'x'?"`` for the known word closest to ``word``, or an empty string below ``cutoff`` of 1.

    Upper and lower case are one.
    """
    folded = {name.lower(): name for name in reversed(known)}
    match = get_close_matches(word.lower(), list(folded)[::-1], n=1, cutoff=cutoff)
    return f"; did you mean {folded[match[0]]!r}?" if match else ""


def shown(value: object, limit: int = 60) -> str:
    """``value`` as a message quotes it, cut at ``limit`` characters: what was taken for a name may be a whole file."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def first_line(error: Exception) -> str:
    """What another library's error says, as far as one line of ours can hold it."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _unread() -> bool:
    """Whether nobody is left to read what this process prints."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return bool(poll.poll(0))


def run_cli(main: Callable[[], int | None]) -> None:
    """Run a command's ``main`` and exit with its status; users' errors exit with 2 and one line on stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: names of files need not be UTF-8
    own = False
    try:
        try:
            sys.exit(main() or 0)
        except SystemExit:
            sys.stdout.flush()  # here, where it can still be told who has left
            raise
    except UserError as error:
        message, own = str(error), isinstance(error, OwnError)
    except BrokenPipeError:
        if not _unread():
            raise
        # As head does, the reader has what it wanted; the rest goes nowhere, and so would Python's word about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        # A full disk or a path that cannot be written is the user's to mend; other OS errors are ours to explain.
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"disk full: {error.filename or error}; free some space and run the same command again"
            own = True
        elif error.errno in (
            errno.EACCES,
            errno.EPERM,
            errno.ENOENT,
            errno.EROFS,
            errno.ENOTDIR,
            errno.EEXIST,
            errno.EISDIR,
        ):
            message = f"{error.filename}: {error.strerror.lower()}; choose another path"
        else:
            raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    if own or os.environ.get("LOCAL_RANK", "0") == "0":  # one line a node, not one per process of a torchrun
        print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
