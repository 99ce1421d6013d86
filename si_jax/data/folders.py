"""Image folders: flat or by class, at any depth."""

import json
import os
from pathlib import Path

import numpy as np

from si_jax.data.decoding import decode
from si_jax.data.image_set import (
    NO_LABEL,
    ImageSet,
    MissingSet,
    UnreadableImage,
    fingerprint_of,
)

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")  # compared in lower case


def from_folder(
    path: str | os.PathLike,
    *,
    name: str | None = None,
    wnid_to_index: str | os.PathLike | None = None,
    num_classes: int | None = None,
    upright: bool = False,
) -> ImageSet:
    """Read the images of a folder, in the order of their relative paths.

    Images may lie flat or in folders, at any depth; JPEG, PNG, WebP and BMP by their extension, in
    either case. Hidden files and folders (names that begin with a dot) are left out. The label of
    an image is the position of its top-level folder among those that hold images, sorted by name;
    images that lie flat have none (-1).

    Args:
        path: the folder.
        name: what to call the set; the folder's name by default.
        wnid_to_index: a JSON file that maps the names of top-level folders to labels, used instead
            of their positions.
        num_classes: number of top-level folders that there must be for their positions to be the
            classifier's classes; not checked by default, nor with `wnid_to_index`.
        upright: whether images are turned as EXIF notes, which the benchmarks' protocols don't.

    Returns:
        The set. Its fingerprint hashes the files' relative names, sizes and labels.

    Raises:
        MissingSet: if the folder isn't there or holds no images.
        ValueError: if its class folders don't fit `wnid_to_index` or `num_classes`.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise MissingSet(f"{root} is not a folder; give the path of a folder of images.")
    files = _scan(root)
    if not files:
        raise MissingSet(
            f"{root} holds no images; put files that end in {', '.join(EXTENSIONS)} there."
        )
    names = [file for file, _ in files]
    labels = _labels(root, names, wnid_to_index, num_classes)

    def load(index: int) -> tuple[np.ndarray, int]:
        file = root / names[index]
        try:
            data = file.read_bytes()
        except OSError as error:
            raise UnreadableImage(
                f"{file} can't be read ({error.strerror}); restore the file or skip unreadable"
                " images."
            ) from error
        return decode(data, str(file), upright=upright), int(labels[index])

    return ImageSet(
        name=name or root.resolve().name,
        size=len(names),
        fingerprint=fingerprint_of("folder", files, labels.tobytes()),
        load_fn=load,
        ident_fn=names.__getitem__,
    )


def _scan(root: Path) -> list[tuple[str, int]]:
    """Give (relative path with '/', size in bytes) of every image below `root`, sorted."""
    found = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        subfolders[:] = [
            sub
            for sub in subfolders
            if not sub.startswith(".") and not _leads_back(os.path.join(folder, sub), real)
        ]
        for file in files:
            if not file.startswith(".") and file.lower().endswith(EXTENSIONS):
                full = Path(folder, file)
                size = full.stat().st_size if full.exists() else -1  # -1: a dangling link
                found.append((full.relative_to(root).as_posix(), size))
    return sorted(found)


def _leads_back(subfolder: str, real_parent: str) -> bool:
    """Say whether a link leads to one of the folders that it lies in, which would never end."""
    if not os.path.islink(subfolder):
        return False
    return Path(real_parent).is_relative_to(os.path.realpath(subfolder))


def _labels(
    root: Path,
    names: list[str],
    wnid_to_index: str | os.PathLike | None,
    num_classes: int | None,
) -> np.ndarray:
    tops = [name.split("/", 1)[0] if "/" in name else None for name in names]
    classes = sorted({top for top in tops if top is not None})
    if wnid_to_index is not None:
        table = _read_table(Path(wnid_to_index))
        unknown = [top for top in classes if top not in table]
        if unknown:
            raise ValueError(
                f"{root} has the class folder {unknown[0]!r} ({len(unknown)} such), which"
                f" {wnid_to_index} doesn't list; add it there or take it out of the folder."
            )
    else:
        table = {top: index for index, top in enumerate(classes)}
        if num_classes is not None and len(classes) != num_classes:
            raise ValueError(
                f"{root} has {len(classes)} class folders where the classifier has {num_classes}"
                " classes, so labels can't be told from their order; complete the folder or"
                f" put {root.name}.wnid_to_index.json (folder name to label) beside it."
            )
    return np.array([NO_LABEL if top is None else table[top] for top in tops], np.int64)


def _read_table(path: Path) -> dict[str, int]:
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} can't be read as JSON ({error}); give a file that maps folder names to labels."
        ) from error
    if not isinstance(table, dict) or not all(type(label) is int for label in table.values()):
        raise ValueError(f"{path} must map folder names to integer labels, as {{'n01440764': 0}}.")
    return table
