"""Shards: latents, text and names of clips in one safetensors file, with metadata in its header.

    latents      float16 [n, C, f, h, w]
    text         float16 [m, L, dim], of the m different captions, padded to the longest of them
    text_length  int32 [m]; text_row int32 [n], each clip's row of text

The header's metadata are one JSON string, because safetensors writes several in no fixed order and a cache must be the
same bytes every time. It holds the clips' keys and captions, the rejected sources, sums for the latents' statistics,
the plan of the shard, and the checksum of the tensors. So the process that writes the index of a cache of terabytes
reads headers only. The metadata also hold a CRC-32 of each clip. Training reads clips in random order, and checking
the tensors' checksum would read the whole cache before the first steps. So each clip is checked when a process first
reads it: 1.1 s of processor time per GiB more than a second read (clips of 16x5x32x32 latents and 32 tokens).
"""

import functools
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from videoscaling.data.clip_groups import ClipGroup
from videoscaling.data.sources.source import Rejected
from videoscaling.data.video.clips import Clips, to_float
from videoscaling.utils.errors import DataFault, OwnError, UserError
from videoscaling.utils.files import parse_json

PROMPT_BATCH = 64
_DTYPES = {"F16": np.float16, "I32": np.int32}
EXPONENT = 0x7C00  # of float16: all ones where a number is infinite or NaN
# Bytes of a split up to which the shards of older caches, which hold no CRC-32 of clips, are checked whole when they
# are first read: 0.9 s of processor time. Above, only whether their numbers are finite.
CHECKED_WHOLE_BYTES = 1 << 30
FIX = "delete it and run the command that made the cache"


class Stored(NamedTuple):
    """Clips in a cache's form, [n, ...] each: latents float16, text float16 [n, L, dim] and its length int32."""

    latents: Tensor
    text: Tensor
    text_length: Tensor


class Shard(NamedTuple):
    """The plan of a shard: its path, its clip groups and the hash of its content."""

    path: Path
    units: list[ClipGroup]
    planned: str


def encode_shard(
    shard: Shard,
    answers: Iterator[Clips | Rejected],
    vae: Any,
    text: Any,
    latent_shape: tuple[int, ...],
    batch: int,
    progress: Callable[[int], None],
) -> bytes:
    """A shard's file, from what loading its units gave: the next ``answers``. Arguments as ``writer.write_share``'s.

    Batches run over the bounds of sources, and not over those of shards: a video of one clip need not be encoded
    alone, and no number depends on which process encoded it.
    """
    keys, captions, rejected = [], [], []

    def pixels() -> Iterator[Tensor]:
        # Units first: zip must not take an answer that is the next shard's.
        for unit, answer in zip(shard.units, answers):
            if isinstance(answer, Rejected):
                rejected.append(answer.row(unit.source))
            else:
                rejected.extend(answer.rejected)
                keys.extend(answer.keys)
                captions.extend(answer.captions)
                yield answer.pixels
            progress(1)

    latents = [torch.zeros(0, *latent_shape, dtype=torch.float16)]
    latents += [vae.encode(to_float(part)).half().cpu() for part in _batches(pixels(), batch)]
    tensors = {"latents": torch.cat(latents), **_encode_captions(captions, text)}
    for name in ("latents", "text"):
        if not tensors[name].isfinite().all():
            raise OwnError(
                f"{shard.path.name}: {name} that are not finite, or overflow float16; is it the right encoder?"
            )
    by_channel = tensors["latents"].double().transpose(0, 1).flatten(1)
    about = {
        "planned": shard.planned,
        "keys": keys,
        "captions": captions,
        "rejected": rejected,
        "sum": by_channel.sum(1).tolist(),
        "square_sum": by_channel.square().sum(1).tolist(),
    }
    return shard_bytes(tensors, about)


def _batches(parts: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The rows of ``parts``, ``size`` at a time; the last may be fewer."""
    rest = None
    for part in parts:
        rest = part if rest is None or not len(rest) else torch.cat((rest, part))
        while len(rest) >= size:
            yield rest[:size]
            rest = rest[size:]
    if rest is not None and len(rest):
        yield rest


def _encode_captions(captions: list[str], text: Any) -> dict[str, Tensor]:
    """A shard's text tensors; captions that several clips share are stored once."""
    unique = list(dict.fromkeys(captions))
    row = {caption: i for i, caption in enumerate(unique)}
    parts = [text.encode(unique[i : i + PROMPT_BATCH]) for i in range(0, len(unique), PROMPT_BATCH)]
    longest = max((mask.shape[1] for _, mask in parts), default=1)
    embeddings = torch.zeros(len(unique), longest, text.dim, dtype=torch.float16)
    lengths = torch.zeros(len(unique), dtype=torch.int32)
    for i, (part, mask) in enumerate(parts):
        here = slice(i * PROMPT_BATCH, i * PROMPT_BATCH + len(part))
        embeddings[here, : part.shape[1]] = part.half().cpu()
        lengths[here] = mask.sum(1, dtype=torch.int32).cpu()
    rows = torch.tensor([row[caption] for caption in captions], dtype=torch.int32)
    return {"text": embeddings, "text_length": lengths, "text_row": rows}


def shard_bytes(tensors: dict[str, Tensor], about: dict[str, Any]) -> bytes:
    """The file of a shard with these ``tensors``; checksums of them and of each clip are added to ``about``."""
    plain = memoryview(save(tensors))
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    about = about | {"crc32": [clip_crc32(arrays, row) for row in range(len(arrays["latents"]))]}
    about = about | {"sha256": hashlib.sha256(plain[8 + int.from_bytes(plain[:8], "little") :]).hexdigest()}
    return save(tensors, metadata={"shard": json.dumps(about)})


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, Any], int]:
    """A safetensors file's tensors (dtype, shape, data_offsets), our metadata, and where its data begin.

    Raises:
        ValueError: no such file's header.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError("a header longer than its file")
        header = file.read(length)
    try:
        tensors = parse_json(header, "not a safetensors header", dict)
        metadata = tensors.pop("__metadata__", {})
        return tensors, parse_json(metadata.get("shard", "{}"), "not our metadata", dict), 8 + length
    except (UserError, AttributeError) as error:
        raise ValueError(str(error)) from None


def is_whole(path: Path, planned: str) -> bool:
    """Whether the shard is complete, by its own header, and was made as ``planned``."""
    if not path.is_file():
        return False
    try:
        tensors, about, begin = read_header(path)
    except ValueError:
        return False
    end = begin + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    return path.stat().st_size == end and about.get("planned") == planned


def header_sha256(path: Path) -> str:
    """The checksum of a shard's header, which contains that of its tensors."""
    with path.open("rb") as file:
        start = file.read(8)
        length = min(int.from_bytes(start, "little"), path.stat().st_size)  # of an altered one, any number
        return hashlib.sha256(start + file.read(length)).hexdigest()


def data_is_whole(path: Path) -> bool:
    """Whether a shard's tensors have the checksum that its header says; the oldest shards say none."""
    _, about, begin = read_header(path)
    if "sha256" not in about:
        return True
    with path.open("rb") as file:
        file.seek(begin)
        return hashlib.file_digest(file, "sha256").hexdigest() == about["sha256"]


def clip_crc32(arrays: dict[str, np.ndarray], row: int) -> int:
    """The CRC-32 of a clip: its latents, its row of text and the length of that."""
    text = int(arrays["text_row"][row])
    crc = zlib.crc32(np.ascontiguousarray(arrays["latents"][row]))
    crc = zlib.crc32(np.ascontiguousarray(arrays["text"][text]), crc)
    return zlib.crc32(arrays["text_length"][text].tobytes(), crc)


def is_finite(values: np.ndarray) -> bool:
    """Whether no number of a float16 array is infinite or NaN; a fifth of ``np.isfinite``'s time."""
    return bool((np.ascontiguousarray(values).view(np.uint16) & EXPONENT != EXPONENT).all())


def altered(path: Path, clip: str = "") -> DataFault:
    """The error for an altered file of a cache, or an altered clip in it."""
    return DataFault(f"{path}{f', clip {clip!r}' if clip else ''} was altered; {FIX}")


def map_arrays(path: Path) -> dict[str, np.ndarray]:
    """A shard's tensors as views of one memory map; DataFault if its header does not describe them."""
    return MappedShard(path).arrays


class MappedShard:
    """A shard's tensors, as views of one memory map, and the clips that are not checked yet.

    Args:
        whole: check the tensors' checksum now where the shard, of an older cache, has none of its clips.

    Raises:
        DataFault: the header describes no tensors, or the tensors were altered.
    """

    def __init__(self, path: Path, whole: bool = False) -> None:
        self._path = path
        try:
            tensors, about, begin = read_header(path)
            data = np.asarray(np.memmap(path, np.uint8, mode="r", offset=begin))
            self.arrays = {
                key: data[slice(*tensor["data_offsets"])].view(_DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
                for key, tensor in tensors.items()
            }
            crc32 = np.array(about["crc32"], np.uint32) if "crc32" in about else None
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            raise altered(path) from None
        self._crc32 = crc32
        self._unchecked = np.ones(len(self.arrays.get("text_row", ())), bool)
        if crc32 is not None and len(crc32) != len(self._unchecked):
            raise altered(path)
        if whole and crc32 is None and not data_is_whole(path):
            self.check_all()  # names a clip that is not finite
            raise altered(path)

    def check(self, rows: np.ndarray, again: bool = False) -> None:
        """Compare the clips of int64 ``rows`` with their checksums, and check that their numbers are finite.

        Args:
            again: check also clips that this process has checked before.

        Raises:
            DataFault: one was altered, or is not finite (named).
        """
        for row in np.unique(rows if again else rows[self._unchecked[rows]]):
            if not self._is_as_written(row):
                raise altered(self._path, self._key(row))
            for name, values in (
                ("latents", self.arrays["latents"][row]),
                ("caption's embedding", self.arrays["text"][self.arrays["text_row"][row]]),
            ):
                if not is_finite(values):
                    raise DataFault(
                        f"{self._path}, clip {self._key(row)!r}: NaN or infinite values in its {name}; {FIX}"
                    )
            self._unchecked[row] = False

    def check_all(self, again: bool = False) -> None:
        """``check`` all clips."""
        self.check(np.arange(len(self._unchecked)), again)

    def _is_as_written(self, row: int) -> bool:
        text, rows = self.arrays["text_row"][row], len(self.arrays["text"])
        if not 0 <= text < rows or not 0 <= self.arrays["text_length"][text] <= self.arrays["text"].shape[1]:
            return False
        return self._crc32 is None or clip_crc32(self.arrays, row) == self._crc32[row]

    def _key(self, row: int) -> str:
        keys = read_header(self._path)[1].get("keys", [])
        return keys[row] if row < len(keys) else f"{row}"


class Shards:
    """A sequence of shards, mapped when they are first read, so that a cache of thousands opens at once.

    Args:
        files: path and number of clips of each.
        latent_shape, text_tokens, text_dim: of the clips read; text is padded to ``text_tokens``.
    """

    def __init__(
        self, files: Sequence[tuple[Path, int]], latent_shape: tuple[int, ...], text_tokens: int, text_dim: int
    ) -> None:
        self.files = [(path, clips) for path, clips in files if clips]
        self._shape, self._text = tuple(latent_shape), (text_tokens, text_dim)
        self._starts = np.cumsum([0, *(clips for _, clips in self.files)])
        whole = sum(path.stat().st_size for path, _ in self.files) <= CHECKED_WHOLE_BYTES
        self._mapped = functools.cache(lambda number: MappedShard(self.files[number][0], whole))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, indices: Tensor, pinned: bool = False) -> Stored:
        """The clips ``indices`` (int64 [n], on the CPU), in memory that a GPU copies from by itself if ``pinned``.

        Raises:
            IndexError: there are no such clips.
            DataFault: one was altered or is not finite; each is checked when it is first read.
        """
        index = indices.numpy()
        stored = Stored(
            torch.empty(len(index), *self._shape, dtype=torch.float16, pin_memory=pinned),
            torch.empty(len(index), *self._text, dtype=torch.float16, pin_memory=pinned),
            torch.empty(len(index), dtype=torch.int32, pin_memory=pinned),
        )
        latents, text, length = (tensor.numpy() for tensor in stored)
        for mapped, here, row in self._rows(index):
            mapped.check(row)
            arrays = mapped.arrays
            caption = arrays["text_row"][row]
            tokens = arrays["text"].shape[1]
            if len(here) == len(index):  # straight into its place; "clip", or numpy copies twice
                np.take(arrays["latents"], row, axis=0, out=latents, mode="clip")
            else:
                latents[here] = arrays["latents"][row]
            text[here, :tokens] = arrays["text"][caption]
            text[here, tokens:] = 0
            length[here] = arrays["text_length"][caption]
        return stored

    def check(self, indices: Tensor) -> None:
        """Check the clips ``indices`` (int64 [n], on the CPU), also those that were checked before.

        Raises:
            DataFault: one was altered or is not finite.
        """
        for mapped, _, row in self._rows(indices.numpy()):
            mapped.check(row, again=True)

    def check_all(self, again: bool = False) -> None:
        """Check all clips; with ``again`` also those that were checked before."""
        for number in range(len(self.files)):
            self._mapped(number).check_all(again)

    def _rows(self, index: np.ndarray) -> Iterator[tuple[MappedShard, np.ndarray, np.ndarray]]:
        """The shards of the clips ``index``, with the clips' places in ``index`` and their rows in the shard."""
        if len(index) and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(f"clips {index.min()} to {index.max()} of {len(self)}")
        shard = np.searchsorted(self._starts, index, side="right") - 1
        for number in np.unique(shard):
            here = np.flatnonzero(shard == number)
            yield self._mapped(int(number)), here, index[here] - self._starts[number]


def as_float(stored: Stored) -> tuple[Tensor, Tensor, Tensor]:
    """Latents float32, text float32 and mask bool [n, L] (true on tokens), on the device of ``stored``."""
    tokens = torch.arange(stored.text.shape[1], device=stored.text.device)
    return stored.latents.float(), stored.text.float(), tokens < stored.text_length[:, None]
