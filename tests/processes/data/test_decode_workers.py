import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.processes import launch
from tests.processes.launch import ROOT, wait_until
from videoscaling.data.clip_groups import ClipGroup
from videoscaling.data.sources.source import Rejected
from videoscaling.data.video import decode_workers
from videoscaling.data.video.clips import Clips
from videoscaling.data.video.decode_workers import decoded


def clips(name: str, shape: tuple[int, ...] = (2, 3, 5, 8, 8), seconds: float = 0.0) -> Clips:
    time.sleep(seconds)
    number = int(name)
    pixels = (torch.arange(torch.Size(shape).numel()) + number).remainder(256).byte().reshape(shape)
    return Clips([f"{name}#{i}" for i in range(shape[0])], [name] * shape[0], pixels, 24.0, 1.5)


def refuse(name: str) -> Clips:
    raise Rejected("too short", f"{name} frames")


def crash(name: str) -> Clips:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(name: str) -> Clips:
    time.sleep(600)


def break_down(name: str) -> Clips:
    raise ZeroDivisionError(name)


def process_of(name: str) -> Clips:
    return clips(name)._replace(captions=[str(os.getpid())])


def unit(number: int, load=clips, **options) -> ClipGroup:
    return ClipGroup(str(number), [], partial(load, str(number), **options))


def family() -> tuple[set[str], set[str]]:
    """The servers that this process has begun, and their workers."""
    listed = launch.run(["ps", "-eww", "-o", "pid=,ppid=,args="]).stdout
    found = [line.split(maxsplit=2) for line in listed.splitlines() if "video.decode_workers" in line]
    servers = {pid for pid, parent, _ in found if parent == str(os.getpid())}
    return servers, {pid for pid, parent, _ in found if parent in servers}


def children() -> set[str]:
    """The workers of this process."""
    return family()[1]


def gone(pid: int, within: float = 60.0) -> bool:
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_units_come_in_order_with_their_pixels():
    # The first takes longest, so that others are done before it.
    units = [unit(i, seconds=0.3 if i == 0 else 0.0) for i in range(12)] + [unit(12, shape=(0, 3, 5, 8, 8))]
    alone, shared = list(decoded(units, 0)), list(decoded(units, 2, 60))
    assert [answer.keys for answer in alone] == [[f"{i}#0", f"{i}#1"] for i in range(12)] + [[]]
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert one.pixels.dtype == other.pixels.dtype
        assert one._replace(pixels=None) == other._replace(pixels=None)
    shared[0].pixels.add_(1)  # memory of the caller's own
    assert not children()


def test_what_goes_wrong_costs_one_unit_each():
    loads = {2: refuse, 4: crash, 7: hang}
    answers = list(decoded([unit(i, loads.get(i, clips)) for i in range(8)], 2, 3))
    reasons = {i: answer.reason for i, answer in enumerate(answers) if isinstance(answer, Rejected)}
    assert reasons == {2: "too short", 4: "crashed", 7: "too slow"}
    assert (answers[2].detail, answers[7].detail) == ("2 frames", "not decoded within 3 s")
    assert "SIGSEGV" in answers[4].detail
    assert [answer.keys[0] for answer in answers if isinstance(answer, Clips)] == [f"{i}#0" for i in (0, 1, 3, 5, 6)]
    assert not children()


def test_an_error_of_ours_is_no_rejection():
    with pytest.raises(RuntimeError, match="1: (.*\n)+.*ZeroDivisionError"):
        list(decoded([unit(0), unit(1, break_down), unit(2)], 1))
    with pytest.raises(ZeroDivisionError):
        list(decoded([unit(1, break_down)], 0))
    with pytest.raises(Exception, match="pickle|local object"):
        list(decoded([ClipGroup("0", [], lambda: clips("0"))], 1))
    assert not children()


def test_no_more_is_begun_than_asked_for():
    begun = []

    def units():
        for i in range(20):
            begun.append(i)
            yield unit(i)

    answers = decoded(units(), 1, 60, 3)
    for taken in range(20):
        next(answers)
        assert taken + 1 <= len(begun) <= taken + 1 + 3
    assert next(answers, None) is None


def leave_a_file(name: str, folder: Path) -> Clips:
    (folder / name).touch()
    return clips(name)


def test_workers_continue_while_the_caller_is_busy(tmp_path):
    answers = decoded([unit(i, leave_a_file, folder=tmp_path) for i in range(10)], 1, 60, 9)
    next(answers)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 10)  # the caller takes none of them meanwhile
    assert len(list(answers)) == 9


@pytest.mark.parametrize("how", ["dropped", "raised"])
def test_no_worker_is_left_by_an_unfinished_iterator(how):
    answers = decoded([unit(0, process_of), *(unit(i, hang) for i in range(1, 9))], 1, 600)
    worker = int(next(answers).captions[0])
    assert len(children()) == 1
    if how == "dropped":
        del answers
    else:
        with pytest.raises(KeyboardInterrupt):
            answers.throw(KeyboardInterrupt)
    assert gone(worker)
    assert not children()
    assert not [thread for thread in threading.enumerate() if "_serve" in thread.name]


def test_a_server_that_was_killed_is_replaced_by_one_that_leaves_ctrl_c_to_its_parent(capfd):
    list(decoded([unit(0)], 1))
    decode_workers._server._process.kill()
    decode_workers._server._process.wait()
    answers = []
    reader = threading.Thread(target=lambda: answers.extend(decoded([unit(1)], 1, 600)))
    reader.start()
    end = time.monotonic() + 30
    while not (begun := family()[0]) and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.6)  # in the middle of its imports
    os.kill(int(begun.pop()), signal.SIGINT)
    reader.join()
    assert [answer.keys[0] for answer in answers] == ["1#0"]
    assert not capfd.readouterr().err


def test_workers_are_forked_where_this_process_is_and_from_one_server(tmp_path, monkeypatch):
    list(decoded([unit(0)], 1))
    servers = family()[0]
    monkeypatch.chdir(tmp_path)
    answers = list(decoded([unit(i, leave_a_file, folder=Path()) for i in range(4)], 2))
    assert all(isinstance(answer, Clips) for answer in answers)
    assert len(list(tmp_path.iterdir())) == 4
    assert family()[0] == servers


@pytest.mark.slow
def test_workers_die_with_their_parent():
    """In the middle of a unit that never ends, whatever ended the parent."""
    script = (
        "import os\nfrom videoscaling.data.video.decode_workers import decoded\n"
        "from tests.processes.data.test_decode_workers import *\n"
        "answers = decoded([unit(0, process_of), unit(1, hang)], 1, 600)\n"
        "print(*next(answers).captions, flush=True)\nnext(answers)\n"
    )
    parent = launch.popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE)
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert workers
    time.sleep(0.3)
    parent.kill()
    parent.wait()
    assert all(gone(pid) for pid in workers)
