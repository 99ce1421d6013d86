"""CIFAR's own files: its binary version, and the corrupted copies of its test images.

Neither holds anything but numbers, so that nothing in them is run.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from si_jax.data import files
from si_jax.data.arrays import from_arrays
from si_jax.data.image_set import ImageSet, MissingSet

SIDE = 32
PIXELS = 3 * SIDE**2
LABEL_BYTES = {10: 1, 100: 2}
"""Number of classes -> bytes before an image's pixels; the last of them is its class."""


def from_cifar_binary(
    paths: Sequence[str | os.PathLike], num_classes: int, *, name: str | None = None
) -> ImageSet:
    """Read files of CIFAR's binary version, such as `data_batch_1.bin` or `train.bin`.

    Args:
        paths: the files, whose images are taken one file after the other.
        num_classes: 10 for CIFAR-10; 100 for CIFAR-100, whose fine labels are taken.
        name: what to call the set; the first file's name without its ending by default.

    Returns:
        The set, in memory.

    Raises:
        MissingSet: if a file isn't there.
        ValueError: if a file isn't of that version.
    """
    parts = []
    for path in map(Path, paths):
        if not path.is_file():
            raise MissingSet(f"{path} is not a file; give the path of an existing file.")
        rows = np.frombuffer(files.read_bytes(path), np.uint8)
        width = LABEL_BYTES[num_classes] + PIXELS
        if not rows.size or rows.size % width:
            raise ValueError(
                f"{path} isn't a file of CIFAR-{num_classes}'s binary version, whose images take"
                f" {width} bytes each; download it again from"
                " https://www.cs.toronto.edu/~kriz/cifar.html."
            )
        parts.append(rows.reshape(-1, width))
    rows = np.concatenate(parts)
    labels = rows[:, LABEL_BYTES[num_classes] - 1].astype(np.int64)
    if labels.max() >= num_classes:
        raise ValueError(
            f"{paths[0]} has the label {labels.max()}, which isn't among the {num_classes} classes"
            f" of CIFAR-{num_classes}; download it again."
        )
    images = rows[:, -PIXELS:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return from_arrays(name or Path(paths[0]).stem, images, labels)
