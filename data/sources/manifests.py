"""Manifests: tables of videos with captions and ranges."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videoscaling.data.sources.captions import CAPTION_NAMES, FIX, ListingOptions, find_name
from videoscaling.data.sources.source import Listing, Source, one_line
from videoscaling.utils.errors import UserError, listed, nearest, nearest_path
from videoscaling.utils.tables import Table, Words, number_hint, read_table

# Columns of seconds. Whole videos would be trained on where a range's column went unread.
START_NAMES = ("start", "start_time", "start_sec", "start_seconds")
END_NAMES = ("end", "end_time", "end_sec", "end_seconds")
WORDS = Words(cell="caption", object="'path' and 'caption'")


@dataclass(frozen=True)
class Columns:
    """The columns that a manifest is read from, as it spells them; None where it has none."""

    path: str
    caption: str | None
    start: str | None
    end: str | None

    @property
    def present(self) -> list[str]:
        return [name for name in (self.path, self.caption, self.start, self.end) if name is not None]


def list_manifest(manifest: Path, options: ListingOptions) -> Listing:
    """The rows' files and captions, in any order; see ``data.sources.listing.scan_sources``.

    Raises:
        UserError: no column of paths or captions, or two that may be it; no row; a row without a path, with more
            fields than the header, of no existing file, of one outside the root, of a range that is none or is listed
            twice; text that is not UTF-8, or no table.
    """
    root = manifest.parent if options.root is None else options.root
    if not root.is_dir():
        raise UserError(f"--root {root}: no such folder{nearest_path(root)}")
    wanted = (options.path_column or "path").strip().casefold()
    table = read_table(manifest, lambda names: any(name.strip().casefold() == wanted for name in names), WORDS)
    columns = _find_columns(manifest, table, options)
    sources: dict[str, Source] = {}
    for place, row in table.rows(columns.present) if columns else ():
        source = _source(root, row, columns, place)
        # Rows of JSON alone lack a column. "caption" is chosen silently where a row has a synonym too.
        if options.caption_column is None and columns.caption not in (None, *row):
            other = find_name(set(row) - {columns.path}, CAPTION_NAMES, place, option="--caption-column")
            if other is not None:
                raise UserError(f"{place}: {other!r} where other rows have {columns.caption!r}; rename one of them")
        if source.name in sources:
            raise UserError(f"{place}: {source.name} is listed twice")
        sources[source.name] = source
    if not sources:
        raise UserError(f"{manifest}: the manifest lists no videos")
    if options.captions and columns.caption is None:
        raise UserError(f"{manifest}: no column of captions (there are: {listed(table.columns)}); {FIX}")
    unread = [name for name in table.columns if name not in columns.present]
    return Listing(list(sources.values()), {}, unread)


def _find_columns(manifest: Path, table: Table, options: ListingOptions) -> Columns | None:
    """The columns of a table, or None where it has no columns at all."""
    names, place = table.columns, str(manifest)
    if not names:
        return None
    path = find_name(names, ("path",), place, given=options.path_column, option="--path-column")
    if path is None:
        raise UserError(
            f"{manifest}: no column 'path' (there are: {listed(names)}{nearest('path', names)}); name it with "
            "--path-column NAME"
        )
    caption = None
    if options.captions:
        others = [name for name in names if name != path]
        caption = find_name(others, CAPTION_NAMES, place, given=options.caption_column, option="--caption-column")
    return Columns(path, caption, *(find_name(names, known, place) for known in (START_NAMES, END_NAMES)))


def _source(root: Path, row: dict[str, object], columns: Columns, place: str) -> Source:
    path = row.get(columns.path)
    if not path or not isinstance(path, str):
        raise UserError(f"{place}: no path in this row")
    # Lexical on purpose: a link inside the folder to a disk elsewhere is the owner's decision, "../" is not.
    name = Path(os.path.relpath(root / path, root)).as_posix()
    if name.startswith("../"):
        raise UserError(
            f"{place}: {path} lies outside the manifest's folder; --root FOLDER names the folder that paths start from"
        )
    if not _is_name(name) or not (root / name).is_file():
        there = _is_name(name) and (root / name).exists()
        raise UserError(f"{place}: no {'regular' if there else 'such'} file: {root / name}")
    start, end = (
        _seconds(None if column is None else row.get(column), column, place) for column in (columns.start, columns.end)
    )
    if end is not None and end <= (start or 0):
        raise UserError(f"{place}: the range ends at {end:g} s, where it has not begun")
    if start is not None or end is not None:
        name = f"{name}@{start or 0:.12g}-{'' if end is None else format(end, '.12g')}"
    caption = "" if columns.caption is None else one_line(row.get(columns.caption), place)
    return Source(name, root / path, caption, start, end)


def _is_name(name: str) -> bool:
    """Whether a file can be called so: a JSON may write a byte that is not UTF-8 as \\udc80 to \\udcff, no other."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def _seconds(value: Any, column: str | None, place: str) -> float | None:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise UserError(f"{place}: {column} is {value!r}, which is no number of seconds{number_hint(value)}")
    return seconds
