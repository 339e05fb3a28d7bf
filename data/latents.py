"""The latent and text cache: clips are encoded once, and read back memory-mapped.

A cache is a folder:

    index.json                 what it was made of and with, what it holds, its files' sizes and checksums
    train-00000.safetensors    shards: latents float16 [n, C, f, h, w], text float16 [m, L, dim] of the m captions in
    validation-00000...        it, text_length int32 [m], text_row int32 [n]; keys and captions in its header
    null_context.safetensors   the empty prompt's embedding
    validation.json            the frozen list of validation clips, with its hash
    captions.jsonl             split, key and caption of every clip
    rejected.jsonl             every source that was not used, with the reason

Shards are written aside and renamed, the index comes last: a killed job leaves whole shards and an index that says
"unfinished", and the same command goes on from there, to the same bytes. Shards hold whole sources, fixed beforehand,
so which clip lies in which shard does not depend on where a job was interrupted.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from data.clips import Rejected
from data.sources import SPLITS, Unit, list_hash
from utils.errors import UserError
from utils.files import read_json, replacing, write_json, write_text

FORMAT = 1
SHARD_BYTES = 256 << 20  # of latents
SHARD_CLIPS = 4096  # tiny clips: how much an interruption may cost
PROMPT_BATCH = 64


def open_cache(folder: str | Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Make ``folder`` ready for a cache of these settings.

    Returns:
        the index of a finished cache with the same settings, or None where there is work to do.

    Raises:
        UserError: the folder holds a cache of other settings (the difference is named), or is no cache.
    """
    folder = Path(folder)
    index = unfinished = {"finished": False, "settings": settings}
    if (folder / "index.json").exists():
        index = _read_index(folder)
    elif folder.exists() and (not folder.is_dir() or any(entry.name != ".lock" for entry in folder.iterdir())):
        raise UserError(f"{folder}: exists and is no latent cache; choose a new folder")
    # A job that stopped before its first shard leaves nothing that could be mixed up.
    if not index["finished"] and not any(folder.glob("*.safetensors")):
        index = unfinished
    if index["settings"] != settings:
        pairs = {key: (index["settings"].get(key), settings.get(key)) for key in {**index["settings"], **settings}}
        told = "; ".join(f"{key} is {a!r} there and {b!r} now" for key, (a, b) in sorted(pairs.items()) if a != b)
        raise UserError(f"{folder} holds a cache made otherwise: {told}. Choose another folder")
    useless = [*folder.glob(".*.tmp")]
    if index["finished"]:
        useless = [folder / name for name, file in index["files"].items() if _size(folder / name) != file["bytes"]]
        if not useless:
            return index
    for path in useless:
        path.unlink(missing_ok=True)
    write_json(folder / "index.json", unfinished)
    return None


def write_cache(
    folder: str | Path,
    settings: dict[str, Any],
    units: dict[str, list[Unit]],
    vae: Any,
    text: Any,
    *,
    about: dict[str, Any] | None = None,
    rejected: Sequence[dict[str, str]] = (),
    frozen: Sequence[str] | None = None,
    batch: int = 16,
    progress: Callable[[int], None] = lambda clips: None,
) -> dict[str, Any]:
    """Encode all units into a cache that ``open_cache`` made ready, going on from the shards that are there.

    Args:
        settings: what determines the cache's content.
        units: per split ("train", "validation"), in order.
        vae: ``encode(clips) -> latents`` and ``latent_shape(frames, height, width)``, as ``models.vae``.
        text: ``encode(prompts) -> (embeddings, mask)`` and ``dim``, as ``models.text``.
        about: further facts for the index, of no consequence for the content.
        rejected: sources ({"source", "reason", "detail"}) that gave no unit.
        frozen: the validation keys of an earlier cache, all of which must be in this one.
        batch: clips encoded at once.
        progress: called with the number of clips just done.

    Returns:
        the index.

    Raises:
        UserError: no clip is left in training, a latent is not finite, or a frozen validation clip is missing.
    """
    folder = Path(folder)
    shape = tuple(vae.latent_shape(settings["frames"], settings["height"], settings["width"]))
    per_shard = max(1, min(SHARD_CLIPS, SHARD_BYTES // (2 * int(np.prod(shape)))))
    shards: dict[str, list[Path]] = {}
    for split in SPLITS:
        shards[split] = []
        for number, group in enumerate(_grouped(units[split], per_shard)):
            path = folder / f"{split}-{number:05d}.safetensors"
            if _is_done(path, group):
                progress(sum(len(unit.keys) for unit in group))
            else:
                _write_shard(path, group, vae, text, shape, batch, progress)
            shards[split].append(path)
    null = folder / "null_context.safetensors"
    with replacing(null) as aside:
        aside.write_bytes(save({"text": text.encode([""])[0].half().cpu().contiguous()}))
    return _finish(folder, settings, shards, about or {}, list(rejected), frozen, shape, text.dim)


def _grouped(units: list[Unit], clips: int) -> Iterable[list[Unit]]:
    """Consecutive units of at least ``clips`` clips together; the last group may have fewer."""
    group, held = [], 0
    for unit in units:
        group.append(unit)
        held += len(unit.keys)
        if held >= clips:
            yield group
            group, held = [], 0
    if group:
        yield group


def _planned(group: list[Unit]) -> str:
    """The hash of what a shard is to hold, should no source be rejected."""
    return list_hash([key for unit in group for key in unit.keys])


def _write_shard(
    path: Path, group: list[Unit], vae: Any, text: Any, shape: tuple, batch: int, progress: Callable[[int], None]
) -> None:
    latents, keys, captions, rejected = [torch.zeros(0, *shape, dtype=torch.float16)], [], [], []
    for unit in group:
        try:
            unit_captions, clips = unit.load()
        except Rejected as error:
            rejected.append(error.row(unit.source))
        else:
            latents += [vae.encode(part).half().cpu() for part in clips.split(batch)]
            keys += unit.keys
            captions += unit_captions
        progress(len(unit.keys))
    tensors = {"latents": torch.cat(latents), **_encode_captions(captions, text)}
    for name in ("latents", "text"):
        if not tensors[name].isfinite().all():
            raise UserError(f"{path.name}: {name} that are not finite, or overflow float16; is it the right encoder?")
    by_channel = tensors["latents"].double().transpose(0, 1).flatten(1)
    # One string, since safetensors writes several in no fixed order, and a cache is the same bytes every time.
    about = {
        "planned": _planned(group),
        "keys": keys,
        "captions": captions,
        "rejected": rejected,
        "sum": by_channel.sum(1).tolist(),
        "square_sum": by_channel.square().sum(1).tolist(),
    }
    with replacing(path) as aside:  # bytes of ours: safetensors makes files that only their owner can read
        aside.write_bytes(save(tensors, metadata={"shard": json.dumps(about)}))


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


def _finish(
    folder: Path,
    settings: dict,
    shards: dict[str, list[Path]],
    about: dict,
    rejected: list[dict],
    frozen: Sequence[str] | None,
    shape: tuple,
    text_dim: int,
) -> dict[str, Any]:
    """Write the lists and the index of a cache whose shards are all there."""
    splits, captions, keys = {}, [], {}
    count, total, squares = 0, np.zeros(shape[0]), np.zeros(shape[0])
    tokens = _header(folder / "null_context.safetensors")[0]["text"]["shape"][1]
    for split in SPLITS:
        keys[split], listed = [], []
        for path in shards[split]:
            tensors, shard, _ = _header(path)
            listed.append({"file": path.name, "clips": len(shard["keys"])})
            tokens = max(tokens, tensors["text"]["shape"][1])
            keys[split] += shard["keys"]
            rejected += shard["rejected"]
            captions += [{"split": split, "key": k, "caption": c} for k, c in zip(shard["keys"], shard["captions"])]
            if split == "train":
                count += len(shard["keys"]) * int(np.prod(shape[1:]))
                total += np.array(shard["sum"])
                squares += np.array(shard["square_sum"])
        splits[split] = {"clips": len(keys[split]), "shards": listed}
    reasons = Counter(r["reason"] for r in rejected)
    write_lines(folder / "rejected.jsonl", sorted(rejected, key=lambda r: r["source"]))
    if not keys["train"]:
        counts = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
        raise UserError(f"no clip is left for training; rejected: {counts} (see {folder / 'rejected.jsonl'})")
    if frozen is not None and list(frozen) != keys["validation"]:
        gone = sorted(set(frozen) - set(keys["validation"]))
        raise UserError(f"{len(gone)} clips of the frozen validation list cannot be had, the first: {gone[:1]}")
    write_lines(folder / "captions.jsonl", captions)
    validation = {"hash": list_hash(keys["validation"]), "keys": keys["validation"]}
    write_json(folder / "validation.json", validation)

    mean = total / count
    lists = [folder / name for name in ("captions.jsonl", "rejected.jsonl", "validation.json")]
    files = [*shards["train"], *shards["validation"], folder / "null_context.safetensors", *lists]
    n_clips = sum(split["clips"] for split in splits.values())
    index = {
        "finished": True,
        "settings": settings,
        "fingerprint": list_hash([json.dumps(settings, sort_keys=True)]),
        "about": about,
        "n_clips": n_clips,
        "latent_shape": list(shape),
        "positions": n_clips * int(np.prod(shape[1:])),
        "text_dim": text_dim,
        "text_tokens": tokens,
        # Of the training clips as stored: reported, never applied. Normalisation is the VAE's alone.
        "latent_statistics": {
            "mean": mean.tolist(),
            "std": np.sqrt(np.maximum(squares / count - mean**2, 0)).tolist(),
        },
        "rejected": dict(sorted(reasons.items())),
        "validation_hash": validation["hash"],
        "splits": splits,
        "files": {path.name: {"bytes": _size(path), "sha256": _sha256(path)} for path in files},
    }
    write_json(folder / "index.json", index)
    return index


def write_lines(path: Path, rows: Iterable[dict]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _header(path: Path) -> tuple[dict[str, Any], dict[str, Any], int]:
    """A safetensors file's tensors (dtype, shape, data_offsets), our metadata, and where its data begin."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        tensors = json.loads(file.read(length))
    return tensors, json.loads(tensors.pop("__metadata__", {}).get("shard", "{}")), 8 + length


def _is_done(path: Path, group: list[Unit]) -> bool:
    """Whether the shard is there in full, by its own header, and was made of these units."""
    if not path.is_file():
        return False
    try:
        tensors, shard, begin = _header(path)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False
    end = begin + max(tensor["data_offsets"][1] for tensor in tensors.values())
    return _size(path) == end and shard["planned"] == _planned(group)


def _read_index(folder: Path) -> dict[str, Any]:
    index = read_json(folder / "index.json")
    if not isinstance(index, dict) or not {"finished", "settings"} <= set(index):
        raise UserError(f"{folder / 'index.json'}: not the index of a latent cache")
    return index


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
        UserError: no cache there, an unfinished one, or one with a missing or altered file (named).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "index.json").is_file():
            raise UserError(f"{self.path}: no latent cache here; make one with tools/cache_latents.py")
        index = _read_index(self.path)
        if not index["finished"]:
            raise UserError(f"{self.path}: this cache is unfinished; run the command that makes it again to go on")
        if index["settings"]["format"] != FORMAT:
            raise UserError(f"{self.path}: a cache of format {index['settings']['format']}; this code reads {FORMAT}")
        self._files = index["files"]
        for name, file in self._files.items():
            size = _size(self.path / name)
            if size != file["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes instead of {file['bytes']}"
                raise UserError(f"{self.path / name} {found}; run the command that made the cache again to mend it")
        self.meta = {
            **index["settings"],
            **index["about"],
            **{k: v for k, v in index.items() if k not in ("settings", "about", "files", "finished", "splits")},
            # Of the settings and not the bytes, whose last bits depend on the machine that encoded them.
            "fingerprint": list_hash([json.dumps(index["settings"], sort_keys=True)]),
        }
        self.latent_shape = tuple(index["latent_shape"])
        self.text_dim, self.text_tokens = index["text_dim"], index["text_tokens"]
        self._splits = {split: self._map(index["splits"][split]["shards"]) for split in SPLITS}
        self.train_size, self.validation_size = (index["splits"][split]["clips"] for split in SPLITS)
        listed = read_json(self.path / "validation.json")
        self.validation_keys, self.validation_hash = listed["keys"], listed["hash"]
        if list_hash(self.validation_keys) != index["validation_hash"]:
            raise UserError(f"{self.path / 'validation.json'} was altered: the validation list is frozen")
        null = self._arrays("null_context.safetensors")["text"][0]
        self.null_context = (
            torch.zeros(self.text_tokens, self.text_dim),
            torch.arange(self.text_tokens) < len(null),
        )
        self.null_context[0][: len(null)] = torch.from_numpy(null.astype(np.float32))

    def train(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Training clips: latents float32 [n, C, f, h, w], text float32 [n, L, dim], mask bool [n, L] (true on
        tokens), for int64 ``indices`` [n] on the CPU."""
        return self._read("train", indices)

    def validation(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Validation clips, as ``train``; index i is clip ``validation_keys[i]``."""
        return self._read("validation", indices)

    def verify(self) -> None:
        """Recompute every file's checksum.

        Raises:
            UserError: a file was altered (named).
        """
        for name, file in self._files.items():
            if _sha256(self.path / name) != file["sha256"]:
                raise UserError(f"{self.path / name} was altered; delete it and run the command that made the cache")

    def _map(self, shards: list[dict]) -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
        shards = [shard for shard in shards if shard["clips"]]
        starts = np.cumsum([0, *(shard["clips"] for shard in shards)])
        return starts, [self._arrays(shard["file"]) for shard in shards]

    def _arrays(self, name: str) -> dict[str, np.ndarray]:
        """A shard's tensors as views of one memory map."""
        path = self.path / name
        tensors, _, begin = _header(path)
        data = np.asarray(np.memmap(path, np.uint8, mode="r", offset=begin))
        dtypes = {"F16": np.float16, "I32": np.int32}
        return {
            key: data[slice(*tensor["data_offsets"])].view(dtypes[tensor["dtype"]]).reshape(tensor["shape"])
            for key, tensor in tensors.items()
        }

    def _read(self, split: str, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        index = indices.numpy()
        starts, shards = self._splits[split]
        if len(index) and not 0 <= index.min() <= index.max() < starts[-1]:
            raise IndexError(f"{split} clips {index.min()} to {index.max()} of {starts[-1]}")
        latents = np.empty((len(index), *self.latent_shape), np.float16)
        text = np.zeros((len(index), self.text_tokens, self.text_dim), np.float16)
        length = np.zeros(len(index), np.int32)
        shard = np.searchsorted(starts, index, side="right") - 1
        for number in np.unique(shard):
            here, arrays = np.flatnonzero(shard == number), shards[number]
            row = index[here] - starts[number]
            latents[here] = arrays["latents"][row]
            caption = arrays["text_row"][row]
            text[here, : arrays["text"].shape[1]] = arrays["text"][caption]
            length[here] = arrays["text_length"][caption]
        mask = torch.arange(self.text_tokens) < torch.from_numpy(length)[:, None]
        return torch.from_numpy(latents).float(), torch.from_numpy(text).float(), mask
