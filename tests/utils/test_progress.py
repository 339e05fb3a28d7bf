"""A bar at a terminal, plain lines elsewhere; both say how much is done and the time left."""

import io

import pytest

from videoscaling.utils.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_log_has_a_line_a_minute_with_the_time_left() -> None:
    clock, file = Clock(), io.StringIO()
    with Progress(400, "encoding", "videos", done=100, file=file, clock=clock) as progress:
        for second in range(1, 131):
            clock.now = second
            progress.update()
    assert file.getvalue().splitlines() == [
        "encoding: 40%, 160 of 400 videos, 4 min left",  # 60 in a minute, not 160: 100 were there before
        "encoding: 55%, 220 of 400 videos, 3 min left",
        "encoding: 57%, 230 of 400 videos, 3 min left",
    ]


def test_work_of_less_than_a_minute_leaves_no_line() -> None:
    clock, file = Clock(), io.StringIO()
    with Progress(2, "encoding", "videos", file=file, clock=clock) as progress:
        clock.now = 59
        progress.update(2)
    assert file.getvalue() == ""


def test_a_bar_is_redrawn_once_a_second() -> None:
    clock, file = Clock(), Terminal()
    with Progress(1e9, "grid", "FLOP", file=file, clock=clock) as progress:
        opened = file.getvalue().count("grid: ")
        for tenth in range(1, 31):
            clock.now = tenth / 10
            progress.set(1e7 * tenth, note="0/4 cells", left=120)
        drawn = file.getvalue()
    assert drawn.count("grid: ") - opened == 3
    assert drawn.split("\r")[-1].startswith("grid:  30%|")
    assert "300M/1.00GFLOP" in drawn.split("\r")[-1].replace(" ", "")
    assert drawn.rstrip().endswith("0/4 cells, 2 min left]")


@pytest.mark.parametrize("file", [Terminal(), io.StringIO()])
def test_a_line_of_another_kind_stands_by_itself(file: io.StringIO) -> None:
    with Progress(10, "grid", "FLOP", file=file) as progress:
        progress.write("grid/x: failed, see console.log there")
    assert "grid/x: failed, see console.log there" in [
        line.rpartition("\r")[2] for line in file.getvalue().splitlines()
    ]
