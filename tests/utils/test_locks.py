"""One process works in a folder at a time, on disks with flock and without it."""

import errno
import fcntl
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.commands import call
from tests.sweeps.sweeps import write_sweep
from tests.training.test_trainer import overrides, result
from videoscaling.utils import locks
from videoscaling.utils.errors import UserError
from videoscaling.utils.locks import HOLDER, LOCK, Holder, check_lock, is_locked, lock, release_abandoned
from videoscaling.utils.process_ids import start_time, this_machine

MINE = Holder(this_machine(), os.getpid(), start_time(os.getpid()))
ELSEWHERE = replace(MINE, machine="node7 pid:[1]")


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def no_flock(request, monkeypatch):
    """A disk without flock."""

    def refused(handle, operation):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refused)
    monkeypatch.setattr(locks, "WRITING_SECONDS", 0.0)


@pytest.fixture
def ended() -> int:
    """A number that no process has: Linux gives numbers up to 2^22."""
    return 2**22 + 1


def leave(folder: Path, holder: Holder) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / HOLDER).write_text(json.dumps(asdict(holder)))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_process_is_refused_until_the_first_leaves(tmp_path):
    with lock(tmp_path):
        assert is_locked(tmp_path)
        with pytest.raises(UserError, match="another process is working in it"), lock(tmp_path):
            pass
    assert not is_locked(tmp_path)
    with lock(tmp_path):
        check_lock(tmp_path)


def test_a_lock_that_was_removed_while_it_was_opened_is_taken_on_the_new_file(tmp_path, monkeypatch):
    """Without the comparison by inode, the next process would lock another file next to this one."""
    plain, calls = fcntl.flock, []

    def flock(handle, operation):
        plain(handle, operation)
        calls.append(operation)
        if len(calls) == 1:
            (tmp_path / LOCK).unlink()

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock(tmp_path):
        assert len(calls) == 2
        with pytest.raises(UserError, match="another process is working"), lock(tmp_path):
            pass


@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
def test_the_holder_notices_that_its_lock_was_removed(tmp_path, replaced):
    def work():
        with lock(tmp_path):
            (tmp_path / LOCK).unlink()
            if replaced:
                (tmp_path / LOCK).touch()
            check_lock(tmp_path)

    with pytest.raises(UserError, match=r"its lock \.lock was removed or replaced"):
        work()
    check_lock(tmp_path)  # held by nobody here: nothing to notice


def test_without_flock_a_file_is_the_lock(tmp_path, no_flock, capsys):
    with lock(tmp_path):
        assert "warning" in (said := capsys.readouterr().err)
        assert said.count("\n") == 1
        assert is_locked(tmp_path)
        check_lock(tmp_path)
        with (
            pytest.raises(UserError, match=f"process {os.getpid()} of .* is working in it.*--take-over"),
            lock(tmp_path),
        ):
            pass
        leave(tmp_path, ELSEWHERE)
        with pytest.raises(UserError, match=r"its lock \.lock-holder was removed or replaced"):
            check_lock(tmp_path)
        leave(tmp_path, MINE)
    assert not is_locked(tmp_path)
    assert names(tmp_path) == [LOCK]


def test_without_flock_only_a_process_that_certainly_ended_is_replaced(tmp_path, no_flock, ended):
    dead = replace(MINE, pid=ended, started=None)
    for gone in (dead, replace(MINE, started="another boot 17")):  # the number was given again
        leave(tmp_path, gone)
        assert not is_locked(tmp_path)
        with lock(tmp_path):
            assert json.loads((tmp_path / HOLDER).read_text()) == asdict(MINE)
        assert names(tmp_path) == [LOCK]
    for unknown in (ELSEWHERE, replace(ELSEWHERE, pid=ended)):
        leave(tmp_path, unknown)
        assert is_locked(tmp_path)
        with pytest.raises(UserError, match="of node7 is working in it.*--take-over"), lock(tmp_path):
            pass
    (tmp_path / HOLDER).write_text("")  # killed between creating and writing it
    with pytest.raises(UserError, match="did not write its name is working in it.*--take-over"), lock(tmp_path):
        pass
    release_abandoned(tmp_path)
    release_abandoned(tmp_path)
    with lock(tmp_path):
        pass


def test_a_holder_that_came_in_between_is_put_back(tmp_path, ended):
    leave(tmp_path, MINE)
    locks._displace(tmp_path / HOLDER, replace(MINE, pid=ended))
    assert json.loads((tmp_path / HOLDER).read_text()) == asdict(MINE)
    assert names(tmp_path) == [HOLDER]


def test_another_machine_is_not_waited_for_without_end(tmp_path, no_flock, monkeypatch):
    monkeypatch.setattr(locks, "FOREIGN_SECONDS", 0.0)
    leave(tmp_path, ELSEWHERE)
    with pytest.raises(UserError, match="of node7 is working in it"), lock(tmp_path, wait=True):
        pass


@pytest.mark.parametrize("no_flock", [errno.ENOSYS], indirect=True)
def test_commands_run_without_flock_and_name_the_option(cache, tmp_path, no_flock):
    keys = overrides(cache, tmp_path, "x", "train.tokens=256")
    leave(tmp_path / "x", ELSEWHERE)
    done = call("train.py", *keys)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--take-over" in done.stderr
    done = call("train.py", "--take-over", *keys)
    assert (done.returncode, result(tmp_path / "x")["status"]) == (0, "done"), done.stderr
    assert "this disk has no flock" in done.stderr
    assert HOLDER not in names(tmp_path / "x")

    out = tmp_path / "latents"
    words = ["--source", "synthetic", "--clips", 4, "--validation", 2, "--out", out, "--device", "cpu"]
    leave(out / ".work" / "share-0-of-1", ELSEWHERE)
    done = call("tools/cache_latents.py", *words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--take-over" in done.stderr
    done = call("tools/cache_latents.py", *words, "--take-over")
    assert done.returncode == 0, done.stderr
    assert ".work" not in names(out)


@pytest.mark.parametrize("no_flock", [errno.ENOSYS], indirect=True)
def test_a_sweep_names_the_option(cache, tmp_path, no_flock):
    sweep = write_sweep(tmp_path, cache, batch_tokens=[64], lr=[1e-3])
    leave(tmp_path / "runs" / "grid", ELSEWHERE)
    done = call("tools/sweep.py", "run", sweep)
    assert done.returncode == 2
    assert "--take-over takes the folder over" in done.stderr.splitlines()[-1]
