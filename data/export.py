"""Export of clips as mp4, gif and png grids, each with its prompt and settings in the file's metadata."""

import io
import textwrap
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from videoscaling.utils.errors import UserError
from videoscaling.utils.files import atomic_write
from videoscaling.utils.finiteness import check_finite

DEFAULT_FPS = 8  # of videos whose frame rate is not known, such as rendered ones
TILE = 160  # least width of a clip in a grid, in pixels, so that it is visible and its caption has room

EDGE = 8  # pixels between the clips of a grid
# Pixels: of libx264, and of the format. A png, which could be larger, is held to what other programs open.
MAX_SIDE = {"mp4": 16384, "gif": 65535, "png": 65535}


def check_sides(what: str, kind: str, height: int, width: int, fix: str) -> None:
    """Raise UserError, which ends with ``fix``, where pictures are larger than ``kind``, such as "mp4", can be."""
    most = MAX_SIDE[kind]
    if max(height, width) > most:
        raise UserError(f"{what}: {width} x {height} pixels, and {kind} has at most {most} a side; give {fix}")


def to_bytes(clip: Tensor) -> np.ndarray:
    """A clip float [3, frames, height, width] in [-1, 1] as uint8 [frames, height, width, 3].

    Raises:
        NotFinite: a pixel is NaN or infinite; as a byte it would be black.
    """
    check_finite(clip, "a clip's pixels", "there is nothing to show; look for the cause in what made them")
    return ((clip.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).cpu().numpy()


def write_mp4(path: Path, clip: Tensor, fps: float, comment: str) -> None:
    """Encode ``clip`` (as in ``to_bytes``) as H.264 at ``fps``; ``comment`` goes into the container's metadata."""
    _write_mp4(path, to_bytes(clip), fps, comment)


def _write_mp4(path: Path, frames: np.ndarray, fps: float, comment: str) -> None:
    import av

    # yuv420p, which every player shows, wants even sides.
    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    with atomic_write(path) as tmp, av.open(str(tmp), "w", format="mp4") as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "12"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def gif_bytes(clip: Tensor, fps: float, comment: str = "") -> bytes:
    """``clip`` (as in ``to_bytes``) as an endlessly looping gif.

    A gif's frames last whole hundredths of a second, and two at least, as browsers show a shorter one for ten: the
    nearest to ``fps``, and at most 50 a second.
    """
    return _looping(to_bytes(clip), fps, comment)


def _looping(frames: Iterable[np.ndarray], fps: float, comment: str) -> bytes:
    from PIL import Image

    first, *rest = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    first.save(
        buffer,
        "gif",
        save_all=True,
        append_images=rest,
        duration=10 * max(round(100 / fps), 2),  # milliseconds, of which Pillow would drop the last digit
        loop=0,
        comment=comment.encode(),
    )
    return buffer.getvalue()


def write_gif(path: Path, clip: Tensor, fps: float, comment: str) -> None:
    """Write ``gif_bytes``."""
    with atomic_write(path) as tmp:
        tmp.write_bytes(gif_bytes(clip, fps, comment))


def write_png(path: Path, clip: Tensor, fps: float, comment: str) -> None:
    """The frames of ``clip`` side by side, at most nine of them, evenly spaced; ``fps`` has no meaning here."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    frames = to_bytes(clip)
    shown = frames[np.linspace(0, len(frames) - 1, min(len(frames), 9)).round().astype(int)]
    text = PngInfo()
    text.add_itxt("comment", comment)
    with atomic_write(path) as tmp:
        Image.fromarray(np.concatenate(shown, axis=1)).save(tmp, "png", pnginfo=text)


class GridLayout(NamedTuple):
    """Where the clips of a grid lie, in pixels.

    Attributes:
        texts: the captions, in lines as wide as a clip.
        columns, rows: clips in a row, and rows.
        height, width: of a clip as shown; ``below``: of the captions and the space under a row.
    """

    texts: list[str]
    columns: int
    rows: int
    height: int
    width: int
    below: int

    @classmethod
    def of(cls, captions: Sequence[str], height: int, width: int, columns: int) -> "GridLayout":
        """The layout of clips of ``height`` and ``width`` over their captions, at most ``columns`` in a row."""
        scale, columns = max(1, -(-TILE // width)), min(columns, len(captions))
        texts = ["\n".join(textwrap.wrap(caption, width * scale // 6)) for caption in captions]
        below = 16 * max(text.count("\n") + 1 for text in texts) + EDGE
        return cls(texts, columns, -(-len(captions) // columns), height * scale, width * scale, below)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the whole."""
        return self.rows * self._down + EDGE, self.columns * self._right + EDGE

    @property
    def _down(self) -> int:
        return self.height + self.below + EDGE

    @property
    def _right(self) -> int:
        return self.width + EDGE

    def corner(self, number: int) -> tuple[int, int]:
        """The left and the upper edge of a clip by its number."""
        return EDGE + number % self.columns * self._right, EDGE + number // self.columns * self._down


def write_grid(path: Path, clips: Sequence[Tensor], captions: Sequence[str], columns: int, fps: float) -> None:
    """Clips of one size (as in ``to_bytes``) as one mp4 or looping gif, ``columns`` in a row, over their captions."""
    from PIL import Image, ImageDraw, ImageFont

    videos = [to_bytes(clip) for clip in clips]
    layout = GridLayout.of(captions, *videos[0].shape[1:3], columns)
    sheet, font = Image.new("RGB", layout.sides[::-1], "white"), ImageFont.load_default(12)
    corners = [layout.corner(number) for number in range(len(videos))]
    for (x, y), text in zip(corners, layout.texts):
        ImageDraw.Draw(sheet).multiline_text((x, y + layout.height + 2), text, "black", font)
    frames = []
    for frames_at_once in zip(*videos):
        frame = sheet.copy()
        for corner, picture in zip(corners, frames_at_once):
            shown = Image.fromarray(picture).resize((layout.width, layout.height), Image.Resampling.NEAREST)
            frame.paste(shown, corner)
        frames.append(np.asarray(frame))
    comment = "\n".join(captions)
    if path.suffix == ".mp4":
        return _write_mp4(path, np.stack(frames), fps, comment)
    with atomic_write(path) as tmp:
        tmp.write_bytes(_looping(frames, fps, comment))


def enlarged(clip: Tensor, scale: int) -> Tensor:
    """``clip`` [..., height, width] with each pixel ``scale`` times in both directions."""
    return clip.repeat_interleave(scale, -1).repeat_interleave(scale, -2)


WRITERS = {"mp4": write_mp4, "gif": write_gif, "png": write_png}
