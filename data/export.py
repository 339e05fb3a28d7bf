"""Export of clips as mp4, gif and png grids, each with its prompt and settings in the file's metadata."""

import io
import textwrap
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from torch import Tensor

from videoscaling.utils.files import atomic_write
from videoscaling.utils.finiteness import check_finite

DEFAULT_FPS = 8  # of videos whose frame rate is not known, such as rendered ones
TILE = 160  # least width of a clip in a grid, in pixels, so that it is visible and its caption has room


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


def write_grid(path: Path, clips: Sequence[Tensor], captions: Sequence[str], columns: int, fps: float) -> None:
    """Clips of one size (as in ``to_bytes``) as one mp4 or looping gif, ``columns`` in a row, over their captions."""
    from PIL import Image, ImageDraw, ImageFont

    videos = [to_bytes(clip) for clip in clips]
    height, width = videos[0].shape[1:3]
    scale = max(1, -(-TILE // width))
    font, edge = ImageFont.load_default(12), 8
    tile = width * scale
    texts = ["\n".join(textwrap.wrap(caption, tile // 6)) for caption in captions]
    below = 16 * max(text.count("\n") + 1 for text in texts) + edge
    rows = -(-len(videos) // columns)
    sheet = Image.new("RGB", (columns * (tile + edge) + edge, rows * (height * scale + below + edge) + edge), "white")
    corners = [
        (edge + number % columns * (tile + edge), edge + number // columns * (height * scale + below + edge))
        for number in range(len(videos))
    ]
    for (x, y), text in zip(corners, texts):
        ImageDraw.Draw(sheet).multiline_text((x, y + height * scale + 2), text, "black", font)
    frames = []
    for frames_at_once in zip(*videos):
        frame = sheet.copy()
        for corner, picture in zip(corners, frames_at_once):
            frame.paste(Image.fromarray(picture).resize((tile, height * scale), Image.Resampling.NEAREST), corner)
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
