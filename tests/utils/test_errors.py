import io
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from videoscaling.utils.errors import Parser, UserError, nearest, plural, resumable, run_cli

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


def test_every_command_has_that_parser():
    assert len(COMMANDS) > 6
    for path in COMMANDS:
        assert not re.search(r"argparse\.ArgumentParser\(", path.read_text()), path


@pytest.mark.parametrize(("word", "known", "meant"), [("lr.n", ["lr.T", "lr.N"], "lr.N"), ("H10O", ["h100"], "h100")])
def test_case_does_not_count_in_what_is_nearest(word, known, meant):
    assert nearest(word, known) == f"; did you mean {meant!r}?"


def test_counts_have_their_plural():
    words = [
        plural(0, "clip"),
        plural(1, "clip"),
        plural(2000, "validation clip"),
        plural(2, "process"),
        plural(3, "row is", "rows are"),
    ]
    assert words == ["0 clips", "1 clip", "2,000 validation clips", "2 processes", "3 rows are"]


def test_names_that_are_not_utf8_are_printed(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8"))
    with pytest.raises(SystemExit) as left:
        run_cli(lambda: print("caf\udce9.mp4: é"))
    assert left.value.code == 0
    assert written.getvalue().decode() == "caf\\udce9.mp4: é\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_says_that_the_same_one_continues(number, capsys):
    def main():
        with resumable("runs/x"):
            os.kill(os.getpid(), number)
            time.sleep(60)

    before = signal.getsignal(signal.SIGTERM)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore SIGINT
    try:
        with pytest.raises(SystemExit) as left:
            run_cli(main)
    finally:
        signal.signal(signal.SIGINT, interrupt)
    assert (left.value.code, capsys.readouterr().err) == (75, "runs/x: stopped; the same command continues\n")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_handler_that_the_work_leaves_stays_after_it() -> None:
    """A stopped sweep ignores a second SIGTERM to its end, which else would change its exit status."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with resumable("sweep"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
