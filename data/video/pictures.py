"""Pictures: one-frame clips."""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from videoscaling.data.sources.source import Rejected, Source
from videoscaling.data.video.container import check_regular, message

# Pillow chooses by the content: for another, PostScript, it runs a program of the machine.
FORMATS = {"AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "TIFF", "WEBP"}
MAX_BYTES = 1 << 30  # above the largest picture that Pillow takes, 89 million pixels of 8 bytes


def read_picture(source: Source) -> np.ndarray:
    """The picture, upright, as uint8 [H, W, 3]; transparent parts show the pixels below them.

    Raises:
        Rejected: missing, not a file, truncated, unreadable.
    """
    try:
        check_regular(source.path)
        with source.path.open("rb") as file:
            file.seek(source.offset)
            content = file.read(MAX_BYTES + 1 if source.size is None else min(source.size, MAX_BYTES + 1))
        if len(content) > MAX_BYTES:
            raise Rejected("too large", f"more than {MAX_BYTES >> 20} MiB")
        if source.size is not None and len(content) < source.size:
            raise Rejected("truncated", f"{len(content)} of {source.size} bytes are there")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.init()
            with Image.open(io.BytesIO(content), formats=sorted(FORMATS & Image.OPEN.keys())) as image:
                return _rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise Rejected("missing", "no such file") from None
    except Rejected:
        raise
    except Exception as error:  # Pillow's formats raise errors of any type
        if isinstance(error, UnidentifiedImageError):  # names an object in memory
            error = ValueError("no kind of picture that is known")
        raise Rejected("truncated" if "truncated" in str(error) else "unreadable", message(error)) from None


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8
        numbers = np.asarray(image, np.float64)
        grey = (numbers * (255 / 65535)).round().clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    return np.asarray(image.convert("RGB"))
