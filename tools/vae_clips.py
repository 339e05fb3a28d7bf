"""The clips that an autoencoder is trained and scored on: rendered as they are needed, or read and held in memory."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from videoscaling.data.choices import FILM, LIMIT_SECONDS
from videoscaling.data.clip_groups import ClipGroup
from videoscaling.data.index import list_hash
from videoscaling.data.plan import VideoRequest, plan_rendered, plan_videos
from videoscaling.data.sample_order import sample_index
from videoscaling.data.shot_sources import ShotOptions
from videoscaling.data.sources.captions import ListingOptions
from videoscaling.data.sources.source import Rejected
from videoscaling.data.sources.synthetic import render
from videoscaling.data.video.clips import ClipOptions, Clips, Shape, to_float
from videoscaling.data.video.decode_workers import decoded
from videoscaling.data.work_share import WorkShare
from videoscaling.utils.errors import UserError
from videoscaling.utils.messages import warn
from videoscaling.utils.progress import Progress
from videoscaling.utils.random import derive_seed, uniform

FRAMES = 17
SCORED = 512  # held-out clips of a source for PSNR
STORED = 8192  # training clips of a source that is held in memory, at most: 0.4 GiB at 32x32 pixels, 1.7 at 64x64
PER_VIDEO = 512  # clips of one video or shot at most
READ_SECONDS = 10 * LIMIT_SECONDS  # for one of them: a cache takes 16 clips of each


class TrainingClips(Protocol):
    """Clips float32 [n, 3, ``FRAMES``, height, width] in [-1, 1] of one source.

    Attributes:
        windows: how many training clips there are; then they are seen again, mirrored or not.
        fingerprint: of which clips of videos these are; another where some were added.
    """

    name: str
    windows: float
    fingerprint: str

    def batch(self, index: Tensor) -> Tensor:
        """The training clips of the samples ``index``, int64 [n]."""

    def held_out(self) -> Tensor:
        """At most ``SCORED`` clips that ``batch`` never returns, of other videos, shots or levels."""


def training_clips(source: str, seed: int, size: tuple[int, int]) -> TrainingClips:
    """The clips of ``source``: synthetic, doom, film or what tools/cache_latents.py takes.

    Raises:
        UserError: a package or a video is missing, or there are no clips of this size.
    """
    return Rendered(seed, size) if source == "synthetic" else Stored(source, seed, size)


def mixed_batch(sources: Sequence[TrainingClips], index: Tensor) -> Tensor:
    """The training clips of the samples ``index``, which the sources share in turn."""
    own = [index[index % len(sources) == number] // len(sources) for number in range(len(sources))]
    return torch.cat([source.batch(part) for source, part in zip(sources, own) if len(part)])


class Rendered:
    """Synthetic clips, of which none is seen twice."""

    name, windows, fingerprint = "synthetic", math.inf, ""

    def __init__(self, seed: int, size: tuple[int, int]) -> None:
        self._seed, self._size = seed, size

    def batch(self, index: Tensor) -> Tensor:
        return render(index, self._seed, FRAMES, *self._size)

    def held_out(self) -> Tensor:
        return render(torch.arange(SCORED), derive_seed(self._seed, "held out"), FRAMES, *self._size)


class Stored:
    """Clips of the game or of videos, in memory as bytes. Of a video they begin at any frame, which makes many times
    as many as do not overlap, and takes no more memory. Each is seen as it is or mirrored."""

    def __init__(self, source: str, seed: int, size: tuple[int, int]) -> None:
        self.name, self._seed = source, seed
        workers = max(1, (os.cpu_count() or 1) - 1)
        if source == "doom":
            shape = Shape(FRAMES, size)
            plan = plan_rendered(source, shape, clips=STORED, validation=str(SCORED), seed=seed, device="cpu")[1]
            workers = 0  # rendered units cannot be sent to workers
        else:
            plan = plan_videos(_request(source, size, workers))[1]
        units = plan(False).units
        read = _read(source, units["train"], workers)
        self.fingerprint = list_hash([key for found in read for key in found.keys])
        self._stretches = [one for found in read for one in stretches(found)]
        starts = [stretch.shape[1] - FRAMES + 1 for stretch in self._stretches]
        self._ends = torch.tensor(starts).cumsum(0)
        self.windows = int(self._ends[-1])
        self._held_out = torch.cat([found.pixels for found in _read(source, units["validation"], workers)])[:SCORED]

    def batch(self, index: Tensor) -> Tensor:
        place = sample_index(index.cpu(), self.windows, derive_seed(self._seed, "clips"))
        number = torch.searchsorted(self._ends, place, right=True)
        last = self._ends[number] - place  # 1 for the last start in a stretch
        clips = []
        for which, before_end in zip(number.tolist(), last.tolist()):
            frames = self._stretches[which]
            start = frames.shape[1] - FRAMES + 1 - before_end
            clips.append(frames[:, start : start + FRAMES])
        made = to_float(torch.stack(clips))
        mirrored = uniform(self._seed, "mirror", index.cpu())[:, 0] < 0.5
        return torch.where(mirrored.view(-1, 1, 1, 1, 1), made.flip(-1), made).to(index.device)

    def held_out(self) -> Tensor:
        return to_float(self._held_out)


def stretches(clips: Clips) -> list[Tensor]:
    """The frames of successive clips joined: uint8 [3, frames, height, width] of each stretch without a gap.

    A clip is listed by its first frame, so the next one of a stretch by that plus ``FRAMES``.
    """
    starts = [int(key.rpartition("#")[2]) for key in clips.keys]
    breaks = [i for i in range(1, len(starts)) if starts[i] != starts[i - 1] + FRAMES]
    parts = zip([0, *breaks], [*breaks, len(starts)])
    return [torch.cat(list(clips.pixels[a:b]), dim=1) for a, b in parts if a < b]


def _request(source: str, size: tuple[int, int], workers: int) -> VideoRequest:
    shots = ShotOptions("histogram", WorkShare(), workers, LIMIT_SECONDS) if source == FILM else None
    return VideoRequest(
        source=source,
        out=Path(os.devnull),
        listing=ListingOptions(captions=False),
        clip_options=ClipOptions(Shape(FRAMES, size), PER_VIDEO),
        backend=None,
        clips=STORED,
        validation=None,
        workers=workers,
        limit_seconds=READ_SECONDS,
        max_rejected=1.0,
        writing=False,
        stay_open=False,
        shots=shots,
    )


def _read(source: str, units: Sequence[ClipGroup], workers: int) -> list[Clips]:
    """The clips of ``units``; what cannot be read is named.

    Raises:
        UserError: none can be read.
    """
    read = []
    with Progress(len(units), f"reading {source}", "parts") as bar:
        for unit, found in zip(units, decoded(units, workers, READ_SECONDS)):
            if isinstance(found, Rejected):
                warn(f"{unit.source}: {found}")
            else:
                read.append(found)
            bar.update(1)
    if not read:
        raise UserError(f"--source {source}: no clip of {FRAMES} frames is left")
    return read
