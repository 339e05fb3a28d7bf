"""Clip groups: the units of work of a cache, from videos or rendered clips, which load themselves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from videoscaling.data.index import list_hash
from videoscaling.data.sources import doom, synthetic
from videoscaling.data.sources.source import Source
from videoscaling.data.video.clips import ClipOptions, Clips, Shape, load_clips, resize_and_crop
from videoscaling.utils.errors import DataFault, UserError
from videoscaling.utils.files import read_json
from videoscaling.utils.random import derive_seed

SPLITS = ("train", "validation")
RENDERED_AT_ONCE = 64
# The same validation clips for synthetic data sets of all seeds, so that losses compare across them.
VALIDATION_SEED = derive_seed(0, "synthetic validation")


@dataclass(frozen=True)
class ClipGroup:
    """Clips that are kept or rejected together: those of one video, or some rendered ones.

    ``load()`` returns them, or raises ``Rejected``. ``keys`` are the clips' where they are known before, else none.
    """

    source: str
    keys: list[str]
    load: Callable[[], Clips]


def video_group(
    source: Source, clip_options: ClipOptions, starts: Sequence[int] | None = None, decode: bool = True
) -> ClipGroup:
    """A video that is opened when it is loaded, for ``data.video.decode_workers.decoded``.

    Args:
        starts: the clips to take, by the number after the last # of their keys; None: all that ``clip_options`` allow.
        decode: whether pixels are wanted; without, the clips say what there would be (keys, captions, fps, seconds).
    """
    keys = [f"{source.name}#{start}" for start in starts or ()]
    starts = None if starts is None else tuple(starts)
    return ClipGroup(source.name, keys, partial(load_clips, source, clip_options, starts, decode))


def video_group_at(group: ClipGroup, size: int | tuple[int, int]) -> ClipGroup:
    """The same clips of the same video in another size."""
    source, clip_options, *rest = group.load.args
    clip_options = replace(clip_options, shape=replace(clip_options.shape, size=size))
    return replace(group, load=partial(load_clips, source, clip_options, *rest))


def read_frozen(path: str | Path) -> list[str]:
    """The validation keys of an earlier cache, given its folder or its ``validation.json``.

    Raises:
        UserError: there is none; DataFault where it was altered.
    """
    path = Path(path) / "validation.json" if Path(path).is_dir() else Path(path)
    if path.exists() and not path.is_file():  # reading a pipe or a device may never end
        raise UserError(f"{path}: no regular file")
    listed = read_json(path, dict, "a validation list")
    keys = listed.get("keys")
    if "hash" not in listed or not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise UserError(f"{path}: not a validation list")
    if list_hash(keys) != listed["hash"]:
        raise DataFault(f"{path} was altered: the validation list is frozen")
    return keys


def synthetic_units(
    shape: Shape, train: int, validation: int, seed: int, device: str | torch.device = "cpu"
) -> dict[str, list[ClipGroup]]:
    """Rendered clips, by split. Validation clips come from a seed of their own: none is ever trained on."""

    def render(keys: list[str], index: Tensor, split: str) -> Clips:
        split_seed = VALIDATION_SEED if split == "validation" else seed
        clips = synthetic.render(index.to(device), split_seed, shape.frames, *shape.sides)
        return Clips(keys, synthetic.captions(index, split_seed), clips)

    counts = {"train": train, "validation": validation}
    return _made_units("synthetic", counts, seed=seed, at_once=RENDERED_AT_ONCE, render=render)


def doom_units(shape: Shape, train: int, validation: int, seed: int) -> dict[str, list[ClipGroup]]:
    """Clips of a game, by split. Validation clips are from levels of their own, the same for every seed."""
    doom.check_size(*shape.sides)

    def render(keys: list[str], index: Tensor, split: str) -> Clips:
        held_out = split == "validation"
        walk = int(index[0]) // doom.CLIPS
        captions, pictures = doom.play(walk, len(index), 0 if held_out else seed, shape.frames, held_out)
        clips = torch.stack([resize_and_crop(clip, shape.sides) for clip in pictures])
        return Clips(keys, captions, clips)

    counts = {"train": train, "validation": validation}
    return _made_units("doom", counts, seed=seed, at_once=doom.CLIPS, render=render)


def _made_units(
    source: str,
    counts: dict[str, int],
    *,
    seed: int,
    at_once: int,
    render: Callable[[list[str], Tensor, str], Clips],
) -> dict[str, list[ClipGroup]]:
    """Groups of ``at_once`` clips that ``render(keys, numbers, split)`` makes, as many clips as ``counts`` says."""
    units: dict[str, list[ClipGroup]] = {}
    for split, count in counts.items():
        name = f"{source}-{'validation' if split == 'validation' else seed}"
        units[split] = []
        for part in torch.arange(count).split(at_once) if count else ():
            keys = [f"{name}#{i}" for i in part.tolist()]
            units[split].append(ClipGroup(name, keys, partial(render, keys, part, split)))
    return units
