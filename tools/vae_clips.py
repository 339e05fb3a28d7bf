"""The clips that an autoencoder is trained and scored on: rendered as they are needed, or read and held in memory."""

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from videoscaling.data.choices import FILM, LIMIT_SECONDS
from videoscaling.data.clip_groups import ClipGroup, video_group_at
from videoscaling.data.index import list_hash
from videoscaling.data.plan import VideoRequest, plan_rendered, plan_videos
from videoscaling.data.sample_order import sample_index
from videoscaling.data.shot_sources import ShotOptions
from videoscaling.data.sources.captions import ListingOptions
from videoscaling.data.sources.doom import HEIGHT, WIDTH
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
STORED = 8192  # training clips of a source that is held in memory, at most: 0.9 GiB for 32x32 pixels, 3.6 for 64x64
MARGIN = 1.5  # of the largest size trained on: what is held, for crops
PER_VIDEO = 512  # clips of one video or shot at most
READ_SECONDS = 10 * LIMIT_SECONDS  # for one of them: a cache takes 16 clips of each


Size = tuple[int, int]  # pixels: height, width


class TrainingClips(Protocol):
    """Clips float32 [n, 3, ``FRAMES``, height, width] in [-1, 1] of one source, in any of the sizes trained on.

    Attributes:
        windows: how many training clips there are; then they are seen again, varied in another way.
        fingerprint: of which clips of videos these are; another where some were added.
    """

    name: str
    windows: float
    fingerprint: str

    def batch(self, index: Tensor, size: Size) -> Tensor:
        """The training clips of the samples ``index``, int64 [n]: varied, where there are only so many."""

    def plain(self, index: Tensor, size: Size) -> Tensor:
        """The same as they are."""

    def held_out(self, size: Size) -> Tensor:
        """At most ``SCORED`` clips that ``batch`` never returns, of other videos, shots or levels."""


def training_clips(source: str, seed: int, sizes: Sequence[Size]) -> TrainingClips:
    """The clips of ``source``: synthetic, doom, film or what tools/cache_latents.py takes.

    Raises:
        UserError: a package or a video is missing, or there are no clips of these sizes.
    """
    return Rendered(seed) if source == "synthetic" else Stored(source, seed, sizes)


def mixed_batch(sources: Sequence[TrainingClips], index: Tensor, size: Size, *, plain: bool = False) -> Tensor:
    """The training clips of the samples ``index``, which the sources share in turn."""
    own = [index[index % len(sources) == number] // len(sources) for number in range(len(sources))]
    return torch.cat(
        [(source.plain if plain else source.batch)(part, size) for source, part in zip(sources, own) if len(part)]
    )


class Rendered:
    """Synthetic clips, of which none is seen twice."""

    name, windows, fingerprint = "synthetic", math.inf, ""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def batch(self, index: Tensor, size: Size) -> Tensor:
        return render(index, self._seed, FRAMES, *size)

    plain = batch

    def held_out(self, size: Size) -> Tensor:
        return render(torch.arange(SCORED), derive_seed(self._seed, "held out"), FRAMES, *size)


class Stored:
    """Clips of the game or of videos, in memory as bytes, ``MARGIN`` times as large as the largest size. Of a video
    they begin at any frame, which makes many times as many as do not overlap, and takes no more memory.

    Each is seen in a crop of any place and scale, mirrored or not, forwards or backwards, in other colours. Where they
    were only mirrored, a network ended 3.4 dB above components of blocks on the film's shots that it had seen in
    12,000 steps of 8 clips, and 1.2 dB on others."""

    def __init__(self, source: str, seed: int, sizes: Sequence[Size]) -> None:
        self.name, self._seed = source, seed
        self._workers = 0 if source == "doom" else max(1, (os.cpu_count() or 1) - 1)  # rendered units cannot be sent
        largest = max(side[0] for side in sizes), max(side[1] for side in sizes)
        self._units = self._planned(largest)  # the same clips are held out in every size
        self._held_out = {size: self._pixels_held_out(size) for size in sizes}
        read = self._read_with_margin(largest)
        self.fingerprint = list_hash([key for found in read for key in found.keys])
        self._stretches = [one for found in read for one in stretches(found)]
        starts = [stretch.shape[1] - FRAMES + 1 for stretch in self._stretches]
        self._ends = torch.tensor(starts).cumsum(0)
        self.windows = int(self._ends[-1])

    def batch(self, index: Tensor, size: Size) -> Tensor:
        made = [varied(clip, size, draws) for clip, draws in zip(self._windows(index), self._draws(index))]
        return torch.stack(made).to(index.device)

    def plain(self, index: Tensor, size: Size) -> Tensor:
        return torch.stack([whole(clip, size) for clip in self._windows(index)]).to(index.device)

    def held_out(self, size: Size) -> Tensor:
        return to_float(self._held_out[size])

    def _draws(self, index: Tensor) -> Tensor:
        return uniform(self._seed, "variation", index.cpu(), DRAWS)

    def _windows(self, index: Tensor) -> list[Tensor]:
        place = sample_index(index.cpu(), self.windows, derive_seed(self._seed, "clips"))
        number = torch.searchsorted(self._ends, place, right=True)
        last = self._ends[number] - place  # 1 for the last start in a stretch
        clips = []
        for which, before_end in zip(number.tolist(), last.tolist()):
            frames = self._stretches[which]
            start = frames.shape[1] - FRAMES + 1 - before_end
            clips.append(frames[:, start : start + FRAMES])
        return clips

    def _planned(self, size: Size) -> dict[str, Sequence[ClipGroup]]:
        if self.name == "doom":
            shape = Shape(FRAMES, size)
            counts = {"clips": STORED, "validation": str(SCORED)}
            plan = plan_rendered(self.name, shape, **counts, seed=self._seed, device="cpu")[1]
        else:
            plan = plan_videos(_request(self.name, size, self._workers))[1]
        return plan(False).units

    def _at(self, part: str, size: Size) -> Sequence[ClipGroup]:
        """The clips of a part in another size."""
        if self.name == "doom":
            return self._planned(size)[part]
        return [video_group_at(unit, size) for unit in self._units[part]]

    def _pixels_held_out(self, size: Size) -> Tensor:
        units = self._at("validation", size)
        read = _usable(self.name, units, _loaded(self.name, units, self._workers))
        return torch.cat([found.pixels for found in read])[:SCORED]

    def _read_with_margin(self, size: Size) -> list[Clips]:
        """The training clips, larger than ``size`` where their videos are."""
        units = self._units["train"]
        height, width = (round(MARGIN * side) for side in size)
        if self.name == "doom":  # the game draws no larger ones
            height, width = min(height, HEIGHT), min(width, WIDTH)
        larger = self._at("train", (height, width))
        loaded = _loaded(self.name, larger, self._workers)
        small = [number for number, one in enumerate(loaded) if isinstance(one, Rejected)]
        for number, one in zip(small, _loaded(self.name, [units[number] for number in small], self._workers)):
            loaded[number] = one
        return _usable(self.name, units, loaded)


DRAWS = 12  # uniform numbers that vary a clip


def varied(clip: Tensor, size: Size, draws: Tensor) -> Tensor:
    """A crop of ``clip``, uint8 [3, frames, height, width], as float32 of ``size``, by ``draws`` in [0, 1).

    The crop has ``size``'s shape, and its scale is log-uniform from ``size`` itself to all that fits. A quarter of
    the clips each are mirrored, reversed, both and neither; half have their colours in any order, and all have
    contrast and brightness of each colour changed by up to a fifth."""
    scale, down, right, mirror, backwards, exchange, *colours = draws.tolist()
    made = _cropped(clip, size, scale, (down, right))
    if mirror < 0.5:
        made = made.flip(-1)
    if backwards < 0.5:
        made = made.flip(1)
    orders = list(itertools.permutations(range(3)))
    if exchange < 0.5:
        made = made[list(orders[int(2 * exchange * len(orders))])]
    contrast, brightness = (torch.tensor(part).view(3, 1, 1, 1) for part in (colours[:3], colours[3:]))
    return (made * (0.8 + 0.4 * contrast) + 0.4 * brightness - 0.2).clamp_(-1, 1)


def whole(clip: Tensor, size: Size) -> Tensor:
    """The largest centred part of ``size``'s shape, as float32 of ``size``."""
    return _cropped(clip, size, 1.0, (0.5, 0.5))


def _cropped(clip: Tensor, size: Size, scale: float, place: tuple[float, float]) -> Tensor:
    fits = min(side / wanted for side, wanted in zip(clip.shape[-2:], size))
    sides = [min(round(wanted * fits**scale), side) for wanted, side in zip(size, clip.shape[-2:])]
    top, left = (int(at * (side - part + 1)) for at, side, part in zip(place, clip.shape[-2:], sides))
    made = to_float(clip[..., top : top + sides[0], left : left + sides[1]])
    return interpolate(made, size, mode="bilinear", antialias=True) if made.shape[-2:] != size else made


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


def _loaded(source: str, units: Sequence[ClipGroup], workers: int) -> list[Clips | Rejected]:
    loaded = []
    with Progress(len(units), f"reading {source}", "parts") as bar:
        for one in decoded(units, workers, READ_SECONDS):
            loaded.append(one)
            bar.update(1)
    return loaded


def _usable(source: str, units: Sequence[ClipGroup], loaded: Sequence[Clips | Rejected]) -> list[Clips]:
    """What was loaded of ``units``; what could not be is named.

    Raises:
        UserError: none could be.
    """
    for unit, one in zip(units, loaded):
        if isinstance(one, Rejected):
            warn(f"{unit.source}: {one}")
    usable = [one for one in loaded if not isinstance(one, Rejected)]
    if not usable:
        raise UserError(f"--source {source}: no clip of {FRAMES} frames is left")
    return usable
