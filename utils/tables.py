"""Tables as rows of named values: CSV, TSV, JSON lines, JSON arrays (each perhaps gzipped), and Parquet.

Manifests of videos and tables of training results are read by this one reader.
"""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from videoscaling.utils.errors import UserError, plural
from videoscaling.utils.files import parse_json

DELIMITERS = {
    ".csv": ",;\t",
    ".tsv": "\t,;",
}  # the first is used unless only another one gives a header that the caller knows
LINES = {".json", ".jsonl", ".ndjson"}
LIMIT_BYTES = 4 << 30  # of a table, unpacked: some forty million rows; it is read into memory
KINDS = (*DELIMITERS, *sorted(LINES), ".parquet")
# gzip makes zeros 1,029 times smaller, and a table of one caption for all its paths 33 times. A file that unpacks
# to more could fill the memory.
MAX_RATIO, MIN_UNPACKED_BYTES = 100, 1 << 26
UNKNOWN = {"na", "n/a", "#n/a", "nan", "none", "null", "-", "?"}  # how other programs write a blank cell
END = "\x1f end of the table"  # a row that no table has
Row = tuple[str, dict[str, object]]  # its place, for messages, and its values by column


class Words(NamedTuple):
    """A table's names in messages: of a line, and of the content of its cells."""

    line: str = "line"
    cell: str = "value"
    object: str = "a value for each column"


class Table(NamedTuple):
    """A table's columns, and ``rows(wanted)``: its rows with at least the columns ``wanted``."""

    columns: list[str]
    rows: Callable[[Sequence[str]], Iterator[Row]]


def number_hint(value: object) -> str:
    """What to write instead of a cell that is no number, for the end of a message; "" where nothing is known."""
    text = str(value).strip()
    if text.casefold() in UNKNOWN:
        return "; leave the cell blank where it is unknown"
    if re.fullmatch(r"[+-]?\d[\d.,'\s]*(e[+-]?\d+)?%?", text, re.IGNORECASE) and re.search(r"[,'\s%]|\..*\.", text):
        return "; write numbers with a decimal point and with nothing between thousands, such as 1234.5 or 1e6"
    return ""


def table_kind(path: Path) -> str | None:
    """One of ``KINDS``, by the name of a table, gzipped or not; None where it names none."""
    name = path.name.lower()
    plain = Path(name.removesuffix(".gz")).suffix
    return plain if plain in KINDS and not (plain == ".parquet" and name.endswith(".gz")) else None


def read_table(path: Path, is_header: Callable[[list[str]], bool], words: Words | None = None) -> Table:
    """Read the table in ``path`` by its ``table_kind``; an unknown extension is read as CSV.

    Args:
        is_header: whether these are the caller's columns, which identifies a CSV's delimiter.
        words: of the messages.

    Raises:
        UserError: text that is not UTF-8; no table of its kind; a row with more fields than the header (also when
            rows are read).
    """
    kind, words = table_kind(path) or ".csv", words or Words()
    if kind == ".parquet":
        return _parquet(path)
    text = text_of(_content(path), str(path))
    return _json(path, kind, text, words) if kind in LINES else _csv(path, DELIMITERS[kind], text, is_header, words)


def text_of(content: bytes, what: str) -> str:
    """UTF-8 text, a byte order mark apart.

    Raises:
        UserError: it is not; ``what`` names it.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{what}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None


def _content(path: Path) -> bytes:
    if path.suffix.lower() == ".gz":
        limit = min(LIMIT_BYTES, max(MIN_UNPACKED_BYTES, MAX_RATIO * path.stat().st_size))
    else:
        limit = LIMIT_BYTES
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            content = file.read(limit + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file ({error})") from None
    if len(content) > LIMIT_BYTES:
        raise UserError(f"{path}: longer than {LIMIT_BYTES >> 30} GiB; write it as Parquet, which is read in parts")
    if len(content) > limit:
        raise UserError(
            f"{path}: unpacks to more than {MAX_RATIO} times its size, which no table of captions does; unpack it "
            "with gunzip if it is one"
        )
    return content


def _csv(path: Path, delimiters: str, text: str, is_header: Callable[[list[str]], bool], words: Words) -> Table:
    def columns_by(delimiter: str) -> list[str]:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        try:
            return next((row for row in rows if row), [])
        except csv.Error as error:
            raise UserError(f"{path}, {words.line} {rows.line_num}: not CSV ({error})") from None

    headers = {delimiter: columns_by(delimiter) for delimiter in delimiters}
    delimiter = next((d for d, columns in headers.items() if is_header(columns)), delimiters[0])
    # Spreadsheets end rows with blank cells. Rows are read by names, so columns without one but the first get one.
    columns = headers[delimiter]
    nameless = [at for at, column in enumerate(columns) if not column.strip()]
    columns = [f"{column}column {at + 1}" if at in nameless[1:] else column for at, column in enumerate(columns)]
    # Blanks after all of the header's delimiters: rows have them too, and a quote after one opens a field. Where the
    # header has none, a quote after a blank is a character, as csv has it.
    blank = len(columns) > 1 and all(column[:1] == " " for column in columns[1:])
    if blank:
        columns = [column.strip() for column in columns]
    return Table(columns, lambda wanted: _csv_rows(path, text, columns, delimiter, blank, words))


def _csv_rows(path: Path, text: str, columns: list[str], delimiter: str, blank: bool, words: Words) -> Iterator[Row]:
    # A quote that is never closed takes all that follows into its field, without an error: then END is in it.
    lines = chain(io.StringIO(text, newline=""), [END])
    rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=blank)
    width, begin, header, short = len(columns), 1, True, ""
    try:
        for row in rows:
            if row == [END]:
                if short and not text.endswith(("\n", "\r")):
                    raise UserError(
                        f"{short}, and the table ends there without a line break: it was cut short, or lacks one"
                    )
                return
            if row and row[-1].endswith(END):
                raise UserError(f"{path}, {words.line} {begin}: a quote that opens in this row is never closed")
            begin = rows.line_num + 1
            if header or not row:
                header = header and not row
                continue
            if len(row) > width:
                raise UserError(
                    f"{path}, {words.line} {rows.line_num}: {plural(len(row), 'field')} where the header has {width}; "
                    f"put a {words.cell} that holds {delimiter!r} into double quotes"
                )
            short = f"{path}, {words.line} {rows.line_num}: {len(row)} of {width} fields" if len(row) < width else ""
            yield f"{path}, {words.line} {rows.line_num}", dict(zip(columns, row + [None] * (width - len(row))))
    except csv.Error as error:
        raise UserError(f"{path}, {words.line} {rows.line_num}: not CSV ({error})") from None


def _json(path: Path, kind: str, text: str, words: Words) -> Table:
    """Of a JSON array of objects, or of one object a line; columns are the keys of all of them."""
    rows: list[Row] = []
    if kind == ".json" and text.lstrip()[:1] == "[":
        items = ((f"{path}, item {number}", item) for number, item in enumerate(_parsed(text, str(path)), 1))
    else:
        lines = enumerate(text.split("\n"), 1)
        places = ((f"{path}, {words.line} {number}", line) for number, line in lines if line.strip())
        items = ((place, _parsed(line, place)) for place, line in places)
    for place, item in items:
        if not isinstance(item, dict):
            raise UserError(f"{place}: not a JSON object with {words.object}")
        rows.append((place, item))
    columns = dict.fromkeys(key for _, row in rows for key in row)
    return Table(list(columns), lambda wanted: iter(rows))


def _parsed(text: str, what: str) -> Any:
    # NaN is no JSON, but other programs write it: in columns that are not read here, or a loss that is refused later.
    return parse_json(text, f"{what}: not JSON", allow_nan=True)


def _parquet(path: Path) -> Table:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow, or write .csv") from None

    def wrapped(error: Exception) -> UserError:
        return UserError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})")

    def rows(wanted: Sequence[str]) -> Iterator[Row]:
        try:
            with parquet.ParquetFile(path) as file:
                batches = file.iter_batches(columns=list(wanted))
                every = (row for batch in batches for row in batch.to_pylist())
                for number, row in enumerate(every, 1):
                    yield f"{path}, row {number}", row
        except (pyarrow.ArrowException, OSError) as error:
            raise wrapped(error) from None

    try:
        with parquet.ParquetFile(path) as file:
            return Table(list(file.schema_arrow.names), rows)
    except (pyarrow.ArrowException, OSError) as error:
        raise wrapped(error) from None
