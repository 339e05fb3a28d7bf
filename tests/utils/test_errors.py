import re
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


def test_every_command_has_that_parser():
    assert len(COMMANDS) > 6
    for path in COMMANDS:
        assert not re.search(r"argparse\.ArgumentParser\(", path.read_text()), path


@pytest.mark.parametrize(("word", "known", "meant"), [("lr.n", ["lr.T", "lr.N"], "lr.N"), ("H10O", ["h100"], "h100")])
def test_case_does_not_count_in_what_is_nearest(word, known, meant):
    assert nearest(word, known) == f"; did you mean {meant!r}?"
