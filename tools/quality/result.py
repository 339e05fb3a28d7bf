"""The result of tools/evaluate_samples.py: distances by network, rank correlations, as JSON and as a table."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from videoscaling.tools.quality.correlation import RankCorrelation
from videoscaling.tools.quality.kernel_distance import Distance
from videoscaling.training.logs.log_files import write_events
from videoscaling.utils.files import write_json, write_text
from videoscaling.utils.seal import sealed

EVENTS_FILE = "events.out.tfevents.0.quality"


@dataclass(frozen=True)
class Entry:
    """A set of clips and its distances from the reference.

    Attributes:
        kind: real (the other half), corruption (of that half), model, videos, or features.
        distances: by network.
        change: of a corruption, by network: how far it moves the features of the same clips (``relative_change``).
        N, T: parameters of a model, and tokens that it was trained on.
        loss, loss_se: validation loss of its averaged weights with its standard error, where it was measured.
    """

    name: str
    kind: str
    clips: int
    distances: dict[str, Distance]
    change: dict[str, float] = field(default_factory=dict)
    N: int | None = None
    T: int | None = None
    loss: float | None = None
    loss_se: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Everything that was measured, and how; ``shape`` is the clips' frames, height and width."""

    real: str
    reference_clips: int
    seed: int
    entries: list[Entry]
    correlations: list[RankCorrelation]
    shape: tuple[int, int, int] | None = None
    sampler: dict[str, object] = field(default_factory=dict)


def write_result(path: Path, result: Evaluation) -> None:
    """Write ``result`` as one JSON object with a checksum."""
    write_json(path, sealed(asdict(result)))


def write_table(path: Path, entries: Sequence[Entry]) -> None:
    """Write the entries as CSV, one row each; numbers to six digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    networks = list(entries[0].distances)
    measures = [f"{network}{end}" for network in networks for end in ("", "_low", "_high")]
    writer.writerow(["name", "kind", "clips", "N", "T", "loss", "loss_se", *measures])
    for entry in entries:
        values = [getattr(entry.distances[network], end) for network in networks for end in ("value", "low", "high")]
        facts = [entry.N, entry.T, *(None if x is None else f"{x:.6g}" for x in (entry.loss, entry.loss_se))]
        writer.writerow([entry.name, entry.kind, entry.clips, *facts, *(f"{value:.6g}" for value in values)])
    write_text(path, text.getvalue())


def write_curves(folder: Path, entries: Sequence[Entry]) -> None:
    """Write the models' distances with their intervals over T for TensorBoard, in place of an earlier evaluation's."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    points = []
    for entry in sorted((one for one in entries if one.kind == "model"), key=lambda one: one.T or 0):
        values = {
            f"quality/{name}{end}": value
            for name, distance in entry.distances.items()
            for end, value in zip(("", "_low", "_high"), (distance.value, distance.low, distance.high))
        }
        points.append((entry.T, Summary(value=[Summary.Value(tag=tag, simple_value=x) for tag, x in values.items()])))
    write_events(folder / EVENTS_FILE, points)


def printed_rows(entries: Sequence[Entry]) -> list[dict[str, object]]:
    """The entries for ``utils.text_tables.table``."""
    rows = []
    for entry in entries:
        row: dict[str, object] = {"clips": entry.name}
        if any(one.loss is not None for one in entries):
            row["loss"] = "" if entry.loss is None else entry.loss
        for network, distance in entry.distances.items():
            row[network] = asdict(distance)
            if any(one.change for one in entries):
                row[f"{network}: change"] = entry.change.get(network, "")
        rows.append(row)
    return rows
