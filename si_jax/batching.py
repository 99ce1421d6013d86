"""Run a function over any number of images in static batches, on all devices."""

import functools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from si_jax.checks import check_least
from si_jax.networks.programs import compiled, without_jit

DELAY = 2  # seconds after which a progress bar shows


def progress_bar(description: str, total: int | None = None) -> tqdm:
    """A bar of images on stderr, for what takes more than `DELAY` seconds; none without a name."""
    disable = not description or sys.stderr is None
    return tqdm(total=total, desc=description, unit="img", delay=DELAY, disable=disable)


SMALL_BATCH = 8
"""Fewer images than a batch may be run in batches of this size, or of 1, if there is but one."""

PREFETCH = 2
"""How many batches are dispatched before the results of the first of them are fetched."""


Parts = Iterable[tuple[Any, np.ndarray, bool]]
"""(anything, images of a batch at most, whether these are all, so that batches may be smaller)."""


class Replicated:
    """A tree of arrays, copied to the devices once however many functions take it."""

    def __init__(self, tree: Any):
        self._tree = tree
        self._copies: dict[tuple[jax.Device, ...], Any] = {}

    def on(self, devices: tuple[jax.Device, ...]) -> Any:
        """The tree, whole on each of the devices."""
        if devices not in self._copies:
            self._copies[devices] = jax.device_put(self._tree, _sharding(devices, PartitionSpec()))
        return self._copies[devices]


class Batched:
    """`function(*weights, images)` over static batches, jitted once per shape.

    The last batch is padded with copies of its last image. Batches are split over all local
    devices, to whose number they are rounded up. All transfers are explicit, so that it runs under
    `jax.transfer_guard("disallow")`. `exact` computes those images for which the function's
    `"settled"` is false.
    """

    def __init__(self, function: Callable, *weights: Replicated, exact: Callable | None = None):
        self._function = jax.jit(function)
        self._exact = Batched(exact, *weights) if exact else None
        self._weights = weights
        self._programs: dict[Any, Any] = {}

    def __call__(
        self,
        images: np.ndarray,
        *,
        batch_size: int,
        allow_small_batch: bool = False,
        progress: str = "",
    ) -> Any:
        """The function's results for all of `images`, as NumPy arrays (N, ...)."""
        check_least(1, batch_size=batch_size)
        if not len(images):
            raise ValueError("images is empty: there is nothing to compute")
        if allow_small_batch:
            batch_size = fitting_batch_size(len(images), batch_size)
        starts = range(0, len(images), batch_size)
        batches = ((None, images[start : start + batch_size], False) for start in starts)
        parts: list[Any] = []
        with progress_bar(progress, len(images)) as bar:
            for _, part in self.over(batches, batch_size=batch_size, ahead=PREFETCH - 1):
                parts.append(part)
                bar.update(min(batch_size, len(images) - bar.n))
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)

    def over(self, parts: Parts, *, batch_size: int, ahead: int = PREFETCH) -> Iterator[tuple]:
        """(what came with the images, the results) of each part; `ahead` batches begin before."""
        pending: deque[tuple[Any, Callable[[], Any]]] = deque()
        for item, images, few in parts:
            if not len(images):
                pending.append((item, lambda: None))
            elif few:
                run = functools.partial(self, images, batch_size=batch_size, allow_small_batch=True)
                pending.append((item, run))
            else:
                pending.append((item, self.start(images, batch_size=batch_size)))
            if len(pending) > ahead:
                item, fetch = pending.popleft()
                yield item, fetch()
        for item, fetch in pending:
            yield item, fetch()

    def start(self, images: np.ndarray, *, batch_size: int) -> Callable[[], Any]:
        """Begin one batch; what is returned waits for its results and gives them."""
        devices = tuple(jax.local_devices())
        size = -(-batch_size // len(devices)) * len(devices)
        count = len(images)
        images = np.asarray(images)
        if count < size:
            images = np.concatenate([images, images[-1:].repeat(size - count, axis=0)])
        weights = [tree.on(devices) for tree in self._weights]
        placed = jax.device_put(images, _sharding(devices, PartitionSpec("batch")))
        key = (devices, images.shape, images.dtype, without_jit())
        if key not in self._programs:
            self._programs[key] = compiled(self._function, *weights, placed)
        results = self._programs[key](*weights, placed)

        def fetch():
            fetched = jax.tree.map(lambda x: x[:count], jax.device_get(results))
            if self._exact is None:
                return fetched
            open_ = np.flatnonzero(~fetched.pop("settled"))
            if len(open_):
                exact = self._exact(images[open_], batch_size=batch_size)
                for name in fetched:
                    fetched[name] = np.array(fetched[name])
                    fetched[name][open_] = exact[name]
            return fetched

        return fetch


def fitting_batch_size(count: int, batch_size: int) -> int:
    """The batch size for a set of `count` images: one of three, so that few shapes are compiled."""
    if count >= batch_size:
        return batch_size
    return 1 if count == 1 else min(SMALL_BATCH, batch_size)


def _sharding(devices: tuple[jax.Device, ...], spec: PartitionSpec) -> Any:
    if len(devices) == 1:
        return devices[0]
    return NamedSharding(jax.sharding.Mesh(np.array(devices), ("batch",)), spec)
