"""From an `ImageSet` to batches of one static shape, decoded in threads ahead of their use."""

import collections
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from jaxtyping import Bool, Int, UInt8
from tqdm import tqdm

from si_jax.checks import check_least
from si_jax.data.image_set import NO_LABEL, ImageSet, UnreadableImage

NO_INDEX = -1  # the index of a padded row


@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch of static shape; rows whose mask is False hold black images, to be left out.

    Attributes:
        images: uint8 of shape (batch, height, width, 3).
        labels: int32 of shape (batch,); -1 where there is none.
        indices: int64 of shape (batch,); positions in the set, -1 for the rows that pad the last
            batch.
        mask: bool of shape (batch,); False for padded rows and unreadable images.
        unreadable: names of the batch's images that couldn't be decoded.
    """

    images: UInt8[np.ndarray, "batch height width 3"]
    labels: Int[np.ndarray, " batch"]
    indices: Int[np.ndarray, " batch"]
    mask: Bool[np.ndarray, " batch"]
    unreadable: tuple[str, ...] = ()

    @property
    def readable(self) -> tuple[np.ndarray, np.ndarray]:
        """The images and the labels of the rows whose mask is True."""
        return self.images[self.mask], self.labels[self.mask]


def batches(
    image_set: ImageSet,
    transform: Callable[[np.ndarray], np.ndarray],
    batch_size: int,
    *,
    workers: int = 4,
    start: int = 0,
    prefetch: int = 2,
    skip_unreadable: bool = False,
    image_shape: tuple[int, int, int] | None = None,
) -> Iterator[Batch]:
    """Decode and transform a set's images in threads and yield them in order, in batches.

    At most `prefetch + 1` batches are held at a time. The threads start with the first batch and
    end with the last one, with an error, or when the generator is closed.

    Args:
        image_set: the images.
        transform: brings an image, uint8 of shape (h, w, 3), to the common shape; a
            `Preprocessing`.
        batch_size: rows of every batch; the last one is padded.
        workers: number of threads.
        start: index of the image to begin with, e.g. where an interrupted run left off.
        prefetch: number of batches to prepare ahead of the one in use.
        skip_unreadable: whether to mask out and name images that can't be decoded, rather than
            raise the error.
        image_shape: the shape that `transform` must give; None for that of the first image, which
            the first batch must then hold.

    Returns:
        An iterator over the batches.

    Raises:
        ValueError: if an argument is out of range (at once), or images differ in shape after
            `transform` (or from `image_shape`), or (as UnreadableImage) if an image can't be
            decoded.
    """
    check_least(1, batch_size=batch_size, workers=workers)
    check_least(0, start=start, prefetch=prefetch)
    if start > len(image_set):
        raise ValueError(
            f"start (={start}) must be at most {len(image_set)}, the size of {image_set.name}."
        )
    return _generate(
        image_set, transform, batch_size, workers, start, prefetch, skip_unreadable, image_shape
    )


def shown(made: Iterable[Batch], image_set: ImageSet, what: str) -> Iterator[Batch]:
    """A set's batches, beside a progress bar on standard error that tells what is done with them.

    Args:
        made: what `batches` gives.
        image_set: their set.
        what: in a word, such as `"fitting"`.
    """
    with tqdm(total=len(image_set), desc=f"{image_set.name}: {what}", unit="img") as bar:
        for batch in made:
            yield batch
            bar.update(int((batch.indices != NO_INDEX).sum()))


def tell_unreadable(image_set: ImageSet, names: Sequence[str]) -> None:
    """Say on standard error, beside progress bars, which images were left out."""
    shown = ", ".join(names[:10]) + (" and more" if len(names) > 10 else "")
    tqdm.write(
        f"{image_set.name}: {len(names)} of {len(image_set)} images cannot be read and are left"
        f" out: {shown}",
        file=sys.stderr,
    )


def _generate(image_set, transform, batch_size, workers, start, prefetch, skip_unreadable, shape):
    def load(index: int) -> tuple[np.ndarray, int] | None:
        try:
            image, label = image_set.load(index)
        except UnreadableImage:
            if skip_unreadable:
                return None
            raise
        return transform(image), label

    starts = iter(range(start, len(image_set), batch_size))
    pending: collections.deque[tuple[range, list[Future]]] = collections.deque()
    executor = ThreadPoolExecutor(workers, thread_name_prefix="si_jax-decode")
    try:
        while True:
            while len(pending) <= prefetch and (first := next(starts, None)) is not None:
                indices = range(first, min(first + batch_size, len(image_set)))
                pending.append((indices, [executor.submit(load, index) for index in indices]))
            if not pending:
                return
            indices, futures = pending.popleft()
            batch = _collate(image_set, indices, [f.result() for f in futures], batch_size, shape)
            shape = batch.images.shape[1:]
            del futures
            yield batch
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _collate(
    image_set: ImageSet,
    indices: range,
    loaded: list[tuple[np.ndarray, int] | None],
    batch_size: int,
    shape: tuple[int, ...] | None,
) -> Batch:
    readable = [(row, item) for row, item in enumerate(loaded) if item is not None]
    unreadable = tuple(
        image_set.ident(indices[row]) for row, item in enumerate(loaded) if item is None
    )
    if shape is None:
        if not readable:
            raise UnreadableImage(
                f"None of the first {len(indices)} images of {image_set.name} can be decoded, from"
                f" {unreadable[0]} on; check the set."
            )
        shape = readable[0][1][0].shape
    images = np.zeros((batch_size, *shape), np.uint8)
    labels = np.full(batch_size, NO_LABEL, np.int32)
    positions = np.full(batch_size, NO_INDEX, np.int64)
    mask = np.zeros(batch_size, bool)
    positions[: len(indices)] = indices
    for row, (image, label) in readable:
        if image.shape != shape or image.dtype != np.uint8:
            raise ValueError(
                f"{image_set.ident(indices[row])} is {image.dtype} of shape {image.shape} after"
                f" the transform, where the batch takes uint8 of shape {shape}; use a transform"
                " that gives every image that shape."
            )
        images[row], labels[row], mask[row] = image, label, True
    return Batch(images, labels, positions, mask, unreadable)
