"""A disk that fails while a cache is made: one line, exit status 2, and the same command makes the same bytes."""

import errno
from pathlib import Path

import pytest

from tests.commands import Done, call
from tests.disk import ERRORS, Disk, check_answer
from videoscaling.data import writer

WORDS = ("--source", "synthetic", "--clips", 6, "--validation", 2, "--frames", 5, "--size", 32, "--device", "cpu")


def make(out: Path) -> Done:
    return call("tools/cache_latents.py", *WORDS, "--out", out)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, bytes]]:
    """The file events of a cache of three shards on a good disk, and its files."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(writer, "SHARD_CLIPS", 4)
        disk = Disk(folder, monkeypatch)
        assert make(folder / "latents").returncode == 0
        return disk.events, content(folder / "latents")


def fail_once(events: list[str], expected: dict[str, bytes], number: int, code: int, folder: Path) -> Done:
    """What the command prints whose event ``number`` fails; the next one must end as on a good disk."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(writer, "SHARD_CLIPS", 4)
        with monkeypatch.context() as broken:
            Disk(folder, broken, number, code)
            done = make(folder / "latents")
        what = f"event {number}, {errno.errorcode[code]}: {events[number]}\n{done.stderr}"
        check_answer(done, what)
        again = make(folder / "latents")
        assert again.returncode == 0, what + again.stderr
        assert content(folder / "latents") == expected, what
        return done


@pytest.mark.parametrize("name", ["train-00000.safetensors", "index.json", "captions.jsonl", "validation.json"])
def test_a_write_that_fails_names_the_file(
    whole: tuple[list[str], dict[str, bytes]], tmp_path: Path, name: str
) -> None:
    events, expected = whole
    number = next(number for number, event in enumerate(events) if event.startswith("write ") and f"/{name}" in event)
    done = fail_once(events, expected, number, errno.ENOSPC, tmp_path)
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'latents' / name}: disk full; free some space")


@pytest.mark.slow
def test_every_file_event_may_fail(whole: tuple[list[str], dict[str, bytes]], tmp_path: Path) -> None:
    events, expected = whole
    for number in range(len(events)):
        fail_once(events, expected, number, getattr(errno, ERRORS[number % len(ERRORS)]), tmp_path / str(number))
    print(f"{len(events)} file events of a cache failed")
