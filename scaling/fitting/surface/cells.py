"""Runs as plain arrays: what the surface is fitted to."""

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videoscaling.scaling.runs import SAME_TOKENS, RunTable, common_values
from videoscaling.utils.errors import UserError

SAME = 1e-6  # rates and batches whose ln differ by less are one: a table's last digits


@dataclass(frozen=True)
class Cells:
    """One row per (run, milestone); arrays [rows].

    Attributes:
        N, T, B, lr: parameters, tokens, batch in tokens, learning rate.
        loss: inf where the run diverged.
        run, stream: numbers of the run and of the samples that it saw (-1 where unknown).
        n_ctx: tokens of one clip, the smallest batch; 0 where unknown.
    """

    N: NDArray[np.float64]
    T: NDArray[np.float64]
    B: NDArray[np.float64]
    lr: NDArray[np.float64]
    loss: NDArray[np.float64]
    run: NDArray[np.int64]
    stream: NDArray[np.int64]
    n_ctx: float = 0.0

    def __len__(self) -> int:
        return len(self.N)

    @staticmethod
    def of_arrays(
        N: ArrayLike,
        T: ArrayLike,
        B: ArrayLike,
        lr: ArrayLike,
        loss: ArrayLike,
        *,
        run: ArrayLike | None = None,
        stream: ArrayLike | None = None,
        n_ctx: float = 0.0,
    ) -> "Cells":
        """Cells of arrays that broadcast to one length; each row is a run where ``run`` is None.

        Raises:
            UserError: a number that is not positive (a loss may be inf: the run diverged).
        """
        values = np.broadcast_arrays(*(np.asarray(v, dtype=float) for v in (N, T, B, lr, loss)))
        for name, value in zip(("N", "T", "B", "lr", "loss"), values):
            if not np.all(value > 0) or (name != "loss" and np.isinf(value).any()):
                raise UserError(f"{name} must be positive numbers; the surface needs N, T, B, lr and loss of each run")
        rows = len(values[0])
        label = np.arange(rows) if run is None else np.unique(run, return_inverse=True)[1]
        stream = np.full(rows, -1) if stream is None else np.asarray(stream)
        return Cells(*values, run=label, stream=stream.astype(np.int64), n_ctx=n_ctx)

    @staticmethod
    def of_table(table: RunTable) -> "Cells":
        """The cells of a run table, losses moved to the tokens that the runs of a grid have in common."""
        from videoscaling.scaling.fitting.grids.fit_points import (
            at_nominal,  # with scipy.optimize: half of the time of a prediction
        )

        table = at_nominal(table)
        return Cells.of_arrays(
            table.N,
            table.nominal_T,
            table.B,
            table.lr,
            table.loss,
            run=table.run_id,
            stream=table.stream,
            n_ctx=float(table.n_ctx.max(initial=0)),
        )

    def rows(self, chosen: NDArray) -> "Cells":
        """The cells that a mask or an index array chooses."""
        arrays = {f.name: getattr(self, f.name)[chosen] for f in fields(self) if f.name != "n_ctx"}
        return Cells(**arrays, n_ctx=self.n_ctx)

    @cached_property
    def grid(self) -> NDArray[np.int64]:
        """Number of each row's (N, T), by rising N, then T."""
        return np.unique(np.stack([self.N, self.T], axis=1), axis=0, return_inverse=True)[1].ravel()

    @cached_property
    def tokens(self) -> NDArray[np.float64]:
        """T as one of few counts [rows]: runs of another size stop up to a batch further at the same milestone.

        Those of one run stay apart, however dense: they are its milestones.
        """
        order = np.lexsort([self.T, self.run])
        steps = np.diff(self.T[order]) / self.T[order][:-1]
        steps = steps[(np.diff(self.run[order]) == 0) & (steps > SAME)]
        return common_values(self.T, min(SAME_TOKENS, steps.min(initial=np.inf) / 2))

    @cached_property
    def several_rates(self) -> bool:
        """Whether the runs differ in their rates: else which one is best is unknown."""
        return bool(np.ptp(np.log(self.lr)) > SAME)

    @cached_property
    def several_batches(self) -> bool:
        """Whether the runs differ in their batches."""
        return bool(np.ptp(np.log(self.B)) > SAME)

    @cached_property
    def best(self) -> NDArray[np.float64]:
        """Lowest loss of each row's grid, [rows]."""
        lowest = np.full(self.grid.max() + 1, np.inf)
        np.minimum.at(lowest, self.grid, self.loss)
        return lowest[self.grid]
