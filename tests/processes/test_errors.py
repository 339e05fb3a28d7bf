import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from utils.errors import Parser, UserError, nearest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted([*(ROOT / "tools").glob("*.py"), ROOT / "sample.py"])


@pytest.mark.parametrize("words", [["--flops", "1e22x"], ["--flopz", "1"], ["a", "b"], []])
def test_words_that_do_not_parse_are_one_line(words, capsys):
    parser = Parser()
    parser.add_argument("--flops", type=float)
    parser.add_argument("law")
    with pytest.raises(UserError):
        parser.parse_args(words)
    assert capsys.readouterr().err == ""


def test_a_command_says_it_in_one_line():
    command = [sys.executable, str(ROOT / "tools" / "plan.py"), "--law", "x.json", "--flops", "1e22x"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: argument --flops: invalid float value: '1e22x'\n")


def test_every_command_has_that_parser():
    assert len(COMMANDS) > 6
    for path in COMMANDS:
        assert not re.search(r"argparse\.ArgumentParser\(", path.read_text()), path


@pytest.mark.parametrize(("word", "known", "meant"), [("lr.n", ["lr.T", "lr.N"], "lr.N"), ("H10O", ["h100"], "h100")])
def test_case_does_not_count_in_what_is_nearest(word, known, meant):
    assert nearest(word, known) == f"; did you mean {meant!r}?"


READER = """
import sys
sys.path.insert(0, {root!r})
from utils.errors import run_cli

def main():
    {body}

run_cli(main)
"""


@pytest.mark.parametrize(("error", "rank", "told"), [("UserError", 0, 1), ("UserError", 1, 0), ("OwnError", 1, 1)])
def test_of_several_processes_one_tells_what_all_met_and_each_its_own(error, rank, told):
    script = READER.format(root=str(ROOT), body=f"from utils import errors; raise errors.{error}('x')")
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=os.environ | {"LOCAL_RANK": str(rank)}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: x\n" * told)


@pytest.mark.parametrize("body", ["print('x')", "print('x\\n' * 100000)", "sys.exit(print('x'))"])
def test_a_reader_that_leaves_is_no_error(body):
    """As ``plan.py ... | head -1``: what is left unread is nobody's fault."""
    command = [sys.executable, "-c", READER.format(root=str(ROOT), body=body)]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_another_pipes_break_is_an_error():
    body = "raise BrokenPipeError(32, 'a worker is gone')"
    done = subprocess.run(
        [sys.executable, "-c", READER.format(root=str(ROOT), body=body)], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "a worker is gone" in done.stderr
