"""A run's training curve as arrays, from its metrics.jsonl. No torch here."""

import math
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from videoscaling.training.logs.log_files import METRICS, parse_row
from videoscaling.utils.errors import UserError, nearest_path


@dataclass(frozen=True)
class Curve:
    """The logged steps of a run, arrays [lines]; NaN where a line has no such value (docs/formats.md).

    Attributes:
        step, tokens, flops: so far; flops by C_token.
        loss: mean training loss since the line before.
        lr, grad_norm: of the step; the norm before clipping.
        skipped: steps without a finite gradient so far.
        noise_scale: of the gradient, in tokens.
        tokens_per_second, data_seconds, mfu: since the line before; seconds that the process waited for its data.
        share: of the process's time that the run had.
    """

    step: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    loss: np.ndarray
    lr: np.ndarray
    grad_norm: np.ndarray
    skipped: np.ndarray
    noise_scale: np.ndarray
    tokens_per_second: np.ndarray
    data_seconds: np.ndarray
    share: np.ndarray
    mfu: np.ndarray

    def __len__(self) -> int:
        return len(self.step)


def read_curve(run: str | Path) -> Curve:
    """The training curve of a run directory, or of a folder of tools/export.py.

    Raises:
        UserError: there is no metrics.jsonl, or no line of it can be read.
    """
    path = Path(run) / METRICS
    if not path.is_file():
        raise UserError(f"{path}: no such file{nearest_path(path) or '; name a run directory, such as runs/x'}")
    rows = [row for line in path.read_bytes().splitlines() if (row := parse_row(line)) is not None]
    if not rows:
        raise UserError(f"{path}: holds no logged step")
    values = {entry.name: [row.get(entry.name) for row in rows] for entry in fields(Curve)}
    columns = {name: [v if type(v) in (int, float) else math.nan for v in column] for name, column in values.items()}
    return Curve(**{name: np.array(column) for name, column in columns.items()})
