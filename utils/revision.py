"""The revision of the code that made a result."""

import functools
import subprocess
from pathlib import Path

from videoscaling import ROOT


@functools.cache
def code_revision() -> str | None:
    """This checkout's revision, "-dirty" if files were changed; None outside its own checkout or without git.

    Asked once, for the code that this process has loaded: each answer starts git twice.
    """

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        own = Path(git("rev-parse", "--show-toplevel")) == ROOT
        return git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty") if own else None
    except (OSError, subprocess.CalledProcessError):
        return None
