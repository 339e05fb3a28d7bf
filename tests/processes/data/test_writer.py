"""Caching that is killed ends in the same bytes."""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.data.test_writer import work_on
from tests.data.units import PoolingVAE, files_of, unit
from tests.processes.trainings import finish, start
from videoscaling.data import writer
from videoscaling.data.writer import WorkShare


def cache_slowly(out: str) -> int:
    """Fifty shards, in a second and a half by one process."""

    class Slow(PoolingVAE):
        def encode(self, clips):
            time.sleep(0.03)
            return super().encode(clips)

    share = WorkShare(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    units = {"train": [unit(f"v{k}", 10 * k, 2, broken=k % 9 == 4) for k in range(90)], "validation": []}
    units["validation"] = [unit(f"w{k}", 5000 + 10 * k, 2) for k in range(10)]
    work_on(Path(out), share, Slow(), units)
    return 0


def cache_synthetic(out: str) -> int:
    """The tool, with shards so small that there are some to be killed in."""
    from videoscaling.tools import cache_latents

    writer.SHARD_CLIPS = 64
    sys.argv = ["cache_latents.py", "--source", "synthetic", "--clips", "1280", "--validation", "64", "--size", "16"]
    sys.argv += ["--frames", "5", "--out", out]
    return cache_latents.main() or 0


def shards_in(folder: Path) -> int:
    return len(list(folder.glob("*.safetensors")))


@pytest.mark.parametrize(
    ("job", "kills"),
    [
        pytest.param(cache_slowly, 3, marks=pytest.mark.slow),
        pytest.param(cache_slowly, 20, marks=pytest.mark.slow),
        pytest.param(cache_synthetic, 4, marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_moments_two_processes_end_in_the_same_bytes(tmp_path, job, kills):
    whole, shared, log = tmp_path / "whole", tmp_path / "shared", tmp_path / "log"
    assert finish(start(log, job, str(whole))) == [0]
    every, draws, killed = shards_in(whole), random.Random(0), 0
    while killed < kills:
        processes = start(log, job, str(shared), world=2)
        until = draws.randint(shards_in(shared), every)
        while shards_in(shared) < until and any(process.is_alive() for process in processes):
            time.sleep(0.002)
        time.sleep(draws.uniform(0, 0.05))
        victims = [process for process in processes if process.is_alive() and draws.random() < 0.8]
        for victim in victims:
            victim.kill()
        codes = finish(processes)
        assert set(codes) <= {0, -signal.SIGKILL}, [(log / str(rank)).read_text() for rank in range(2)]
        killed += codes.count(-signal.SIGKILL)
        if json.loads((shared / "index.json").read_text())["finished"]:  # from the start again
            assert finish(start(log, job, str(shared))) == [0]  # what a killed one left is removed
            assert files_of(shared) == files_of(whole)
            shutil.rmtree(shared)
    assert finish(start(log, job, str(shared), world=2)) == [0, 0]
    assert files_of(shared) == files_of(whole)
