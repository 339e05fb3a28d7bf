"""Clips to files people can watch: mp4, gif, png grids, each carrying what it is in its own metadata."""

import io
from pathlib import Path

import numpy as np
from torch import Tensor

from utils.files import replacing


def to_bytes(clip: Tensor) -> np.ndarray:
    """A clip float [3, frames, height, width] in [-1, 1] as uint8 [frames, height, width, 3]."""
    return ((clip.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).cpu().numpy()


def write_mp4(path: Path, clip: Tensor, fps: int, comment: str) -> None:
    """Encode ``clip`` (as in ``to_bytes``) as H.264 at ``fps``; ``comment`` goes into the container's metadata."""
    import av

    frames = to_bytes(clip)
    # yuv420p, which every player shows, wants even sides.
    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    with replacing(path) as aside, av.open(str(aside), "w", format="mp4") as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=fps, options={"crf": "12"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def gif_bytes(clip: Tensor, fps: int, comment: str = "") -> bytes:
    """``clip`` (as in ``to_bytes``) as an endlessly looping gif."""
    from PIL import Image

    first, *rest = [Image.fromarray(frame) for frame in to_bytes(clip)]
    buffer = io.BytesIO()
    first.save(
        buffer,
        "gif",
        save_all=True,
        append_images=rest,
        duration=round(1000 / fps),
        loop=0,
        comment=comment.encode(),
    )
    return buffer.getvalue()


def write_gif(path: Path, clip: Tensor, fps: int, comment: str) -> None:
    with replacing(path) as aside:
        aside.write_bytes(gif_bytes(clip, fps, comment))


def write_png(path: Path, clip: Tensor, fps: int, comment: str) -> None:
    """The frames of ``clip`` side by side, at most nine of them, evenly spaced; ``fps`` has no meaning here."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    frames = to_bytes(clip)
    shown = frames[np.linspace(0, len(frames) - 1, min(len(frames), 9)).round().astype(int)]
    text = PngInfo()
    text.add_itxt("comment", comment)
    with replacing(path) as aside:
        Image.fromarray(np.concatenate(shown, axis=1)).save(aside, "png", pnginfo=text)


WRITERS = {"mp4": write_mp4, "gif": write_gif, "png": write_png}
