"""Frames by number from decord, PyAV or torchcodec: one interface, the same pictures."""

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import VideoReformatter

from videoscaling.data.sources.source import Rejected, Source
from videoscaling.data.video.container import container_names, frames_as_played, message, open_video, stamp
from videoscaling.data.video.probe import SOUGHT, Probe, probe
from videoscaling.utils.errors import UserError

VERSION = 2  # raised when decoding gives other frames than before, so that no cache mixes two versions
Read = Callable[[Sequence[int]], np.ndarray]
Keep = Callable[[np.ndarray], np.ndarray]
NEAR = 64  # a frame at most this far ahead is reached by decoding, not by seeking
FURTHER_BACK = 300  # frames; more than most encoders leave between key frames
# Full-size pictures that decord and torchcodec return at once: five frames of 1080p, 29 of 640x576.
AT_ONCE_BYTES = 32 << 20
# Pixel formats that torchcodec decodes to the same bits as PyAV, at even heights and widths
# (tests/data/video/test_decode.py). In the others swscale interpolates the colours differently in each version of
# FFmpeg: 10-bit H.264 came out up to 101 of 256 levels apart where saturated colours meet, and 6 on average.
EXACT_FORMATS = {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "gray"}
QUARTER = np.tan(np.radians(1))  # ffmpeg, too, takes a turn within one degree of a quarter turn for one


def full_picture(picture: np.ndarray) -> np.ndarray:
    """The picture itself: the default of ``keep``."""
    return picture


@contextmanager
def frame_reader(source: Source, found: Probe, backend: str = "pyav", keep: Keep = full_picture) -> Iterator[Read]:
    """A function from frame numbers, in order, to uint8 [n, ...], while the video is open: of each frame what ``keep``
    makes of its picture, uint8 [H, W, 3], as players show it.

    A picture goes to ``keep`` when it is decoded, so that memory holds few of full size, however many are asked for.
    PyAV decodes what the backend is not known to decode right. It decodes the rest of a video, too, from where the
    backend fails: after an error torchcodec's decoder continues without a frame that later ones refer to. The pictures
    are the same to the bit, except decord's of 10-bit video, rare pixel formats and subsampled colours at odd sizes.

    Raises (the function):
        Rejected: undecodable, tilted, or what ``keep`` raises.
    """
    if not _is_suited(backend, source, found):
        backend = "pyav"
    with ExitStack() as stack:
        opened: dict[str, Read] = {}

        def read_with(name: str, numbers: Sequence[int]) -> np.ndarray:
            if name not in opened:
                opened[name] = stack.enter_context(BACKENDS[name](source, found, keep))
            return opened[name](numbers)

        def read(numbers: Sequence[int]) -> np.ndarray:
            nonlocal backend
            once, places = np.unique(numbers, return_inverse=True)
            if backend != "pyav":
                try:
                    return read_with(backend, once.tolist())[places]
                except Exception:  # neither decord nor torchcodec has an exception class for all that it throws
                    backend = "pyav"
            try:
                return read_with("pyav", once.tolist())[places]
            except Rejected:
                raise
            except Exception as error:
                raise Rejected("undecodable", f"frames {once[0]} to {once[-1]}: {message(error)}") from None

        yield read


def _is_suited(backend: str, source: Source, found: Probe) -> bool:
    """Whether the backend gives this video's frames as players show them."""
    if backend == "pyav":
        return True
    if found.counted or (backend == "decord" and not found.plain):
        return False
    # decord and torchcodec turn pictures, but take a mirrored one for one turned by 180 degrees.
    try:
        with open_video(source) as (container, stream):
            stream.thread_count = 1
            frame = next(container.decode(stream))
            swapped, rows, columns = _axes(_display_matrix(frame))
            if rows * columns != (-1 if swapped else 1):
                return False
            # decord has no other containers, as they are not plain.
            return backend == "decord" or (bool(SOUGHT & container_names(container)) and _is_exact(frame))
    except (av.FFmpegError, Rejected, StopIteration):
        return False


def _is_exact(frame: av.VideoFrame) -> bool:
    """Whether torchcodec gives PyAV's bits of such a frame."""
    return frame.format.name in EXACT_FORMATS and frame.height % 2 == frame.width % 2 == 0


def default_backend() -> str:
    """torchcodec if it is installed and decodes a test video, else pyav."""
    if importlib.util.find_spec("torchcodec") is not None:
        try:
            check_backend("torchcodec")
        except UserError:
            return "pyav"
        return "torchcodec"
    return "pyav"


def check_backend(name: str) -> None:
    """Decode a test video.

    Raises:
        UserError: the backend is unknown, or cannot do it here.
    """
    if name not in BACKENDS:
        raise UserError(f"no decoding backend {name!r}: choose among {', '.join(BACKENDS)}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=24)
            stream.height = stream.width = 64
            for _ in range(2):
                container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
            container.mux(stream.encode())
        source = Source("x.mp4", path, "")
        try:
            with BACKENDS[name](source, probe(source)) as read:
                read([1])
        except Exception as error:
            why = (message(error).splitlines() or [""])[0]
            how = {
                "torchcodec": " torchcodec needs FFmpeg's shared libraries next to it;",
                "decord": " decord has wheels for x86-64 alone;",
            }.get(name, "")
            others = ", ".join(other for other in BACKENDS if other != name)
            raise UserError(f"{name} cannot decode here ({why});{how} pip install {name}, or use {others}") from None


@contextmanager
def _decord(source: Source, found: Probe, keep: Keep = full_picture) -> Iterator[Read]:
    # How often decord retries at a premature end of file; its own default takes minutes.
    os.environ.setdefault("DECORD_EOF_RETRY_MAX", "256")
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    reader = decord.VideoReader(source.url, ctx=decord.cpu(0), num_threads=1)
    yield lambda numbers: np.stack(
        [keep(picture) for part in _parts(numbers, found) for picture in reader.get_batch(part).asnumpy()]
    )


@contextmanager
def _torchcodec(source: Source, found: Probe, keep: Keep = full_picture) -> Iterator[Read]:
    from torchcodec.decoders import VideoDecoder

    # "exact" reads the file through; "approximate" divides times by the average rate.
    mode = "approximate" if len(set(np.diff(found.times).tolist())) < 2 else "exact"
    decoder = VideoDecoder(source.url, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode=mode)

    def read_part(numbers: Sequence[int]) -> np.ndarray:
        seconds = np.array([float(found.times[number] * found.tick) for number in numbers])
        frames = decoder.get_frames_at(list(numbers))
        # A tick of an AVI is a whole frame.
        if np.abs(frames.pts_seconds.numpy() - seconds).max() > 0.5 * float(found.tick):
            raise ValueError("torchcodec found other frames")
        return frames.data.numpy()

    yield lambda numbers: np.stack([keep(picture) for part in _parts(numbers, found) for picture in read_part(part)])


def _parts(numbers: Sequence[int], found: Probe) -> list[Sequence[int]]:
    """The numbers in groups whose pictures take about ``AT_ONCE_BYTES``."""
    size = max(1, AT_ONCE_BYTES // (3 * found.height * found.width))
    return [numbers[first : first + size] for first in range(0, len(numbers), size)]


@contextmanager
def _pyav(source: Source, found: Probe, keep: Keep = full_picture) -> Iterator[Read]:
    frames, last = None, -1  # the frames of the decoder, and the number of its latest one
    matrices: dict[int, np.ndarray | None] = {}

    with ExitStack() as stack:
        opened: list[tuple[av.container.InputContainer, av.VideoStream]] = []

        def opening() -> tuple[av.container.InputContainer, av.VideoStream]:
            container, stream = stack.enter_context(open_video(source))
            stream.thread_count = 1
            return container, stream

        def from_key_frame(number: int) -> Iterator[tuple[int | None, av.VideoFrame]]:
            if not opened:
                opened.append(opening())
            container, stream = opened[0]
            container.seek(found.times[max(number, 0)], stream=stream)
            return ((stamp(frame), frame) for frame in container.decode(stream))

        def from_the_start() -> Iterator[tuple[int | None, av.VideoFrame]]:
            container, stream = opening()
            if not found.counted:
                return ((stamp(frame), frame) for frame in container.decode(stream))
            played = enumerate(frames_as_played(container, stream))
            return ((number, frame) for number, (frame, damaged) in played if not damaged)

        def read(numbers: Sequence[int]) -> np.ndarray:
            nonlocal frames, last
            first = numbers[0]
            wanted = numbers if found.counted else [found.times[number] for number in numbers]
            ways = [from_the_start]
            if not found.counted:
                ways = [partial(from_key_frame, first), partial(from_key_frame, first - FURTHER_BACK), from_the_start]
            if frames is not None and last < first and (found.counted or first <= last + NEAR):
                ways.insert(0, partial(iter, frames))
            frames, pictures, failure = None, {}, None
            for way in ways:
                try:
                    begun = way()
                    pictures = _pictures_at(begun, wanted, keep, matrices) or {}
                except av.FFmpegError as error:  # perhaps from before the frames, where another way does not pass
                    failure = error
                if len(pictures) == len(wanted):  # an MPEG's time stamps after a seek are not those from the start
                    break
            if len(pictures) < len(wanted):
                missing = f"{len(wanted) - len(pictures)} cannot be decoded"
                why = message(failure) if failure else missing
                raise Rejected("undecodable", f"frames {first} to {numbers[-1]}: {why}")
            frames, last = begun, numbers[-1]
            return np.stack([pictures[time] for time in wanted])

        yield read


def _pictures_at(
    frames: Iterator[tuple[int | None, av.VideoFrame]],
    wanted: Sequence[int],
    keep: Keep,
    matrices: dict[int, np.ndarray | None],
) -> dict[int, np.ndarray] | None:
    """What ``keep`` makes of those of ``frames`` with stamps ``wanted`` (ascending), by stamp; None where they begin
    after the first of these, as where a container seeks past the key frame that it was asked for.

    Args:
        matrices: the video's display matrices by rotation, completed here.

    Raises:
        Rejected: their size changes.
    """
    pictures, missing, sizes = {}, set(wanted), set()
    reached = False
    colours = VideoReformatter()  # one for all frames: making it takes twice as long as using it
    for time, frame in frames:
        if not reached and (time is None or time > wanted[0]):
            return None
        reached = True
        if time in missing:
            missing.discard(time)
            sizes.add((frame.height, frame.width))
            if len(sizes) > 1:
                raise Rejected("undecodable", f"the picture's size changes to {frame.width}x{frame.height}")
            rgb = colours.reformat(frame, format="rgb24", threads=1)
            if frame.rotation not in matrices:
                matrices[frame.rotation] = _display_matrix(frame)
            pictures[time] = keep(_as_shown(rgb.to_ndarray(), matrices[frame.rotation]))
        if not missing or (time is not None and time > wanted[-1]):
            break
    return pictures if reached else None


def _display_matrix(frame: av.VideoFrame) -> np.ndarray | None:
    """The linear part of a frame's display matrix, [[a, b], [c, d]]: it shows the pixel at column x and row y at
    column a x + c y and row b x + d y (ISO/IEC 14496-12, 8.3.2). None where there is none."""
    # A frame whose side data were looked at stays in memory until the garbage collector finds it: 12 MB of a 4K frame.
    small = VideoReformatter().reformat(frame, width=16, height=16)
    data = small.side_data.get(Type.DISPLAYMATRIX)
    if data is None:
        return None
    matrix = np.frombuffer(bytes(data), np.int32)[[0, 1, 3, 4]].reshape(2, 2).astype(float)
    return matrix if matrix.any() else None


def _axes(matrix: np.ndarray | None) -> tuple[bool, int, int]:
    """Whether a display matrix swaps rows and columns, and then the steps (1 or -1) through rows and columns.

    Raises:
        Rejected: tilted by no quarter turn.
    """
    if matrix is None:
        return False, 1, 1
    along, across = np.abs(matrix.diagonal()), np.abs(matrix[[0, 1], [1, 0]])
    if along.min() * QUARTER < across.max() and across.min() * QUARTER < along.max():
        raise Rejected("tilted", "to be shown turned by an angle that is no quarter turn")
    swapped = across.min() > along.max()
    columns, rows = np.where((matrix[[1, 0]] if swapped else matrix).diagonal() < 0, -1, 1).tolist()
    return swapped, rows, columns


def _as_shown(picture: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """A picture [H, W, 3] turned and mirrored by its display matrix."""
    swapped, rows, columns = _axes(matrix)
    picture = picture.swapaxes(0, 1) if swapped else picture
    return np.ascontiguousarray(picture[::rows, ::columns])


BACKENDS = {"decord": _decord, "pyav": _pyav, "torchcodec": _torchcodec}
