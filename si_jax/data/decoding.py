"""Decode an image file of any mode to 8-bit RGB."""

import io
import struct
import zlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from si_jax.data.image_set import UnreadableImage

# What a file may hold, whatever its name says: ImageNet has a PNG that is called .JPEG. Formats
# that Pillow hands to other programs are left out on purpose.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
_DAMAGE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

Image.init()  # so that every thread knows all formats


def decode(data: bytes, name: str, *, upright: bool = False) -> UInt8[np.ndarray, "height width 3"]:
    """Decode a JPEG, PNG, WebP, BMP or GIF (first frame) to RGB.

    The result is what Pillow's `convert("RGB")`, and so torchvision's folder loader, gives:
    grey is replicated, palettes are looked up, CMYK is converted, an alpha channel is *dropped*
    (not composited on a background), a rotation noted in EXIF is not applied. The exception is
    16-bit grey, which Pillow may clip: here it keeps its high byte, as Pillow does for 16-bit
    colour.

    Args:
        data: the file's content.
        name: the file's name, for the message.
        upright: whether to apply the rotation or flip that a camera noted in EXIF; the benchmarks'
            protocols don't.

    Returns:
        The image, uint8 of shape (height, width, 3).

    Raises:
        UnreadableImage: if the image is truncated, damaged or in another format.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image) if upright else image)
    except _DAMAGE as error:
        raise UnreadableImage(
            f"{name} can't be decoded ({_reason(error, data)}); replace the file or skip"
            " unreadable images."
        ) from error


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """Convert a Pillow image of any mode as `decode` does."""
    if image.mode.startswith("I"):  # "I;16", "I;16B" and, in older Pillow, "I"
        return _high_byte(np.asarray(image))
    return np.array(image.convert("RGB"))


def _high_byte(values: np.ndarray) -> np.ndarray:
    grey = (np.clip(values.astype(np.int64), 0, 0xFFFF) >> 8).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def _reason(error: Exception, data: bytes) -> str:
    if not data:
        return "the file is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a JPEG, PNG, WebP, BMP or GIF image"
    return str(error) or type(error).__name__
