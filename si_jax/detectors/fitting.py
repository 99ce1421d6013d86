"""What the detectors that learn from images share: streams, samples, moments, and checks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Shaped

from si_jax.model import Model

Kind = TypeVar("Kind", Array, np.ndarray)
Result = TypeVar("Result")
Stream = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]
Rows = Float[np.ndarray, "rows columns"]


class Batches:
    """The images that detectors learn from, in batches, as often as they ask.

    `stream` gives (images, labels) of each batch: images as for `Detector.score`, and class
    indices, -1 where unknown. With `keep`, the network's outputs are computed once, and kept for
    whoever asks next: (features + classes) * 4 bytes an image.
    """

    def __init__(
        self, stream: Stream, model: Model, *, keep: bool = False, scale: str | None = None
    ):
        self.model = model
        self._scale = scale
        self._stream = stream
        self._keep = keep
        self._kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None

    def keeping(self) -> "Batches":
        """The same images, whose outputs are kept."""
        whole = Batches(self._stream, self.model, keep=True, scale=self._scale)
        return self if self._keep else whole

    def each(self, function: Callable[..., Result]) -> Iterator[tuple[Result, np.ndarray]]:
        """(what `function(images, batch_size=...)` gives, finite, and labels) of each batch."""
        size = 0  # the largest until now, so that nothing is compiled for a last, shorter batch
        for images, labels in self._stream():
            if not len(images):
                continue
            size = max(size, len(images))
            images = self.model.prepare_images(images, self._scale)
            results = function(images, batch_size=size)
            if not all(np.isfinite(x).all() for x in jax.tree.leaves(results)):
                raise ValueError(
                    "the network gives NaN or infinite values for a fitting image: its weights or"
                    " the images are broken"
                )
            yield results, np.asarray(labels)
        if not size:
            raise ValueError("images is empty: there is nothing to fit on")

    def outputs(self) -> Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(batch, classes) logits, (batch, features) and labels of each batch, all finite."""
        if self._keep and self._kept is None:
            self._kept = list(self._outputs())
        return self._outputs() if self._kept is None else self._kept

    def mean_features(self) -> Float[np.ndarray, "features"]:
        """Mean of the features of all images, float64."""
        total, count = np.zeros(()), 0
        for _, h, _ in self.outputs():
            total, count = total + h.sum(axis=0, dtype=np.float64), count + len(h)
        return total / count

    def _outputs(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for out, labels in self.each(self.model.run):
            yield out["logits"], out["features"], labels


def reservoir(parts: Iterable[Rows], capacity: int, seed: int = 0) -> Float[np.ndarray, "n d"]:
    """All rows of the parts, or `capacity` of them drawn evenly; see `Sample`."""
    sample = Sample(capacity, seed)
    for part in parts:
        sample.add(part)
    return np.stack(sample.rows)


class Sample:
    """All rows of a stream, or `capacity` of them, equally likely (Vitter, 1985, algorithm R)."""

    def __init__(self, capacity: int, seed: int | Sequence[int] = 0):
        self.rows: list[np.ndarray] = []
        self._capacity = capacity
        self._seen = 0
        self._rng = np.random.default_rng(seed)

    def add(self, rows: Shaped[np.ndarray, "rows ..."]) -> None:
        """Take in more rows."""
        for row in rows:
            slot = self._seen
            if slot >= self._capacity:
                slot = int(self._rng.random() * (slot + 1))
            if slot < self._capacity:
                self.rows[slot : slot + 1] = [np.array(row)]
            self._seen += 1


class Moments:
    """Running sums of rows, and of their products with each other, in float64, less an origin.

    That is a point near the rows, which keeps them from cancelling; by default the first row.
    """

    def __init__(self, origin: Float[np.ndarray, "columns"] | None = None):
        self._origin = origin
        self.count = 0

    def add(self, rows: Rows) -> None:
        """Take in more rows."""
        if not len(rows):
            return
        if not self.count:
            self.origin = rows[0].astype(np.float64) if self._origin is None else self._origin
            self.total = np.zeros(rows.shape[-1])
            self.products = np.zeros((rows.shape[-1], rows.shape[-1]))
        centred = rows - self.origin
        self.count += len(rows)
        self.total += centred.sum(axis=0)
        self.products += centred.T @ centred

    def mean(self) -> Float[np.ndarray, "columns"]:
        """Mean of the rows so far."""
        return self.origin + self.total / self.count

    def covariance(self) -> Float[np.ndarray, "columns columns"]:
        """Their covariance, divided by their number; exactly 0 for a column that is constant."""
        mean = self.total / self.count
        return self.products / self.count - np.outer(mean, mean)


def unit(h: Float[Kind, "n features"]) -> Float[Kind, "n features"]:
    """Features divided by their Euclidean norm, NumPy or JAX arrays."""
    xp = np if isinstance(h, np.ndarray) else jnp
    return h / (xp.sqrt((h * h).sum(axis=-1, keepdims=True)) + 1e-10)


def float32(**arrays: Any) -> dict[str, Float32[np.ndarray, "..."]]:
    """Arrays that were learnt, in the dtype in which they are kept."""
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}


def check_labels(labels: Int[np.ndarray, "batch"], classes: int) -> None:
    """Raise a ValueError if a label is missing or out of range."""
    if (labels < 0).any():
        raise ValueError(
            "labels are needed: give the class index of every fitting image to fit(images, labels)"
        )
    if (labels >= classes).any():
        raise ValueError(
            f"labels (up to {labels.max()}) must be below the model's number of classes, {classes}"
        )


def check_classes(counts: Int[np.ndarray, "classes"] | Float[np.ndarray, "classes"]) -> None:
    """Raise a ValueError if a class has no fitting image."""
    if not counts.all():
        missing = np.flatnonzero(counts == 0)
        raise ValueError(
            f"labels: {len(missing)} of the {len(counts)} classes have no fitting image, class"
            f" {missing[0]} for one; fit on images of every class"
        )
