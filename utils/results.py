"""result.json of a run, with a checksum: written by training, read by sweeps and fits.

Without a checksum, 22 of 213 mutations of a result gave another table of losses and no error. Results of older
versions have no checksum and are read as they are.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from videoscaling.utils import seal
from videoscaling.utils.errors import UserError
from videoscaling.utils.files import read_json, write_json

FILE = "result.json"
CONSOLE = "console.log"  # of a sweep's cell: what it prints
DATA_FAULT = "data_fault.json"  # written by a run that its data ended: no cell of a sweep can be trained on them
NUMBERS = ("N", "B", "lr", "n_ctx", "tokens", "flops", "exact_flops", "seconds")  # null where not known
OF_MILESTONE = ("nominal", "tokens", "flops", "val_loss", "val_se", "ema_val_loss", "ema_val_se", "losses_crc32")
OBJECTS = ("recipe", "config")


@dataclass(frozen=True)
class Failure:
    """Why a cell or a run failed. ``data_fault``: its data are damaged, which no other attempt can change."""

    reason: str
    attempts: int | None = None
    exit_status: int | None = None
    data_fault: bool = False


class DamagedResult(UserError):
    """A result.json that is not as a run wrote it."""


def write_result(directory: Path, result: dict[str, Any]) -> None:
    """Write ``result`` to ``directory``, atomically."""
    write_json(directory / FILE, seal.sealed(result))


def read_result(path: Path) -> dict[str, Any]:
    """The result at ``path``, without its checksum: it has a status and a list of milestones.

    Raises:
        DamagedResult: the file was altered, or a file without a checksum (of an older version) is no run's result.
        UserError: the file does not exist.
    """
    if not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: no such file")
    try:
        result = read_json(path, dict, "a run's result")
    except UserError as error:
        raise DamagedResult(str(error)) from None
    if seal.KEY in result:
        whole = seal.unsealed(result)
        if whole is None:
            raise DamagedResult(f"{path}: not as the run wrote it (another checksum)")
        result = whole
    _check_shape(result, path)
    return result


def whole_results(paths: Iterable[Path]) -> tuple[dict[Path, dict[str, Any]], list[UserError]]:
    """The intact results at ``paths``, and the errors of the others."""
    found, damaged = {}, []
    for path in paths:
        try:
            found[path] = read_result(path)
        except DamagedResult as error:
            damaged.append(error)
    return found, damaged


def report_left_out(damaged: Sequence[UserError], whole: int) -> None:
    """Warn of each of the ``damaged`` results that are left out; raise the first if no result is ``whole``."""
    if damaged and not whole:
        raise damaged[0]
    for error in damaged:
        count = f"{len(damaged)} of {whole + len(damaged)} results"
        print(f"warning: {error}; left out, as {count} {'is' if len(damaged) == 1 else 'are'}", file=sys.stderr)


def write_failure(path: Path, failure: Failure) -> None:
    """Write a failure, sealed, without what is not known of it."""
    known = {name: value for name, value in asdict(failure).items() if value not in (None, False)}
    write_json(path, seal.sealed(known))


def read_failure(path: Path) -> Failure | None:
    """The failure that ``write_failure`` wrote; None if the file is damaged."""
    try:
        record = read_json(path, dict)
    except UserError:
        return None
    record = seal.unsealed(record) if seal.KEY in record else record  # older versions sealed none
    if record is None or not isinstance(record.get("reason"), str):
        return None
    return Failure(**{name: record[name] for name in Failure.__dataclass_fields__ if name in record})


def _check_shape(result: dict[str, Any], path: Path) -> None:
    milestones = result.get("milestones")
    lists = isinstance(milestones, list) and all(isinstance(milestone, dict) for milestone in milestones)
    objects = all(isinstance(result.get(name), dict | None) for name in OBJECTS)
    if not (lists and objects and isinstance(result.get("status", ""), str)):
        raise DamagedResult(f"{path}: not a run's result (status, milestones, {', '.join(OBJECTS)})")
    for values, names in ((result, NUMBERS), *((milestone, OF_MILESTONE) for milestone in milestones)):
        for name in names:
            value = values.get(name)
            if not isinstance(value, int | float | None) or isinstance(value, bool):
                raise DamagedResult(f"{path}: {name} is {value!r:.60}, not a number")
