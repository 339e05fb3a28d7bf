"""Frames by number, from decord, PyAV or torchcodec: the same pictures, one way to ask for them."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from data.media import Rejected, Source
from data.probe import Probe, message, probe, video_stream
from utils.errors import UserError

VERSION = 2  # of which frames a video gives: raised with every change, so that no cache mixes two decodings
Read = Callable[[Sequence[int]], np.ndarray]
NEAR = 64  # frames that are decoded on the way rather than sought past
FURTHER_BACK = 300  # frames; more than most encoders leave between key frames


@contextmanager
def frame_reader(source: Source, found: Probe, backend: str = "decord") -> Iterator[Read]:
    """A function from frame numbers, in order, to uint8 [n, H, W, 3], upright, while the video is open.

    PyAV takes over where the backend fails, and for what is not plain to decord. The pictures are the same (of 10-bit
    video up to 8 levels apart).

    Raises (the function):
        Rejected: undecodable.
    """
    if backend == "decord" and not found.plain:
        backend = "pyav"
    with ExitStack() as stack:
        opened: dict[str, Read] = {}

        def read_with(name: str, numbers: Sequence[int]) -> np.ndarray:
            if name not in opened:
                opened[name] = stack.enter_context(BACKENDS[name](source, found))
            return opened[name](numbers)

        def read(numbers: Sequence[int]) -> np.ndarray:
            once, places = np.unique(numbers, return_inverse=True)
            if backend != "pyav":
                try:
                    return read_with(backend, once.tolist())[places]
                except Exception:  # neither decord nor torchcodec has an exception class for all that it throws
                    pass
            try:
                return read_with("pyav", once.tolist())[places]
            except Rejected:
                raise
            except Exception as error:
                raise Rejected("undecodable", f"frames {once[0]} to {once[-1]}: {message(error)}") from None

        yield read


def check_backend(name: str) -> None:
    """Decode a video made on the spot.

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
            how = {"torchcodec": " torchcodec needs FFmpeg's shared libraries beside it;"}.get(name, "")
            others = ", ".join(other for other in BACKENDS if other != name)
            raise UserError(f"{name} cannot decode here ({why});{how} pip install {name}, or use {others}") from None


@contextmanager
def _decord(source: Source, found: Probe) -> Iterator[Read]:
    # How often decord asks again at a premature end of file; its own default takes minutes.
    os.environ.setdefault("DECORD_EOF_RETRY_MAX", "256")
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    reader = decord.VideoReader(source.url, ctx=decord.cpu(0), num_threads=1)
    yield lambda numbers: reader.get_batch(numbers).asnumpy()


@contextmanager
def _torchcodec(source: Source, found: Probe) -> Iterator[Read]:
    from torchcodec.decoders import VideoDecoder

    # "exact" reads the file through; "approximate" divides times by the average rate.
    mode = "approximate" if len(set(np.diff(found.times).tolist())) < 2 else "exact"
    decoder = VideoDecoder(source.url, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode=mode)

    def read(numbers: Sequence[int]) -> np.ndarray:
        seconds = np.array([float(found.times[number] * found.tick) for number in numbers])
        frames = decoder.get_frames_at(list(numbers))
        if np.abs(frames.pts_seconds.numpy() - seconds).max() > float(found.tick):
            raise ValueError("torchcodec found other frames")
        return frames.data.numpy()

    yield read


@contextmanager
def _pyav(source: Source, found: Probe) -> Iterator[Read]:
    frames, last = None, -1  # what is being decoded, and the number of its latest frame

    with _container(source) as (container, stream), ExitStack() as stack:

        def from_key_frame(number: int) -> Iterator[av.VideoFrame]:
            container.seek(found.times[max(number, 0)], stream=stream)
            return container.decode(stream)

        def from_the_start() -> Iterator[av.VideoFrame]:
            again, its_stream = stack.enter_context(_container(source))
            return again.decode(its_stream)

        def read(numbers: Sequence[int]) -> np.ndarray:
            nonlocal frames, last
            first, wanted = numbers[0], [found.times[number] for number in numbers]
            ways = [partial(from_key_frame, first), partial(from_key_frame, first - FURTHER_BACK), from_the_start]
            if frames is not None and last < first <= last + NEAR:
                ways.insert(0, partial(iter, frames))
            frames = None
            for way in ways:
                begun = way()
                pictures = _pictures_at(begun, wanted) or {}
                if len(pictures) == len(wanted):  # an MPEG's time stamps after a seek are not those from the start
                    break
            if len(pictures) < len(wanted):
                missing = len(wanted) - len(pictures)
                raise Rejected("undecodable", f"frames {first} to {numbers[-1]}: {missing} cannot be decoded")
            if len({picture.shape for picture in pictures.values()}) > 1:
                raise Rejected("undecodable", f"frames {first} to {numbers[-1]}: the picture's size changes")
            frames, last = begun, numbers[-1]
            return np.stack([pictures[time] for time in wanted])

        yield read


@contextmanager
def _container(source: Source) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    with av.open(source.url, metadata_errors="ignore") as container:
        stream = video_stream(container)
        stream.thread_count = 1
        yield container, stream


def _pictures_at(frames: Iterator[av.VideoFrame], wanted: Sequence[int]) -> dict[int, np.ndarray] | None:
    """Those of ``frames`` with time stamps ``wanted`` (ascending), by time stamp; None where they begin after the
    first of these, as where a container seeks past the key frame that it was asked for."""
    pictures, missing, reached = {}, set(wanted), False
    colours = VideoReformatter()  # one for all frames: making it takes twice as long as using it
    for frame in frames:
        time = frame.dts if frame.pts is None else frame.pts
        if not reached and (time is None or time > wanted[0]):
            return None
        reached = True
        if time in missing:
            missing.discard(time)
            rgb = colours.reformat(frame, format="rgb24", threads=1)
            # decord turns upright what a phone filmed on its side; PyAV leaves that to its user.
            pictures[time] = np.rot90(rgb.to_ndarray(), round(frame.rotation / 90))
        if not missing or (time is not None and time > wanted[-1]):
            break
    return pictures if reached else None


BACKENDS = {"decord": _decord, "pyav": _pyav, "torchcodec": _torchcodec}
