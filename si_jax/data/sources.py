"""Every way to get an `ImageSet`, in one place."""

import os
from pathlib import Path

from si_jax.data.arrays import from_arrays, from_npz, from_svhn_mat
from si_jax.data.cifar import LABELS, from_corruptions
from si_jax.data.folders import from_folder
from si_jax.data.image_set import (
    NO_LABEL,
    ImageSet,
    MissingSet,
    UnreadableImage,
    overlap,
    subset,
    take,
    unlabelled,
)
from si_jax.data.lists import from_list
from si_jax.data.roots import default_data_dir
from si_jax.data.tfds_sets import from_tfds, prepared_directory

__all__ = [
    "NO_LABEL",
    "ImageSet",
    "MissingSet",
    "UnreadableImage",
    "default_data_dir",
    "from_arrays",
    "from_folder",
    "from_list",
    "from_npz",
    "from_path",
    "from_svhn_mat",
    "from_tfds",
    "overlap",
    "prepared_directory",
    "subset",
    "take",
    "unlabelled",
]


def from_path(
    path: str | os.PathLike,
    *,
    name: str | None = None,
    num_classes: int | None = None,
    upright: bool = True,
) -> ImageSet:
    """Open a folder, a `.npz` file, a list (`.txt`) or one of SVHN's `.mat` files.

    A folder with `labels.npy` holds CIFAR's corrupted copies, see `cifar.from_corruptions`. Where
    `<folder>.wnid_to_index.json` lies beside a folder, it gives the labels.

    Args:
        path: the folder or file.
        name: what to call the set; the folder's or file's name by default.
        num_classes: number of class folders that a folder must have (see `from_folder`).
        upright: whether images of a folder are turned as EXIF notes (see `from_folder`).

    Returns:
        The set.

    Raises:
        MissingSet: if there is nothing at `path`, or no images in it.
        ValueError: if what is there can't be read as a set of images.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() == ".npz":
        return from_npz(path, name=name)
    if path.suffix.lower() == ".mat":
        return from_svhn_mat(path, name=name)
    if path.suffix.lower() == ".txt":
        return from_list(path, name=name, num_classes=num_classes)
    if (path / LABELS).is_file():
        return from_corruptions(path, name=name)
    table = path.resolve().with_name(path.resolve().name + ".wnid_to_index.json")
    return from_folder(
        path,
        name=name,
        num_classes=num_classes,
        upright=upright,
        wnid_to_index=table if table.is_file() else None,
    )
