"""What the tests start does not outlive them."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import launch
from tests.processes.launch import ROOT, wait_until

# A child with a child in a session of its own, as torchrun's workers are; it prints both.
FAMILY = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""
# A test session that starts them and then waits, or is interrupted.
SESSION = f"""
import subprocess, sys, time
from tests.processes import launch
launch.watch()
family = launch.popen([sys.executable, "-S", "-c", {FAMILY!r}], stdout=subprocess.PIPE, text=True)
print(family.stdout.readline(), flush=True)
time.sleep(600)
"""


def alive(pids: list[int]) -> list[int]:
    found = []
    for pid in pids:
        path = Path(f"/proc/{pid}/stat")
        if path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z":
            found.append(pid)
    return found


def family_of(process: subprocess.Popen) -> list[int]:
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(alive(pids)) == 2
    return pids


def test_what_a_test_leaves_is_ended_with_its_children() -> None:
    process = launch.popen([sys.executable, "-S", "-c", FAMILY], stdout=subprocess.PIPE, text=True)
    pids = family_of(process)
    launch.end_all()
    assert process.returncode == -signal.SIGKILL
    wait_until(lambda: not alive(pids))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_outlives_a_session_however_it_ends(number: int) -> None:
    session = launch.popen([sys.executable, "-c", SESSION], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pids = family_of(session)
    os.kill(session.pid, number)
    session.wait()
    wait_until(lambda: not alive(pids))


STARTS = re.compile(r"(subprocess\.(run|Popen|call|check_\w+)|os\.(fork|posix_spawn|system)|\.Process)\(")


def test_tests_that_start_processes_are_here_and_start_them_by_launch() -> None:
    by_themselves = {"launch.py", "trainings.py", "slurm/cluster.py", Path(__file__).name}
    for path in (ROOT / "tests").rglob("*.py"):
        text, here = path.read_text(), ROOT / "tests" / "processes"
        if not path.is_relative_to(here):
            assert not STARTS.search(text), f"{path}: tests that start processes belong into {here}"
            assert path.name == "conftest.py" or not re.search(r"^(from|import) tests\.processes", text, re.M), path
        elif str(path.relative_to(here)) not in by_themselves:
            assert not STARTS.search(text), f"{path}: start processes with {launch.__file__}"
