"""index.json of a latent cache: its settings, whose hash is its fingerprint, and its contents. No torch here."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from videoscaling.utils import seal
from videoscaling.utils.errors import DataFault, UserError, nearest_path
from videoscaling.utils.files import read_json


class CacheSettings(TypedDict, total=False):
    """What determines a cache's content; of rendered clips and of videos some keys each."""

    format: int
    source: str
    frames: int
    height: int
    width: int
    stride: int
    vae_fingerprint: str
    text_fingerprint: str
    vae_dtype: str  # where not float32
    clips: int | None
    validation: int | str | None
    seed: int
    videos: int
    videos_hash: str
    clips_per_video: int
    fps_wanted: float | None
    hop: int | None
    backend: str
    shots: str  # the rule that found them, where clips lie within shots
    split_rule: str  # how training and validation were separated, where not by the first rule


class CacheIndex(TypedDict, total=False):
    """The content of index.json (docs/formats.md); of an unfinished cache ``finished`` and ``settings`` alone."""

    finished: bool
    settings: CacheSettings
    fingerprint: str
    about: dict  # facts of no consequence for the content: encoders, split, skipped files
    n_clips: int
    latent_shape: list[int]
    positions: int
    text_dim: int
    text_tokens: int
    latent_statistics: dict
    rejected: dict[str, int]
    captions: dict[str, int]
    validation_hash: str
    splits: dict[str, dict]
    files: dict[str, dict]
    rejected_clips: dict[str, int]  # where there are any


class CacheMeta(CacheSettings, CacheIndex, total=False):
    """Settings, facts and contents of a cache, or of a mixture of some, in one; checkpoints hold a copy.

    Only caches of several shapes have ``shapes``.
    """

    vae: str
    text: str
    vae_statistics: dict
    mixture: list[dict]
    shapes: list[dict]


def is_latent_shape(value: object) -> bool:
    """Whether a value read from a file is the (C, f, h, w) of clips."""
    return isinstance(value, list) and len(value) == 4 and all(is_size(side) for side in value)


def shape_name(latent_shape: Sequence[int]) -> str:
    """The name of a shape (C, f, h, w) in results and logs, such as 5x4x4: latent frames, rows and columns."""
    return "x".join(map(str, latent_shape[1:]))


def is_size(value: object) -> bool:
    """Whether a value read from a file is a number of channels, or a side."""
    return type(value) is int and 0 < value < 1 << 20


def list_hash(lines: Sequence[str]) -> str:
    """The hash of a list, order included. A name that is not UTF-8 is hashed as its bytes."""
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]


def check_cache(folder: str | Path) -> None:
    """Raise UserError where ``folder`` is no latent cache, finished or not."""
    if not (Path(folder) / "index.json").is_file():
        where = f"{folder}: no latent cache here" if str(folder) else "data.cache: not given"
        near = nearest_path(folder) if str(folder) and not Path(folder).exists() else ""
        raise UserError(f"{where}{near or '; make one with tools/cache_latents.py'}")


def read_index(folder: Path) -> CacheIndex:
    """A cache's ``index.json``, finished or not, without its checksum.

    Raises:
        UserError: it is none; DataFault where it was altered.
    """
    path = folder / "index.json"
    index = read_json(path, dict, "the index of a latent cache")
    if not {"finished", "settings"} <= set(index):
        raise UserError(f"{path}: not the index of a latent cache")
    # From before indexes were sealed; a sealed one whose seal was altered has another key.
    if index.keys() <= CacheIndex.__annotations__.keys() - {"rejected_clips"}:
        return index
    sealed = seal.read_sealed(path)
    if sealed is None:
        raise DataFault(f"{path} was altered; restore it from a copy, or make the cache again in another folder")
    return sealed


def fingerprint(settings: CacheSettings) -> str:
    """The fingerprint of a cache: a hash of its settings, not of its bytes, whose last bits depend on the machine."""
    return list_hash([json.dumps(settings, sort_keys=True)])
