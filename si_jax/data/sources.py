"""Every way to get an `ImageSet`, in one place."""

import glob
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from si_jax.data import files
from si_jax.data.arrays import from_arrays, from_npz, from_svhn_mat
from si_jax.data.cifar import LABELS, from_corruptions
from si_jax.data.decoding import EXTENSIONS
from si_jax.data.folders import from_files, from_folder
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
    classes: Sequence[str] = (),
) -> ImageSet:
    """Open a folder, a `.npz` file, a list (`.txt`), one of SVHN's `.mat` files, or images by name.

    Images are named by the path of one, or by a glob such as `photos/**/*.jpg`.

    A folder with `labels.npy` holds CIFAR's corrupted copies, see `cifar.from_corruptions`. Where
    `<folder>.wnid_to_index.json` lies beside a folder, it gives the labels.
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
    if glob.has_magic(str(path)) and not path.exists():
        return _files(path, matching(str(path)), name)
    if not path.is_dir() and (path.suffix.lower() in EXTENSIONS or path.exists()):
        return _files(path, [str(path)], name)
    table = path.resolve().with_name(path.resolve().name + ".wnid_to_index.json")
    return from_folder(
        path,
        name=name,
        num_classes=num_classes,
        classes=classes,
        wnid_to_index=table if table.is_file() else None,
    )


def holds_several(path: str | os.PathLike) -> bool:
    """Whether a path is no image's, but a folder's, a glob, or a file's that holds a set."""
    text = os.path.expanduser(os.fspath(path))
    suffix = os.path.splitext(text)[1].lower()
    if suffix in (".npz", ".mat", ".txt") or (glob.has_magic(text) and not os.path.exists(text)):
        return True
    return suffix not in EXTENSIONS and os.path.isdir(text)


def matching(pattern: str) -> Iterator[str]:
    """The files that a glob matches, in the order of their names; a MissingSet if there is none."""
    matched = iter(sorted(glob.iglob(pattern, recursive=True)))
    files = itertools.filterfalse(os.path.isdir, matched)
    if (first := next(files, None)) is None:
        raise MissingSet(f"no file matches {pattern}")
    yield first
    yield from files


def _files(path: Path, files: Iterable[str], name: str | None) -> ImageSet:
    names = list(files)
    return from_files(Path(), names, np.full(len(names), NO_LABEL), name=name or path.name)


def from_list(
    path: str | os.PathLike,
    *,
    name: str | None = None,
    roots: Sequence[str | os.PathLike] = (),
    num_classes: int | None = None,
) -> ImageSet:
    """Read the images that a text file lists, one a line: a path, and a label behind a blank.

    A label is a number or, on all lines, a wnid such as n01440764, whose number is its place among
    all of the list's, sorted.
    """
    path = Path(path).expanduser()
    try:
        lines = files.read_bytes(path).decode("utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise MissingSet(f"{path} is not a file: give the path of a list of images") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a list of images ({error})") from error
    names, texts = [], []
    for line in filter(None, map(str.strip, lines)):
        file, _, label = line.rpartition(" ")
        known = bool(file) and re.fullmatch(r"-?\d{1,9}|n\d{8}", label) is not None
        names.append(file.strip() if known else line)
        texts.append(label if known else str(NO_LABEL))
    if not names:
        raise MissingSet(f"{path} lists no images")
    wnids = sorted({text for text in texts if text.startswith("n")})
    if wnids and not (all(text in wnids for text in texts) and num_classes in (None, len(wnids))):
        raise ValueError(
            f"{path} has {len(wnids)} different wnids as labels, where every line must have one and"
            f" the classifier has {num_classes} classes: give another list"
        )
    places = {wnid: place for place, wnid in enumerate(wnids)}
    labels = [places.get(text, NO_LABEL) if wnids else max(int(text), NO_LABEL) for text in texts]
    if num_classes is not None and not 0 <= min(labels) <= max(labels) < num_classes:
        raise ValueError(
            f"{path} has labels from {min(labels)} to {max(labels)} where the classifier has"
            f" {num_classes} classes: give another list"
        )
    folders = [Path(root).expanduser() for root in roots] or [path.parent]
    root = next((folder for folder in folders if (folder / names[0]).exists()), folders[0])
    if lost := [file for file in names if not (root / file).exists()]:
        raise MissingSet(
            f"{path} lists {len(names)} images, {len(lost)} of which are not below {root} (as"
            f" {lost[0]}): save them there"
        )
    return from_files(root, names, np.array(labels, np.int64), name=name or path.stem)
