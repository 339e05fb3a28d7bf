"""Tables of training results from any trainer: which column is which, and which rows are results."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videoscaling.utils.errors import UserError, listed, nearest
from videoscaling.utils.tables import Table, Words, number_hint, read_table

COLUMNS = (
    "run_id",
    "status",
    "N",
    "T",
    "B",
    "lr",
    "seed",
    "n_ctx",
    "loss",
    "loss_se",
    "ema_loss",
    "ema_loss_se",
    "flops",
    "heldout",
    "noise_scale",
)
# What others call these, in lower case with _ for blanks and hyphens: trackers' exports, Step Law (D, bs, smooth
# loss), ScaleBench (bsz, data_size, non_embedding_param_size, lm_loss), Chinchilla's figure (Model Size, ...).
# Laws are fitted to ema_loss where there is one: Step Law's smoothed loss is what its authors fitted.
ALIASES = {
    "run_id": ("run", "run_name", "exp_name"),
    "status": ("state",),
    "N": ("params", "parameters", "n_params", "num_params", "model_size", "non_embedding_param_size"),
    "T": ("d", "tokens", "n_tokens", "num_tokens", "training_tokens", "data_size"),
    "B": ("bs", "bsz", "batch", "batch_size"),
    "lr": ("learning_rate",),
    "loss": ("lm_loss", "val_loss", "validation_loss"),
    "ema_loss": ("smooth_loss",),
    "flops": ("training_flop", "training_flops"),
}
STATES = dict.fromkeys(("done", "finished", "completed", "complete", "success", "succeeded"), "done")
STATES["diverged"] = "diverged"
STATES |= dict.fromkeys(
    (
        "pending",
        "running",
        "preempted",
        "failed",
        "lost",
        "crashed",
        "killed",
        "stopped",
        "cancelled",
        "canceled",
        "queued",
        "timeout",
        "preempting",
    ),
    "unfinished",
)
# Counts, rates and losses lie far inside; products of what lies outside leave the range of floats.
LEAST, MOST = 1e-80, 1e80
DIVERGED = "a run that diverged has 'diverged' in a column 'status'"
FLAGS = {"": False, "0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
WORDS = Words(line="row", cell="number")


@dataclass(frozen=True)
class Result:
    """One milestone of one run, as it was read; nan where a number is unknown.

    Attributes:
        N, T, B, lr: parameters, tokens seen, batch in tokens, learning rate.
        nominal_T: the milestone's tokens, ``asked`` whether the run was asked for them.
        noise_scale: of its gradient, in tokens.
        diverged: its loss is beyond any number.
        named: whether the source gave the run's name.
        stream: seed of the run's samples, or -1.
        skipped: share of its steps that moved nothing.
        samples, crc32: the file of per-sample losses, or empty, and its checksum, or -1.
    """

    run_id: str
    N: float
    T: float
    nominal_T: float
    B: float = math.nan
    lr: float = math.nan
    diverged: bool = False
    loss: float = math.nan
    loss_se: float = math.nan
    ema_loss: float = math.nan
    ema_loss_se: float = math.nan
    flops: float = math.nan
    noise_scale: float = math.nan
    seed: int = 0
    n_ctx: int = 0
    heldout: bool = False
    asked: bool = False
    named: bool = True
    stream: int = -1
    skipped: float = math.nan
    samples: str = ""
    crc32: int = -1


@dataclass(frozen=True)
class Cells:
    """One row of a table, for messages that name its place and its column.

    Attributes:
        place: the table and the row's number.
        number: the row's number.
        values: by our names, without blanks around them; None where there is none.
        names: the table's columns by our names.
        row: all cells by the table's columns.
    """

    place: str
    number: str
    values: dict[str, object]
    names: dict[str, str | None]
    row: dict[str, object]

    def has(self, ours: str) -> bool:
        return self.values[ours] is not None

    def where(self, ours: str) -> str:
        return f"{self.place}: {self.names[ours]}"

    def positive(self, ours: str) -> float:
        return positive(self.values[ours], self.where(ours))

    def whole(self, ours: str) -> int:
        return whole_number(self.values[ours], self.where(ours)) if self.has(ours) else 0

    def text(self, ours: str) -> str:
        return str(self.values[ours]).lower() if self.has(ours) else ""


@dataclass(frozen=True)
class NamedTable:
    """A table whose columns are known by our names.

    Attributes:
        source: its path.
        table: as it was read.
        present: its columns without blanks around them.
        names: ours -> its column, or None.
    """

    source: str
    table: Table
    present: list[str]
    names: dict[str, str | None]

    def require(self, *missing: str) -> None:
        """Raise UserError for columns that are missing."""
        if missing:
            raise UserError(
                f"{self.source}: no columns {', '.join(missing)} (name them with --columns); there are "
                f"{listed(self.present)}"
            )

    def batch_tokens(self, unit: str | None) -> float:
        """Tokens in one unit of its batches; ``unit`` must be given for a column that is not called B."""
        return batch_tokens(unit) if unit is not None or self.names["B"] not in (None, "B") else 1.0

    def rows(self, every: bool = False) -> Iterator[Cells]:
        """Its rows, with all columns where ``every`` is asked for."""
        of_table = dict(zip(self.present, self.table.columns))
        wanted = {ours: of_table[theirs] for ours, theirs in self.names.items() if theirs is not None}
        read = False
        for place, row in self.table.rows(self.table.columns if every else list(wanted.values())):
            read, number = True, place.rsplit(" ", 1)[1]
            values = {ours: _stripped(row.get(wanted[ours])) if ours in wanted else None for ours in self.names}
            yield Cells(f"{self.source}, row {number}", number, values, self.names, row)
        if not read:
            raise UserError(f"{self.source}: no rows")


@dataclass(frozen=True)
class ResultTable:
    """A table's results.

    Attributes:
        results: one for each row that is a result.
        unit: tokens in one unit of the table's batches.
        columns: columns known by another name, ours -> the table's.
        notes: sentences on the rows that were left out.
    """

    results: list[Result]
    unit: float
    columns: dict[str, str]
    notes: tuple[str, ...]


def batch_tokens(unit: str | None) -> float:
    """Tokens in one unit of batch, from "tokens" or "sequences:2048"."""
    if unit is None:
        raise UserError("say what a batch counts: --batch-unit tokens, or sequences:2048 for sequences of 2048 tokens")
    kind, _, tokens = unit.partition(":")
    if kind == "tokens" and not tokens:
        return 1.0
    if kind == "sequences" and tokens.isdigit() and 0 < int(tokens) <= MOST:
        return float(tokens)
    raise UserError(f"--batch-unit {unit!r} is neither 'tokens' nor 'sequences:TOKENS_EACH'")


def parse_columns(text: str | None) -> dict[str, str]:
    """``"N=params,T=tokens"`` as a mapping from our name to the file's."""
    names = [*COLUMNS, "L"]
    mapping = {}
    for pair in text.split(",") if text else []:
        ours, equals, theirs = pair.partition("=")
        if not equals or not theirs:
            raise UserError(f"--columns: {pair!r} is not OURS=THEIRS, such as N=params")
        if ours not in names:
            raise UserError(f"--columns: unknown name {ours!r}{nearest(ours, names)}; ours are {', '.join(names)}")
        ours = "ema_loss" if ours == "L" else ours
        if ours in mapping:
            raise UserError(f"--columns: {ours} is named twice")
        mapping[ours] = theirs
    return mapping


def read_results(
    path: Path, columns: dict[str, str], unit: str | None, hyperparameters: bool | None, losses: bool
) -> ResultTable:
    """A table of results, ``scaling.runs.read``'s arguments.

    Raises:
        UserError: no table, missing or ambiguous columns, or a value that is no positive number (with its row).
    """
    table = open_table(path, columns)
    names = table.names
    # Tables of isoFLOP studies give compute, not tokens.
    from_flops = names["T"] is None and names["flops"] is not None
    needed = ["N", "flops" if from_flops else "T"]
    if hyperparameters or (hyperparameters is None and (names["B"] or names["lr"])):
        needed += ["B", "lr"]
    missing = [ours for ours in needed if names[ours] is None]
    if losses and names["loss"] is None and names["ema_loss"] is None:
        missing.append("L")
    table.require(*missing)
    per_unit = table.batch_tokens(unit)
    results, unnamed, left_out, blank, count = [], {}, Counter(), 0, 0
    for cells in table.rows():
        count += 1
        state = cells.text("status") or "done"
        if state not in STATES:
            known = ", ".join(STATES)
            raise UserError(f"{cells.where('status')} {cells.values['status']!r:.60} is no known state ({known})")
        if STATES[state] == "unfinished":
            left_out[state] += 1
        elif losses and STATES[state] == "done" and not (cells.has("loss") or cells.has("ema_loss")):
            blank += 1
        else:
            results.append(_result(cells, needed, STATES[state] == "diverged", per_unit, unnamed))
    notes = []
    if left_out:
        states = ", ".join(f"{number} {state}" for state, number in sorted(left_out.items()))
        notes.append(f"{left_out.total()} of {count} rows are left out by their state: {states}; finish them first")
    if blank:
        notes.append(f"{blank} of {count} rows are left out: they have no loss ({DIVERGED})")
    if not results:
        raise UserError(f"{table.source}: no row is a result ({'; '.join(notes)})")
    if from_flops and any(result.n_ctx for result in results):
        raise UserError(
            f"{table.source} has flops and n_ctx but no T: flops / 6N and the paper's cost by n_ctx are no one law; "
            "name the tokens (--columns T=...), or leave n_ctx out"
        )
    recognised = {ours: theirs for ours, theirs in names.items() if theirs not in (None, ours) and ours not in columns}
    return ResultTable(results, per_unit, recognised, tuple(notes))


def _result(cells: Cells, needed: list[str], diverged: bool, per_unit: float, unnamed: dict[tuple, str]) -> Result:
    """A row's values, checked. ``unnamed`` gets the runs of rows that name none."""
    values: dict[str, Any] = {}
    for ours in ("N", "T", "B", "lr"):
        absent = ours not in needed and cells.names[ours] is None
        values[ours] = math.nan if absent else cells.positive(ours)
    if "flops" in needed:
        values["T"] = cells.positive("flops") / (6 * values["N"])
    for ours in ("loss", "ema_loss") if not diverged else ():
        if cells.text(ours).lstrip("+-") in ("nan", "inf", "infinity"):
            raise UserError(f"{cells.where(ours)} is {cells.values[ours]!r}: {DIVERGED}")
    for ours in ("loss", "ema_loss", "loss_se", "ema_loss_se", "flops", "n_ctx", "noise_scale"):
        # A diverged run's loss is beyond any number, also where it recorded one.
        ignored = not cells.has(ours) or (diverged and "loss" in ours)
        if not ignored and not (ours.endswith("_se") and _is_zero(cells.values[ours])):
            values[ours] = cells.positive(ours)
    for ours in ("loss", "ema_loss"):
        if values.get(f"{ours}_se", 0) > values.get(ours, math.inf):
            raise UserError(
                f"{cells.where(f'{ours}_se')} is {cells.values[f'{ours}_se']!r:.60}, more than the loss itself"
            )
    values |= {ours: cells.whole(ours) for ours in ("seed", "n_ctx")}
    if cells.text("heldout") not in FLAGS:
        raise UserError(f"{cells.where('heldout')} is {cells.values['heldout']!r:.60}, neither 0 nor 1")
    if "noise_scale" in values:  # in the unit of B
        values["noise_scale"] *= per_unit
    values |= {"B": values["B"] * per_unit, "nominal_T": values["T"], "diverged": diverged}
    named, run = cells.has("run_id"), str(cells.values["run_id"] or f"row-{cells.number}")
    if not named and values["B"] > 0 and values["lr"] > 0:
        # Milestones of one run err together.
        key = values["N"], values["B"], values["lr"], str(cells.values["seed"] or "")
        run = unnamed.setdefault(key, run)
    return Result(run_id=run, named=named, heldout=FLAGS[cells.text("heldout")], **values)


def open_table(path: Path, columns: dict[str, str], wanted: Sequence[str] = COLUMNS) -> NamedTable:
    """A table with its columns for the ``wanted`` of COLUMNS, as ``columns`` names them or as they are known.

    Raises:
        UserError: no table, a column that is there twice, or two that may be the same of ours.
    """
    given = {_plain(theirs) for theirs in columns.values()}

    def is_header(names: list[str]) -> bool:
        return len({*map(_plain, known_as(COLUMNS, names)), *given.intersection(map(_plain, names))}) > 1

    table = read_table(path, is_header, WORDS)
    present, source = [name.strip() for name in table.columns], str(path)
    if not present:
        raise UserError(f"{source}: no rows")
    if twice := [name for name in present if present.count(name) > 1]:
        raise UserError(f"{source}: column {twice[0]!r} is there twice")
    return NamedTable(source, table, present, _names(present, columns, source, wanted))


def known_as(ours: Sequence[str], present: Sequence[str]) -> list[str]:
    """The columns ``present`` that are known as one of ``ours``."""
    names = {_plain(name) for one in ours for name in (one, *ALIASES.get(one, ()))}
    return [name for name in present if _plain(name) in names]


def _plain(name: str) -> str:
    return name.strip().casefold().replace(" ", "_").replace("-", "_")


def _names(present: list[str], columns: dict[str, str], source: str, wanted: Sequence[str]) -> dict[str, str | None]:
    """Ours -> the table's column, or None. A name spelled as ours comes first, then as others spell it."""
    for ours, theirs in columns.items():
        if theirs not in present:
            hint = nearest(theirs, present)
            raise UserError(f"{source}: no column {theirs!r} for {ours}{hint}; there are {listed(present)}")
    free = [name for name in present if name not in columns.values()]
    names: dict[str, str | None] = {}
    for ours in wanted:
        if ours in columns or ours in free:
            names[ours] = columns.get(ours, ours)
            continue
        known = {_plain(ours), *ALIASES.get(ours, ())}
        found = [name for name in free if _plain(name) in known and name not in COLUMNS]
        if len(found) > 1 and not (ours == "loss" and "ema_loss" in columns):
            raise UserError(
                f"{source}: columns {' and '.join(map(repr, found))} may both be {ours}; choose with --columns "
                f"{ours}={found[0]}"
            )
        names[ours] = found[0] if len(found) == 1 else None
    return names


def _stripped(value: Any) -> Any:
    """A cell's value; None for a blank one."""
    value = value.strip() if isinstance(value, str) else value
    return None if value == "" else value


def positive(value: Any, where: str) -> float:
    """``value`` as a number above 0 and of sensible size; UserError says ``where`` there is another."""
    if value in (None, ""):
        raise UserError(f"{where} is missing")
    number = _number(value)
    if number is None:
        raise UserError(f"{where} is {value!r:.60}, not a number{number_hint(value)}")
    if not LEAST <= number <= MOST:
        raise UserError(f"{where} is {value!r:.60}, not a positive number from {LEAST:g} to {MOST:g}")
    return number


def whole_number(value: Any, where: str) -> int:
    """``value`` as a whole number; UserError says ``where`` there is another."""
    number = float(value) if isinstance(value, bool) else _number(value)
    if number is None or not number.is_integer() or abs(number) >= 2**53:
        raise UserError(f"{where} is {value!r:.60}, not a whole number{number_hint(value) if number is None else ''}")
    return int(number)


def _is_zero(value: Any) -> bool:
    return _number(value) == 0


def _number(value: Any) -> float | None:
    """``value`` as a float; None where it is none."""
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
