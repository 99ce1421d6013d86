"""Decode an image file of any mode to 8-bit RGB."""

import io
import re
import struct
import zlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from si_jax.data.image_set import UnreadableImage

# What a file may hold, whatever its name says: ImageNet has a PNG that is called .JPEG. Formats
# that Pillow hands to other programs are left out on purpose, and so is TGA, which nothing in the
# file tells from noise.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")
_NAMES = "JPEG, PNG, WebP, BMP, GIF, TIFF, PPM, JPEG 2000, AVIF or ICO"
MOST_PIXELS = 50_000_000  # of an image; eight decoded at once then take 4 GiB at most

# How a file begins whose name does not say that it is an image.
_MAGIC = (
    re.compile(rb"\xff\xd8\xff"),  # JPEG
    re.compile(rb"\x89PNG\r\n\x1a\n"),
    re.compile(rb"GIF8[79]a"),
    re.compile(rb"RIFF....WEBP", re.DOTALL),
    re.compile(rb"II\*\0|MM\0\*"),  # TIFF
    re.compile(rb"BM....\0\0\0\0", re.DOTALL),
    re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n"),  # JPEG 2000
    re.compile(rb"....ftypavi[fs]", re.DOTALL),
    re.compile(rb"P[1-6]\s+\d+\s+\d+\s"),
)
HEAD = 32  # bytes that `looks_like_an_image` needs

_DAMAGE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
    MemoryError,
)

Image.init()  # so that every thread knows all formats
EXTENSIONS = tuple(
    sorted(end for end, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO"))
)
"""Endings of image files, in lower case."""


def looks_like_an_image(head: bytes) -> bool:
    """Say whether a file that begins like this (`HEAD` bytes) holds an image."""
    return any(magic.match(head) for magic in _MAGIC)


def decode(data: bytes, name: str, *, upright: bool = False) -> UInt8[np.ndarray, "height width 3"]:
    """Decode an image in one of `FORMATS` (the first, where it holds several) to RGB.

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
        UnreadableImage: if the image is truncated, damaged, in another format or of more than 50
            million pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"its {image.width}x{image.height} pixels are over 50 million")
            image.load()
            return to_rgb(ImageOps.exif_transpose(image) if upright else image)
    except _DAMAGE as error:
        raise UnreadableImage(
            f"{name} can't be decoded ({_reason(error, data)}); replace the file or skip"
            " unreadable images."
        ) from error


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """Convert a Pillow image of any mode as `decode` does; ValueError for floating-point ones."""
    if image.mode == "F":
        raise ValueError("its values are floating-point numbers in a scale not known")
    if image.mode.startswith("I"):  # "I;16", "I;16B" and, in older Pillow, "I"
        return _high_byte(np.asarray(image))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _high_byte(values: np.ndarray) -> np.ndarray:
    grey = (np.clip(values.astype(np.int64), 0, 0xFFFF) >> 8).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def _reason(error: Exception, data: bytes) -> str:
    if not data:
        return "the file is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not a {_NAMES} image"
    return str(error) or type(error).__name__
