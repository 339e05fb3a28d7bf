"""The length in bytes that a video file declares; a shorter file is truncated.

ffmpeg calls a file without its table of frames invalid data like any other, and reads one that lacks its tail in
silence. Bytes after the end, which downloads and cameras leave, are no fault.
"""

import mmap
from typing import BinaryIO

FIRST_BOXES = {b"ftyp", b"moov", b"mdat", b"wide", b"free"}
# The outermost boxes of an MP4 or MOV (ISO/IEC 14496-12, QuickTime), without ftyp, which begins a file.
BOXES = {
    b"moov",
    b"mdat",
    b"wide",
    b"free",
    b"skip",
    b"uuid",
    b"moof",
    b"mfra",
    b"sidx",
    b"ssix",
    b"styp",
    b"prft",
    b"emsg",
    b"meta",
    b"meco",
    b"pdin",
    b"udta",
    b"pnot",
}


def declared_bytes(file: BinaryIO, offset: int, size: int) -> int:
    """How long an MP4, MOV, AVI, Matroska, WebM or GIF of ``size`` bytes at ``offset`` must be by its own account; 0
    where it gives none."""
    file.seek(offset)
    head = file.read(min(128, size))
    if head[4:8] in FIRST_BOXES:
        return _boxes_end(file, offset, size)
    if head[:4] == b"RIFF":
        return 8 + int.from_bytes(head[4:8], "little")
    if head[:4] == b"\x1a\x45\xdf\xa3":  # EBML: a header, then one segment with everything
        length, begin = _ebml_length(head, 4)
        length, content = _ebml_length(head, begin + length + 4)
        return content + length
    if head[:3] == b"GIF":
        return _gif_end(file, offset, size)
    return 0


def _boxes_end(file: BinaryIO, offset: int, size: int) -> int:
    """Where the last outermost box ends. After the index and the frames, something that is no known box is what
    follows the file's end."""
    position, seen = 0, set()
    while position + 8 <= size:
        file.seek(offset + position)
        box = file.read(16)
        if {b"moov", b"mdat"} <= seen and box[4:8] not in BOXES:
            break
        length = int.from_bytes(box[:4])
        if length == 1:  # a 64-bit length follows the box's name
            length = int.from_bytes(box[8:])
        if length < 8:  # 0: to the end of the file
            return 0
        seen.add(box[4:8])
        position += length
    return position


def _gif_end(file: BinaryIO, offset: int, size: int) -> int:
    """Where a GIF's trailer ends, found block by block; one byte more than there is where it has none."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        view = memoryview(data)[offset : offset + size]
        try:
            return _gif_trailer(view) + 1
        except IndexError:
            return size + 1
        finally:
            view.release()


def _gif_trailer(gif: memoryview) -> int:
    """Where the trailer of a GIF (89a specification) is; IndexError where there is none."""

    def colours(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    at = 13 + colours(gif[10])
    while (kind := gif[at]) != 0x3B:
        if kind == 0x21:  # an extension: its label, then blocks
            at += 2
        elif kind == 0x2C:  # a picture: place and size, colours, the width of codes, then blocks
            at += 11 + colours(gif[at + 9])
        else:  # no block; players search on
            at += 1
            continue
        while length := gif[at]:
            at += 1 + length
        at += 1
    return at


def _ebml_length(head: bytes, at: int) -> tuple[int, int]:
    """The variable-length number at ``at`` (0 for "unknown", as live recordings say) and where it ends."""
    if at >= len(head) or not head[at]:
        return 0, at
    width = 9 - head[at].bit_length()
    value = int.from_bytes(head[at : at + width]) & (1 << 7 * width) - 1
    return (0 if value == (1 << 7 * width) - 1 else value), at + width
