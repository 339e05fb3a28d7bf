"""sample.py under torchrun: the prompts are shared, and the files are those of one process."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.processes import launch
from tests.test_sample import PROMPTS, trained

__all__ = ["trained"]  # the fixture
LATE = """
import os, time
from datetime import timedelta
from torch.distributed import distributed_c10d
import sample

distributed_c10d.default_pg_timeout = timedelta(seconds=2)  # stands for half an hour
if os.environ["RANK"] == "1":
    time.sleep(6)
print(sample._gathered([{"from": os.environ["RANK"]}], [None], 2)[0])
"""


@pytest.mark.slow  # twenty seconds, most of them imports
def test_two_processes_write_what_one_does(trained: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    common = [launch.ROOT / "sample.py", "--checkpoint", trained, "--steps", "2", "--format", "png", *words]
    for name, start in (("one", [sys.executable]), ("two", torchrun)):
        done = launch.run([*start, *common, "--grid", "2", "--out", tmp_path / name])
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("3 videos and samples.json") == 1
    assert (tmp_path / "one/samples.json").read_text() == (tmp_path / "two/samples.json").read_text()
    for record in json.loads((tmp_path / "one/samples.json").read_text()):
        one, two = (np.asarray(Image.open(tmp_path / name / record["file"]), dtype=int) for name in ("one", "two"))
        assert np.abs(one - two).max() <= 1  # sums in another order may round to the next level
    assert (tmp_path / "two/grid.gif").stat().st_size > 0


@pytest.mark.slow  # two processes import torch
def test_a_process_without_prompts_waits_for_one_with_many(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(LATE)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = launch.run([*torchrun, tmp_path / "late.py"], env=launch.environment(PYTHONPATH=str(launch.ROOT)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[{'from': '0'}, {'from': '1'}]") == 2
