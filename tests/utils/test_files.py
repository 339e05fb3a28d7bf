import os
import stat
import threading

import pytest

from videoscaling.utils.files import (
    atomic_write,
    before,
    find_files,
    recover_folder,
    remove_folder,
    remove_leftovers,
    replace_folder,
    temporary,
    write_text,
)
from videoscaling.utils.process_ids import machine_code


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "sub" / "law.json"
    write_text(path, "old")

    def half():
        with atomic_write(path) as tmp:
            tmp.write_text("half")
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


def test_a_link_to_itself_is_replaced(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "link")
    write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").read_text() == "x"


def test_a_folder_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path / "folder", "text")
    assert names(tmp_path) == ["folder"]


def test_the_next_write_removes_what_a_killed_one_left(tmp_path):
    """And nothing of processes that may live: on other machines, or here."""
    dead, here = 2**22 + 1, machine_code()  # Linux gives processes numbers up to 2^22
    other = "0" * 8 if here != "0" * 8 else "1" * 8
    stay = {f".law.json.{here}-{os.getppid()}.tmp", f".law.json.{other}-{dead}.tmp", f".x.json.{here}-{dead}.tmp"}
    stay |= {".law.json.tmp", "law.json.mine.tmp"}
    for name in (*stay, f".law.json.{here}-{dead}.tmp"):
        (tmp_path / name).write_text("half")
    write_text(tmp_path / "law.json", "new")
    assert set(names(tmp_path)) == {*stay, "law.json"}
    # Under a lock, those of any machine, and of older versions, which wrote none.
    (tmp_path / f".law.json.{dead}.tmp").write_text("half")
    (tmp_path / f".640.npy.{other}-1.tmp").mkdir()
    remove_leftovers(tmp_path, "law.json", "*.npy")
    assert set(names(tmp_path)) == {f".x.json.{here}-{dead}.tmp", ".law.json.tmp", "law.json.mine.tmp", "law.json"}


def test_a_folder_is_whole_or_absent(tmp_path, monkeypatch):
    """Whatever is the last thing done: the old one or the new one can be put in place, and is never half."""
    done, plain = [], type(tmp_path).rename

    def counted(self, target):
        done.append(target)
        if len(done) > most:
            raise InterruptedError
        return plain(self, target)

    for most in range(3):
        folder, tmp = tmp_path / f"{most}", temporary(tmp_path / f"{most}")
        for path, text in ((folder, "old"), (tmp, "new")):
            path.mkdir()
            (path / "file").write_text(text)
        del done[:]
        with monkeypatch.context() as patch:
            patch.setattr(type(tmp_path), "rename", counted)
            if most < 2:
                with pytest.raises(InterruptedError):
                    replace_folder(tmp, folder)
            else:
                replace_folder(tmp, folder)
        recover_folder(folder)
        assert (folder / "file").read_text() == ("new" if most == 2 else "old")
        assert not before(folder).exists()
        remove_folder(folder)
        assert not folder.exists()


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
