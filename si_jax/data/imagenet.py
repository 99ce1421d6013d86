"""ImageNet's flat validation folder, brought into class folders by links.

The official archive holds 50000 images in one folder, and their labels lie elsewhere in several
forms; `LABEL_FILES` says which are understood.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from si_jax.data import files
from si_jax.data.decoding import EXTENSIONS
from si_jax.data.directories import make_hidden

LABEL_FILES = {
    "val.txt": "an image and a label (from 0, in the order of the wnids) or a wnid a line",
    "synset_labels.txt": "a wnid a line, in the order of the images' names",
    "LOC_val_solution.csv": "an image, a comma and its wnid a line, under a heading",
    "ILSVRC2012_validation_ground_truth.txt": "the devkit's own numbers, in the order of the"
    " images' names; meta.mat of the devkit lies beside it",
}
"""File -> what its lines are; told apart by their form, not by the file's name."""

_WNID = re.compile(r"n\d{8}")
_READ_META = """
import json, sys
from scipy.io import loadmat
rows = loadmat(sys.argv[1], squeeze_me=True)["synsets"]
print(json.dumps({int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}))
"""


def order_by_class(
    images: str | os.PathLike, labels: str | os.PathLike, target: str | os.PathLike
) -> tuple[int, int]:
    """Make a folder with a folder a class that holds links to the images; nothing is copied.

    Args:
        images: the flat folder.
        labels: the file of labels, in one of the forms of `LABEL_FILES`.
        target: the folder to make, such as `imagenet/val` below the data folder.

    Returns:
        Number of images and of classes.

    Raises:
        ValueError: if the labels cannot be read, or are not those of the images.
        OSError: if `target` is there already, or links cannot be made.
    """
    images, labels, target = (Path(path).expanduser() for path in (images, labels, target))
    if not images.is_dir():
        raise ValueError(f"{images} is not a folder; give the one that holds the images.")
    names = sorted(p.name for p in images.iterdir() if p.suffix.lower() in EXTENSIONS)
    if not names:
        raise ValueError(f"{images} holds no images.")
    if target.exists():
        raise FileExistsError(f"{target} is there already: move it away, or use it as it is.")
    classes = read_labels(labels, names)
    temporary = make_hidden(target)
    try:
        for name, folder in zip(names, classes, strict=True):
            (temporary / folder).mkdir(exist_ok=True)
            (temporary / folder / name).symlink_to((images / name).resolve())
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return len(names), len(set(classes))


def read_labels(path: Path, names: Sequence[str]) -> list[str]:
    """Read the class of each image: a wnid, or a number of four digits.

    Args:
        path: a file in one of the forms of `LABEL_FILES`.
        names: the images' file names, sorted.

    Returns:
        A folder's name for each image.

    Raises:
        ValueError: if the file is in no such form, or an image has no label in it.
    """
    try:
        lines = files.read_bytes(path).decode().split("\n")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read as a file of labels ({error}).") from error
    rows = [re.split(r"[,\s]+", line.strip())[:2] for line in lines if line.strip()]
    if rows and rows[0][0] == "ImageId":
        rows = rows[1:]
    if rows and all(len(row) == 1 for row in rows):
        return _in_order(path, [row[0] for row in rows], names)
    if not all(len(row) == 2 for row in rows):
        raise ValueError(f"{path} is in no form of a file of labels that is known.")
    by_name = {Path(name).stem: _folder(path, label) for name, label in rows}
    if lost := [name for name in names if Path(name).stem not in by_name]:
        raise ValueError(
            f"{path} has no label for {len(lost)} of the {len(names)} images (as {lost[0]}); it"
            " belongs to others."
        )
    return [by_name[Path(name).stem] for name in names]


def _in_order(path: Path, labels: list[str], names: Sequence[str]) -> list[str]:
    if len(labels) != len(names):
        raise ValueError(f"{path} has {len(labels)} labels where there are {len(names)} images.")
    if all(_WNID.fullmatch(label) for label in labels):
        return labels
    if not all(label.isdecimal() for label in labels):
        raise ValueError(f"{path} is in no form of a file of labels that is known.")
    known = _devkit_wnids(path)
    try:
        return [known[int(label)] for label in labels]
    except KeyError as error:
        raise ValueError(f"{path} has the label {error}, which meta.mat has not.") from None


def _folder(path: Path, label: str) -> str:
    if _WNID.fullmatch(label):
        return label
    if label.isdecimal() and int(label) < 10_000:
        return f"{int(label):04d}"
    raise ValueError(f"{path} has the label {label!r}, neither a wnid nor a number.")


def _devkit_wnids(path: Path) -> dict[int, str]:
    """Give the devkit's numbers of classes; its file is read by scipy in a process of its own."""
    places = [folder / "meta.mat" for folder in (path.parent, path.parent.parent / "data")]
    meta = next((place for place in places if place.is_file()), None)
    if meta is None:
        raise ValueError(
            f"{path} has the devkit's own numbers of classes, and {places[0]}, which says what they"
            " mean, isn't there; put it there."
        )
    done = subprocess.run(
        [sys.executable, "-c", _READ_META, str(meta)], capture_output=True, text=True, timeout=120
    )
    try:
        wnids = {int(key): wnid for key, wnid in json.loads(done.stdout).items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{meta} can't be read; take it anew from the devkit.") from error
    if not all(_WNID.fullmatch(wnid) for wnid in wnids.values()):
        raise ValueError(f"{meta} can't be read; take it anew from the devkit.")
    return wnids
