"""Lists of image files."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from si_jax.data import files
from si_jax.data.folders import from_files
from si_jax.data.image_set import NO_LABEL, ImageSet, MissingSet


def from_list(
    path: str | os.PathLike,
    *,
    name: str | None = None,
    roots: Sequence[str | os.PathLike] = (),
    num_classes: int | None = None,
) -> ImageSet:
    """Read the images that a text file lists, one a line: a path, and a label behind a blank.

    Args:
        path: the file; its images are taken in its order.
        name: what to call the set; the file's name without its ending by default.
        roots: folders that the paths may be relative to; that of the first image decides. The
            file's own folder by default.
        num_classes: number of classes that labels must lie below, if they count.

    Returns:
        The set; a label that is absent or negative is -1.

    Raises:
        MissingSet: if there is no such file, it lists nothing, or an image isn't there.
        ValueError: if it's no such list, or a label is out of range.
    """
    path = Path(path).expanduser()
    try:
        lines = files.read_bytes(path).decode().split("\n")
    except FileNotFoundError as error:
        raise MissingSet(f"{path} is not a file; give the path of a list of images.") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read as a list of images ({error}).") from error
    names, labels = [], []
    for line in filter(None, map(str.strip, lines)):
        file, _, label = line.rpartition(" ")
        known = bool(file) and re.fullmatch(r"-?\d{1,9}", label) is not None
        names.append(file.strip() if known else line)
        labels.append(max(int(label), NO_LABEL) if known else NO_LABEL)
    if not names:
        raise MissingSet(f"{path} lists no images.")
    if num_classes is not None and not 0 <= min(labels) <= max(labels) < num_classes:
        raise ValueError(
            f"{path} has labels from {min(labels)} to {max(labels)} where the classifier has"
            f" {num_classes} classes; give another list."
        )
    folders = [Path(root).expanduser() for root in roots] or [path.parent]
    root = next((folder for folder in folders if (folder / names[0]).exists()), folders[0])
    if lost := [file for file in names if not (root / file).exists()]:
        raise MissingSet(
            f"{path} lists {len(names)} images, {len(lost)} of which aren't below {root} (as"
            f" {lost[0]}); put them there."
        )
    return from_files(root, names, np.array(labels, np.int64), name=name or path.stem)
