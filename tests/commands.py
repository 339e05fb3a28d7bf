"""The repository's commands in the tests' own process: what they print and their status, without seconds of imports.

tests/processes/test_commands.py has each of them once as a process.
"""

import contextlib
import importlib
import io
import sys
from typing import NamedTuple

from videoscaling.utils.errors import run_cli


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def call(script: str, *words: object) -> Done:
    """``script``, such as "tools/fit.py", called with ``words`` as from a shell."""
    main = importlib.import_module(f"videoscaling.{script.removesuffix('.py').replace('/', '.')}").main
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [script, *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run_cli(main)
    except SystemExit as left:
        return Done(int(left.code or 0), out.getvalue(), err.getvalue())
    finally:
        sys.argv = argv
    raise AssertionError("run_cli always exits")
