"""Cells as commands of a shell, for any scheduler: printed, submitted, followed, killed."""

import json
import os
import shlex
import signal
import stat
import sys
from pathlib import Path

import pytest

from tests.processes import launch
from tests.processes.launch import ROOT
from tests.processes.sweeps.commands import results, table, tool
from tests.sweeps.sweeps import edit, write_sweep
from videoscaling.sweeps import commands
from videoscaling.sweeps.commands import SUBMITTED
from videoscaling.utils.locks import lock_run_dir
from videoscaling.utils.results import CONSOLE

BLOCKING = "sh -c {command}"
# As a scheduler's client: it returns at once, and the job belongs to another session.
QUEUED = "setsid sh -c {command} > /dev/null 2>&1 & echo job {run_id}"


@pytest.fixture
def sweep(cache: Path, tmp_path: Path) -> Path:
    """A sweep of 3 cells, as commands; its folder needs quotes."""
    folder = tmp_path / "it's"
    folder.mkdir()
    base = {"validation": {"timesteps": 1}, "checkpoint": {"every_steps": 5}, "log": {"every_steps": 5}}
    executor = {"kind": "command", "command": BLOCKING, "workers": 2, "retries": 1}
    return write_sweep(folder, cache, base, batch_tokens=[64], lr=[1e-3, 2e-3, 4e-3], executor=executor)


def executor(sweep: Path, command: str) -> None:
    edit(sweep, executor={"kind": "command", "command": command, "workers": 2, "retries": 1})


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of what was trained, by a stand-in for Python that only writes its folder and its words."""
    program, trained = tmp_path / "py thon", tmp_path / "trained"
    program.write_text(f'#!/bin/sh\necho "$PWD" "$@" >> "{trained}"\necho said\n')
    program.chmod(stat.S_IRWXU)
    monkeypatch.setattr(commands.sys, "executable", str(program))
    trained.touch()
    return trained


def folders(sweep: Path) -> list[Path]:
    return sorted(sweep.parent / "runs" / "grid" / cell["run_id"] for cell in listed(sweep))


def listed(sweep: Path) -> list[dict]:
    return json.loads(tool("status", sweep, "--json").stdout)["cells"]


def test_printed_commands_train_the_unfinished_cells_in_any_folder(sweep: Path, tmp_path: Path, trained: Path) -> None:
    edit(sweep, executor={})
    first, second, third = folders(sweep)
    for folder in (first, second):
        folder.mkdir(parents=True)
    (second / SUBMITTED).touch()
    with lock_run_dir(first):
        done = tool("run", sweep, "--print-commands")
    assert done.stdout.count("\n") == 1
    assert "1 cell of other commands in training; left to them" in done.stderr
    assert f"1 cell submitted and not begun, such as {second}" in done.stderr
    done = tool("run", sweep, "--print-commands")
    assert done.stdout.count("\n") == 2
    assert trained.read_text() == ""
    (line,) = (line for line in done.stdout.splitlines() if third.name in line)
    launch.run(["sh", "-c", line], cwd=tmp_path)
    assert trained.read_text() == f"{Path.cwd()} {ROOT / 'train.py'} --config {third / 'cell.yaml'}\n"
    assert (third / CONSOLE).read_text() == "said\n"
    edit(sweep, executor={"processes": 2})
    assert " -m torch.distributed.run " in tool("run", sweep, "--print-commands").stdout


def test_a_submitted_cell_is_not_submitted_again_until_it_has_begun(
    sweep: Path, tmp_path: Path, trained: Path
) -> None:
    """Its own command takes the mark away first; the template's words keep their quotes."""
    queue = tmp_path / "queue"
    executor(sweep, f"printf '%s\\n' {{command}} >> {queue}; echo Job {{run_id}} {{name}} is submitted")
    done = tool("run", sweep)
    assert "3 cells submitted: status --watch" in done.stderr
    assert "3 cells: 3 pending" in done.stdout
    jobs = queue.read_text().splitlines()
    assert len(jobs) == 3
    assert (folders(sweep)[0] / SUBMITTED).read_text().startswith(f"Job {folders(sweep)[0].name} 1x32_B64_lr0.00")
    done = tool("run", sweep)
    assert "3 cells submitted and not begun" in done.stderr
    assert queue.read_text().splitlines() == jobs
    for job in jobs[:2]:
        launch.run(["sh", "-c", job])
    assert len(trained.read_text().splitlines()) == 2
    tool("run", sweep)  # they ended without a result
    assert sorted(queue.read_text().splitlines()[3:]) == sorted(jobs[:2])


def test_a_template_that_fails_is_tried_again_and_says_why(sweep: Path) -> None:
    edit(sweep, lr=[1e-3])
    executor(sweep, "echo no host for {command} | cut -c 1-11 >&2; exit 9")
    done = tool("run", sweep, status=1)
    (folder,) = folders_of_failed(sweep)
    assert f"failed grid/{folder.name}: no host for" in done.stdout
    assert json.loads((folder / "failure.json").read_text())["attempts"] == 2
    assert not (folder / SUBMITTED).exists()
    executor(sweep, "true {command}")
    assert "1 cell submitted" in tool("run", sweep).stderr


def test_a_cell_that_its_scheduler_stops_has_not_crashed(sweep: Path, trained: Path) -> None:
    """However often: jobs end before a long cell does, which writes a checkpoint and has status 75. A template that
    ends so, and began no cell, has failed."""
    edit(sweep, lr=[1e-3])
    executor(sweep, BLOCKING)
    program = Path(commands.sys.executable)
    program.write_text(f"{program.read_text()}test $(wc -l < '{trained}') -gt 4 && exit 9; exit 75\n")
    done = tool("run", sweep, status=1)
    assert len(trained.read_text().splitlines()) == 4 + 2
    (folder,) = folders_of_failed(sweep)
    assert json.loads((folder / "failure.json").read_text())["attempts"] == 2
    assert done.stderr.count("crashed and is tried again") == 1
    executor(sweep, "true {command}; exit 75")
    tool("run", sweep, status=1)


def folders_of_failed(sweep: Path) -> list[Path]:
    return [path.parent for path in sweep.parent.glob("runs/grid/*/failure.json")]


def job_of(folder: Path) -> int:
    """The process that trains the cell."""
    words = str(folder / "cell.yaml")
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        found += [int(path.name)] * (words in command)
    (pid,) = found
    return pid


@pytest.mark.slow
@pytest.mark.parametrize("template", [BLOCKING, QUEUED], ids=["blocking", "queued"])
def test_a_killed_cell_continues_by_the_same_command(sweep: Path, template: str) -> None:
    """A pool that waits for its cells tries again by itself; jobs of a queue are seen on disk to be lost."""
    edit(sweep, milestones=[640, 12_800], executor={"workers": 2, "stack": 1})
    tool("run", sweep)
    unbroken = table(sweep)
    edit(sweep, out=str(sweep.parent / "again"))
    executor(sweep, template)
    again = sweep.parent / "again" / "grid"
    command = [sys.executable, ROOT / "tools" / "sweep.py", "run", sweep]
    process = launch.popen(command)
    launch.wait_until(lambda: list(again.glob("*/checkpoints/step_*")))
    killed = next(again.glob("*/checkpoints/step_*")).parents[1]
    os.kill(job_of(killed), signal.SIGKILL)
    if template is QUEUED:
        assert process.wait(launch.PATIENCE) == 0
        launch.wait_until(lambda: {c["run_id"]: c["state"] for c in listed(sweep)}[killed.name] == "lost")
        process = launch.popen(command)  # the others are left to their jobs
        assert process.wait(launch.PATIENCE) == 0
        launch.wait_until(lambda: len(results(sweep)) == 3 and {c["state"] for c in listed(sweep)} == {"done"})
    assert process.wait(launch.PATIENCE) == 0
    assert table(sweep) == unbroken
    assert "; from step " in (killed / CONSOLE).read_text()


@pytest.mark.slow
def test_a_stopped_pool_waits_for_its_cells_checkpoints(sweep: Path) -> None:
    edit(sweep, milestones=[640, 128_000])
    process = launch.popen([sys.executable, ROOT / "tools" / "sweep.py", "run", sweep])
    runs = sweep.parent / "runs" / "grid"
    launch.wait_until(lambda: len(list(runs.glob("*/metrics.jsonl"))) == 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(launch.PATIENCE) == 75
    states = sorted(cell["state"] for cell in listed(sweep))
    assert states == ["pending", "stopped", "stopped"]


def test_the_line_of_a_job_is_one_word(sweep: Path, trained: Path) -> None:
    executor(sweep, "bsub -J {run_id} {command}")
    for line in tool("run", sweep, "--print-commands").stdout.splitlines():
        assert shlex.split(line)[:2] == ["bsub", "-J"]
        assert len(shlex.split(line)) == 4
