"""Errors of the operating system are one line with the file and the fix, exit status 2."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import av
import pytest

from tests.disk import Disk
from videoscaling.utils.errors import run_cli
from videoscaling.utils.files import write_text
from videoscaling.utils.os_errors import FIXES, open_log, warn_of_os_error, with_filename


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
@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_what_fails_while_a_file_is_written_names_the_file(
    name: str, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """write and fsync name none, and the name of the file that is written under a temporary name is not the user's."""
    with monkeypatch.context() as good:
        disk = Disk(tmp_path, good)
        write_text(tmp_path / "law.json", "x" * 10_000)
    (tmp_path / "law.json").unlink()
    number = next(number for number, event in enumerate(disk.events) if event.startswith(f"{call} "))
    with monkeypatch.context() as broken:
        Disk(tmp_path, broken, number, getattr(errno, name))
        text = said(lambda: write_text(tmp_path / "law.json", "x" * 10_000), capsys)
    assert f"error: {tmp_path / 'law.json'}: " in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is full")  # noqa: PTH110
def test_a_log_on_a_full_disk_loses_lines_without_an_error() -> None:
    with open_log("/dev/full") as log:
        print("lost", file=log)


def test_a_log_has_names_that_are_not_utf8(tmp_path: Path) -> None:
    with open_log(tmp_path / "log") as log:
        print(os.fsdecode(b"\xff.mp4"), file=log)
    assert (tmp_path / "log").read_text() == "\\udcff.mp4\n"


def test_an_error_while_a_video_is_written_names_it() -> None:
    """PyAV's errors have a name that cannot be set."""
    with pytest.raises(OSError, match="disk full") as caught, with_filename("a.mp4", ".a.mp4.tmp"):
        raise av.error.OSError(errno.ENOSPC, "disk full", ".a.mp4.tmp")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "a.mp4")


def test_a_full_device_is_named(capsys: pytest.CaptureFixture) -> None:
    assert "error: /dev/full: disk full; free some" in said(lambda: write_text("/dev/full", "x"), capsys)


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
