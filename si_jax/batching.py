"""Run a function over any number of images in static batches, on all devices."""

import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

DELAY = 2  # seconds after which a progress bar shows


def progress_bar(description: str, total: int | None = None) -> tqdm:
    """A bar of images on stderr, for what takes more than `DELAY` seconds; none without a name."""
    disable = not description or sys.stderr is None
    return tqdm(total=total, desc=description, unit="img", delay=DELAY, disable=disable)


class Batched:
    """`function(weights, images)` over static batches, jitted once per shape.

    The last batch is padded with copies of its last image, and the results of the padding are
    dropped. Batches are split over all local devices, to whose number they are rounded up; the
    weights are copied to each.

    Args:
        function: (weights, batch of images) -> tree of arrays with the batch axis first.
        weights: tree of arrays, placed on the devices at the first call.
    """

    def __init__(self, function: Callable[[Any, Any], Any], weights: Any):
        self._function = jax.jit(function)
        self._weights = weights
        self._placed = None

    def __call__(
        self, images: np.ndarray, *, batch_size: int, shrink: bool = False, progress: str = ""
    ) -> Any:
        """The function's results for all of `images`, as NumPy arrays (N, ...).

        Args:
            images: (N, ...) arrays.
            batch_size: images per batch.
            shrink: whether fewer images than a batch are padded to a power of two only, which
                spares work, but compiles the function for a few more shapes.
            progress: what a bar is called, on stderr, where it takes more than `DELAY` seconds;
                empty for none.

        Raises:
            ValueError: if `batch_size` is not positive or there are no images.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size (={batch_size}) must be at least 1")
        if not len(images):
            raise ValueError("images is empty: there is nothing to compute")
        if shrink:
            batch_size = min(batch_size, 1 << (len(images) - 1).bit_length())
        parts = []
        with progress_bar(progress, len(images)) as bar:
            for start in range(0, len(images), batch_size):
                batch = images[start : start + batch_size]
                parts.append(self.batch(batch, batch_size=batch_size))
                bar.update(len(batch))
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)

    def batch(self, images: np.ndarray, *, batch_size: int) -> Any:
        """The function's results for one batch of at most `batch_size` images."""
        devices = jax.local_devices()
        size = -(-batch_size // len(devices)) * len(devices)
        count = len(images)
        images = np.asarray(images)
        if count < size:
            images = np.concatenate([images, images[-1:].repeat(size - count, axis=0)])
        if len(devices) == 1:
            place = place_weights = devices[0]
        else:
            mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
            place = NamedSharding(mesh, PartitionSpec("batch"))
            place_weights = NamedSharding(mesh, PartitionSpec())
        if self._placed is None:
            self._placed = jax.device_put(self._weights, place_weights)
        results = self._function(self._placed, jax.device_put(images, place))
        return jax.tree.map(lambda x: x[:count], jax.device_get(results))
