"""Losses by validation clip, whose choice is an error that all runs share."""

import io
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.runs import RunTable
from videoscaling.utils.errors import UserError


def clip_losses(table: RunTable) -> NDArray[np.float64] | None:
    """Each row's loss by validation clip, relative to the row's loss, less 1: [rows, clips].

    None where a finite row has no file of samples, or the files are not of the same clips. Diverged rows are nan.

    Raises:
        UserError: a file of samples is cut short, or holds something else.
    """
    finite = np.isfinite(table.loss)
    if not finite.any() or np.any(table.samples[finite] == ""):
        return None
    by_row = {}
    for row in np.flatnonzero(finite):
        by_row[row] = averaged_weights(str(table.samples[row]), int(table.samples_crc32[row])).mean(1)
    if len({len(losses) for losses in by_row.values()}) != 1:
        return None
    relative = np.full((len(table), len(next(iter(by_row.values())))), np.nan)
    for row, losses in by_row.items():
        relative[row] = losses / losses.mean() - 1
    return relative


def averaged_weights(path: str, crc32: int = -1) -> NDArray[np.float64]:
    """Losses [clips, times] of the averaged weights in a run's file, [raw and averaged weights, clips, times].

    Args:
        crc32: of the file as the run wrote it; -1 where the run is of an older version, which recorded none.

    Raises:
        UserError: the file holds something else, or is not as it was written.
    """
    try:
        content = Path(path).read_bytes()
        if crc32 not in (-1, zlib.crc32(content)):
            raise ValueError("not as the run wrote it")
        file = io.BytesIO(content)
        stored = np.load(file, allow_pickle=False)
        losses = stored[1].astype(float)
        if stored.ndim != 3 or not losses.size or not np.all((losses > 0) & (losses < np.inf)):
            raise ValueError(f"shape {stored.shape}, or not numbers above 0")
    except (ValueError, TypeError, LookupError, EOFError, MemoryError, OSError) as error:
        raise UserError(
            f"{path}: not the losses of each validation clip ({' '.join(str(error).split()):.100}); copy it again "
            "from where the run was trained, or remove it and fit without the clips' own error"
        ) from None
    return losses
