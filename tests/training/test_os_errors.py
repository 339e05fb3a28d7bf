"""A disk that fails at any file event of a run: one line, exit status 2, and the next start ends with the same result.

Each event of one small run (opening, writing, renaming, syncing, removing, listing, making folders; what safetensors
writes and reads) fails once. Where no result depends on the file the run continues with a warning.
"""

import errno
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.commands import Done, call
from tests.disk import ERRORS, Disk, check_answer
from tests.training.test_trainer import overrides
from videoscaling.training.checkpoints import checkpoint
from videoscaling.training.checkpoints.checkpoint import find_checkpoint

TINY = ("checkpoint.every_steps=2", "checkpoint.keep=1", "train.milestones=[256,384]", "train.tokens=640")
BEGUN = (*TINY[:2], "train.milestones=[256]", "train.tokens=384")
PARTS = 8  # of the slow test


def start(cache: Path, out: Path, *keys: str) -> Done:
    return call("train.py", *overrides(cache, out, "x", *(keys or TINY)))


def outcome(folder: Path) -> tuple[Any, ...]:
    """What of a finished run does not depend on time or place."""
    result = json.loads((folder / "result.json").read_text())
    for name in ("seconds", "crc32", "git_revision"):
        del result[name]
    del result["config"]["out"]
    losses = {path.name: path.read_bytes() for path in (folder / "validation").iterdir()}
    state = checkpoint.read_state(find_checkpoint(folder))["files"]
    return result, losses, state["model.safetensors"], state["ema.safetensors"], state["optimizer.safetensors"]


class Scenario(NamedTuple):
    """A run that begins in a copy of ``before``, or in no folder; its file events and outcome on a good disk."""

    before: Path | None
    events: list[str]
    outcome: tuple[Any, ...]

    def run(self, cache: Path, out: Path, fails: int = -1, code: int = errno.EIO) -> tuple[Done, list[str]]:
        if self.before is not None:
            shutil.copytree(self.before, out)
        with pytest.MonkeyPatch.context() as monkeypatch:
            disk = Disk(out, monkeypatch, fails, code)
            return start(cache, out), disk.events


def make_scenario(before: Path | None, cache: Path, folder: Path) -> Scenario:
    done, events = Scenario(before, [], ()).run(cache, folder / "unbroken")
    assert done.returncode == 0
    return Scenario(before, events, outcome(folder / "unbroken" / "x"))


@pytest.fixture(scope="module")
def new(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    return make_scenario(None, cache, tmp_path_factory.mktemp("new"))


@pytest.fixture(scope="module")
def grown(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """A finished run that continues to a later end: it reads a checkpoint, a result and metrics."""
    folder = tmp_path_factory.mktemp("grown")
    assert start(cache, folder / "before", *BEGUN).returncode == 0
    return make_scenario(folder / "before", cache, folder)


def fail_once(scenario: Scenario, event: int, code: int, cache: Path, out: Path) -> Done:
    """What the run prints whose ``event`` fails; the next start must end as on a good disk."""
    done, events = scenario.run(cache, out, event, code)
    what = f"event {event}, {errno.errorcode[code]}: {events[event]}\n{done.stderr}"
    check_answer(done, what)
    # mkdir of a folder that is there may fail. A folder that may not be listed keeps what killed processes left in it
    # for the next start to remove.
    harmless = events[event].startswith(("mkdir ", "scandir ") if code == errno.EACCES else "mkdir ")
    assert done.returncode == 2 or "warning: " in done.stderr or harmless, what
    again = start(cache, out)
    assert again.returncode == 0, what + again.stderr
    assert outcome(out / "x") == scenario.outcome, what
    return done


@pytest.mark.parametrize(
    ("code", "event", "status", "words"),
    [
        ("EIO", "fsync /x/checkpoints/.step_0000004.tmp/model.safetensors", 2, "input/output error; the disk"),
        ("ENOSPC", "write /x/.result.json", 2, "x/result.json: disk full; free some"),
        ("EIO", "write /x/metrics.jsonl", 0, "warning: a line is missing: "),
        ("ENOSPC", "save_file /x/checkpoints/.step_0000004.tmp/ema.safetensors", 2, "disk full; free some"),
        ("ESTALE", "replace /x/.result.json", 2, "x/result.json: stale file handle; the network disk"),
        ("EROFS", "open /x/metrics.jsonl", 0, "metrics.jsonl: read-only file system; choose another path"),
        ("EBUSY", "rename /x/checkpoints/step_0000002", 0, "warning: an old checkpoint stays"),
    ],
)
def test_a_failed_disk_is_one_line_and_the_next_start_ends_right(
    new: Scenario, cache: Path, tmp_path: Path, code: str, event: str, status: int, words: str
) -> None:
    number = next(number for number, name in enumerate(new.events) if name.startswith(event))
    done = fail_once(new, number, getattr(errno, code), cache, tmp_path / "out")
    assert done.returncode == status
    assert words in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", ["new", "grown"])
def test_every_file_event_may_fail(
    request: pytest.FixtureRequest, cache: Path, tmp_path: Path, name: str, part: int
) -> None:
    scenario = request.getfixturevalue(name)
    for event in range(part, len(scenario.events), PARTS):
        code = getattr(errno, ERRORS[event % len(ERRORS)])
        fail_once(scenario, event, code, cache, tmp_path / str(event))
