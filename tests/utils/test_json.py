"""JSON that is read is what it seems: no key twice, no number that is none, of the shape that is needed."""

import json
import re
from pathlib import Path

import pytest

from videoscaling.utils.errors import UserError
from videoscaling.utils.files import json_text, parse_json, read_json
from videoscaling.utils.seal import read_sealed, sealed, unsealed

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a": ' * 100_000, "nested too deep"),
        (b"[]", "an object is needed, not a list"),
        (b"null", "an object is needed, not null"),
        (b'"{}"', "an object is needed, not a text"),
        (b"3", "an object is needed, not a number"),
        (b'{"lr": 1, "lr": 2}', "the key 'lr' is there twice"),
        (b'{"a": {"lr": 1, "lr": 1}}', "the key 'lr' is there twice"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": -Infinity}', "-Infinity is no JSON number"),
        (b'{"a": 1e999}', "1e999 is beyond the range of numbers"),
        (b'{"a": %s}' % (b"9" * 5000), "Exceeds the limit"),
        (b"{}\xff", "can't decode byte 0xff"),
        (b"\x00" * 4096, "Expecting value"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value.replace(" ", "-"),
)
def test_what_is_no_object_is_refused_in_one_line(tmp_path: Path, text: bytes, words: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(UserError, match=re.escape(words)) as refused:
        read_json(path, dict)
    assert str(refused.value).startswith(f"{path}: not a JSON file (")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < len(str(path)) + 200


def test_numbers_are_as_written() -> None:
    assert parse_json('{"a": 9007199254740993, "b": 0.1}', "x") == {"a": 9007199254740993, "b": 0.1}
    assert parse_json('{"a": Infinity}', "x", allow_nan=True) == {"a": float("inf")}


def test_a_seal_is_of_values(tmp_path: Path) -> None:
    content = {"lr": 1e-3, "milestones": [{"tokens": 10}], "name": "ü"}
    path = tmp_path / "x.json"
    path.write_text(json_text(sealed(content)))
    assert read_sealed(path) == content
    other = json.loads(path.read_text())
    assert unsealed(other) == content
    assert unsealed(other | {"lr": 1e-3 + 1e-18}) is None
    assert unsealed(content) is None
    path.write_text(path.read_text() + " ")
    assert read_sealed(path) is None  # for readers that need every byte


def test_all_json_is_read_by_one_helper() -> None:
    """Python's own reader takes the last of a key's values, NaN for a number, and ends in RecursionError."""
    sources = [p for p in ROOT.rglob("*.py") if not {".venv", "tests"} & set(p.relative_to(ROOT).parts)]
    reading = re.compile(r"\bjson\.loads?\(|\bjson\.JSONDecoder\b|from json import")
    found = {str(p.relative_to(ROOT)): len(reading.findall(p.read_text())) for p in sources}
    # tools/study.py turns its own answer into what a file of it would hold.
    assert {name: count for name, count in found.items() if count} == {"utils/files.py": 1, "tools/study.py": 1}
