"""Out-of-distribution sets made of in-distribution images, easy ones, for where there are none."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from si_jax.data.image_set import NO_LABEL, ImageSet, digest_of, fingerprint_of, subset, take
from si_jax.data.preprocessing import RGB, Preprocessing

PATCHES = 4  # shuffled images are cut into this many patches a side
MOST = 1000  # images of a set


def noise(image: RGB, rng: np.random.Generator) -> RGB:
    """Draw every pixel from the image's own pixels, with replacement."""
    pixels = image.reshape(-1, 3)
    return pixels[rng.integers(len(pixels), size=len(pixels))].reshape(image.shape)


def shuffled(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shuffle the image's patches, four a side; pixels beyond a multiple of four stay."""
    height, width = (length // PATCHES for length in image.shape[:2])
    result = image.copy()
    corners = [(row, column) for row in range(PATCHES) for column in range(PATCHES)]
    for (row, column), source in zip(corners, rng.permutation(len(corners)), strict=True):
        top, left = corners[source][0] * height, corners[source][1] * width
        into = result[row * height : (row + 1) * height, column * width : (column + 1) * width]
        into[:] = image[top : top + height, left : left + width]
    return result


def blurred(image: RGB, rng: np.random.Generator) -> RGB:
    """Blur the image: a Gaussian whose deviation is an eighth of the shorter side."""
    radius = min(image.shape[:2]) / 8
    return np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


KINDS: dict[str, Callable] = {"noise": noise, "shuffled": shuffled, "blurred": blurred}


def sets_of(images: ImageSet, transform: Preprocessing, seed: int = 0) -> dict[str, ImageSet]:
    """Make sets of at most 1000 images, at the size after the resizing, which would blur noise."""
    chosen = subset(images, MOST, seed)
    return {kind: _made(kind, chosen, transform, seed) for kind in KINDS}


def _made(kind: str, images: ImageSet, transform: Preprocessing, seed: int) -> ImageSet:
    def load(index: int) -> tuple[np.ndarray, int]:
        image = images.load(index)[0]
        if image.dtype != np.uint8 or image.shape[-1] != 3:
            raise ValueError(
                f"out-of-distribution sets are made of uint8 RGB images, and {images.name} are"
                f" {image.dtype} of shape {image.shape}: give sets by ood"
            )
        rng = np.random.default_rng([seed, index])
        return KINDS[kind](transform.resized(image), rng), NO_LABEL

    def digests(indices: np.ndarray) -> np.ndarray:
        rows = take(images, indices).digests  # of what the images are made of
        made = [digest_of(kind.encode() + row.tobytes()) for row in rows]
        return np.frombuffer(b"".join(made), np.uint8).reshape(rows.shape)

    structure = fingerprint_of("made", kind, str(transform), seed, images.structure)

    def ident(index: int) -> str:
        return f"{kind} of {images.ident(index)}"

    return ImageSet(kind, len(images), structure, load, ident, digests)
