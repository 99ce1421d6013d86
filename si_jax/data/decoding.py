"""Decode an image file of any mode to 8-bit RGB."""

import contextlib
import io
import threading
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from si_jax.data.files import READ_ERRORS, open_regular
from si_jax.data.image_set import UnreadableImage
from si_jax.data.preprocessing import RGB

# What a file may hold, whatever its name says: ImageNet has a PNG that is called .JPEG. Formats
# that Pillow hands to other programs are left out on purpose, and so is TGA, which nothing in the
# file tells from noise.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")
MOST_PIXELS = 50_000_000  # of an image; eight decoded at once then take 4 GiB at most

Image.init()  # so that every thread knows all formats
EXTENSIONS = tuple(
    sorted(end for end, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO"))
)
"""Endings of image files, in lower case."""


def holds_image(path: Path) -> bool:
    """Say whether a file is an image by its ending or by its first bytes."""
    if path.suffix.lower() in EXTENSIONS:
        return True
    try:
        with open_regular(path) as file:  # icons begin as other kinds of file do
            Image.open(file, formats=[kind for kind in FORMATS if kind != "ICO"]).close()
    except Image.DecompressionBombError:  # which says so where it is decoded
        return True
    except READ_ERRORS:
        return False
    return True


_TURNS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
_UPRIGHT = {kind: Image.Transpose[turn] for kind, turn in enumerate(_TURNS.split(), start=2)}
"""EXIF's orientation -> what turns such an image upright."""

_PICTURES = threading.Lock()  # a Pillow image is read, and its tags too, by one thread at a time


def decode(data: bytes, name: str, *, upright: bool = False) -> RGB:
    """Decode an image in one of `FORMATS` (the first, where it holds several) to RGB.

    It is what Pillow's `convert("RGB")`, and so torchvision's folder loader, gives (alpha is
    dropped); of 16-bit grey, which Pillow may clip, it is the high byte, as of 16-bit colour.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return _rgb(image, upright)
    except READ_ERRORS as error:
        reason = "the file is empty" if not data else _reason(error)
        raise UnreadableImage(
            f"{name} cannot be decoded ({reason}): replace the file or skip unreadable images"
        ) from error


def to_rgb(image: Image.Image, name: str = "a Pillow image") -> RGB:
    """Convert a Pillow image of any mode as `decode` does, upright, be it read yet or not."""
    try:
        with _PICTURES:
            return _rgb(image, upright=True)
    except READ_ERRORS as error:
        raise UnreadableImage(f"{name} cannot be read ({_reason(error)})") from error


def to_grey(image: RGB) -> np.ndarray:
    """Luminance, as Pillow's mode `L`; of replicated grey exactly the grey."""
    return np.asarray(Image.fromarray(image).convert("L"))[..., None]


def _rgb(image: Image.Image, upright: bool) -> np.ndarray:
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"its {image.width}x{image.height} pixels are over 50 million")
    image.load()
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise ValueError(f"its values are {kind} numbers in a scale not known")
    if image.mode.startswith("I"):  # "I;16", "I;16B" and, of 16 bits in some formats, "I"
        grey = (np.clip(np.asarray(image, np.int64), 0, 0xFFFF) >> 8).astype(np.uint8)
        pixels = np.repeat(grey[..., None], 3, axis=-1)
    else:
        pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    turned = None
    if upright:
        with contextlib.suppress(*READ_ERRORS):  # of tags that cannot be read
            turned = _UPRIGHT.get(int(image.getexif().get(ExifTags.Base.Orientation, 1)))
    return pixels if turned is None else np.array(Image.fromarray(pixels).transpose(turned))


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a JPEG, PNG, WebP, BMP, GIF, TIFF, PPM, JPEG 2000, AVIF or ICO image"
    return str(error) or type(error).__name__
