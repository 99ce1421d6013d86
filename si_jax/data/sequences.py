"""Image sets of whatever Python holds: arrays, sequences, other libraries' data sets, loaders."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from si_jax.data import fingerprints, sources
from si_jax.data.decoding import to_rgb
from si_jax.data.image_set import NO_LABEL, ImageSet, MissingSet, fingerprint_of

IMAGE_KEYS = ("image", "img", "images", "pixel_values")
LABEL_KEYS = ("label", "labels", "fine_label", "target")


def as_image_set(data: Any, name: str) -> ImageSet:
    """Make a set of images of anything that holds some.

    Args:
        data: one of

            - an `ImageSet`;
            - the path of a folder, an `.npz` file, a list (`.txt`) or a `.mat` file of SVHN;
            - an array of images, or a pair (images, labels) of arrays, as `from_arrays` takes;
            - a sequence (`len` and indexing) of images, pairs (image, label), or dictionaries with
              'image' and 'label', such as PyTorch's, TFDS's, grain's and Hugging Face's data sets;
            - a loader: an iterable over batches of any of these, which are held in memory.

            An image is uint8 of shape (height, width, 3), (height, width[, 1]) or channels first,
            as a NumPy, JAX or PyTorch array or a Pillow image.
        name: what to call the set.

    Returns:
        The set. A sequence is indexed from several threads.

    Raises:
        MissingSet: if there are no images.
        ValueError: if it is nothing of these, or its images are others.
    """
    if isinstance(data, ImageSet):
        return data
    if isinstance(data, (str, os.PathLike)):
        return sources.from_path(data, name=name)
    if hasattr(data, "shape") and hasattr(data, "dtype"):
        return sources.from_arrays(name, _array(data, f"images of {name}"))
    if isinstance(data, Mapping) or _is_pair_of_arrays(data):
        images, labels = _parts(data, name)
        labels = None if labels is None else np.asarray(labels)
        return sources.from_arrays(name, _array(images, f"images of {name}"), labels)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return _from_sequence(data, name)
    if isinstance(data, Iterable):
        return _from_batches(data, name)
    raise ValueError(
        f"{name} (of type {type(data).__name__}) holds no images: give arrays, a path, a sequence"
        " of (image, label) or an iterable over batches."
    )


def _is_pair_of_arrays(data: Any) -> bool:
    return (
        isinstance(data, tuple)
        and len(data) == 2
        and getattr(data[0], "ndim", 0) >= 3
        and (data[1] is None or getattr(data[1], "ndim", 0) == 1)
    )


def _parts(item: Any, name: str) -> tuple[Any, Any]:
    """Split an item, or a batch, into images and labels."""
    if isinstance(item, Mapping):
        image = next((key for key in IMAGE_KEYS if key in item), None)
        if image is None:
            raise ValueError(
                f"items of {name} have none of the keys {', '.join(IMAGE_KEYS)}, but"
                f" {', '.join(map(str, item))}; rename the one that holds images."
            )
        label = next((key for key in LABEL_KEYS if key in item), None)
        return item[image], None if label is None else item[label]
    if isinstance(item, (tuple, list)) and len(item) >= 2:
        return item[0], item[1]
    return (item[0] if isinstance(item, (tuple, list)) else item), None


def _array(image: Any, what: str) -> np.ndarray:
    """Give an image, or a stack of them, as uint8 with the channels last."""
    if isinstance(image, Image.Image):
        return to_rgb(image)
    array = np.asarray(image)
    if array.dtype != np.uint8:
        raise ValueError(
            f"{what} are {array.dtype}, where uint8 is expected: leave scaling and normalisation to"
            " the model."
        )
    if array.ndim >= 3 and array.shape[-1] not in (1, 3) and array.shape[-3] in (1, 3):
        array = np.moveaxis(array, -3, -1)
    return array


def _rgb(image: Any, what: str) -> np.ndarray:
    array = _array(image, what)
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[-1] not in (1, 3):
        raise ValueError(f"{what} have the shape {array.shape}, not (height, width, 3).")
    return np.repeat(array, 3 // array.shape[-1], axis=-1)


def _from_sequence(items: Any, name: str) -> ImageSet:
    if not len(items):
        raise MissingSet(f"{name} holds no images; give at least one.")

    def load(index: int) -> tuple[np.ndarray, int]:
        image, label = _parts(items[index], name)
        return _rgb(image, f"images of {name}"), NO_LABEL if label is None else int(label)

    def digest(index: int) -> bytes:
        image, label = load(index)
        return fingerprints.digest_of(np.ascontiguousarray(image).data, image.shape, label)

    load(0)  # so that another kind of item is told at once
    return ImageSet(
        name=name,
        size=len(items),
        structure=fingerprint_of("sequence", len(items)),
        load_fn=load,
        ident_fn=lambda index: f"{name}[{index}]",
        digest_fn=lambda indices: fingerprints.digests(digest, indices, name),
    )


def _from_batches(batches: Iterable, name: str) -> ImageSet:
    items: list[tuple[np.ndarray, int]] = []
    for batch in batches:
        images, labels = _parts(batch, name)
        images = _array(images, f"images of {name}")
        if images.ndim == 3:
            images = images[None]
        labels = np.full(len(images), NO_LABEL) if labels is None else np.atleast_1d(labels)
        items += zip(images, labels.tolist(), strict=True)
    return _from_sequence(items, name)
