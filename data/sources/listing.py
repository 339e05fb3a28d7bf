"""Listing of sources: the videos and pictures of a folder, of a manifest, or of WebDataset tar shards."""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from videoscaling.data.choices import FILM, NAMED_SOURCES
from videoscaling.data.sources.captions import CAPTION_KINDS, CaptionFiles, ListingOptions, read_caption
from videoscaling.data.sources.film import list_film
from videoscaling.data.sources.manifests import list_manifest
from videoscaling.data.sources.source import (
    COMPANION,
    PICTURES,
    VIDEOS,
    Listing,
    Source,
    in_hidden_folder,
    skipped_kind,
)
from videoscaling.data.sources.tars import list_tars
from videoscaling.utils.errors import UserError, nearest, nearest_path
from videoscaling.utils.tables import KINDS, table_kind


def list_sources(where: str | Path, options: ListingOptions = ListingOptions()) -> list[Source]:  # noqa: B008
    """The sources that ``scan_sources`` lists."""
    return scan_sources(where, options).sources


def scan_sources(where: str | Path, options: ListingOptions = ListingOptions()) -> Listing:  # noqa: B008
    """The videos and pictures of ``where``, sorted by name, and the skipped files by kind.

    ``where`` is the text ``FILM``, a folder (searched recursively, captions in ``x.txt`` next to ``x.mp4``), a
    manifest (CSV, TSV, JSON, each perhaps gzipped, or Parquet, with ``path``, relative to the manifest's folder or
    ``options.root``, ``caption``, and ``start`` and ``end`` in seconds), or WebDataset shards: a tar, a folder of
    them, or a pattern such as ``shards/{000..015}.tar``. A picture next to a video of its name is its preview, and not
    listed. A name that is not UTF-8 has its other bytes as surrogates U+DC80 to U+DCFF, as Python's ``os`` returns it.

    Raises:
        UserError: a missing or empty folder; a manifest without a column of paths or of captions, with a row that has
            more fields than the header, names no existing file, the same range of a file twice, a range that is none,
            or a file outside the root; a shard that is no tar, or misses; captions under names that are not
            recognised, or under two; text that is not UTF-8; an option of manifests for something else.
    """
    if where == FILM:
        if Path(where).exists():
            raise UserError(f"{FILM} names a source, and also a file or folder here; write ./{FILM} for that")
        return list_film(options)
    where = Path(where)
    is_table = table_kind(where) is not None and where.is_file()
    for option, value in (("--path-column", options.path_column), ("--root", options.root)):
        if value is not None and not is_table and (where.exists() or "{" in str(where)):
            raise UserError(f"{option} is for manifests ({', '.join(KINDS)}), and {where} is none")
    if where.is_dir():
        listing = _list_folder(where, options)
    elif is_table:
        listing = list_manifest(where, options)
    elif "{" in str(where) and not where.exists():
        listing = list_tars(str(where), options)
    elif where.suffix.lower() == ".tar" and where.is_file():
        listing = list_tars(where, options)
    elif where.exists() and not where.is_file():
        raise UserError(f"{where}: no regular file, but a pipe or a device")
    elif where.suffix.lower() in VIDEOS and where.exists():
        raise UserError(
            f"{where}: one video is no source; give a folder of videos, such as {where.parent}, or a .csv beside it "
            f"with the lines path and {where.name}"
        )
    elif where.exists():
        raise UserError(
            f"{where}: neither a folder of videos nor a manifest ({', '.join(KINDS)}, and .gz of all but "
            "the last) nor a .tar"
        )
    else:
        near = nearest(str(where), list(NAMED_SOURCES), 0.8) or nearest_path(where)
        raise UserError(f"{where}: no such folder, manifest or tar{near}")
    listing.sources.sort(key=lambda source: source.name)
    for one, other in pairwise(listing.sources):
        if one.name == other.name:
            raise UserError(f"{where}: {one.name} is listed twice")
    return listing._replace(skipped=dict(sorted(listing.skipped.items())))


def _without_previews(names: list[str]) -> list[str]:
    """The videos among file names, and those pictures that no video shares its name with."""
    kinds = {name: Path(name).suffix.lower() for name in names}
    videos = [name for name in names if kinds[name] in VIDEOS]
    stems = {Path(name).with_suffix("") for name in videos}
    return videos + [name for name in names if kinds[name] in PICTURES and Path(name).with_suffix("") not in stems]


def _list_folder(folder: Path, options: ListingOptions) -> Listing:
    files = sorted(_files_below(folder))  # a disk's order is no order
    own = [name for name in files if not (Path(name).name.startswith(COMPANION) or in_hidden_folder(name))]
    tars = [name for name in own if name.lower().endswith(".tar")]
    names = _without_previews(own)
    if tars and names:
        raise UserError(f"{folder}: holds tar shards ({tars[0]}) and loose files ({names[0]}); name one or the other")
    if tars:
        listing = list_tars(folder, options, tars)
        loose = Counter(skipped_kind(name) for name in set(files) - set(tars))
        return listing._replace(skipped=Counter(listing.skipped) + loose)
    if not names:
        raise UserError(f"{folder}: no videos in this folder ({', '.join(sorted(VIDEOS | PICTURES))} or .tar)")
    reader = CaptionFiles(folder, options)
    neighbours = _kinds_by_stem(folder, set(own) - set(names))
    sources, used = [], set(names)
    for name in names:
        path = Path(name)
        files_here = neighbours.get(str(path.with_suffix("")), {})
        # x.mp4.txt is as common as x.txt.
        files_here = files_here | {path.suffix + kind: file for kind, file in neighbours.get(name, {}).items()}
        caption, file = reader.read(files_here, ("", path.suffix), lambda file: _read(folder / file))
        used.add(file or name)
        sources.append(Source(name, folder / name, caption))
    reader.check()
    left = set(files) - used
    _check_elsewhere(folder, sources, left, options)
    return Listing(sources, dict(Counter(map(skipped_kind, left))), [])


def _kinds_by_stem(folder: Path, names: set[str]) -> dict[str, dict[str, str]]:
    """Files by their names without extension, and by extension in lower case.

    Raises:
        UserError: two caption files differ in the case of their extensions alone.
    """
    found: dict[str, dict[str, str]] = {}
    for name in sorted(names):
        path = Path(name)
        kinds = found.setdefault(str(path.with_suffix("")), {})
        other = kinds.setdefault(path.suffix.lower(), name)
        if other != name and path.suffix.lower() in CAPTION_KINDS:
            raise UserError(f"{folder / other} and {folder / name} may both be the caption; remove one of them")
    return found


def _read(path: Path) -> tuple[bytes, str]:
    """A caption file's content, and its name for messages.

    Raises:
        UserError: it is no file (a pipe, a device), or cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path}: a caption's name, but no regular file")
        with path.open("rb") as file:
            return read_caption(file, str(path)), str(path)
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}") from None


def _check_elsewhere(folder: Path, sources: list[Source], left: set[str], options: ListingOptions) -> None:
    """Raise where no source has a caption, but text files have their names in another folder or another case."""
    if not options.captions or any(source.caption for source in sources):
        return
    stems = {Path(source.name).stem.casefold() for source in sources}
    texts = sorted(
        name for name in left if Path(name).suffix.lower() == ".txt" and not Path(name).name.startswith(COMPANION)
    )
    found = [name for name in texts if Path(name).stem.casefold() in stems]
    if found:
        raise UserError(
            f"{folder}: no caption next to any video, but {len(found)} .txt of their names elsewhere (the "
            f"first: {found[0]}); put x.txt next to x.mp4, or give --no-captions"
        )


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
