"""What goes into a cache: rendered clips or videos, cut into units of work and split into training and validation.

The validation list is drawn once, by the hash of a video's name, and written with the cache. A later cache of more
videos is given that list: what is in it stays, what was added goes to training, and no video is ever in both.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from data import synthetic
from data.clips import Clips, Reading, Shape, load_clips, to_float, windows
from data.media import Rejected, Source
from data.probe import Probe, probe
from utils.errors import UserError
from utils.files import read_json
from utils.random import fold

SPLITS = ("train", "validation")
RENDERED_AT_ONCE = 64
# The same validation clips for every synthetic data set, whatever its seed, so that losses compare across them.
VALIDATION_SEED = fold(0, "synthetic validation")


@dataclass(frozen=True)
class Unit:
    """Clips that are encoded together, and kept or rejected together: those of one video, or some rendered ones.

    ``load()`` returns them, or raises ``Rejected``.
    """

    source: str
    keys: list[str]
    load: Callable[[], Clips | tuple[list[str], Tensor]]


def video_unit(source: Source, reading: Reading, starts: Sequence[int] | None = None, decode: bool = True) -> Unit:
    """A video that is opened when it is loaded, for ``data.workers.decoded``.

    Args:
        starts: the clips to take, by the number after the last # of their keys; None is all that ``reading`` allows.
        decode: whether pixels are wanted; without, the clips say what there would be (keys, captions, fps, seconds).
    """
    starts = None if starts is None else tuple(starts)
    return Unit(source.name, [], partial(load_clips, source, reading, starts, decode))


def list_hash(lines: Sequence[str]) -> str:
    """The hash of a list, order included."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def read_frozen(path: str | Path) -> list[str]:
    """The validation keys of an earlier cache, given its folder or its ``validation.json``.

    Raises:
        UserError: there is none, or it was altered.
    """
    path = Path(path) / "validation.json" if Path(path).is_dir() else Path(path)
    listed = read_json(path)
    if not isinstance(listed, dict) or not {"hash", "keys"} <= set(listed):
        raise UserError(f"{path}: not a validation list")
    if list_hash(listed["keys"]) != listed["hash"]:
        raise UserError(f"{path} was altered: the validation list is frozen")
    return listed["keys"]


def synthetic_units(
    shape: Shape, train: int, validation: int, seed: int, device: str | torch.device = "cpu"
) -> dict[str, list[Unit]]:
    """Rendered clips, by split. Validation clips come from a seed of their own: none is ever trained on."""

    def render(index: Tensor, seed: int) -> tuple[list[str], Tensor]:
        clips = synthetic.render(index.to(device), seed, shape.frames, shape.size, shape.size)
        return synthetic.captions(index, seed), clips

    units: dict[str, list[Unit]] = {}
    for split, name, count, split_seed in (
        ("train", f"synthetic-{seed}", train, seed),
        ("validation", "synthetic-validation", validation, VALIDATION_SEED),
    ):
        parts = torch.arange(count).split(RENDERED_AT_ONCE) if count else ()
        units[split] = [
            Unit(name, [f"{name}#{i}" for i in part.tolist()], partial(render, part, split_seed)) for part in parts
        ]
    return units


@dataclass(frozen=True)
class Survey:
    """What videos hold: probes and the first frames of their clips by name, and the rejected with their reasons."""

    probes: dict[str, Probe]
    starts: dict[str, list[int]]
    rejected: list[dict[str, str]]

    @property
    def fps(self) -> float:
        """Frames per second: the median of the videos."""
        return median(found.fps for found in self.probes.values())

    @property
    def reasons(self) -> dict[str, int]:
        """How many videos were rejected for each reason."""
        return dict(Counter(row["reason"] for row in self.rejected).most_common())


def survey(sources: Iterable[Source], shape: Shape, limit: int) -> Survey:
    """Read every video's headers: what can be used, at most ``limit`` clips of each, and what cannot, and why."""
    probes, starts, rejected = {}, {}, []
    for source in sources:
        try:
            found = probe(source)
            starts[source.name] = windows(len(found.times), found.height, found.width, Reading(shape, limit))
            probes[source.name] = found
        except Rejected as error:
            rejected.append(error.row(source.name))
    return Survey(probes, starts, rejected)


def split_videos(
    surveyed: Survey,
    shape: Shape,
    train: int | None = None,
    validation: int | None = None,
    frozen: Sequence[str] | None = None,
) -> dict[str, dict[str, list[int]]]:
    """First frames by video name, by split; a video is in one split alone.

    Args:
        train: at most so many training clips; None is all.
        validation: so many validation clips, from as few videos as hold them; None is whole videos, until a tenth
            of the clips are there. Videos are taken in the order of their names' hashes.
        frozen: the validation keys of an earlier cache, taken instead of drawing any.

    Raises:
        UserError: a frozen clip cannot be had, or nothing is left for training.
    """
    starts, held = surveyed.starts, {}
    if frozen is not None:
        for key in frozen:
            name, _, start = key.rpartition("#")
            frames = len(surveyed.probes[name].times) if name in surveyed.probes else 0
            if int(start) + shape.span > frames:
                raise UserError(f"clip {key} of the frozen validation list cannot be had from these videos")
            held.setdefault(name, []).append(int(start))
    else:
        missing = max(1, sum(map(len, starts.values())) // 10) if validation is None else validation
        for name in sorted(starts, key=lambda name: hashlib.sha256(name.encode()).digest()):
            if missing <= 0:
                break
            held[name] = starts[name] if validation is None else starts[name][:missing]
            missing -= len(held[name])
    training, left = {}, sum(map(len, starts.values())) if train is None else train
    for name in starts:
        if name not in held and left > 0:
            training[name] = starts[name][:left]
            left -= len(training[name])
    if not training:
        raise UserError("no video is left for training: one is never in both training and validation. Add videos, or "
                        "ask for fewer validation clips (--validation 0 for none)")  # fmt: skip
    return {"train": training, "validation": held}


def video_units(
    sources: Iterable[Source],
    surveyed: Survey,
    splits: dict[str, dict[str, list[int]]],
    shape: Shape,
    device: str | torch.device = "cpu",
) -> dict[str, list[Unit]]:
    """One unit for each video, by split."""
    by_name = {source.name: source for source in sources}

    def load(source: Source, starts: list[int]) -> tuple[list[str], Tensor]:
        loaded = load_clips(source, Reading(shape), starts)
        return loaded.captions, to_float(loaded.pixels.to(device))

    return {
        split: [
            Unit(name, [f"{name}#{start}" for start in starts], partial(load, by_name[name], starts))
            for name, starts in videos.items()
        ]
        for split, videos in splits.items()
    }
