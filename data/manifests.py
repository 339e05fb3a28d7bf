"""Manifests: tables (CSV, JSONL, Parquet) of videos with captions and ranges."""

import csv
import io
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.media import Source, one_line, text_of
from utils.errors import UserError, nearest


def list_manifest(manifest: Path) -> list[Source]:
    """The rows' files and captions, in any order; see ``data.listing.list_sources``.

    Raises:
        UserError: no column path, or no row; a row without a path, of no existing file, of one outside the manifest's
            folder, of a range that is none or is listed twice; text that is not UTF-8, or no table.
    """
    kind = manifest.suffix.lower()
    read = MANIFESTS[kind]
    sources: dict[str, Source] = {}
    for number, row in read(manifest):
        place = f"{manifest}, {'row' if kind == '.parquet' else 'line'} {number}"
        source = _source(manifest.parent, row, place)
        if source.name in sources:
            raise UserError(f"{place}: {source.name} is listed twice")
        sources[source.name] = source
    if not sources:
        raise UserError(f"{manifest}: the manifest lists no videos")
    return list(sources.values())


def _source(root: Path, row: dict[str, Any], place: str) -> Source:
    path = row.get("path")
    if not path or not isinstance(path, str):
        raise UserError(f"{place}: no path in this row")
    # Lexical on purpose: a link inside the folder to a disk elsewhere is the owner's decision, "../" is not.
    name = Path(os.path.relpath(root / path, root)).as_posix()
    if name.startswith("../"):
        raise UserError(f"{place}: {path} lies outside the manifest's folder")
    if not (root / name).is_file():
        raise UserError(f"{place}: no such file: {root / name}")
    start, end = (_seconds(row.get(column), column, place) for column in ("start", "end"))
    if end is not None and end <= (start or 0):
        raise UserError(f"{place}: the range ends at {end:g} s, where it has not begun")
    if start is not None or end is not None:
        name = f"{name}@{start or 0:.12g}-{'' if end is None else format(end, '.12g')}"
    return Source(name, root / path, one_line(row.get("caption"), place), start, end)


def _seconds(value: Any, column: str, place: str) -> float | None:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise UserError(f"{place}: {column} is {value!r}, which is no number of seconds")
    return seconds


def _csv_rows(manifest: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = csv.DictReader(io.StringIO(text_of(manifest.read_bytes(), str(manifest)), newline=""))
    try:
        for row in lines:
            _need_path(manifest, list(lines.fieldnames or []))
            yield lines.line_num, row
    except csv.Error as error:
        raise UserError(f"{manifest}, line {lines.line_num}: not CSV ({error})") from None


def _json_rows(manifest: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    first = True
    for number, line in enumerate(text_of(manifest.read_bytes(), str(manifest)).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{manifest}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise UserError(f"{manifest}, line {number}: not a JSON object with 'path' and 'caption'")
        if first:
            _need_path(manifest, list(row))
            first = False
        yield number, row


def _parquet_rows(manifest: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{manifest}: reading Parquet needs pyarrow: pip install pyarrow, or write .csv") from None
    try:
        with parquet.ParquetFile(manifest) as file:
            columns = file.schema_arrow.names
            _need_path(manifest, columns)
            wanted = [name for name in ("path", "caption", "start", "end") if name in columns]
            batches = file.iter_batches(columns=wanted)
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{manifest}: not a Parquet file ({str(error).splitlines()[0]})") from None


def _need_path(manifest: Path, columns: list[str]) -> None:
    if "path" not in columns:
        raise UserError(f"{manifest}: no column 'path' (there are: {', '.join(columns)}{nearest('path', columns)})")


MANIFESTS = {".csv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}
