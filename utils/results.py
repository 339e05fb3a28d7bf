"""result.json of a run, with a checksum: written by training, read by sweeps and fits.

Without a checksum, 22 of 213 mutations of a result gave another table of losses and no error. Results of older
versions have no checksum and are read as they are.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

from videoscaling.utils import seal
from videoscaling.utils.errors import UserError, nearest_path
from videoscaling.utils.files import read_json, write_json
from videoscaling.utils.messages import warn

FILE = "result.json"
CONSOLE = "console.log"  # of a sweep's cell: what it prints
DATA_FAULT = "data_fault.json"  # written by a run that its data ended: no cell of a sweep can be trained on them


class Milestone(TypedDict, total=False):
    """What was measured at one of a run's token counts (docs/formats.md); older versions recorded less."""

    nominal: int
    tokens: int
    flops: float
    val_loss: float
    val_se: float
    ema_val_loss: float
    ema_val_se: float
    losses_crc32: int
    noise_scale: float
    by_shape: dict


class RunResult(TypedDict, total=False):
    """The content of result.json (docs/formats.md); older versions recorded less, and null is not known."""

    status: str
    run_id: str
    N: int
    layers: int
    width: int
    n_ctx: int
    B: int
    lr: float
    seed: int
    heldout: bool
    tokens: int
    skipped: int
    flops: float
    exact_flops: float
    shapes: list
    warmup_tokens: int
    milestones: list[Milestone]
    milestones_asked: list[int]
    recipe: dict
    seconds: float
    versions: dict
    git_revision: str
    device: str
    processes: int
    config: dict


# How the values of a result are checked, by their types in it: what is read as them, and their names in an error.
KINDS = {
    int: ((int, float), "a number"),
    float: ((int, float), "a number"),
    dict: ((dict,), "an object"),
    str: ((str,), "a text"),
}


@dataclass(frozen=True)
class Failure:
    """Why a cell or a run failed. ``data_fault``: its data are damaged, which no other attempt can change."""

    reason: str
    attempts: int | None = None
    exit_status: int | None = None
    data_fault: bool = False


class DamagedResult(UserError):
    """A result.json that is not as a run wrote it."""


def write_result(directory: Path, result: RunResult) -> None:
    """Write ``result`` to ``directory``, atomically."""
    write_json(directory / FILE, seal.sealed(result))


def read_result(path: Path) -> RunResult:
    """The result at ``path``, without its checksum: it has a status and a list of milestones.

    Raises:
        DamagedResult: the file was altered, or a file without a checksum (of an older version) is no run's result.
        UserError: the file does not exist.
    """
    if not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: no such file{nearest_path(path)}")
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


def whole_results(paths: Iterable[Path]) -> tuple[dict[Path, RunResult], list[UserError]]:
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
        warn(f"{error}; left out, as {count} {'is' if len(damaged) == 1 else 'are'}")


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


def _check_shape(result: RunResult, path: Path) -> None:
    milestones = result.get("milestones")
    if not (isinstance(milestones, list) and all(isinstance(milestone, dict) for milestone in milestones)):
        raise DamagedResult(f"{path}: not a run's result (no list of milestones)")
    for values, kind in ((result, RunResult), *((milestone, Milestone) for milestone in milestones)):
        for name, wanted in kind.__annotations__.items():
            value, (types, what) = values.get(name), KINDS.get(wanted, ((object,), ""))
            if value is not None and (not isinstance(value, types) or (what and isinstance(value, bool))):
                raise DamagedResult(f"{path}: {name} is {value!r:.60}, not {what}")
