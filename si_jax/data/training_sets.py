"""Training images and held-out images of a data set, as arrays in one size."""

import dataclasses
import os
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from si_jax.data.benchmarks import BENCHMARKS, SearchPaths
from si_jax.data.benchmarks import find as find_set
from si_jax.data.folders import class_folders, from_folder
from si_jax.data.image_set import ImageSet, MissingSet, take
from si_jax.data.own import HELD_OUT
from si_jax.data.pipeline import batches, shown
from si_jax.data.preprocessing import Transform

HELD_OUT_SHARE = 0.1  # of a folder that has no split of its own


@dataclasses.dataclass(frozen=True)
class TrainingSets:
    """Images to train on and to evaluate on; `split` says, for the card, how they came about."""

    name: str
    train: ImageSet
    held_out: ImageSet
    num_classes: int
    split: str
    classes: tuple[str, ...] = ()


def find(dataset: str, data_dir: str | os.PathLike | None = None, *, seed: int = 0) -> TrainingSets:
    """A benchmark's training and held-out images, or a folder's; a tenth of one without `train`."""
    if table := BENCHMARKS.get(dataset):
        paths = SearchPaths(data_dir)
        try:
            train = find_set(table.train, paths, table.num_classes).images
        except MissingSet as error:
            raise MissingSet(f"{dataset} has no training split here: {error}") from None
        test = find_set(table.test, paths, table.num_classes).images
        split = f"{len(train)} training and {len(test)} test images"
        return TrainingSets(dataset, train, test, table.num_classes, split)
    root, known = Path(dataset).expanduser(), ", ".join(BENCHMARKS)
    if not root.is_dir():
        raise MissingSet(f"dataset (={dataset!r}) is neither a folder nor one of {known}")
    name, held_out_root = root.resolve().name, None
    if (root / "train").is_dir():
        held_out_root = next((root / n for n in HELD_OUT if (root / n).is_dir()), None)
        if held_out_root is None:
            raise MissingSet(f"{root} has a folder train, but none called val or test beside it")
        root = root / "train"
    classes = tuple(class_folders(root))
    if len(classes) < 2:
        found = f"{root} has {len(classes)} class folders"
        raise ValueError(f"{found}, but training needs two at least, one a class")
    images = from_folder(root, classes=classes)
    if held_out_root is not None:
        if classes != tuple(class_folders(held_out_root)):
            raise ValueError(f"{held_out_root} and {root} have different class folders")
        held_out = from_folder(held_out_root, classes=classes)
        split = f"{len(images)} images in train and {len(held_out)} in {held_out_root.name}"
        return TrainingSets(name, images, held_out, len(classes), split, classes)
    order = np.random.default_rng(seed).permutation(len(images))
    count = max(1, round(HELD_OUT_SHARE * len(images)))
    train, held_out = take(images, np.sort(order[count:])), take(images, np.sort(order[:count]))
    split = f"{len(train)} training and {len(held_out)} held-out images, drawn by seed {seed}"
    return TrainingSets(name, train, held_out, len(classes), split, classes)


def load(
    image_set: ImageSet, transform: Transform, shape: tuple[int, int, int], *, max_gib: float = 8.0
) -> tuple[UInt8[np.ndarray, "n height width 3"], Int[np.ndarray, " n"]]:
    """Decode all images of a set into memory: uint8 of shape (n, *shape), and labels."""
    size = len(image_set) * int(np.prod(shape)) / 2**30
    if size > max_gib:
        raise ValueError(
            f"{image_set.name}'s {len(image_set)} images would take {size:.1f} GiB, more than"
            f" max_gib (={max_gib:g}): lower the input size, or raise the limit"
        )
    images = np.empty((len(image_set), *shape), np.uint8)
    labels = np.empty(len(image_set), np.int64)
    made = batches(image_set, transform, 256, image_shape=shape)
    for batch in shown(made, image_set, "reading"):
        places = batch.indices[batch.mask]
        images[places], labels[places] = batch.readable
    if (labels < 0).any():
        name = image_set.ident(int(np.argmin(labels)))
        raise ValueError(
            f"{name} of {image_set.name} has no label: training images lie in one folder per class"
        )
    return images, labels
