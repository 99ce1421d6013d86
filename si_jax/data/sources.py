"""Sets of images with random access, wherever they are kept.

An `ImageSet` gives one image at a time, as uint8 RGB at its native size, and knows a fingerprint
of what determines its content. Arrays are read here, image folders in `folders`, TFDS sets in
`tfds_sets`; all of them decode with `decode_image`.
"""

import hashlib
import io
import json
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

NO_LABEL = -1
# Files are told apart by content: the well-known sets hold PNG and GIF files named .jpg.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF")
_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class UnreadableImage(ValueError):
    """An image that cannot be decoded; `ident` names it within its set, or is its path."""

    def __init__(self, ident: str, reason: str):
        reason = " ".join(reason.split()).rstrip(".")
        super().__init__(
            f"{ident} cannot be read as an image ({reason}); replace or remove it, "
            "or skip unreadable images (--skip-unreadable)."
        )
        self.ident = ident


@dataclass(frozen=True)
class ImageSet:
    """Images in a fixed order, read one at a time.

    Attributes:
      name: the set's name in reports.
      source: where it comes from, for people to read (a path, or a TFDS name and split).
      fingerprint: hexadecimal hash of what determines the content and the order.
      count: number of images.
      read: index -> (image, label), without checks; call `load` instead.
      naming: index -> identifier; call `ident` instead.
    """

    name: str
    source: str
    fingerprint: str
    count: int
    read: Callable[[int], tuple[np.ndarray, int]]
    naming: Callable[[int], str]

    def __len__(self) -> int:
        """Give the number of images."""
        return self.count

    def load(self, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], int]:
        """Read one image; safe to call from several threads.

        Args:
          index: 0 to len - 1.

        Returns:
          The image, uint8 of shape (h, w, 3) at its native size, and its label, -1 if unknown.

        Raises:
          IndexError: if `index` is out of range.
          UnreadableImage: if the image cannot be decoded.
        """
        return self.read(self._checked(index))

    def ident(self, index: int) -> str:
        """Name one image: a file name relative to the set's folder, or like 'cifar100/test[17]'."""
        return self.naming(self._checked(index))

    def _checked(self, index: int) -> int:
        if not 0 <= index < self.count:
            raise IndexError(f"index (={index}) is outside the {self.count} images of {self.name}.")
        return int(index)


def from_arrays(
    name: str,
    images: UInt8[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"] | None = None,
    *,
    source: str = "array",
) -> ImageSet:
    """Make a set of images that are in memory.

    Args:
      name: the set's name.
      images: uint8 of shape (n, h, w, 3) or (n, h, w, 1); n at least 1.
      labels: integers of shape (n,), or None.
      source: where the arrays come from, for people to read.

    Returns:
      The set; its fingerprint is of the content.

    Raises:
      ValueError: if the arrays are of another type or shape.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images of {name} are {images.dtype} of shape {images.shape}; "
            "give uint8 of shape (n, h, w, 3) or (n, h, w, 1)."
        )
    if not images.size:
        raise ValueError(f"images of {name} have shape {images.shape}; give at least one image.")
    if labels is not None:
        labels = np.asarray(labels)
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"labels of {name} are {labels.dtype} of shape {labels.shape}; "
                f"give integers of shape ({len(images)},)."
            )

    def read(index: int) -> tuple[np.ndarray, int]:
        image = images[index]
        if image.shape[-1] == 1:
            image = np.repeat(image, 3, axis=-1)
        return image.copy(), NO_LABEL if labels is None else int(labels[index])

    return ImageSet(
        name=name,
        source=source,
        fingerprint=digest("arrays", images, labels),
        count=len(images),
        read=read,
        naming=lambda index: f"{name}[{index}]",
    )


def from_npz(path: str | os.PathLike, name: str | None = None) -> ImageSet:
    """Make a set of the arrays in an .npz file; they are held in memory.

    Args:
      path: file with `images`, uint8 of shape (n, h, w, 3|1), and perhaps `labels`, integers (n,).
      name: the set's name; None takes the file's.

    Returns:
      The set.

    Raises:
      ValueError: if the file is missing, is no .npz file or holds other arrays.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile) or "images" not in file:
                raise ValueError("there is no array `images` in it")
            images = file["images"]
            labels = file["labels"] if "labels" in file else None
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); give an .npz file with a uint8 array `images` "
            "of shape (n, h, w, 3) and perhaps an integer array `labels` of shape (n,)."
        ) from error
    return from_arrays(name or path.stem, images, labels, source=str(path))


def from_svhn_mat(path: str | os.PathLike, name: str = "svhn") -> ImageSet:
    """Make a set of SVHN's cropped digits as distributed, such as test_32x32.mat.

    Args:
      path: a .mat file with `X`, uint8 of shape (32, 32, 3, n), and `y`, 1 to 10 (10 is zero).
      name: the set's name.

    Returns:
      The set, in memory, labels 0 to 9.

    Raises:
      ValueError: if the file is missing or is not such a file.
    """
    from scipy.io import loadmat

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = loadmat(path, variable_names=["X", "y"])
        images, labels = content["X"].transpose(3, 0, 1, 2), content["y"].reshape(-1) % 10
    except Exception as error:  # whatever the parser stumbled over, the file is at fault
        raise ValueError(
            f"{path} cannot be read ({error!r}); give SVHN's own test_32x32.mat."
        ) from error
    return from_arrays(name, images, labels.astype(np.int64), source=str(path))


def subset(image_set: ImageSet, limit: int | None, seed: int = 0) -> ImageSet:
    """Draw a random subset, kept in the set's own order.

    Args:
      image_set: the set to draw from.
      limit: number of images; None, or at least the set's size, gives the set itself.
      seed: seed of the choice.

    Returns:
      The subset, with a fingerprint of its own; images keep their identifiers.

    Raises:
      ValueError: if `limit` is below 1.
    """
    if limit is None or limit >= len(image_set):
        return image_set
    if limit < 1:
        raise ValueError(f"limit (={limit}) leaves no image; give 1 or more, or None for all.")
    chosen = np.random.default_rng(seed).choice(len(image_set), limit, replace=False)
    chosen = np.sort(chosen).tolist()
    return replace(
        image_set,
        fingerprint=digest("subset", image_set.fingerprint, chosen),
        count=limit,
        read=lambda index: image_set.read(chosen[index]),
        naming=lambda index: image_set.naming(chosen[index]),
    )


def decode_image(data: bytes, ident: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decode a JPEG, PNG, WebP, BMP or GIF (first frame) file into RGB.

    Grey and palette images and CMYK are converted, 16 bits are scaled to 8, transparency is
    dropped without blending, and a rotation noted in EXIF is not applied, as the loaders behave
    with which these benchmarks are usually evaluated.

    Args:
      data: the file's bytes.
      ident: what to call the image in an error.

    Returns:
      The image, uint8 of shape (h, w, 3).

    Raises:
      UnreadableImage: if the bytes are no such image, or are truncated.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata, and sizes that are still accepted
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                return _to_rgb(image)
    except _DECODING_ERRORS as error:
        raise UnreadableImage(ident, str(error) or repr(error)) from error


def digest(*parts: object) -> str:
    """Hash arrays and JSON-like values, in order, into 32 hexadecimal digits."""
    state = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            state.update(f"{part.dtype.str}{part.shape}".encode())
            state.update(np.ascontiguousarray(part).data)
        else:
            state.update(json.dumps(part, sort_keys=True).encode())
        state.update(b"\0")
    return state.hexdigest()[:32]


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it at 255
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if "transparency" in image.info and image.mode == "P":
        image = image.convert("RGBA")  # else Pillow warns; the colours are the same
    return np.array(image.convert("RGB"))
