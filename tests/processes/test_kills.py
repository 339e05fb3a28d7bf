"""SIGKILL at any file event, or at any moment: the same command continues, its results are bit for bit those of an
unbroken run, and nothing is left behind."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import launch
from tests.processes.kills import call_until, small_shards, train_until
from tests.processes.launch import ROOT
from tests.processes.trainings import finish, start
from tests.sweeps.sweeps import write_sweep
from tests.training.test_trainer import metrics, overrides, result
from videoscaling.training.checkpoints.checkpoint import checkpoint_paths

KILLED = -signal.SIGKILL
SETTINGS = (
    "train.tokens=1280",
    "train.milestones=[640,1280]",
    "validation.clips=2",
    "checkpoint.every_steps=2",
    "checkpoint.keep=2",
    "checkpoint.final=ema",
)


def content(folder: Path) -> dict[str, object]:
    """What a run left, by file: bytes, or where times are in it, all the rest. TensorBoard's have their own times, and
    each start its own."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if "tensorboard" in name or path.name == "console.log":
            continue
        found[name] = None if path.is_dir() or path.name == ".lock" else path.read_bytes()
        if path.name == "result.json":
            found[name] = without_times(result(path.parent))
        elif path.name == "metrics.jsonl":
            found[name] = metrics(path.parent)
        elif path.name == "state.json":
            found[name] = without_times(json.loads(path.read_text()))
        elif path.name == "config.yaml":
            found[name] = [line for line in path.read_text().splitlines() if not line.startswith("out:")]
    return found


def without_times(value: dict) -> dict:
    """Without what differs between two runs: seconds, the folder, checksums of files that hold them, and the revision
    of the code, which may be edited meanwhile."""
    kept = {key: part for key, part in value.items() if key not in ("seconds", "crc32", "git_revision")}
    if "config" in kept:
        kept["config"] = {key: part for key, part in kept["config"].items() if key != "out"}
    if "files" in kept:
        kept["files"] = {name: facts for name, facts in kept["files"].items() if name != "config.yaml"}
    return kept


def check_kills(log: Path, whole: Path, begin: Callable[[Path, int | None, Path], list], chosen: slice) -> int:
    """Kill ``begin``'s process before each of the ``chosen`` events, finish it, and compare with the unbroken
    ``whole``; returns how many events there were."""
    assert finish(begin(whole, None, log)) == [0]
    events, expected = log.read_text().splitlines(), content(whole)
    for number in range(len(events))[chosen]:
        folder = whole.with_name(f"{number}") / whole.name
        assert finish(begin(folder, number, log)) == [KILLED]
        left = sorted(content(folder)) if folder.exists() else []
        assert finish(begin(folder, None, log.with_name("again"))) == [0], (number, events[number])
        found = content(folder)
        different = {name for name in expected.keys() | found if expected.get(name) != found.get(name)}
        # Files that an unbroken run has too, or none.
        assert not different, (number, events[number], left)
    return len(events)


@pytest.mark.parametrize(
    "chosen", [slice(29, None, 90), pytest.param(slice(None), marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_a_run_is_killed_at_its_file_events(cache: Path, tmp_path: Path, chosen: slice) -> None:
    def begin(folder: Path, last: int | None, log: Path) -> list:
        keys = overrides(cache, folder.parent, folder.name, *SETTINGS)
        return start(tmp_path / "log", train_until, keys, folder, last, log)

    count = check_kills(tmp_path / "events", tmp_path / "whole" / "x", begin, chosen)
    print(f"killed at {len(range(count)[chosen])} of {count} file events of a run")
    assert count > 60
    (left,) = checkpoint_paths(tmp_path / "whole" / "x" / "checkpoints")
    assert sorted(path.name for path in left.iterdir()) == ["config.yaml", "ema.safetensors", "state.json"]


@pytest.mark.slow
def test_a_cache_is_killed_at_its_file_events(tmp_path: Path) -> None:
    def begin(folder: Path, last: int | None, log: Path) -> list:
        words = ["--source", "synthetic", "--clips", "66", "--validation", "2", "--frames", "5", "--size", "32"]
        words = ["tools/cache_latents.py", *words, "--device", "cpu", "--out", str(folder)]
        return start(tmp_path / "log", call_until, words, folder, last, log, small_shards)

    count = check_kills(tmp_path / "events", tmp_path / "whole" / "latents", begin, slice(None))
    print(f"killed at {count} file events of a cache")
    assert count > 20
    assert len(list((tmp_path / "whole" / "latents").glob("*.safetensors"))) == 4


@pytest.mark.slow
def test_caches_and_sweeps_are_killed_at_random_moments(cache: Path, tmp_path: Path) -> None:
    """Twice each before it may finish. Of a sweep, the tool alone, whose cells then stop by themselves, or all."""
    draw, kills = random.Random(0), 0
    settings = {"log": {"every_steps": 1}, "checkpoint": {"every_steps": 3}}
    grid = {"lr": [1e-3, 3e-3], "batch_tokens": [64], "milestones": [640, 1280]}
    words = ["tools/cache_latents.py", "--source", "synthetic", "--clips", 700, "--validation", 70, "--device", "cpu"]

    def command(kind: str, name: str) -> list:
        (tmp_path / name).mkdir(exist_ok=True)
        if kind == "latents":
            return [*words, "--out", tmp_path / name / kind]
        sweep = write_sweep(tmp_path / name, cache, settings, **grid, executor={"workers": 2, "stack": 1})
        return ["tools/sweep.py", "run", sweep]

    def finish_it(kind: str, name: str) -> float:
        begun = time.monotonic()
        done = launch.python(*command(kind, name))
        assert done.returncode == 0, done.stderr
        return time.monotonic() - begun

    for kind in ("latents", "runs/grid"):
        seconds, expected = finish_it(kind, "whole"), content(tmp_path / "whole" / kind)
        for name in map(str, range(3)):
            for _ in range(2):
                kills += kill_after(command(kind, name), draw.uniform(0.3, 1.0) * seconds, draw.random() < 0.5)
            finish_it(kind, name)
            found = content(tmp_path / name / kind)
            assert expected.keys() == found.keys()
            assert {key for key in expected if expected[key] != found[key]} <= {"sweep.yaml"}  # it has the folder
    print(f"{kills} kills at random moments")
    assert kills


def kill_after(command: list, seconds: float, alone: bool) -> bool:
    """Start a command and kill it, ``alone`` or with all its processes, after some seconds; whether it still ran."""
    process = launch.popen([sys.executable, ROOT / command[0], *command[1:]])
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        if alone:
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False
