"""Safe opening of video files: regular files only, no containers that name other files, frames of bounded size.

ffmpeg chooses a demuxer by a file's content. Some demuxers open files that the content names (an ffconcat text, an HLS
playlist), and a header of a few bytes can ask for gigabytes (a GIF of 940 bytes and 16000x16000 pixels took 6 GB), so
both are bounded before anything is decoded.
"""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av

from videoscaling.data.sources.source import Rejected, Source

# A frame of 8192x8192 is 201 MB as RGB; 8K video has half as many pixels.
MAX_PIXELS = 1 << 26
# Demuxers by ffmpeg's names. None of them opens another file or address: concat, hls, dash, sdp, imf and image2 do.
DEMUXERS = (
    "mov,matroska,avi,mpeg,mpegts,mpegvideo,gif,asf,asf_o,flv,live_flv,ogg,nut,mxf,ivf,rm,nsv,gxf,wtv,dv,m4v,h261,h263,"
    "h264,hevc,vvc,av1,obu,vc1,mjpeg,yuv4mpegpipe,apng,amv,nuv,film_cpk,flic,smk,bink,roq"
)
OPTIONS = {
    "format_whitelist": DEMUXERS,
    "protocol_whitelist": "file,subfile",
    "max_pixels": str(MAX_PIXELS),
}
# What reads a header, and decodes nothing to complete it.
HEADER_ONLY = OPTIONS | {"probesize": "32", "analyzeduration": "0", "max_pixels": str(2**31 - 1)}
# Texts that name other files, by their first bytes in lower case.
PLAYLISTS = {
    b"ffconcat": "an ffconcat list",
    b"#extm3u": "an HLS or M3U playlist",
    b"<mpd": "a DASH manifest",
    b"<smil": "a SMIL playlist",
    b"[playlist]": "a PLS playlist",
    b"v=0": "an SDP session",
}


def check_regular(path: Path) -> None:
    """Raise where there is no regular file: opening a named pipe waits for its writer, and /dev/zero has no end.

    Raises:
        Rejected: missing, not a file.
        OSError: the path cannot be looked at.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise Rejected("missing", "no such file") from None
    if not stat.S_ISREG(mode):
        kinds = {
            stat.S_IFIFO: "a named pipe",
            stat.S_IFCHR: "a device",
            stat.S_IFBLK: "a device",
            stat.S_IFSOCK: "a socket",
            stat.S_IFDIR: "a folder",
        }
        raise Rejected("not a file", kinds.get(stat.S_IFMT(mode), "no regular file"))


def check_no_playlist(head: bytes) -> None:
    """Raise where a file's first bytes are those of a text that names other files.

    Raises:
        Rejected: playlist.
    """
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for start, kind in PLAYLISTS.items():
        if text.startswith(start) or (text.startswith(b"<?xml") and start.startswith(b"<") and start in text):
            raise Rejected("playlist", f"{kind}: a text that names other files is no video")


@contextmanager
def open_video(source: Source) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The source's container and the stream that players choose, while it is open.

    Raises:
        Rejected: no video stream, too large, a container that is not read.
        av.FFmpegError, OSError: damaged or missing.
    """
    try:
        container = av.open(source.url, metadata_errors="ignore", options=OPTIONS)
    except av.ArgumentError as error:  # what ffmpeg answers where its demuxer is not in the list
        raise Rejected("unreadable", f"no container that is read here ({message(error).lower()})") from None
    with container:
        stream = _video_stream(container)
        if not stream.width or not stream.height:
            _check_size(*_header_size(source))
        _check_size(stream.width, stream.height)
        stream.codec_context.options = {"max_pixels": OPTIONS["max_pixels"]}
        yield container, stream


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Rejected("too large", f"{width}x{height} pixels; at most {MAX_PIXELS} are decoded")


def _header_size(source: Source) -> tuple[int, int]:
    """Width and height by the container's header alone. ffmpeg leaves them at 0 where a trial decode would exceed
    ``max_pixels``."""
    with av.open(source.url, metadata_errors="ignore", options=HEADER_ONLY) as container:
        stream = container.streams.best("video")
        return (stream.width, stream.height) if stream else (0, 0)


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The stream that ffmpeg's players, and decord, choose; a cover picture is none.

    Raises:
        Rejected: there is none.
    """
    stream = container.streams.best("video")
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
        raise Rejected("no video stream", f"streams: {', '.join(s.type for s in container.streams) or 'none'}")
    return stream


def frames_as_played(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[tuple[av.VideoFrame, bool]]:
    """Each frame in the order in which players show them, and whether it may lack what a packet before it, which
    could not be decoded, had: until the next key frame."""
    damaged = recovering = False
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            damaged, recovering = True, False
            continue
        recovering = recovering or packet.is_keyframe
        for frame in frames:
            damaged = damaged and not (recovering and frame.key_frame)
            yield frame, damaged


def container_names(container: av.container.InputContainer) -> set[str]:
    """ffmpeg's names of the container's demuxer: "mov", "mp4" and others for an MP4."""
    return set(container.format.name.split(","))


def stamp(of: av.VideoFrame | av.Packet) -> int | None:
    """When a frame or packet is shown; where nothing says so, when it is decoded."""
    return of.dts if of.pts is None else of.pts


def message(error: Exception) -> str:
    """ffmpeg's message without the error number and the path; the type of an error without a message."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
