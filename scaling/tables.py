"""Tables of training results from any trainer: which column is which, which rows are results, and which are copies."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videoscaling.utils.errors import UserError, nearest, plural
from videoscaling.utils.tables import Table, Words, read_table

COLUMNS = (
    "run_id", "status", "N", "T", "B", "lr", "seed", "n_ctx",
    "loss", "loss_se", "ema_loss", "ema_loss_se", "flops", "heldout",
)  # fmt: skip
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
    ("pending", "running", "preempted", "failed", "lost", "crashed", "killed", "stopped", "cancelled", "canceled",
     "queued", "timeout", "preempting"),
    "unfinished",
)  # fmt: skip
# Counts, rates and losses lie far inside; products of what lies outside leave the range of floats.
LEAST, MOST = 1e-80, 1e80
DIVERGED = "a run that diverged has 'diverged' in a column 'status'"
FLAGS = {"": False, "0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
WORDS = Words(line="row", cell="number")
NAMED = 3  # states, runs or cells that one message names


@dataclass(frozen=True)
class ResultTable:
    """A table's rows as entries of a run table.

    Attributes:
        entries: one for each row that is a result, by our names; what is unknown is None or nan.
        unit: tokens in one unit of the table's batches.
        columns: columns known by another name, ours -> the table's.
        notes: sentences on the rows that were left out.
    """

    entries: list[dict[str, Any]]
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
    for pair in (text or "").split(",") if text else []:
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
    table, names = open_table(path, columns)
    present, source = [name.strip() for name in table.columns], str(path)
    # Tables of isoFLOP studies give compute, not tokens.
    from_flops = names["T"] is None and names["flops"] is not None
    needed = _needed(names, source, present, from_flops, hyperparameters, losses)
    per_unit = batch_tokens(unit) if unit is not None or (names["B"] not in (None, "B")) else 1.0
    of_table = dict(zip(present, table.columns))
    wanted = {ours: of_table[theirs] for ours, theirs in names.items() if theirs is not None}
    entries, unnamed, left_out, blank, rows = [], {}, Counter(), 0, 0
    for place, row in table.rows(list(wanted.values())):
        rows += 1
        get = {ours: _cell(row.get(wanted[ours])) if ours in wanted else None for ours in COLUMNS}
        reader = _Reader(f"{source}, row {place.rsplit(' ', 1)[1]}", get, names)
        state = "done" if get["status"] is None else str(get["status"]).lower()
        if state not in STATES:
            known_states = ", ".join(STATES)
            raise UserError(f"{reader.where('status')} {get['status']!r:.60} is no known state ({known_states})")
        if STATES[state] == "unfinished":
            left_out[state] += 1
            continue
        diverged = STATES[state] == "diverged"
        if not diverged and losses and get["loss"] is None and get["ema_loss"] is None:
            blank += 1
            continue
        entry = reader.entry(needed, from_flops, diverged)
        entry["B"] *= per_unit
        entry["run_id"] = str(get["run_id"] or f"row-{reader.place.rsplit(' ', 1)[1]}")
        entry["named"] = get["run_id"] is not None
        if not entry["named"] and entry["B"] > 0 and entry["lr"] > 0:
            # Milestones of one run err together.
            run = entry["N"], entry["B"], entry["lr"], str(get["seed"] or "")
            entry["run_id"] = unnamed.setdefault(run, entry["run_id"])
        entries.append(entry)
    if not rows:
        raise UserError(f"{source}: no rows")
    notes = []
    if left_out:
        states = ", ".join(f"{count} {state}" for state, count in sorted(left_out.items()))
        notes.append(f"{left_out.total()} of {rows} rows are left out by their state: {states}")
    if blank:
        notes.append(f"{blank} of {rows} rows are left out: they have no loss ({DIVERGED})")
    if not entries:
        raise UserError(f"{source}: no row is a result ({'; '.join(notes)})")
    if from_flops and any(entry["n_ctx"] for entry in entries):
        raise UserError(
            f"{source} has flops and n_ctx but no T: flops / 6N and the paper's cost by n_ctx are no one law; name "
            "the tokens (--columns T=...), or leave n_ctx out"
        )
    recognised = {ours: theirs for ours, theirs in names.items() if theirs not in (None, ours) and ours not in columns}
    return ResultTable(entries, per_unit, recognised, tuple(notes))


def open_table(
    path: Path, columns: dict[str, str], wanted: Sequence[str] = COLUMNS
) -> tuple[Table, dict[str, str | None]]:
    """A table, and ours -> its column without blanks around it, or None, for the ``wanted`` of COLUMNS.

    Raises:
        UserError: no table, a column that is there twice, or two that may be the same of ours.
    """
    known = {_plain(name) for ours in COLUMNS for name in (ours, *ALIASES.get(ours, ()))}
    known |= {_plain(theirs) for theirs in columns.values()}
    table = read_table(path, lambda names: len(known.intersection(map(_plain, names))) > 1, WORDS)
    present, source = [name.strip() for name in table.columns], str(path)
    if not present:
        raise UserError(f"{source}: no rows")
    if twice := [name for name in present if present.count(name) > 1]:
        raise UserError(f"{source}: column {twice[0]!r} is there twice")
    return table, _names(present, columns, source, wanted)


def _plain(name: str) -> str:
    return name.strip().casefold().replace(" ", "_").replace("-", "_")


def _names(present: list[str], columns: dict[str, str], source: str, wanted: Sequence[str]) -> dict[str, str | None]:
    """Ours -> the table's column, or None. A name spelled as ours comes first, then as others spell it."""
    for ours, theirs in columns.items():
        if theirs not in present:
            hint = nearest(theirs, present)
            raise UserError(f"{source}: no column {theirs!r} for {ours}{hint}; there are {', '.join(present)}")
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


def _needed(
    names: dict[str, str | None],
    source: str,
    present: list[str],
    from_flops: bool,
    hyperparameters: bool | None,
    losses: bool,
) -> tuple[str, ...]:
    """Those of ours that every row must have; UserError where the table lacks one."""
    needed = ("N", "flops") if from_flops else ("N", "T")
    if hyperparameters or (hyperparameters is None and (names["B"] or names["lr"])):
        needed += ("B", "lr")
    missing = [ours for ours in needed if names[ours] is None]
    if losses and names["loss"] is None and names["ema_loss"] is None:
        missing.append("L")
    if missing:
        raise UserError(
            f"{source}: no columns {', '.join(missing)} (name them with --columns); there are {', '.join(present)}"
        )
    return needed


def _cell(value: Any) -> Any:
    """A cell's value; None for a blank one."""
    value = value.strip() if isinstance(value, str) else value
    return None if value == "" else value


@dataclass(frozen=True)
class _Reader:
    """One row: its place for messages, its cells by our names, and the table's names of these."""

    place: str
    get: dict[str, Any]
    names: dict[str, str | None]

    def where(self, ours: str) -> str:
        return f"{self.place}: {self.names[ours]}"

    def entry(self, needed: Sequence[str], from_flops: bool, diverged: bool) -> dict[str, Any]:
        """The row's values, checked."""
        get, entry = self.get, {"status": "diverged" if diverged else "done"}
        for key in ("N", "T", "B", "lr"):
            absent = key not in needed and self.names[key] is None
            entry[key] = math.nan if absent else positive(get[key], self.where(key))
        if from_flops:
            entry["T"] = positive(get["flops"], self.where("flops")) / (6 * entry["N"])
        entry["nominal_T"] = entry["T"]
        for key in ("loss", "ema_loss"):
            if not diverged and str(get[key]).lower().lstrip("+-") in ("nan", "inf", "infinity"):
                raise UserError(f"{self.where(key)} is {get[key]!r}: {DIVERGED}")
        for key in ("loss", "ema_loss", "loss_se", "ema_loss_se", "flops", "n_ctx"):
            # Whatever a diverged run recorded, its loss is beyond any number.
            ignored = diverged and "loss" in key
            unknown = get[key] is None or (key.endswith("_se") and _is_zero(get[key]))
            entry[key] = None if ignored or unknown else positive(get[key], self.where(key))
        for key in ("loss", "ema_loss"):
            if entry[key] is not None and (entry[f"{key}_se"] or 0) > entry[key]:
                raise UserError(f"{self.where(f'{key}_se')} is {get[f'{key}_se']!r:.60}, more than the loss itself")
        for key in ("seed", "n_ctx"):
            entry[key] = 0 if get[key] is None else whole_number(get[key], self.where(key))
        flag = str("" if get["heldout"] is None else get["heldout"]).lower()
        if flag not in FLAGS:
            raise UserError(f"{self.where('heldout')} is {get['heldout']!r:.60}, neither 0 nor 1")
        entry["heldout"] = FLAGS[flag]
        return entry


def distinct(
    rows: list[dict[str, Any]], source: str, duplicates: str | None, renamed: bool
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The rows without copies, and sentences on what was left out.

    Rows that agree in everything are one measurement, and so are runs that agree in all their rows under two names.
    Two losses of one run at one T are a stale one and a new one: a run that was resumed, or a table made twice.

    Args:
        duplicates: "last" keeps the later row of those; None refuses them.
        renamed: whether runs of other names may be copies. The names of run directories distinguish configurations.

    Raises:
        UserError: a run with two losses at one T.
    """
    kept, seen = [], set()
    for row in rows:
        key = _content(row, run=True)
        if key not in seen:
            seen.add(key)
            kept.append(row)
    once = "row is a copy of another, and counts once", "rows are copies of others, and count once"
    notes = [plural(len(rows) - len(kept), *once)] if len(kept) < len(rows) else []
    places: dict[tuple, list[int]] = {}
    for index, row in enumerate(kept):
        if row.get("named", True):
            cell = tuple(None if value != value else value for value in (row[k] for k in ("N", "T", "B", "lr")))
            places.setdefault((row["run_id"], *cell, row["nominal_T"]), []).append(index)
    if twice := {place: found for place, found in places.items() if len(found) > 1}:
        (run, N, T, *_), found = next(iter(twice.items()))
        losses = " and ".join(_loss_text(kept[index]) for index in found[:NAMED])
        if duplicates != "last":
            more = f" (and {len(twice) - 1} more such)" if len(twice) > 1 else ""
            raise UserError(
                f"{source}: run {run!r} has {len(found)} losses at N {N:.4g}, T {T:.4g}: {losses}{more}; keep one row "
                "for each, or --duplicates last keeps the later row"
            )
        stale = {index for found in twice.values() for index in found[:-1]}
        kept = [row for index, row in enumerate(kept) if index not in stale]
        older = plural(len(stale), "row is", "rows are")
        notes.append(f"{older} left out: a later row has the same run and T (--duplicates last)")
    kept, copies = _without_copied_runs(kept) if renamed else (kept, [])
    if copies:
        named = ", ".join(copies[:NAMED]) + (", ..." if len(copies) > NAMED else "")
        again = plural(len(copies), "run is a copy of another", "runs are copies of others")
        notes.append(f"{again} under another name, and counted once: {named}")
    return kept, tuple(notes)


def _without_copied_runs(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows without runs whose every row another run has under its name, and these runs' names."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        runs.setdefault(row["run_id"], []).append(row)
    seen, copies = set(), []
    for run, its_rows in runs.items():
        content = frozenset(_content(row, run=False) for row in its_rows)
        trained = any(row.get("loss") not in (None, math.inf) or row.get("ema_loss") for row in its_rows)
        if content in seen and trained:
            copies.append(run)
        seen.add(content)
    gone = set(copies)
    return [row for row in rows if row["run_id"] not in gone] if gone else rows, copies


def _content(row: dict[str, Any], run: bool) -> str:
    """What two rows of one measurement agree in, with the name of the run or without."""
    left_out = {"samples", "named"} | (set() if run and row.get("named", True) else {"run_id"})
    return json.dumps([(key, row[key]) for key in sorted(row) if key not in left_out], default=str)


def _loss_text(row: dict[str, Any]) -> str:
    if row["status"] == "diverged":
        return "diverged"
    loss = row.get("ema_loss") or row.get("loss")
    return "none" if loss is None else f"{loss:.6g}"


def positive(value: Any, where: str) -> float:
    """``value`` as a number above 0 and of sensible size; UserError says ``where`` there is another."""
    if value in (None, ""):
        raise UserError(f"{where} is missing")
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where} is {value!r:.60}, not a number") from None
    if not LEAST <= number <= MOST:
        raise UserError(f"{where} is {value!r:.60}, not a positive number from {LEAST:g} to {MOST:g}")
    return number


def _is_zero(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and float(value) == 0
    except (TypeError, ValueError, OverflowError):
        return False


def whole_number(value: Any, where: str) -> int:
    """``value`` as a whole number; UserError says ``where`` there is another."""
    try:
        number = int(float(value))
        if number == float(value) and abs(number) < 2**53:
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise UserError(f"{where} is {value!r:.60}, not a whole number")
