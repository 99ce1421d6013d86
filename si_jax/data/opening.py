"""Images as people have them: files, encoded bytes, Pillow images and arrays, one or many."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from si_jax.data.decoding import decode, to_rgb
from si_jax.data.files import read_bytes
from si_jax.data.image_set import UnreadableImage

WORKERS = 4  # threads that decode

Transform = Callable[[np.ndarray], np.ndarray]
"""Brings an RGB image of any size to the network's; a `si_jax.data.preprocessing.Preprocessing`."""


def is_encoded(item: Any) -> bool:
    """Whether an item is one image that must be opened: a path, encoded bytes, a Pillow image."""
    return isinstance(item, str | os.PathLike | bytes | bytearray | memoryview | Image.Image)


def open_image(
    item: Any, transform: Transform, channels: int = 3
) -> UInt8[np.ndarray, "height width channels"]:
    """Open one image, turned upright as its EXIF notes, and bring it to the network's input size.

    Args:
        item: a path, the bytes of an encoded image, or a Pillow image.
        transform: applied to the RGB image.
        channels: 3, or 1 for a network that takes grey images (luminance, as Pillow's mode `L`).

    Returns:
        The image, uint8.

    Raises:
        UnreadableImage: if there is no such file or it is no image; the message names it.
        ValueError: if the network takes neither 1 nor 3 channels.
    """
    if channels not in (1, 3):
        raise ValueError(
            f"the network takes images of {channels} channels, which no picture has: give arrays"
        )
    if isinstance(item, Image.Image):
        image = to_rgb(item)
    elif isinstance(item, str | os.PathLike):
        image = decode(_read(Path(item)), str(item), upright=True)
    else:
        image = decode(bytes(item), "an image of encoded bytes", upright=True)
    image = transform(image)
    return image if channels == 3 else np.asarray(Image.fromarray(image).convert("L"))[..., None]


def batches_of(
    images: Any, transform: Transform, channels: int, batch_size: int
) -> Iterator[tuple[Any, bool]]:
    """Go through images of any form.

    Args:
        images: an array (N, height, width, channels), handed on as it is; one path, Pillow image or
            encoded image, or a list of them; or an iterable of any of these, such as of batches.
        transform: for images that are opened, see `open_image`.
        channels: of the network's input.
        batch_size: images opened at a time.

    Yields:
        (images, opened): an array, and whether it was opened and transformed here.

    Raises:
        ValueError: as `open_image`.
    """
    if is_encoded(images):
        yield open_image(images, transform, channels)[None], True
    elif isinstance(images, list | tuple):
        if images and is_encoded(images[0]):
            yield from _opened(images, transform, channels, batch_size)
        elif images:
            yield np.asarray(images), False
    elif isinstance(images, Iterable) and not hasattr(images, "__array__"):
        for encoded, run in itertools.groupby(images, is_encoded):
            if encoded:
                yield from _opened(run, transform, channels, batch_size)
            else:
                for part in run:
                    yield from batches_of(part, transform, channels, batch_size)
    else:
        yield images, False


def chunks(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` items in a row; the last one may be shorter."""
    rest = iter(items)
    while part := list(itertools.islice(rest, size)):
        yield part


def _opened(items: Iterable, transform, channels, batch_size) -> Iterator[tuple[np.ndarray, bool]]:
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="si_jax-open") as pool:
        for part in chunks(items, batch_size):
            opened = pool.map(lambda item: open_image(item, transform, channels), part)
            yield np.stack(list(opened)), True


def _read(path: Path) -> bytes:
    try:
        if path.expanduser().is_dir():
            raise UnreadableImage(
                f"{path} is a folder, not an image: give the images in it, or use si-jax predict"
            )
        return read_bytes(path.expanduser())
    except OSError as error:
        reason = getattr(error, "strerror", None) or str(error)
        message = f"{path} can't be read ({reason}); give the path of an image."
        raise UnreadableImage(message) from None
