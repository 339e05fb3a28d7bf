"""Copies and reruns among the results of a source: each measurement counts once."""

from dataclasses import fields
from operator import attrgetter

from videoscaling.scaling.tables import Result
from videoscaling.utils.errors import UserError, plural

NAMED = 3  # runs or losses that one message names
_VALUES = attrgetter(*(f.name for f in fields(Result) if f.name not in ("run_id", "samples", "named")))


def distinct(results: list[Result], source: str, keep_last: bool, renamed: bool) -> tuple[list[Result], list[str]]:
    """The results without copies, and sentences on what was left out.

    Rows that agree in everything are one measurement, and so are runs that agree in all their rows under two names.
    Two losses of one run at one T are a stale one and a new one: a run that was resumed, or a table made twice.

    Args:
        keep_last: keep the later row of those, instead of refusing them.
        renamed: whether runs of other names may be copies. The names of run directories distinguish configurations.

    Raises:
        UserError: a run with two losses at one T.
    """
    once: dict[str, Result] = {}
    for row in results:
        once.setdefault(_content(row, with_run=row.named), row)
    notes = []
    if copies := len(results) - len(once):
        counted = "row is a copy of another, and counts once", "rows are copies of others, and count once"
        notes.append(plural(copies, *counted))
    kept, stale = _latest(list(once.values()), source, keep_last)
    if stale:
        older = plural(stale, "row is", "rows are")
        notes.append(f"{older} left out: a later row has the same run and T (--duplicates last)")
    if renamed and (names := _copied_runs(kept)):
        kept = [row for row in kept if row.run_id not in names]
        named = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
        again = plural(len(names), "run is a copy of another", "runs are copies of others")
        notes.append(f"{again} under another name, and counted once: {named}")
    return kept, notes


def _latest(results: list[Result], source: str, keep_last: bool) -> tuple[list[Result], int]:
    """The results with one loss for each run and T, and how many were left out."""
    places: dict[str, list[Result]] = {}
    for row in results:
        key = repr((row.run_id, row.N, row.T, row.B, row.lr, row.nominal_T) if row.named else id(row))
        places.setdefault(key, []).append(row)
    twice = [rows for rows in places.values() if len(rows) > 1]
    if twice and not keep_last:
        first, more = twice[0], f" (and {len(twice) - 1} more such)" if len(twice) > 1 else ""
        losses = " and ".join(map(_loss_text, first[:NAMED]))
        raise UserError(
            f"{source}: run {first[0].run_id!r} has {len(first)} losses at N {first[0].N:.4g}, T {first[0].T:.4g}: "
            f"{losses}{more}; keep one row for each, or --duplicates last keeps the later row"
        )
    stale = {id(row) for rows in twice for row in rows[:-1]}
    return [row for row in results if id(row) not in stale], len(stale)


def _copied_runs(results: list[Result]) -> list[str]:
    """Runs whose every row an earlier run has under its name; some row must have a loss."""
    runs: dict[str, list[Result]] = {}
    for row in results:
        runs.setdefault(row.run_id, []).append(row)
    seen, copies = set(), []
    for run, rows in runs.items():
        content = frozenset(_content(row, with_run=False) for row in rows)
        if content in seen and any(row.loss > 0 or row.ema_loss > 0 for row in rows):
            copies.append(run)
        seen.add(content)
    return copies


def _content(row: Result, with_run: bool) -> str:
    """What two rows of one measurement agree in, with the name of the run or without."""
    return repr((row.run_id if with_run else "", *_VALUES(row)))  # as text: nan is no number's equal


def _loss_text(row: Result) -> str:
    if row.diverged:
        return "diverged"
    loss = row.ema_loss if row.ema_loss > 0 else row.loss
    return f"{loss:.6g}" if loss > 0 else "none"
