"""Exit statuses and lines of commands that fail, are not read, or are one of several processes."""

import os

import pytest

from tests.processes.launch import ROOT, environment, python


def test_a_command_says_it_in_one_line():
    done = python("tools/plan.py", "--law", "x.json", "--flops", "1e22x")
    assert (done.returncode, done.stderr) == (
        2,
        "error: --flops '1e22x': must be a number without a unit, such as 0.5 or 1e22\n",
    )


READER = """
import sys
sys.path.insert(0, {root!r})
from videoscaling.utils.errors import run_cli

def main():
    {body}

run_cli(main)
"""


@pytest.mark.parametrize(("error", "rank", "reported"), [("UserError", 0, 1), ("UserError", 1, 0), ("OwnError", 1, 1)])
def test_of_several_processes_one_tells_what_all_met_and_each_its_own(error, rank, reported):
    script = READER.format(root=str(ROOT), body=f"from videoscaling.utils import errors; raise errors.{error}('x')")
    done = python("-c", script, env=environment(LOCAL_RANK=str(rank)))
    assert (done.returncode, done.stderr) == (2, "error: x\n" * reported)


@pytest.mark.parametrize("body", ["print('x')", "print('x\\n' * 100000)", "sys.exit(print('x'))"])
def test_a_reader_that_leaves_is_no_error(body):
    """As ``plan.py ... | head -1``: what is left unread is nobody's fault."""
    reading, writing = os.pipe()
    os.close(reading)
    done = python("-c", READER.format(root=str(ROOT), body=body), stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_another_pipes_break_is_an_error():
    body = "raise BrokenPipeError(32, 'a worker is gone')"
    done = python("-c", READER.format(root=str(ROOT), body=body))
    assert done.returncode == 1
    assert "a worker is gone" in done.stderr
