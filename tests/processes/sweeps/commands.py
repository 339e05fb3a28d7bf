"""The sweep tool, and what its sweep left."""

import json
import subprocess
from pathlib import Path

import yaml

from tests.commands import Done, call
from tests.processes.launch import python


def tool(command: str, path: Path, *more: str, status: int = 0) -> Done:
    """The command in the tests' process. Its workers are forked by multiprocessing's server, which has imported torch
    once for all tests."""
    done = call("tools/sweep.py", command, path, *more)
    assert done.returncode == status, done.stderr + done.stdout
    return done


def tool_alone(command: str, path: Path, *more: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """The command as a process, with the environment of now."""
    done = python("tools/sweep.py", command, path, *more)
    assert done.returncode == status, done.stderr + done.stdout
    return done


def results(path: Path) -> dict[str, dict]:
    """Run id -> result of the sweep of a YAML file."""
    folder = Path(yaml.safe_load(path.read_text())["out"]) / "grid"
    return {p.parent.name: json.loads(p.read_text()) for p in folder.glob("*/result.json")}


def table(sweep: Path) -> str:
    """What ``collect`` writes."""
    out = sweep.parent / "table.csv"
    tool("collect", sweep, "--out", str(out))
    return out.read_text()


def still_training(folder: Path) -> bool:
    """Whether any process has a file open under ``folder``."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(link.readlink()).startswith(str(folder)):
                return True
        except OSError:
            continue
    return False
