"""The latent and text cache: clips are encoded once (data/writer.py), and read back memory-mapped.

A cache is a folder:

    index.json                 settings, sources, contents, its files' sizes and checksums, and a
                               checksum of itself
    train-00000.safetensors    shards (data/shards.py)
    validation-00000...
    null_context.safetensors   the empty prompt's embedding
    validation.json            the frozen list of validation clips, with its hash
    captions.jsonl             split, key and caption of every clip
    rejected.jsonl             every source and clip that was not used, with the reason
"""

import functools
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from videoscaling.data.clip_groups import SPLITS, read_frozen
from videoscaling.data.index import CacheMeta, check_cache, fingerprint, list_hash, read_index
from videoscaling.data.sample_order import sample_index
from videoscaling.data.shards import (
    Shards,
    Stored,
    altered,
    as_float,
    data_is_whole,
    header_sha256,
    is_finite,
    map_arrays,
)
from videoscaling.utils.errors import DataFault, UserError
from videoscaling.utils.files import file_size, parse_json, sha256_of

FORMAT = 1
FRAME_AND_RANGE = re.compile(r"(@[0-9.e+-]+)?(#\d+)?$")  # at the end of a clip's key


def video_of(key: str) -> str:
    """The video, by its name in the cache's source, that the clip of a ``key`` such as x.mp4@5-9#17 is from."""
    return FRAME_AND_RANGE.sub("", key, count=1)


class LatentCache:
    """A finished cache, memory-mapped.

    Attributes:
        path: its folder.
        meta: the settings, facts and statistics of its index, in one dict.
        latent_shape: (C, f, h, w) of a clip.
        text_dim, text_tokens: width and padded length L of the text embeddings.
        train_size, validation_size: clips in each split.
        validation_keys, validation_hash: the frozen list, in the order of ``validation``'s indices, and its hash.
        null_context: the empty prompt's (embedding float32 [L, dim], mask bool [L]).

    Raises:
        UserError: no cache there, or an unfinished one.
        DataFault: its index, a list, the header of a shard or the empty prompt's embedding was altered; a file is
            missing or has another size (each named). Of shards no more than headers is read: ``train`` and
            ``validation`` check each clip when it is first read, ``verify_validation`` whole shards.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        check_cache(path)
        index = read_index(self.path)
        if not index["finished"]:
            raise UserError(f"{self.path}: this cache is unfinished; run the command that makes it again to continue")
        if index["settings"]["format"] != FORMAT:
            raise UserError(f"{self.path}: a cache of format {index['settings']['format']}; this code reads {FORMAT}")
        self._files, self._validation_verified = index["files"], False
        self.meta: CacheMeta = {
            **index["settings"],
            **index["about"],
            **{k: v for k, v in index.items() if k not in ("settings", "about", "files", "finished", "splits")},
            "fingerprint": fingerprint(index["settings"]),
        }
        self.latent_shape = tuple(index["latent_shape"])
        self.text_dim, self.text_tokens = index["text_dim"], index["text_tokens"]
        self.files = {
            split: [(self.path / shard["file"], shard["clips"]) for shard in index["splits"][split]["shards"]]
            for split in SPLITS
        }
        self._check_files()
        form = (self.latent_shape, self.text_tokens, self.text_dim)
        self._shards = {split: Shards(files, *form) for split, files in self.files.items()}
        self.train_size, self.validation_size = (len(self._shards[split]) for split in SPLITS)
        self.validation_keys, self.validation_hash = read_frozen(self.path), index["validation_hash"]
        if list_hash(self.validation_keys) != self.validation_hash:
            raise DataFault(f"{self.path / 'validation.json'} was altered: the validation list is frozen")
        null = map_arrays(self.path / "null_context.safetensors")["text"][0]
        self.null_context = (
            torch.zeros(self.text_tokens, self.text_dim),
            torch.arange(self.text_tokens) < len(null),
        )
        self.null_context[0][: len(null)] = torch.from_numpy(null.astype(np.float32))
        if not is_finite(null):
            raise DataFault(
                f"{self.path / 'null_context.safetensors'}: the empty prompt's embedding has NaN or "
                "infinite values; delete it and run the command that made the cache"
            )

    @property
    def caches(self) -> "list[LatentCache]":
        """The caches that the data are of, of which a mixture has several: itself."""
        return [self]

    @functools.cached_property
    def training_videos(self) -> set[str]:
        """The videos that training clips are from, by ``video_of``."""
        path = self.path / "captions.jsonl"
        with path.open("rb") as lines:
            rows = (parse_json(line, str(path), dict) for line in lines)
            return {video_of(row["key"]) for row in rows if row["split"] == "train"}

    @property
    def parts(self) -> "list[LatentCache]":
        """The data of each shape, of which ``data.mixture.ShapeMixture`` has several: itself."""
        return [self]

    def _check_files(self) -> None:
        """Compare sizes, lists, headers and the empty prompt's embedding with the index."""
        shards = {path.name for files in self.files.values() for path, _ in files}
        for name, file in self._files.items():
            path, size = self.path / name, file_size(self.path / name)
            if size != file["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes instead of {file['bytes']}"
                raise DataFault(f"{path} {found}; run the command that made the cache again to repair it")
            if "header_sha256" in file:  # of a shard, whose header holds its tensors' checksum
                whole = header_sha256(path) == file["header_sha256"]
            else:  # the oldest caches have checksums of whole shards, which ``verify`` reads
                whole = name in shards or sha256_of(path) == file["sha256"]
            if not whole:
                raise altered(path)

    def order(self, position: Tensor, seed: int) -> Tensor:
        """The training clip at each position of the training stream: int64 [n], on the CPU."""
        return sample_index(position, self.train_size, seed)

    def stored(self, indices: Tensor, pinned: bool = False) -> Stored:
        """Training clips as they are stored, for int64 ``indices`` [n] on the CPU (``Shards.read``)."""
        return self._shards["train"].read(indices, pinned)

    def train(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Training clips: latents float32 [n, C, f, h, w], text float32 [n, L, dim], mask bool [n, L] (true on
        tokens), for int64 ``indices`` [n] on the CPU."""
        return as_float(self.stored(indices))

    def validation(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Validation clips, as ``train``; index i is clip ``validation_keys[i]``."""
        return as_float(self._shards["validation"].read(indices))

    def check(self, indices: Tensor) -> None:
        """Check training clips anew, for int64 ``indices`` [n] on the CPU; DataFault names one that is at fault."""
        self._shards["train"].check(indices)

    def verify_validation(self, again: bool = False) -> None:
        """Recompute the checksums of the validation shards, and see that all their numbers are finite: once, or
        ``again``.

        Raises:
            DataFault: a clip or a file is at fault (named).
        """
        if again or not self._validation_verified:
            self._verify("validation")
        self._validation_verified = True

    def verify(self) -> None:
        """Recompute every file's checksum, and see that all numbers are finite.

        Raises:
            DataFault: a clip or a file is at fault (named).
        """
        self._check_files()
        for split in SPLITS:
            self._verify(split)

    def _verify(self, split: str) -> None:
        self._shards[split].check_all(again=True)  # first, as it names the clip
        for path, _ in self.files[split]:
            file = self._files[path.name]
            whole = sha256_of(path) == file["sha256"] if "sha256" in file else data_is_whole(path)
            if not whole:
                raise altered(path)
