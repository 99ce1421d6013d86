"""From images to batches of one static shape, decoded in threads ahead of their use."""

import collections
import dataclasses
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Shaped
from tqdm import tqdm

from si_jax.checks import check_least
from si_jax.data.decoding import to_grey
from si_jax.data.image_set import NO_LABEL, ImageSet, ImageStream, Prepared, UnreadableImage
from si_jax.data.preprocessing import Transform

NO_INDEX = -1  # the index of a padded row
WORKERS = 4  # threads that decode
PIECES = 16  # of a batch, which threads take in turn


@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch of static shape; rows whose mask is False hold black images, to be left out."""

    images: Shaped[np.ndarray, "batch height width channels"]  # uint8, or as arrays were given
    labels: Int[np.ndarray, " batch"]  # -1 where there is none
    indices: Int[np.ndarray, " batch"]  # positions in the set, -1 for the rows that pad the last
    mask: Bool[np.ndarray, " batch"]  # False for padded rows and unreadable images
    unreadable: tuple[str, ...]  # names of the images that could not be decoded
    errors: dict[int, str]  # row -> why its image could not be decoded
    transformed: bool  # whether images were brought to size, and not all given in it
    entries: Sequence[Any]  # what the rows that are no padding were loaded from

    @property
    def size(self) -> int:
        """Number of rows that are no padding."""
        return len(self.entries)

    @property
    def is_all(self) -> bool:
        """Whether it holds all images that there are, and is not full."""
        return bool(self.indices[0] == 0) and self.size < len(self.indices)

    @property
    def readable(self) -> tuple[np.ndarray, np.ndarray]:
        """The images and the labels of the rows whose mask is True."""
        chosen = slice(None) if self.mask.all() else self.mask
        return self.images[chosen], self.labels[chosen]


def batches(
    images: ImageSet | ImageStream,
    transform: Transform,
    batch_size: int,
    *,
    workers: int = WORKERS,
    prefetch: int = 2,
    skip_unreadable: bool = False,
    image_shape: tuple[int, int, int] | None = None,
) -> Iterator[Batch]:
    """Decode and transform images in threads and yield them in order, `prefetch + 1` held at most.

    Arrays in the size that `transform` crops to, or of other numbers than uint8, are left as they
    are. All images have `image_shape`, or else the shape of the first of the first batch.
    """
    check_least(1, batch_size=batch_size, workers=workers)
    check_least(0, prefetch=prefetch)
    crop, grey = getattr(transform, "crop", None), bool(image_shape and image_shape[-1] == 1)

    def load(entry: Any) -> tuple[np.ndarray, int, bool] | UnreadableImage:
        """The image, its label and whether it was transformed; or why it cannot be read."""
        try:
            loaded = images.load_fn(entry)
        except UnreadableImage as error:
            if skip_unreadable:
                return error
            raise
        image, label = loaded
        given = isinstance(loaded, Prepared)
        if given and (image.dtype != np.uint8 or image.shape[-1] != 3):
            return image, label, False
        transformed = not (given and image.shape[:2] == crop)
        if transformed:
            image = transform(image)
        return to_grey(image) if grey else image, label, transformed

    def started(executor: ThreadPoolExecutor) -> Iterator[tuple[list, list[Future]]]:
        entries, piece = iter(images.entries()), max(1, batch_size // PIECES)
        while part := list(itertools.islice(entries, batch_size)):
            pieces = [part[k : k + piece] for k in range(0, len(part), piece)]
            yield part, [executor.submit(list, map(load, some)) for some in pieces]

    def generated(shape: tuple[int, ...] | None) -> Iterator[Batch]:
        executor, first = ThreadPoolExecutor(workers, thread_name_prefix="si_jax-decode"), 0
        try:
            coming = started(executor)
            pending = collections.deque(itertools.islice(coming, prefetch + 1))
            while pending:
                batch = _collate(images, first, *pending.popleft(), batch_size, shape)
                first, shape = first + batch.size, batch.images.shape[1:]
                yield batch
                pending.extend(itertools.islice(coming, 1))
        finally:
            executor.shutdown(wait=True, cancel_futures=True)

    return generated(image_shape)


def _collate(images, first, entries, futures, batch_size, shape) -> Batch:
    loaded = [item for future in futures for item in future.result()]
    errors = {row: str(x) for row, x in enumerate(loaded) if isinstance(x, UnreadableImage)}
    readable = [(row, item) for row, item in enumerate(loaded) if row not in errors]
    unreadable = tuple(images.ident(first + row) for row in errors)
    if shape is None:
        if not readable:
            raise UnreadableImage(
                f"None of the first {len(loaded)} images of {images.name} can be decoded, from"
                f" {unreadable[0]} on; check the set"
            )
        shape = readable[0][1][0].shape
    dtype = readable[0][1][0].dtype if readable else np.dtype(np.uint8)
    pixels = np.zeros((batch_size, *shape), dtype)
    labels = np.full(batch_size, NO_LABEL, np.int32)
    indices = np.full(batch_size, NO_INDEX, np.int64)
    indices[: len(loaded)] = np.arange(first, first + len(loaded))
    mask = np.zeros(batch_size, bool)
    for row, (image, label, _) in readable:
        if image.shape != tuple(shape) or image.dtype != dtype:
            raise ValueError(
                f"{images.ident(first + row)} is {image.dtype} of shape {image.shape}, where the"
                f" network takes images of shape {tuple(shape)}, all of one dtype ({dtype}): arrays"
                " of uint8 are brought to size, others must have it"
            )
        pixels[row], labels[row], mask[row] = image, label, True
    transformed = any(item[2] for _, item in readable)
    return Batch(pixels, labels, indices, mask, unreadable, errors, transformed, entries)


def shown(made: Iterable[Batch], image_set: ImageSet, what: str) -> Iterator[Batch]:
    """A set's batches, beside a progress bar on stderr that says what is done with them."""
    with tqdm(total=len(image_set), desc=f"{image_set.name}: {what}", unit="img") as bar:
        for batch in made:
            yield batch
            bar.update(batch.size)


def tell_unreadable(image_set: ImageSet, names: Sequence[str]) -> None:
    """Say on standard error, beside progress bars, which images were left out."""
    shown = ", ".join(names[:10]) + (" and more" if len(names) > 10 else "")
    tqdm.write(
        f"{image_set.name}: {len(names)} of {len(image_set)} images cannot be read and are left"
        f" out: {shown}",
        file=sys.stderr,
    )
