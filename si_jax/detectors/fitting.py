"""What the detectors that learn from training images share: samples, and checks of labels."""

from collections.abc import Iterable
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Kind = TypeVar("Kind", Array, np.ndarray)


def reservoir(
    parts: Iterable[Float[np.ndarray, "rows columns"]], capacity: int, seed: int = 0
) -> Float[np.ndarray, "kept columns"]:
    """All rows of the parts, or `capacity` of them drawn evenly; not by how they are parted."""
    rng = np.random.default_rng(seed)
    kept, seen = [], 0
    for part in parts:
        for row in part:
            if seen < capacity:
                kept.append(np.array(row))
            elif (slot := int(rng.random() * (seen + 1))) < capacity:
                kept[slot] = np.array(row)
            seen += 1
    return np.stack(kept)


def unit(h: Float[Kind, "n features"]) -> Float[Kind, "n features"]:
    """Features divided by their Euclidean norm, NumPy or JAX arrays."""
    xp = np if isinstance(h, np.ndarray) else jnp
    return h / (xp.sqrt((h * h).sum(axis=-1, keepdims=True)) + 1e-10)


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


def check_every_class(counts: Int[np.ndarray, "classes"] | Float[np.ndarray, "classes"]) -> None:
    """Raise a ValueError if a class has no fitting image."""
    if not counts.all():
        missing = np.flatnonzero(counts == 0)
        raise ValueError(
            f"labels: {len(missing)} of the {len(counts)} classes have no fitting image, class"
            f" {missing[0]} for one; fit on images of every class"
        )
