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
