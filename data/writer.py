"""Writer of latent caches: any number of processes share the shards without communication.

The content of a shard is a function of the list of sources and the settings. So process r of n makes every n-th
shard, and the process that finds all shards finished writes the lists and the index. A shard is written under a
temporary name and renamed; a finished shard is not made again. The bytes are the same for any number of processes,
killed or not.

An unfinished cache has a hidden folder ``.work`` with one folder per process for its lock and temporary files.
"""

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.torch import save

from videoscaling.data.choices import LIMIT_SECONDS
from videoscaling.data.clip_groups import SPLITS, ClipGroup
from videoscaling.data.index import CacheIndex, CacheSettings, fingerprint, list_hash, read_index
from videoscaling.data.rejections import RejectionCount, by_reason, lines, once, reason_counts, whole_videos
from videoscaling.data.shards import Shard, encode_shard, header_sha256, is_whole, read_header
from videoscaling.data.totals import Totals
from videoscaling.data.video.decode_workers import decoded
from videoscaling.data.work_share import WorkShare
from videoscaling.utils.errors import UserError, plural
from videoscaling.utils.files import file_size, json_text, remove_leftovers, sha256_of
from videoscaling.utils.locks import check_lock, lock
from videoscaling.utils.os_errors import with_filename
from videoscaling.utils.seal import sealed

# What a hash among the settings is of: two hashes do not show what differs.
HASHED = {
    "videos_hash": "of as many videos, a name, size or caption differs (see --no-captions and --caption-column)",
    "vae_fingerprint": "the autoencoder differs (--vae)",
    "text_fingerprint": "the text encoder differs (--text)",
}
SHARD_BYTES = 256 << 20  # of latents
RULE = "split_rule"  # the setting that says how training and validation were separated, where not by the first rule
SHARD_CLIPS = 4096  # tiny clips: how much an interruption may cost


class Load(NamedTuple):
    """Batch of clips to encode, number of decoding processes (0: this one), and seconds for a source."""

    batch: int = 16
    workers: int = 0
    limit_seconds: float = LIMIT_SECONDS


def clips_per_shard(latent_shape: Sequence[int]) -> int:
    """How many clips make a shard of about ``SHARD_BYTES``."""
    return max(1, min(SHARD_CLIPS, SHARD_BYTES // (2 * int(np.prod(latent_shape)))))


@contextmanager
def working(folder: str | Path, share: WorkShare) -> Iterator[Path]:
    """Lock this process's share of the cache in ``folder``; yields its own folder there, and removes it at the end.

    Raises:
        UserError: another living process has locked the same share.
    """
    mine = work_folder(folder, share)
    try:
        with lock(mine):
            try:
                yield mine
            finally:
                _remove(mine)
    finally:
        for empty in (mine, mine.parent, Path(folder)):  # a command that was refused leaves nothing
            with suppress(OSError):
                empty.rmdir()


def work_folder(folder: str | Path, share: WorkShare) -> Path:
    """A share's own folder while a cache is made."""
    return Path(folder) / ".work" / f"share-{share.rank}-of-{share.world}"


def _remove(work: Path) -> None:
    """Remove a share's folder, which the caller has locked, unless another process took it over."""
    with suppress(UserError):
        check_lock(work)
        shutil.rmtree(work, ignore_errors=True)


def _clean(work: Path, index: CacheIndex) -> None:
    """Remove what the finished cache of ``index`` has no use for: the files that killed processes left next to
    ``work``, and the shards without clips.

    Living processes remove their own files. While there is one, shards without clips tell it what is done.
    """
    folder, alone = work.parents[1], True
    remove_leftovers(folder, "rejected.jsonl")
    for left in work.parent.iterdir():
        if left != work:
            try:
                with lock(left):
                    _remove(left)
            except UserError:
                alone = False
    for path in folder.glob("*.safetensors") if alone else ():
        if path.name not in index["files"] and _is_empty(path):
            path.unlink(missing_ok=True)


def _is_empty(path: Path) -> bool:
    """Whether a file is a shard without clips: all its sources were rejected."""
    try:
        return read_header(path)[1].get("keys") == []
    except (OSError, ValueError):
        return False


def _place(work: Path, path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write ``path`` atomically, by way of the folder ``work``.

    Raises:
        UserError: this process has lost its lock of ``work``.
    """
    check_lock(work)
    # The host too: processes of several machines may share a number.
    tmp = work / f"{path.name}.{socket.gethostname()}.{os.getpid()}"
    with with_filename(path, tmp):
        with tmp.open("wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        tmp.replace(path)


def open_cache(folder: str | Path, settings: CacheSettings, work: Path) -> CacheIndex | None:
    """Prepare ``folder`` for a cache of these settings.

    Args:
        settings: with ``RULE`` or without it: the draw that follows from a cache's own decides that (``record_rule``).
        work: this process's own folder in it (``working``).

    Returns:
        the index of a finished cache with the same settings, or None where there is work to do.

    Raises:
        UserError: the folder holds a cache of other settings (the difference is named), or is no cache.
    """
    folder = Path(folder)
    index = unfinished = {"finished": False, "settings": settings}
    entries = {entry.name for entry in folder.iterdir()}  # before the look at the index, which another may write now
    there = (folder / "index.json").exists()
    if there:
        index = read_index(folder)
    elif entries - {".lock", ".work"}:
        raise UserError(f"{folder}: exists and is no latent cache; choose a new folder")
    # A job that stopped before its first shard leaves nothing that could be mixed up.
    if not index["finished"] and not any(folder.glob("*.safetensors")):
        there, index = there and _without_rule(index["settings"]) == _without_rule(settings), unfinished
    if _without_rule(index["settings"]) != _without_rule(settings):
        raise UserError(
            f"{folder} holds a cache made otherwise: {difference(index['settings'], settings)}. Choose another folder"
        )
    if index["finished"]:
        damaged = [folder / name for name, file in index["files"].items() if file_size(folder / name) != file["bytes"]]
        if not damaged:
            _clean(work, index)
            return index
        for path in damaged:
            path.unlink(missing_ok=True)
    if index["finished"] or not there:
        unfinished = {"finished": False, "settings": index["settings"]}
        _place(work, folder / "index.json", json_text(sealed(unfinished)).encode())
    return None


def recorded_rule(folder: str | Path) -> tuple[dict[str, str], bool]:
    """The rule that the cache in ``folder`` says it was split by, as a part of its settings, and whether it has begun
    and says none: it is of before there were rules, or splits as it would have then."""
    # Shards first: who writes one has recorded the rule before.
    begun = any(Path(folder).glob("*.safetensors")) or (Path(folder) / "validation.json").exists()
    path = Path(folder) / "index.json"
    settings = read_index(Path(folder))["settings"] if path.exists() else {}
    rule = {RULE: settings[RULE]} if RULE in settings else {}
    return rule, not rule and begun


def record_rule(folder: str | Path, settings: CacheSettings, work: Path) -> None:
    """Have the unfinished cache in ``folder`` say the rule in ``settings``, before its first shard.

    Raises:
        UserError: it is of another rule.
    """
    path = Path(folder) / "index.json"
    there = read_index(Path(folder))["settings"]
    if there == settings:
        return
    if any(Path(folder).glob("*.safetensors")):
        raise UserError(f"{folder} holds a cache made otherwise: {difference(there, settings)}. Choose another folder")
    _place(work, path, json_text(sealed({"finished": False, "settings": settings})).encode())


def _without_rule(settings: CacheSettings) -> CacheSettings:
    return {key: value for key, value in settings.items() if key != RULE}


def difference(there: CacheSettings, now: CacheSettings) -> str:
    """The differences of two settings, as text."""
    pairs = {key: (there.get(key), now.get(key)) for key in {**there, **now}}
    changed = {key: pair for key, pair in sorted(pairs.items()) if pair[0] != pair[1]}
    if "videos" in changed:
        changed.pop("videos_hash", None)  # of another number of videos it is another
    return "; ".join(HASHED.get(key, f"{key} is {a!r} there and {b!r} now") for key, (a, b) in changed.items())


def plan_shards(
    folder: str | Path, settings: CacheSettings, units: dict[str, list[ClipGroup]], per_shard: int
) -> dict[str, list[Shard]]:
    """All shards of a cache, by split: ``per_shard`` units each, in order."""
    shards: dict[str, list[Shard]] = {}
    for split in SPLITS:
        groups = [units[split][i : i + per_shard] for i in range(0, len(units[split]), per_shard)]
        shards[split] = [
            Shard(
                Path(folder) / f"{split}-{number:05d}.safetensors",
                group,
                list_hash([fingerprint(settings), *(json.dumps([unit.source, unit.keys]) for unit in group)]),
            )
            for number, group in enumerate(groups)
        ]
    return shards


def write_share(
    shards: Sequence[Shard],
    vae: Any,
    text: Any,
    latent_shape: Sequence[int],
    work: Path,
    load: Load = Load(),  # noqa: B008
    tally: RejectionCount | None = None,
    progress: Callable[[int], None] = lambda units: None,
) -> None:
    """Encode the missing ones of a share's ``shards``.

    Args:
        vae: ``encode(clips) -> latents``, as ``models.vae``.
        text: ``encode(prompts) -> (embeddings, mask)`` and ``dim``, as ``models.text``.
        latent_shape: (C, f, h, w) of a clip.
        work: this process's own folder (``working``).
        tally: asked after each shard whether too much was rejected.
        progress: called with the number of units just done.

    Raises:
        UserError: a latent is not finite, or too many sources were rejected.
    """
    missing = []
    for shard in shards:
        if is_whole(shard.path, shard.planned):
            progress(len(shard.units))
        else:
            missing.append(shard)
    # One stream over all shards, so that decoding continues while a shard is written.
    answers = decoded((unit for shard in missing for unit in shard.units), load.workers, load.limit_seconds)
    try:
        for shard in missing:
            content = encode_shard(
                shard=shard,
                answers=answers,
                vae=vae,
                text=text,
                latent_shape=tuple(latent_shape),
                batch=load.batch,
                progress=progress,
            )
            _place(work, shard.path, content)
            if tally is not None:
                tally.count()
    finally:
        answers.close()


def close_cache(
    folder: str | Path,
    settings: CacheSettings,
    shards: dict[str, list[Shard]],
    latent_shape: Sequence[int],
    text: Any,
    work: Path,
    *,
    about: Mapping[str, object] | None = None,
    frozen: Sequence[str] | None = None,
) -> CacheIndex | None:
    """Write the lists and the index of a cache whose shards are all finished; every process writes the same bytes.

    Args:
        text: as ``write_share``'s, with ``max_tokens`` and ``count_tokens(prompts)`` too.
        about: further facts for the index, which do not change the content.
        frozen: the validation keys of an earlier cache; this cache must have all of them.

    Returns:
        the index, or None where shards are still missing.

    Raises:
        UserError: no clip is left in training, or a frozen validation clip is missing.
    """
    folder = Path(folder)
    if missing_shards(shards):
        return None
    null = save({"text": text.encode([""])[0].half().cpu().contiguous()})
    _place(work, folder / "null_context.safetensors", null)
    null_tokens = read_header(folder / "null_context.safetensors")[0]["text"]["shape"][1]
    totals = Totals(tuple(latent_shape), null_tokens, text)
    _place(work, folder / "captions.jsonl", lines(totals.captions(shards)))
    rejected = once(totals.rejected)
    _place(work, folder / "rejected.jsonl", lines(rejected))
    if not totals.clips["train"]:
        raise UserError(
            f"no clip is left for training; rejected: {reason_counts(rejected)} (see {folder / 'rejected.jsonl'})"
        )
    if frozen is not None and list(frozen) != totals.validation:
        gone = sorted(set(frozen) - set(totals.validation))
        raise UserError(
            f"{plural(len(gone), 'clip')} of the frozen validation list could not be read, the first: {gone[:1]}"
        )
    validation = {"hash": list_hash(totals.validation), "keys": totals.validation}
    _place(work, folder / "validation.json", json_text(validation).encode())

    holding = [folder / shard["file"] for split in SPLITS for shard in totals.listed[split]]
    files = {path.name: {"bytes": file_size(path), "header_sha256": header_sha256(path)} for path in holding}
    for name in ("null_context.safetensors", "captions.jsonl", "rejected.jsonl", "validation.json"):
        files[name] = {"bytes": file_size(folder / name), "sha256": sha256_of(folder / name)}
    n_clips = sum(totals.clips.values())
    lost_clips = [row for row in rejected if "clip" in row]
    index = {
        "finished": True,
        "settings": settings,
        "fingerprint": fingerprint(settings),
        "about": about or {},
        "n_clips": n_clips,
        "latent_shape": list(latent_shape),
        "positions": n_clips * int(np.prod(latent_shape[1:])),
        "text_dim": text.dim,
        "text_tokens": totals.text_tokens,
        # Of the training clips as stored: reported, never applied. Normalisation is the VAE's alone.
        "latent_statistics": totals.statistics(),
        "rejected": by_reason(whole_videos(rejected)),
        # Clips without a caption, and with one that is longer than the text encoder takes.
        "captions": {"missing": totals.without_caption, "cut": totals.cut},
        "validation_hash": validation["hash"],
        "splits": {split: {"clips": totals.clips[split], "shards": totals.listed[split]} for split in SPLITS},
        "files": files,
    }
    if lost_clips:  # an index without any is as it was before single clips were counted
        index["rejected_clips"] = by_reason(lost_clips)
    _place(work, folder / "index.json", json_text(sealed(index)).encode())
    _clean(work, index)
    return index


def missing_shards(shards: dict[str, list[Shard]]) -> int:
    """The number of unfinished shards."""
    return sum(not is_whole(shard.path, shard.planned) for split in SPLITS for shard in shards[split])


def write_cache(
    folder: str | Path,
    settings: CacheSettings,
    units: dict[str, list[ClipGroup]],
    vae: Any,
    text: Any,
    *,
    per_shard: int = 64,
    about: Mapping[str, object] | None = None,
    frozen: Sequence[str] | None = None,
    load: Load = Load(),  # noqa: B008
) -> CacheIndex:
    """A whole cache by this process alone: ``open_cache``, ``write_share`` and ``close_cache``.

    Returns:
        the index.

    Raises:
        UserError: as they do.
    """
    shape = vae.latent_shape(settings["frames"], settings["height"], settings["width"])
    with working(folder, WorkShare()) as work:
        index = open_cache(folder, settings, work)
        if index is None:
            shards = plan_shards(folder, settings, units, per_shard)
            write_share([*shards["train"], *shards["validation"]], vae, text, shape, work, load)
            index = close_cache(folder, settings, shards, shape, text, work, about=about, frozen=frozen)
    return index
