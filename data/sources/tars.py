"""WebDataset shards: tars whose members of one name, ``x.mp4`` and ``x.txt`` (or ``x.json``), are one sample.

The ``webdataset`` package defines the meaning of a pattern and the members of a sample. It reads shards from one
end to the other, so their headers are read here instead, by seeking: a sample is then a range of bytes in its shard,
which a worker opens as it opens a file.

``tarfile`` takes a header with a flipped bit for the end of its archive, and the samples after it would be missing
without a word. So what follows the last member must be the end of an archive, two blocks of zeros and zeros after
them; else the rest of the archive is a source of its own, which is rejected, and counted like any other.
"""

import math
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from videoscaling.data.sources.captions import CaptionFiles, ListingOptions, read_caption
from videoscaling.data.sources.source import COMPANION, PICTURES, VIDEOS, Listing, Source, skipped_kind
from videoscaling.utils.errors import UserError

CHUNK = 1 << 20  # bytes read at once
MAX_SHARDS = 1_000_000  # of a pattern, whose names are all made at once: 0.25 s
CAPTION_LOST = "the last sample before damage to its archive, without a caption"


def list_tars(where: Path | str, options: ListingOptions, names: Sequence[str] = ()) -> Listing:
    """The samples of a tar, of a folder's tars ``names``, or of a pattern (a string with braces), in any order.

    Raises:
        UserError: a shard that is missing or no tar; captions that are not UTF-8, not JSON, or under a name that is
            not recognised; one name twice; no videos and pictures in any of them.
    """
    if isinstance(where, str):
        ranges = re.findall(r"\{(\d+)\.\.(\d+)", where)
        if math.prod(abs(float(end) - float(begin)) + 1 for begin, end in ranges) > MAX_SHARDS:
            raise UserError(f"{where}: more than {MAX_SHARDS:,} shards; give a range that exists")
        from webdataset.shardlists import expand_urls  # a fifth of a second

        root = Path(where[: where.index("{")] + "x").parent
        paths = [Path(url) for url in expand_urls(where)]
    elif names:
        root, paths = where, [where / name for name in names]
    else:
        root, paths = where.parent, [where]
    sources: list[Source] = []
    skipped: Counter[str] = Counter()
    captions = CaptionFiles(where, options)
    for path in paths:
        sources += _list_tar(path, Path(os.path.relpath(path, root)).as_posix(), captions, skipped)
    if not sources:
        raise UserError(f"{where}: no videos in these shards ({', '.join(sorted(VIDEOS | PICTURES))})")
    captions.check()
    return Listing(sources, dict(skipped), [])


def _list_tar(path: Path, name: str, reader: CaptionFiles, skipped: Counter[str]) -> list[Source]:
    """The samples of one tar; the kinds of members that are neither media nor captions are added to ``skipped``."""
    from webdataset.tariterators import base_plus_ext

    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    if path.exists() and not path.is_file():  # reading a pipe or a device may never end
        raise UserError(f"{path}: no regular file")
    others: list[str] = []
    used: set[str] = set()
    try:
        with tarfile.open(path, "r:") as tar:
            size = path.stat().st_size
            for member in _members(tar):
                if not member.isfile():
                    continue
                others.append(member.name)
                key, kinds = base_plus_ext(member.name)
                if key is None or PurePosixPath(member.name).name.startswith(COMPANION):
                    continue
                kind = f".{kinds.lower()}"
                if member.offset_data + member.size > size and not _media([kind]):
                    continue  # a caption that is cut short; of a video its reader reports it
                if samples.setdefault(key, {}).setdefault(kind, member) is not member:
                    raise UserError(f"{path}: {member.name} is in this shard twice")
            media = {(key, kind): sample[kind] for key, sample in samples.items() for kind in _media(sample)}
            captions = {}
            for at in media:
                captions[at], member = _caption(tar, path, samples[at[0]], at[1], reader)
                used.add(member.name if member else "")
            damaged = _damaged_rest(tar, path, name)
    except FileNotFoundError:
        raise UserError(f"{path}: no such shard") from None
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path}: not a tar ({error}); a compressed one must be unpacked to .tar") from None
    used |= {member.name for member in media.values()}
    skipped.update(skipped_kind(other) for other in others if other not in used)
    # The lost part may be the caption of the last sample: without it, where others have one, the sample is incomplete.
    last = list(samples)[-1] if damaged and samples and any(captions.values()) else None
    faults = {at: CAPTION_LOST if at[0] == last and not captions[at] else "" for at in media}
    sources = [
        Source(
            name=f"{name}/{PurePosixPath(member.name)}",
            path=path,
            caption=captions[at],
            offset=member.offset_data,
            size=member.size,
            fault=faults[at],
        )
        for at, member in media.items()
    ]
    return [*sources, *damaged]


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members, less what is lost where a shard was cut short: then the last one's bytes are not all there, which
    its reader notices and reports."""
    try:
        yield from tar
    except tarfile.ReadError:
        if not tar.members:
            raise


def _damaged_rest(tar: tarfile.TarFile, path: Path, name: str) -> list[Source]:
    """What follows the last member that could be read, as one source; none where it is the end of an archive."""
    file, begin, size, zeros = tar.fileobj, tar.offset, path.stat().st_size, 0
    fault = f"ends at byte {size:,} without the two blocks of zeros that end an archive: samples may be missing"
    file.seek(begin)
    while chunk := file.read(CHUNK):
        if rest := chunk.lstrip(b"\0"):
            at = begin + zeros + len(chunk) - len(rest)
            at -= (at - begin) % tarfile.BLOCKSIZE
            fault = f"at byte {at:,} is neither a member's header nor the end of the archive: what follows is lost"
            break
        zeros += len(chunk)
    else:
        if zeros >= 2 * tarfile.BLOCKSIZE:
            return []
    return [Source(name, path, "", offset=begin, size=max(size - begin, 0), fault=fault)]


def _media(kinds: Iterable[str]) -> list[str]:
    """Which of a sample's members to read, by what follows its name: its videos, else its pictures."""
    for wanted in (VIDEOS, PICTURES):
        if found := [kind for kind in kinds if Path(f"x{kind}").suffix in wanted]:
            return found
    return []


def _caption(
    tar: tarfile.TarFile, path: Path, sample: dict[str, tarfile.TarInfo], kind: str, reader: CaptionFiles
) -> tuple[str, tarfile.TarInfo | None]:
    """The caption of a sample's member, and where it is from: x.left.txt, x.txt or x.left.mp4.txt for x.left.mp4; the
    same with .json."""

    def load(member: tarfile.TarInfo) -> tuple[bytes, str]:
        what = f"{path}, member {member.name}"
        return read_caption(tar.extractfile(member), what), what

    own = Path(f"x{kind}").stem[1:]
    return reader.read(sample, tuple(dict.fromkeys((own, "", kind))), load)
