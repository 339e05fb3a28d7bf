"""Errors of the operating system are one line with the file and the fix, exit status 2."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from utils.errors import run_cli
from utils.files import write_text
from utils.os_errors import FIXES, warn_of_os_error


def said(main: Callable[[], None], capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit) as left:
        run_cli(main)
    assert left.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    return text


@pytest.mark.parametrize("code", sorted(errno.errorcode))
def test_every_error_of_a_file_is_one_line_that_names_it(code: int, capsys: pytest.CaptureFixture) -> None:
    if code == errno.EPIPE:
        pytest.skip("a reader that has left is no error")

    def main() -> None:
        raise OSError(code, os.strerror(code), "/some/file")

    text = said(main, capsys)
    assert "/some/file: " in text
    assert text.strip().endswith(FIXES.get(code, "choose another path"))


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "ENOSPC", "EMFILE", "ENOMEM"])
def test_what_fails_while_a_file_is_written_names_the_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """fsync names none, and the name of the file that is written under a temporary name is not the user's."""
    code = getattr(errno, name)

    def fsync(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    assert f"error: {tmp_path / 'law.json'}: " in said(lambda: write_text(tmp_path / "law.json", "x"), capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_name_too_long_and_a_loop_of_links(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    text = said(lambda: write_text(tmp_path / ("x" * 300), ""), capsys)
    assert "file name too long; choose a shorter path or name" in text
    (tmp_path / "a").symlink_to(tmp_path / "a")
    assert "too many levels of symbolic links" in said(lambda: (tmp_path / "a" / "b").open(), capsys)


def test_an_error_of_no_file_is_a_fault_of_the_program() -> None:
    def main() -> None:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    with pytest.raises(ConnectionRefusedError):
        run_cli(main)


def test_what_may_fail_is_a_warning(capsys: pytest.CaptureFixture) -> None:
    with warn_of_os_error("an old checkpoint stays"):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), "/x")
    assert capsys.readouterr().err.startswith("warning: an old checkpoint stays: /x: device or resource busy; ")
