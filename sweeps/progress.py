"""The progress of a sweep: the FLOPs of all tokens trained so far, read from the metrics of its running cells.

A bar that moved with finished cells stood at 0 % for 16 minutes. The last line of a cell's metrics.jsonl has its
tokens: each second one stat for each running cell, and a read of the last 4 KiB where the file has changed.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from videoscaling.sweeps import status
from videoscaling.sweeps.cost import estimate, flops_of
from videoscaling.sweeps.grid import Sweep
from videoscaling.sweeps.state import FINISHED, CellState, CellStatus, cell_status, last_metrics
from videoscaling.training.run import Run
from videoscaling.utils.progress import Progress

READ_SECONDS = 1.0
MAX_READ_SHARE = 0.05  # of the time: where the disk takes 0.1 s to answer for all cells, they are read every 2 s
NO_MORE = (CellState.DIVERGED, CellState.FAILED)  # cells whose other tokens are not trained


class SweepProgress:
    """The progress bar of a sweep's running cells.

    Args:
        states: of the cells, as ``sweeps.status.states_of`` gives them.
        open_bar: makes the bar, given the total and the FLOPs done so far.
        clock: seconds; a test's own.
    """

    def __init__(
        self,
        sweep: Sweep,
        states: Sequence[CellStatus],
        open_bar: Callable[..., Progress] = Progress,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sweep, self._clock = sweep, clock
        self._states = {cell.config.name: state for cell, state in zip(sweep.cells, states)}
        self._seen: dict[str, tuple[int, int]] = {}  # time and size of the metrics that were read last
        self._next = -math.inf
        self.bar = open_bar(self.total, str(sweep.directory), "FLOP", done=self.done, clock=clock)
        self._show()

    def __enter__(self) -> "SweepProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._show()
        self.bar.__exit__(*exception)

    @property
    def total(self) -> float:
        """FLOPs of all cells, without the rest of cells that ended early."""
        return sum(
            self._flops(cell, state) if state.state in NO_MORE else flops_of(cell) for cell, state in self._cells()
        )

    @property
    def done(self) -> float:
        """FLOPs of the tokens that all cells have seen."""
        return sum(self._flops(cell, state) for cell, state in self._cells())

    def look(self, running: Sequence[Run]) -> None:
        """Read the progress of the ``running`` cells, at most once per ``READ_SECONDS``, and draw."""
        start = self._clock()
        if start < self._next:
            return
        for cell in running:
            self._read(cell)
        self._show()
        self._next = start + max(READ_SECONDS, (self._clock() - start) / MAX_READ_SHARE)

    def settle(self, cell: Run) -> None:
        """Read the final progress of a ``cell`` whose process has ended."""
        self._states[cell.config.name] = cell_status(cell, self._sweep.keys.results)
        self._seen.pop(cell.config.name, None)

    def _cells(self) -> list[tuple[Run, CellStatus]]:
        return [(cell, self._states[cell.config.name]) for cell in self._sweep.cells]

    @staticmethod
    def _flops(cell: Run, state: CellStatus) -> float:
        return cell.flops_per_token * min(state.tokens, cell.config.train.tokens)

    def _read(self, cell: Run) -> None:
        state = replace(self._states[cell.config.name], state=CellState.RUNNING)
        try:
            found = (cell.config.run_dir / "metrics.jsonl").stat()
        except OSError:  # it has not begun to train, or its disk does not answer now
            found = None
        if found is not None and self._seen.get(cell.config.name) != (found.st_mtime_ns, found.st_size):
            self._seen[cell.config.name] = found.st_mtime_ns, found.st_size
            if last := last_metrics(cell.config.run_dir):
                share = last.get("share", 1.0)
                rate = cell.flops_per_token * last["tokens_per_second"] / share
                state = replace(state, tokens=last["tokens"], rate=rate, share=share)
        self._states[cell.config.name] = state

    def _show(self) -> None:
        states = [state for _, state in self._cells()]
        finished = sum(state.state in FINISHED for state in states)
        hours = status.hours_left(self._sweep, states, estimate(self._sweep, states))
        left = math.nan if hours is None else 3600 * hours
        self.bar.set(self.done, total=self.total, note=f"{finished}/{len(states)} cells", left=left)
