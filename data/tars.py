"""WebDataset shards: tars whose members of one name, ``x.mp4`` and ``x.txt`` (or ``x.json``), are one sample.

The ``webdataset`` package says what a pattern stands for and which members belong together. It reads shards from one
end to the other, so their headers are read here instead, by seeking: a sample is then a range of bytes in its shard,
which a worker opens as it opens a file.
"""

import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from data.media import PICTURES, VIDEOS, Source, one_line, text_of
from utils.errors import UserError


def list_tars(where: Path | str, names: Sequence[str] = ()) -> list[Source]:
    """The samples of a tar, of a folder's tars ``names``, or of a pattern (a string with braces), in any order.

    Raises:
        UserError: a shard that is missing or no tar; captions that are not UTF-8, or not JSON; one name twice; no
            videos and pictures in any of them.
    """
    if isinstance(where, str):
        from webdataset.shardlists import expand_urls  # a fifth of a second

        root = Path(where[: where.index("{")] + "x").parent
        paths = [Path(url) for url in expand_urls(where)]
    elif names:
        root, paths = where, [where / name for name in names]
    else:
        root, paths = where.parent, [where]
    sources = [source for path in paths for source in _list_tar(path, Path(os.path.relpath(path, root)).as_posix())]
    if not sources:
        raise UserError(f"{where}: no videos in these shards ({', '.join(sorted(VIDEOS | PICTURES))})")
    return sources


def _list_tar(path: Path, name: str) -> list[Source]:
    from webdataset.tariterators import base_plus_ext

    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in _members(tar):
                key, kinds = base_plus_ext(member.name)
                if key is None or not member.isfile():
                    continue
                kind = f".{kinds.lower()}"
                if samples.setdefault(key, {}).setdefault(kind, member) is not member:
                    raise UserError(f"{path}: {member.name} is in this shard twice")
            media = {(key, kind): sample[kind] for key, sample in samples.items() for kind in _media(sample)}
            captions = {at: _caption(tar, path, samples[at[0]], at[1]) for at in media}
    except FileNotFoundError:
        raise UserError(f"{path}: no such shard") from None
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path}: not a tar ({error}); a compressed one must be unpacked to .tar") from None
    return [
        Source(f"{name}/{PurePosixPath(member.name)}", path, captions[at], offset=member.offset_data, size=member.size)
        for at, member in media.items()
    ]


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members, less what is lost where a shard was cut short: then the last one's bytes are not all there, which
    its reader notices and reports."""
    try:
        yield from tar
    except tarfile.ReadError:
        if not tar.members:
            raise


def _media(kinds: Iterable[str]) -> list[str]:
    """Which of a sample's members to read, by what follows its name: its videos, else its pictures."""
    for wanted in (VIDEOS, PICTURES):
        if found := [kind for kind in kinds if Path(f"x{kind}").suffix in wanted]:
            return found
    return []


def _caption(tar: tarfile.TarFile, path: Path, sample: dict[str, tarfile.TarInfo], kind: str) -> str:
    """The caption of a sample's member: in x.left.txt, x.txt, x.left.json or x.json for x.left.mp4."""
    own = Path(f"x{kind}").stem[1:]
    for name in (f"{own}.txt", ".txt", f"{own}.json", ".json"):
        if name in sample:
            what = f"{path}, member {sample[name].name}"
            text = text_of(tar.extractfile(sample[name]).read(), what)
            return one_line(text if name.endswith(".txt") else _json_caption(text, what), what)
    return ""


def _json_caption(text: str, what: str) -> Any:
    try:
        about = json.loads(text)
    except ValueError as error:
        raise UserError(f"{what}: not JSON ({error})") from None
    return about.get("caption") if isinstance(about, dict) else None
