"""A run's metrics.jsonl and TensorBoard events. Results do not depend on them, so their faults never end a run."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypedDict

from videoscaling.utils.errors import UserError
from videoscaling.utils.files import atomic_write, parse_json, write_bytes
from videoscaling.utils.messages import warn
from videoscaling.utils.os_errors import describe, warn_of_os_error, with_filename

METRICS = "metrics.jsonl"  # in a run directory
HPARAMS_FILE = "events.out.tfevents.0.hparams"  # sorts before the events, as TensorBoard reads files in that order
DAMAGED = ".damaged"  # after the name of a file whose lines were not all readable


class MetricsRow(TypedDict, total=False):
    """A line of metrics.jsonl (docs/formats.md); older versions wrote less."""

    step: int
    tokens: int
    flops: float
    loss: float | None
    lr: float
    grad_norm: float | None
    skipped: int
    noise_scale: float | None
    tokens_per_second: float
    data_seconds: float
    share: float
    mfu: float | None
    loss_by_shape: dict[str, float]


class MetricsFile:
    """Appends to a run's metrics.jsonl from ``step`` on; later lines of a lost attempt are cut off.

    Attributes:
        last: the last line that was kept, or None.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        self.last: MetricsRow | None = None
        self._file: IO[str] | None = None
        self._warned, self._torn = False, False
        if os.path.lexists(path):
            self.last = _cut(path, step)

    def append(self, values: MetricsRow) -> None:
        """Write a line. A failure gives one warning; later lines are tried again."""
        try:
            with with_filename(self._path):
                if self._file is None:
                    self._file = self._path.open("a", encoding="utf-8")
                # After a failure the line before may be torn: it keeps to a line of its own.
                self._file.write("\n" * self._torn + json.dumps(values) + "\n")
                self._file.flush()
            self._torn = False
        except OSError as error:
            if not self._warned:
                warn(f"a line is missing: {describe(error) or error}")
            self._warned = self._torn = True
            self.close()

    def close(self) -> None:
        """Close the file; lines that could not be written are lost."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # the unwritten bytes belong to the line that failed
                file.close()


def _cut(path: Path, step: int) -> MetricsRow | None:
    """Keep the whole lines up to ``step``, and return the last. A file with other lines is
    saved under another name, with a warning.

    A file that cannot be read or written is saved under another name too, and a new one begun.
    """
    damaged = path.with_name(path.name + DAMAGED)
    try:
        with with_filename(path):
            content = path.read_bytes()
        # A line cut short by a kill has no newline, and comes after the checkpoint.
        lines = [line for line in content.splitlines(keepends=True) if line.endswith(b"\n") and line.strip()]
        rows = [parse_row(line) for line in lines]
        kept = [(line, row) for line, row in zip(lines, rows) if row is not None and row["step"] <= step]
        if None in rows:
            write_bytes(damaged, content)
            count = f"{rows.count(None)} of {len(rows)} lines are damaged"
            warn(f"{path}: {count}; they are left out, and the file as it was is {damaged}")
        write_bytes(path, b"".join(line for line, _ in kept))
        return kept[-1][1] if kept else None
    except OSError as error:
        warn(f"{describe(error) or error}; {path.name} is begun anew")
        with warn_of_os_error(f"{path} cannot be saved under another name"):
            path.replace(damaged)
        return None


def parse_row(line: bytes) -> MetricsRow | None:
    """A line's values; None if it is not a line of metrics.jsonl."""
    try:
        row = parse_json(line, METRICS, dict)
    except UserError:
        return None
    return row if type(row.get("step")) is int and type(row.get("tokens")) is int else None


def write_events(path: Path, summaries: Iterable[tuple[int, Any]]) -> None:
    """Write a whole TensorBoard file of (step, protocol buffer) in place of an earlier one."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    with atomic_write(path) as tmp, tmp.open("wb") as file:
        writer = RecordWriter(file)
        for step, summary in summaries:
            writer.write(Event(wall_time=time.time(), step=step, summary=summary).SerializeToString())


class Board:
    """A TensorBoard SummaryWriter that an OSError ends with a warning. Any method of SummaryWriter may be called.

    Without a ``folder`` they write nothing.
    """

    def __init__(self, folder: Path | None, **options: Any) -> None:
        self._folder, self._writer = str(folder), None
        if folder is not None:
            self._guard(self._open, **options)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **named_args: self._call(name, *args, **named_args)

    def add_summary(self, summary: Any, step: int) -> None:
        """Write a protocol buffer, such as an animated image, which no method of SummaryWriter takes."""
        if self._writer is not None:
            self._guard(self._writer.file_writer.add_summary, summary, step)

    def add_points(self, values: Mapping[str, float], step: int) -> None:
        """Write a point of each tag in one event: eleven events a logged step took a tenth of a small run's time."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self.add_summary(Summary(value=points), step)

    def write_hparams(self, settings: Mapping[str, object], metrics: Sequence[str]) -> None:
        """Write the run's row in TensorBoard's HParams table: ``settings``, and the last point of each of ``metrics``.

        The row has a file of its own, which is replaced: TensorBoard keeps the first settings that it finds, and a run
        may grow. ``SummaryWriter.add_hparams`` would also repeat the last losses as points.
        """
        if self._writer is not None:
            self._guard(self._replace_hparams, settings, metrics)

    def _replace_hparams(self, settings: Mapping[str, object], metrics: Sequence[str]) -> None:
        from torch.utils.tensorboard.summary import hparams

        summaries = hparams(dict(settings), dict.fromkeys(metrics))
        write_events(Path(self._folder) / HPARAMS_FILE, [(0, summary) for summary in summaries])

    def _open(self, **options: Any) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second to import, and only the main process writes

        _quiet_writer_threads()
        self._writer = SummaryWriter(self._folder, **options)

    def _call(self, name: str, *args: Any, **named_args: Any) -> None:
        if self._writer is not None:
            self._guard(getattr(self._writer, name), *args, **named_args)

    def _guard(self, write: Callable[..., Any], *args: Any, **named_args: Any) -> None:
        try:
            write(*args, **named_args)
        except OSError as error:
            self._writer = None
            what = f"{self._folder}: TensorBoard's events end here, until the run is started again"
            warn(f"{what}: {describe(error) or error}")


def _quiet_writer_threads() -> None:
    """Keep the OSError of a TensorBoard thread, which the next write raises again, from printing a traceback."""
    before = threading.excepthook
    if getattr(before, "ignores_writers", False):
        return

    def hook(args: threading.ExceptHookArgs) -> None:
        writer = args.thread is not None and type(args.thread).__name__ == "_AsyncWriterThread"
        if not (writer and isinstance(args.exc_value, OSError)):
            before(args)

    hook.ignores_writers = True
    threading.excepthook = hook
