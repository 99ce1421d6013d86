"""CIFAR's own files: its binary version, and the corrupted copies of its test images.

Neither holds anything but numbers, so that nothing in them is run.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from si_jax.data import files, fingerprints
from si_jax.data.arrays import from_arrays
from si_jax.data.image_set import ImageSet, MissingSet, fingerprint_of, subset

SIDE = 32
PIXELS = 3 * SIDE**2
CLASSES = {1 + PIXELS: 10, 2 + PIXELS: 100}
"""Bytes of an image, the last of them before the pixels being its class -> number of classes."""

LABELS = "labels.npy"
"""The file of a folder of corrupted copies that holds the labels of each other file's images."""
ASIDE = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""Corruptions that were published for choosing parameters, not for results."""
DRAWN = 10_000
"""Corrupted images that are taken: as many as there are clean ones."""


def from_cifar_binary(paths: Sequence[str | os.PathLike], *, name: str | None = None) -> ImageSet:
    """Read files of CIFAR's binary version, such as `data_batch_1.bin` or `train.bin`.

    The images are taken one file after the other; of CIFAR-100 the fine labels.
    """
    parts = []
    for path in map(Path, paths):
        if not path.is_file():
            raise MissingSet(f"{path} is not a file: give the path of an existing file")
        data = np.frombuffer(files.read_bytes(path), np.uint8)
        width = next((w for w in CLASSES if data.size and data.size % w == 0), 0)
        rows = data.reshape(-1, width or 1)
        if not width or rows[:, -PIXELS - 1].max() >= CLASSES[width]:
            raise ValueError(
                f"{path} is not a file of CIFAR's binary version, whose images take"
                f" {' or '.join(map(str, CLASSES))} bytes each: download it again from"
                " https://www.cs.toronto.edu/~kriz/cifar.html"
            )
        images = rows[:, -PIXELS:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        parts.append((images, rows[:, -PIXELS - 1].astype(np.int64)))
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return from_arrays(name or Path(paths[0]).stem, images, labels)


def from_corruptions(
    folder: str | os.PathLike, *, name: str | None = None, drawn: int | None = DRAWN
) -> ImageSet:
    """Read CIFAR-10-C or CIFAR-100-C as published: a `.npy` file a corruption, and `labels.npy`.

    Each file holds the test images at five severities, uint8 of shape (50000, 32, 32, 3); all but
    those of `ASIDE` are mapped into memory, so that only images that are taken are read. Of all
    images, `drawn` are taken at random, which a note says.
    """
    folder = Path(folder).expanduser()
    paths = [p for p in sorted(folder.glob("*.npy")) if p.stem not in (*ASIDE, "labels")]
    if not paths:
        raise MissingSet(f"{folder} holds no corrupted images: unpack CIFAR-10-C.tar as that")
    labels = _mapped(folder / LABELS)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"{folder / LABELS} must hold integers of shape (n,)")
    parts = [_mapped(path) for path in paths]
    shape = (len(labels), SIDE, SIDE, 3)
    for path, part in zip(paths, parts, strict=True):
        if part.shape != shape or part.dtype != np.uint8:
            raise ValueError(
                f"{path} must hold uint8 of shape {shape}, for the {len(labels)} labels of"
                f" {LABELS}, not {part.dtype} of shape {part.shape}"
            )

    def load(index: int) -> tuple[np.ndarray, int]:
        file, row = divmod(index, len(labels))
        return np.array(parts[file][row]), int(labels[row])

    def digest(index: int) -> bytes:
        image, label = load(index)
        return fingerprints.digest_of(image.data, label)

    called = name or folder.resolve().name
    whole = ImageSet(
        name=called,
        size=len(paths) * len(labels),
        structure=fingerprint_of("corruptions", [path.stem for path in paths], len(labels)),
        load_fn=load,
        ident_fn=lambda index: f"{paths[index // len(labels)].stem}[{index % len(labels)}]",
        digest_fn=lambda indices: fingerprints.digests(digest, indices, called),
    )
    taken = subset(whole, drawn, 0)
    if taken is whole:
        return whole
    note = f"{len(taken)} of its {len(whole)} images are taken, drawn by seed 0"
    return dataclasses.replace(taken, notes=(note,))


def _mapped(path: Path) -> np.ndarray:
    """Map a `.npy` file into memory."""
    if not path.is_file():
        raise MissingSet(f"{path} is not a file: take it from the archive")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except files.READ_ERRORS as error:
        raise ValueError(f"{path} cannot be read ({error}): unpack it again") from error
