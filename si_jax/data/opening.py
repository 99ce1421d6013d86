"""The one way in: images as people have them become an `ImageSet` or an `ImageStream`."""

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from si_jax.data import image_set, sources
from si_jax.data.decoding import decode, to_rgb
from si_jax.data.folders import decode_file, from_files
from si_jax.data.image_set import NO_LABEL, ImageSet, ImageStream, UnreadableImage
from si_jax.data.preprocessing import RGB, Transform
from si_jax.data.sources import as_numpy, class_indices

IMAGE_KEYS = ("image", "img", "images", "pixel_values")
LABEL_KEYS = ("label", "labels", "fine_label", "target")
TAKEN = (
    "give arrays, paths, Pillow images, encoded bytes, a data set of (image, label), or an iterable"
    " over images or batches"
)

ENCODED = bytes | bytearray | memoryview
Entry = tuple[Any, Any]
"""One image in any form, or what loads it, and its class; None where there is none."""


def as_image_set(data: Any, name: str, **options: Any) -> ImageSet:
    """Make a set of images of anything that holds some; the options are those of `as_images`."""
    images = as_images(data, name, **options)
    return images if isinstance(images, ImageSet) else _set_of(list(images.entries()), name)


def as_images(
    data: Any,
    name: str = "images",
    *,
    labels: Any = None,
    channels: int = 3,
    classes: tuple[str, ...] = (),
    num_classes: int | None = None,
) -> ImageSet | ImageStream:
    """Make a set, or a stream, of anything that holds images.

    Args:
        data: one of

            - an array of images, (n, height, width, channels), channels first, or grey without
              channels: NumPy's, JAX's or PyTorch's; or one image (height, width, 3) or (3, height,
              width);
            - a Pillow image, the bytes of an encoded image, a path or a glob of images, a folder,
              an `.npz` file, a list (`.txt`), a `.mat` file of SVHN; or a list of any of these;
            - a pair (images, labels), or a dictionary or data frame of such columns;
            - a data set (`len` and indexing) of images, pairs (image, label) or dictionaries with
              'image' and 'label', such as PyTorch's, TFDS's, grain's and Hugging Face's;
            - an iterable over single images or batches, or over either with labels, such as a
              loader or a generator: a stream, of which nothing is kept;
            - an `ImageSet`.

            Pixels are uint8; other numbers are left to the model, which takes them in its size.
        name: what to call them.
        labels: class indices (n,) or one-hot rows (n, classes), in place of `data`'s own.
        channels: of the network's images, where these are neither 1 nor 3.
        classes: names of a folder's class folders in the order of the labels.
        num_classes: number of class folders that a folder must have.

    Returns:
        The images: a stream of an iterable, else a set.

    Raises:
        MissingSet: if there are no images.
        ValueError: if it is nothing of these.
    """
    if labels is not None:
        return _labelled(as_images(data, name, channels=channels), labels)
    if isinstance(data, ImageSet | ImageStream):
        return data
    if isinstance(data, str | os.PathLike):
        return sources.from_path(data, name=name, classes=classes, num_classes=num_classes)
    if hasattr(data, "columns") and hasattr(data, "__getitem__"):  # a data frame
        data = {column: data[column] for column in data.columns}
    if _is_encoded(data):
        data = [data]
    if isinstance(data, Mapping) or _is_pair(data):
        images, given = _parts(data, name)
        return as_images(images, name, labels=given, channels=channels)
    if hasattr(data, "dtype") and hasattr(data, "to_list"):  # a column of a data frame
        data = data.to_list()
    if _is_array(data):
        data = as_numpy(data, name)
        if data.ndim == 4:
            return sources.from_arrays(name, _channels_last(data, name, channels))
    if isinstance(data, list | tuple | np.ndarray):
        return _set_of(list(_entries(data, name, channels)), name, channels)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return _set_of(data, name, channels, lambda item: _entry(item, name))
    if isinstance(data, Iterable):
        return _stream_of(data, name, channels)
    raise ValueError(f"{name} (of type {type(data).__name__}) holds no images: {TAKEN}")


def open_image(item: Any, transform: Transform) -> RGB:
    """Open one path, encoded or Pillow image, turn it upright by its EXIF, and transform it."""
    return transform(load_entry((item, None), "the image", 3)[0])


def _set_of(items: Any, name: str, channels: int = 3, entry: Callable[[Any], Entry] = tuple):
    """A set of a sequence of what `entry` makes entries of."""
    is_named = entry is tuple and all(isinstance(x, str | os.PathLike) and str(x) for x, _ in items)
    if is_named and items:
        names = [os.path.expanduser(os.fspath(image)) for image, _ in items]
        labels = [NO_LABEL if label is None else label for _, label in items]
        return from_files(Path(), names, class_indices(labels, len(items), name), name)

    def load(index: int) -> tuple[np.ndarray, int]:
        try:
            item = items[index]
        except (OSError, ValueError) as error:  # of a data set that opens files, or lacks one
            raise UnreadableImage(f"{name}[{index}] cannot be read ({error})") from error
        return load_entry(entry(item), f"{name}[{index}]", channels)

    return image_set.make_set(name, len(items), load, ("sequence", len(items)))


def _stream_of(data: Iterable, name: str, channels: int) -> ImageStream:
    """A stream of an iterable, which can be gone through again unless it is an iterator."""
    used = False

    def entries() -> Iterator[Entry]:
        nonlocal used
        if used and iter(data) is data:
            raise ValueError(
                f"{name} (a {type(data).__name__}) can be gone through but once, and are needed"
                " again: give arrays, paths, a data set or a loader"
            )
        used = True
        for item in data:
            yield from _entries(item, name, channels)

    called = f"an image of {name}"
    return ImageStream(name, entries, lambda entry: load_entry(entry, called, channels))


def _labelled(images: ImageSet | ImageStream, labels: Any) -> ImageSet | ImageStream:
    """The images with the given labels."""
    if isinstance(images, ImageSet):
        return image_set.relabelled(images, class_indices(labels, len(images), images.name))

    def entries() -> Iterator[Entry]:
        rest = iter(class_indices(labels, None, images.name))
        for image, _ in images.entries():
            if (label := next(rest, None)) is None:
                raise ValueError(f"labels (={len(labels)}) are fewer than {images.name}")
            yield image, label

    return ImageStream(images.name, entries, images.load_fn)


def _is_encoded(item: Any) -> bool:
    """Whether an item is one image that must be opened: encoded bytes, a Pillow image."""
    return isinstance(item, ENCODED | Image.Image) or _is_undecoded(item)


def _is_undecoded(item: Any) -> bool:
    """Whether it is Hugging Face's image that is not decoded."""
    return isinstance(item, Mapping) and bool(item) and set(item) <= {"bytes", "path"}


def _is_array(item: Any) -> bool:
    return hasattr(item, "shape") and (hasattr(item, "dtype") or hasattr(item, "__array__"))


def _is_pair(item: Any) -> bool:
    """Whether a tuple or list holds an image, or several, and labels, rather than images alone."""
    if not isinstance(item, list | tuple) or len(item) < 2:
        return False
    images, labels = item[:2]
    if labels is None or isinstance(labels, str | Mapping):
        return isinstance(item, tuple) and not isinstance(images, str | os.PathLike | bytes)
    if isinstance(labels, list):
        return bool(labels) and all(isinstance(x, int | np.integer) for x in labels)
    if not _is_array(labels):
        return isinstance(labels, int)
    ndim = len(labels.shape)
    return ndim < 2 or (
        ndim == 2 and len(getattr(images, "shape", ())) > 2 and len(images) == len(labels)
    )


def _parts(item: Any, name: str) -> tuple[Any, Any]:
    """Split a dictionary or a pair into images and labels."""
    if not isinstance(item, Mapping):
        return item[0], item[1]
    image = next((key for key in IMAGE_KEYS if key in item), None)
    if image is None:
        raise ValueError(
            f"items of {name} have none of the keys {', '.join(IMAGE_KEYS)}, but"
            f" {', '.join(map(str, item))}; rename the one that holds images"
        )
    return item[image], next((item[key] for key in LABEL_KEYS if key in item), None)


def _entry(item: Any, name: str) -> Entry:
    """An item of a data set, which is one image, with a label or without."""
    if _is_encoded(item):
        return item, None
    if isinstance(item, Mapping) or (isinstance(item, list | tuple) and len(item) > 1):
        return _parts(item, name)
    return (item[0] if isinstance(item, list | tuple) and item else item), None


def _entries(item: Any, name: str, channels: int) -> Iterator[Entry]:
    """The images of an item of a list or of an iterable: one, or a batch, or either with labels."""
    if item is None or isinstance(item, float) or _is_encoded(item):
        yield item, None
    elif isinstance(item, str | os.PathLike):
        if item and sources.holds_several(item):
            images = sources.from_path(item)
            yield from ((functools.partial(images.load, k), None) for k in range(len(images)))
        else:
            yield item, None
    elif isinstance(item, Mapping) or _is_pair(item):
        several, labels = _parts(item, name)
        parts = [image for image, _ in _entries(several, name, channels)]
        known = [None] * len(parts) if labels is None else class_indices(labels, len(parts), name)
        yield from zip(parts, known, strict=True)
    elif isinstance(item, list | tuple):
        for part in item:
            yield from _entries(part, name, channels)
    elif _is_array(item):
        array = as_numpy(item, name)
        one = array.ndim == 3 and (array.shape[-1] in (1, 3, channels) or len(array) == channels)
        if array.ndim < 2 and array.dtype.kind in "OSU":
            for part in np.atleast_1d(array).tolist():
                yield from _entries(part, name, channels)
        elif array.ndim == 2 or one:
            yield array, None
        else:
            stack = array if array.ndim == 3 else _channels_last(array, name, channels)
            yield from ((image, None) for image in stack)
    else:
        raise ValueError(f"{name} hold a {type(item).__name__}, which is no image: {TAKEN}")


def _channels_last(array: np.ndarray, name: str, channels: int) -> np.ndarray:
    """An image, or a stack of them, with the channels last."""
    known = (1, 3, channels)
    if array.ndim in (3, 4) and array.shape[-1] in known:
        return array
    if array.ndim in (3, 4) and array.shape[-3] in known:
        return np.moveaxis(array, -3, -1)
    message = f"{name} (shape {array.shape}) must be (height, width, {channels}) each, or grey"
    if array.ndim > 2 and array.shape[-1] == channels + 1:
        message += f"; leave out the last channel of each, image[..., :{channels}]"
    raise ValueError(message)


def load_entry(entry: Entry, name: str, channels: int) -> tuple[np.ndarray, int]:
    """The image of an entry, opened, and its class."""
    image, label = entry
    label = NO_LABEL if label is None else int(class_indices(label, 1, name)[0])
    if isinstance(image, functools.partial):
        return image_set.with_label(image(), label)
    if _is_undecoded(image):
        image = image.get("bytes") if image.get("bytes") is not None else image.get("path")
    if isinstance(image, np.ndarray) and not image.ndim:  # one text, as of TensorFlow
        image = image.item()
    if image is None or isinstance(image, float) or (not _is_array(image) and not image):
        raise UnreadableImage(f"{name} has no image (={image!r})")
    if isinstance(image, Image.Image):
        return to_rgb(image, name), label
    if isinstance(image, str | os.PathLike):
        return decode_file(Path(image).expanduser()), label
    if isinstance(image, ENCODED):
        return decode(bytes(image), f"{name} of encoded bytes", upright=True), label
    if not _is_array(image):
        raise ValueError(f"{name} (of type {type(image).__name__}) is no image: {TAKEN}")
    array = as_numpy(image, name)
    array = array[..., None] if array.ndim == 2 else array
    return image_set.prepared(_channels_last(array, name, channels), label)
