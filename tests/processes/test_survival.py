"""What a run survives, and how it ends where it cannot: kills, signals, full disks, processes that hang."""

import json
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.processes import launch
from tests.processes.launch import wait_until
from tests.processes.trainings import (
    ROOT,
    finish,
    flags_alone,
    hung,
    killed,
    killed_in_a_save,
    killed_within,
    on_a_full_disk,
    start,
    told_to_stop,
    train_it,
)
from tests.training.test_trainer import command, metrics, newest_step, overrides, result
from videoscaling.training.checkpoints.checkpoint import checkpoint_paths, find_checkpoint
from videoscaling.utils.errors import PREEMPTED


def same_files(ours: Path, theirs: Path) -> None:
    for kind in ("model", "ema", "optimizer"):
        assert (ours / f"{kind}.safetensors").read_bytes() == (theirs / f"{kind}.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_three_kills_and_resumes_equal_an_unbroken_run(cache: Path, tmp_path: Path, seed: int) -> None:
    settings = ("train.tokens=19200", "train.milestones=[6400]", "checkpoint.every_steps=8")
    keys = {name: overrides(cache, tmp_path / name, "x", *settings) for name in ("killed", "unbroken")}
    assert finish(start(tmp_path / "log", train_it, keys["unbroken"])) == [0]
    draw = random.Random(seed)
    for step in sorted(draw.sample(range(2, 149), 3)):
        # A step takes some milliseconds, a checkpoint a little longer: the kill falls into one or the other.
        assert finish(start(tmp_path / "log", killed_within, keys["killed"], step, draw.uniform(0, 0.03))) == [-9]
    assert finish(start(tmp_path / "log", train_it, keys["killed"])) == [0]
    ours, theirs = tmp_path / "killed" / "x", tmp_path / "unbroken" / "x"
    assert [line["step"] for line in metrics(theirs)] == list(range(1, 151))
    assert metrics(ours) == metrics(theirs)
    done = [result(directory) for directory in (ours, theirs)]
    for one in done:
        del one["seconds"], one["config"]["out"], one["crc32"]  # a checksum of all the rest
    assert done[0] == done[1]
    same_files(find_checkpoint(ours), find_checkpoint(theirs))
    for path in (theirs / "validation").iterdir():
        assert (ours / "validation" / path.name).read_bytes() == path.read_bytes()


def test_a_dead_owner_does_not_hold_its_directory(cache: Path, tmp_path: Path) -> None:
    endless = overrides(cache, tmp_path, "x", "train.tokens=1e8", "checkpoint.every_steps=10")
    (owner,) = start(tmp_path / "owner", train_it, endless)
    wait_until(lambda: checkpoint_paths(tmp_path / "x" / "checkpoints"))
    assert finish(start(tmp_path / "second", train_it, endless)) == [2]
    assert "another process is working in it" in (tmp_path / "second" / "0").read_text()
    owner.kill()
    assert finish([owner]) == [-signal.SIGKILL]
    steps = json.loads((find_checkpoint(tmp_path / "x") / "state.json").read_text())["step"] + 20
    ended = overrides(cache, tmp_path, "x", f"train.tokens={steps * 128}", "optim.warmup_tokens=10000000")
    assert finish(start(tmp_path / "third", train_it, ended)) == [0]


def test_two_processes_on_a_full_disk_keep_the_checkpoint_before(cache: Path, tmp_path: Path) -> None:
    """The first says so, the second that the first is gone; neither dies of a signal."""
    keys = overrides(cache, tmp_path, "x", "checkpoint.every_steps=10", "checkpoint.keep=9")
    assert finish(start(tmp_path / "log", on_a_full_disk, keys, 5, world=2)) == [2, 1]
    last = (tmp_path / "log" / "0").read_text().splitlines()[-1]
    assert last.startswith(f"error: {tmp_path / 'x' / 'checkpoints'}/")
    assert ": disk full; free some space" in last
    assert "group closed" in (tmp_path / "log" / "0").read_text()
    assert "rank 1: another process hangs or died" in (tmp_path / "log" / "1").read_text()
    assert not any("Traceback" in (tmp_path / "log" / rank).read_text() for rank in "01")
    assert [path.name for path in (tmp_path / "x" / "checkpoints").iterdir()] == ["step_0000010"]
    assert find_checkpoint(tmp_path / "x").name == "step_0000010"
    assert not (tmp_path / "x" / "result.json").exists()


def test_a_full_disk_of_one_process_with_shards_ends_both(cache: Path, tmp_path: Path) -> None:
    """Both name the file; of the checkpoint nothing is left."""
    keys = overrides(cache, tmp_path, "x", "checkpoint.every_steps=10", "checkpoint.keep=9", "train.parallel=fsdp")
    assert finish(start(tmp_path / "log", on_a_full_disk, keys, 5, 1, world=2)) == [2, 2]
    file = tmp_path / "x" / "checkpoints" / ".step_0000020.tmp" / "model.piece-1-of-2.safetensors"
    for rank in "01":
        assert f"error: {file}: disk full; free some space" in (tmp_path / "log" / rank).read_text()
    assert [path.name for path in (tmp_path / "x" / "checkpoints").iterdir()] == ["step_0000010"]
    assert find_checkpoint(tmp_path / "x").name == "step_0000010"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_killed_in_a_save_of_pieces_leaves_the_checkpoint_before(
    cache: Path, tmp_path: Path, rank: int
) -> None:
    settings = ("checkpoint.every_steps=10", "checkpoint.keep=9", "train.parallel=fsdp")
    keys = {name: overrides(cache, tmp_path / name, "x", *settings) for name in ("killed", "unbroken")}
    assert finish(start(tmp_path / "log", train_it, keys["unbroken"], world=2)) == [0, 0]
    codes = finish(start(tmp_path / "log", killed_in_a_save, keys["killed"], 5, rank, world=2))
    assert (codes[rank], codes[1 - rank]) == (-signal.SIGKILL, 1)
    assert find_checkpoint(tmp_path / "killed" / "x").name == "step_0000010"
    assert finish(start(tmp_path / "log", train_it, keys["killed"], world=2)) == [0, 0]
    ours, theirs = (tmp_path / name / "x" for name in ("killed", "unbroken"))
    assert metrics(ours) == metrics(theirs)
    folders = [sorted(path.name for path in (each / "checkpoints").iterdir()) for each in (ours, theirs)]
    assert folders[0] == folders[1]
    pieces = [sorted(find_checkpoint(each).glob("*.safetensors")) for each in (ours, theirs)]
    assert len(pieces[0]) == 5  # the average is whole
    assert [path.read_bytes() for path in pieces[0]] == [path.read_bytes() for path in pieces[1]]


def test_processes_end_with_the_status_that_says_why(cache: Path, tmp_path: Path) -> None:
    """And with their group closed: left open, it aborts them (SIGABRT) on the way out."""

    def closed(log: Path) -> bool:
        return all((log / rank).read_text().count("group closed\n") == 1 for rank in "01")

    wrong = overrides(cache, tmp_path, "wrong", "train.batch_tokens=96")
    assert finish(start(tmp_path / "log", train_it, wrong, world=2)) == [2, 2]
    assert closed(tmp_path / "log")
    diverged = overrides(cache, tmp_path, "diverged", "optim.lr=1e30", "optim.clip=1e30")
    assert finish(start(tmp_path / "log", train_it, diverged, world=2)) == [0, 0]
    assert closed(tmp_path / "log")
    assert result(tmp_path / "diverged")["status"] == "diverged"
    for number in (signal.SIGTERM, signal.SIGUSR2):
        # One of the processes hears of it; the answer is one step old.
        stopped = overrides(cache, tmp_path, f"stopped{number}", "train.parallel=fsdp")
        assert finish(start(tmp_path / "log", told_to_stop, stopped, 7, 1, number, world=2)) == [PREEMPTED] * 2
        assert closed(tmp_path / "log")
        assert find_checkpoint(tmp_path / f"stopped{number}").name == "step_0000009"


def test_a_killed_process_ends_the_others(cache: Path, tmp_path: Path) -> None:
    for parallel in ("ddp", "fsdp"):
        keys = overrides(cache, tmp_path, parallel, f"train.parallel={parallel}")
        assert finish(start(tmp_path / "log", killed, keys, 5, 1, world=2)) == [1, -signal.SIGKILL]
        said = (tmp_path / "log" / "0").read_text()
        assert "rank 0: another process hangs or died" in said
        assert "Traceback" not in said


@pytest.mark.slow
def test_a_hung_process_ends_the_others(cache: Path, tmp_path: Path) -> None:
    keys = overrides(cache, tmp_path, "x", "train.timeout_minutes=0.1")
    processes = start(tmp_path / "log", hung, keys, 5, 1, world=2)
    processes[0].join(30)
    assert finish(processes, 0) == [1, None]
    said = (tmp_path / "log" / "0").read_text()
    assert "rank 0: another process hangs or died (waited at most train.timeout_minutes=0.1)" in said
    assert "Traceback" not in said


def test_the_flags_know_a_lost_process(tmp_path: Path) -> None:
    """On GPUs they are what notices it first: the GPU's own queue is never waited for."""
    processes = start(tmp_path / "log", flags_alone, 0.05, (0,), world=2)
    processes[0].join(30)
    assert finish(processes, 0) == [3, None]
    assert "imed out" in (tmp_path / "log" / "0").read_text()


TORCHRUN = """
import os
import sys
sys.path.insert(0, {root!r})
from tests.processes.trainings import hung
from videoscaling.utils.errors import run_cli

os.write(1, b"pid %d\\n" % os.getpid())  # at once: both write to one pipe, and print in up to four pieces
run_cli(lambda: hung({keys!r}, 5, 1))
"""


@pytest.mark.slow
def test_torchrun_ends_with_a_hung_process(cache: Path, tmp_path: Path) -> None:
    keys = overrides(cache, tmp_path, "x", "train.timeout_minutes=0.2")
    (tmp_path / "hung.py").write_text(TORCHRUN.format(root=str(ROOT), keys=keys))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    out = launch.run([*torchrun, tmp_path / "hung.py"], timeout=launch.PATIENCE)
    assert out.returncode == 1
    assert "rank 0: another process hangs or died" in out.stderr
    assert re.search(r"exitcode +: 1 ", out.stderr)
    pids = [line.split()[1] for line in out.stdout.splitlines() if line.startswith("pid")]
    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)  # torchrun killed the one that hung


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGKILL])
def test_processes_whose_torchrun_dies_save_and_stop(cache: Path, tmp_path: Path, number: int) -> None:
    """Slurm's SIGUSR2 is one that torchrun does not know unless set up to; it dies of it, and hands nothing on."""
    endless = command(cache, tmp_path, "x", "train.tokens=1e8", "checkpoint.every_steps=100000", processes=2)
    torchrun = launch.popen(endless)
    wait_until(lambda: (tmp_path / "x" / "metrics.jsonl").exists() and len(metrics(tmp_path / "x")) > 3)
    pids = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    torchrun.send_signal(number)
    assert torchrun.wait(launch.PATIENCE) == -number
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 60)
    assert len(pids) == 2
    assert result(tmp_path / "x")["status"] == "preempted"
    assert newest_step(tmp_path / "x") == metrics(tmp_path / "x")[-1]["step"]


@pytest.mark.slow
def test_twenty_thousand_steps_hold_no_more_memory_or_files(cache: Path, tmp_path: Path) -> None:
    """With a line every 10 steps, a checkpoint every 500 and a milestone every 1000."""
    milestones = list(range(32_000, 640_000, 32_000))
    settings = ("train.batch_tokens=32", "train.tokens=640000", f"train.milestones={milestones}", "validation.clips=2")
    keys = overrides(cache, tmp_path, "x", *settings, "log.every_steps=10", "checkpoint.every_steps=500")
    (process,) = start(tmp_path / "log", train_it, keys)
    about, seen = Path(f"/proc/{process.pid}"), []
    while process.is_alive():
        time.sleep(0.2)
        try:
            step = metrics(tmp_path / "x")[-1]["step"]
            pages, files = int((about / "statm").read_text().split()[1]), len(list((about / "fd").iterdir()))
        except (OSError, IndexError, json.JSONDecodeError):  # not begun, a line half-written, or ended
            continue
        seen.append((step, pages * os.sysconf("SC_PAGE_SIZE"), files))
    assert finish([process]) == [0]
    warm = np.array([sample for sample in seen if sample[0] > 4000])
    assert len(warm) > 20
    slope = np.polyfit(warm[:, 0], warm[:, 1], 1)[0]
    print(f"{warm[-1, 1] / 2**20:.0f} MiB after {warm[-1, 0]} steps, {slope:.0f} bytes a step; {warm[-1, 2]} files")
    assert slope < 100  # the allocator's own wandering is a megabyte; one float64 a parameter would be 400,000
    assert np.median(warm[-10:, 2]) == np.median(warm[:10, 2])
