import os
import stat
import threading

import pytest

from utils.files import find_files, replacing, write_text


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "sub" / "law.json"
    write_text(path, "old")

    def half():
        with replacing(path) as aside:
            aside.write_text("half")
            raise ValueError("a fault")

    with pytest.raises(ValueError, match="a fault"):
        half()
    assert path.read_text() == "old"
    write_text(path, "new")
    assert (path.read_text(), names(path.parent)) == ("new", ["law.json"])


def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    """A file renamed over it would take its place: with the right to, over the machine's own devices."""
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()), daemon=True)
    reader.start()
    write_text(pipe, "text")
    reader.join(10)
    assert got == ["text"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert names(tmp_path) == ["pipe"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    there, link = tmp_path / "there" / "law.json", tmp_path / "law.json"
    there.write_text("old")
    link.symlink_to(there)
    write_text(link, "new")
    assert (link.is_symlink(), there.read_text()) == (True, "new")
    assert names(there.parent) == ["law.json"]


def test_a_folder_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path / "folder", "text")
    assert names(tmp_path) == ["folder"]


def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty(tmp_path, monkeypatch):
    for name in ("b", "a"):
        write_text(tmp_path / name / "result.json", "{}")
    assert find_files(tmp_path, "result.json") == [tmp_path / name / "result.json" for name in "ab"]
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError):
        find_files(tmp_path, "result.json")
