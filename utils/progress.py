"""The progress of a long command: a bar at a terminal, plain lines at a slower pace in a log file or a batch job."""

import math
import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

REDRAW_SECONDS = 1.0
LINE_SECONDS = 60.0  # a sweep of a day leaves 1,440 lines in its log


def duration(seconds: float) -> str:
    """A time as text, in one or two units; "unknown" where it is not finite."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


class Progress:
    """A bar, or lines, of the work done so far.

    Args:
        total: of all work, in ``unit``, whose singular it is.
        name: the task, at the line's beginning.
        done: before this process.
        clock: seconds; a test's own.
    """

    def __init__(
        self,
        total: float,
        name: str,
        unit: str,
        *,
        done: float = 0,
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = sys.stderr if file is None else file
        self._total, self._done, self._first, self._name, self._unit = total, done, done, name, unit
        self._note, self._left = "", math.nan
        self._clock = clock
        self._start = self._drawn = clock()
        self._lines = 0
        self._bar = self._open_bar() if self._file.isatty() else None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._draw()
            self._bar.close()
        elif self._lines:  # work of less than a minute leaves no line
            self._draw()

    def update(self, more: float = 1) -> None:
        """Count ``more`` work as done."""
        self.set(self._done + more)

    def set(
        self, done: float, *, total: float | None = None, note: str | None = None, left: float | None = None
    ) -> None:
        """Say how much is done in all; draws at most once per ``REDRAW_SECONDS`` (lines: ``LINE_SECONDS``).

        Args:
            total: where it has changed.
            note: shown next to the numbers.
            left: seconds, from a better estimate than this process's mean speed; NaN where they are unknown.
        """
        self._done = done
        self._total = self._total if total is None else total
        self._note = self._note if note is None else note
        now = self._clock()
        if left is None:
            gained = done - self._first
            left = (self._total - done) * (now - self._start) / gained if gained > 0 else math.nan
        self._left = left
        if now - self._drawn >= (LINE_SECONDS if self._bar is None else REDRAW_SECONDS) or (
            self._bar is not None and done >= self._total
        ):
            self._draw()

    def write(self, line: str) -> None:
        """Print a line above the bar."""
        if self._bar is None:
            print(line, file=self._file, flush=True)
        else:
            self._bar.write(line, file=self._file)

    def _open_bar(self):
        from tqdm import tqdm  # not at the top: a command that shows no bar does not wait for it

        columns, lines = shutil.get_terminal_size()  # by itself tqdm shows nothing where a terminal says 0 lines
        return tqdm(
            total=self._total,
            initial=self._first,
            desc=self._name,
            unit=self._unit,
            unit_scale=self._total >= 1e6,
            file=self._file,
            ncols=columns,
            nrows=lines,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit} [{elapsed}{postfix}]",
        )

    def _draw(self) -> None:
        self._drawn = self._clock()
        notes = [self._note] if self._note else []
        if self._done < self._total:
            notes.append(f"{duration(self._left)} left" if math.isfinite(self._left) else "time left unknown")
        if self._bar is not None:
            self._bar.n, self._bar.total = self._done, self._total
            self._bar.set_postfix_str(", ".join(notes), refresh=False)
            self._bar.refresh()
            return
        if not self._total:  # as of a sweep whose cells have all failed
            return
        self._lines += 1
        counts = f"{_count(self._done)} of {_count(self._total)} {self._unit}"
        print(
            f"{self._name}: {self._done / self._total:.0%}, {', '.join([counts, *notes])}", file=self._file, flush=True
        )


def _count(value: float) -> str:
    return f"{value:,.0f}" if value < 1e6 else f"{value:.3g}"
