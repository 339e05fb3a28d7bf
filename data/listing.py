"""What there is to read: the videos and pictures of a folder, of a manifest, or of WebDataset tar shards."""

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from data.manifests import MANIFESTS, list_manifest
from data.media import PICTURES, VIDEOS, Source, one_line, text_of
from data.tars import list_tars
from utils.errors import UserError


def list_sources(where: str | Path) -> list[Source]:
    """The videos and pictures of ``where``, sorted by name.

    ``where`` is a folder (searched recursively, captions in ``x.txt`` beside ``x.mp4``), a manifest (CSV, JSONL or
    Parquet with ``path``, relative to the manifest's folder, ``caption``, and ``start`` and ``end`` in seconds), or
    WebDataset shards: a tar, a folder of them, or a pattern such as ``shards/{000..015}.tar``. A picture beside a
    video of its name is its preview, and not listed.

    Raises:
        UserError: a missing or empty folder; a manifest without a path column, with a row that names no existing
            file, the same range of a file twice, a range that is none, or a file outside the manifest's folder; a
            shard that is no tar, or misses; text that is not UTF-8.
    """
    where = Path(where)
    kind = where.suffix.lower()
    if where.is_dir():
        sources = _list_folder(where)
    elif kind in MANIFESTS and where.is_file():
        sources = list_manifest(where)
    elif "{" in str(where) and not where.exists():
        sources = list_tars(str(where))
    elif kind == ".tar" and where.is_file():
        sources = list_tars(where)
    elif where.exists():
        raise UserError(f"{where}: neither a folder of videos nor a manifest (.csv, .jsonl, .parquet) nor a .tar")
    else:
        raise UserError(f"{where}: no such folder, manifest or tar")
    sources.sort(key=lambda source: source.name)
    for one, other in pairwise(sources):
        if one.name == other.name:
            raise UserError(f"{where}: {one.name} is listed twice")
    return sources


def _without_previews(names: list[str]) -> list[str]:
    """The videos among file names, and those pictures that no video shares its name with."""
    kinds = {name: Path(name).suffix.lower() for name in names}
    videos = [name for name in names if kinds[name] in VIDEOS]
    stems = {Path(name).with_suffix("") for name in videos}
    return videos + [name for name in names if kinds[name] in PICTURES and Path(name).with_suffix("") not in stems]


def _list_folder(folder: Path) -> list[Source]:
    files = list(_files_below(folder))
    tars = [name for name in files if name.lower().endswith(".tar")]
    names = _without_previews(files)
    if tars and names:
        raise UserError(f"{folder}: holds tar shards ({tars[0]}) and loose files ({names[0]}); name one or the other")
    if tars:
        return list_tars(folder, tars)
    if not names:
        raise UserError(f"{folder}: no videos in this folder ({', '.join(sorted(VIDEOS | PICTURES))} or .tar)")
    present, sources = set(files), []
    for name in names:
        text = Path(name).with_suffix(".txt").as_posix()
        where = str(folder / text)
        caption = one_line(text_of((folder / text).read_bytes(), where), where) if text in present else ""
        sources.append(Source(name, folder / name, caption))
    return sources


def _files_below(folder: Path) -> Iterator[str]:
    """The files' names relative to ``folder``, which links are followed to, unless they lead back up.

    Raises:
        UserError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: {(error.strerror or str(error)).lower()}") from None

    for here, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        path = Path(here)
        above = {os.path.realpath(parent) for parent in (path, *path.parents)}
        folders[:] = [x for x in folders if not (path / x).is_symlink() or os.path.realpath(path / x) not in above]
        for name in files:
            yield (path / name).relative_to(folder).as_posix()
