"""Image folders, flat or by class, at any depth."""

import os
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from si_jax.data import files
from si_jax.data.decoding import decode, holds_image
from si_jax.data.files import AnyPath
from si_jax.data.image_set import NO_LABEL, ImageSet, MissingSet, UnreadableImage, make_set
from si_jax.data.preprocessing import RGB


def from_folder(
    path: AnyPath, *, name: str = "", num_classes: int | None = None, classes: Sequence[str] = ()
) -> ImageSet:
    """Read the images of a folder, in the order of their relative paths, as the page says.

    Top-level folders are the classes, in the order of `classes`, as `<folder>.wnid_to_index.json`
    beside the folder maps them, or else `num_classes` in their own; what lies flat has none (-1).
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise MissingSet(f"{root} is not a folder: give the path of a folder of images")
    names, left_out = _scan(root)
    if not names:
        others = f" but {len(left_out)} other files" if left_out else ""
        raise MissingSet(
            f"{root} holds no images{others}: put files that end in .jpg, .png and so on there"
        )
    labels, other = _labels(root, names, num_classes, classes)
    return from_files(root, names, labels, name, notes=left_out_note(left_out), other_labels=other)


def from_files(
    root: Path, names: list[str], labels: np.ndarray, name: str, **more: Any
) -> ImageSet:
    """Read the given files below a folder, in that order; `more` are fields of the set."""

    def load(index: int) -> tuple[np.ndarray, int]:
        return decode_file(root / names[index]), int(labels[index])

    def read(index: int) -> tuple[bytes, str, int]:
        return files.read_bytes(root / names[index]), names[index], int(labels[index])

    def origin(indices: np.ndarray) -> tuple[list[Path], object]:
        facts = [(names[index], int(labels[index])) for index in indices]
        return [root / name for name, _ in facts], facts

    name, facts = name or root.resolve().name, ("folder, upright", len(names))
    ident = names.__getitem__
    return make_set(name, len(names), load, facts, ident=ident, read=read, origin=origin, **more)


def decode_file(file: Path) -> RGB:
    """Read and decode an image's file, turned upright as EXIF notes."""
    try:
        data = files.read_bytes(file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UnreadableImage(
            f"{file} cannot be read ({reason}): give an image's path, or skip unreadable images"
        ) from error
    return decode(data, str(file), upright=True)


def walk(root: Path) -> Iterator[tuple[str, bool]]:
    """All files below a folder, one at a time: (path, relative and with '/', whether an image).

    Real folders come first, then those that links lead to, whatever their names are.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        links: list[Path] = []
        for top in waiting:
            for folder, subfolders, names in os.walk(top):
                subfolders[:] = sorted(sub for sub in subfolders if not sub.startswith("."))
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in seen:
                    subfolders.clear()
                    continue
                seen.add((status.st_dev, status.st_ino))
                # `os.walk` lists links to folders, and does not follow them
                here, inner = Path(folder).resolve(), [Path(folder, sub) for sub in subfolders]
                linked = [path for path in inner if path.is_symlink()]
                links += [path for path in linked if not here.is_relative_to(path.resolve())]
                for full in [Path(folder, name) for name in sorted(names)]:
                    if not full.name.startswith("."):
                        yield full.relative_to(root).as_posix(), holds_image(full)
        waiting = sorted(links)


def _scan(root: Path) -> tuple[list[str], list[str]]:
    """The sorted names, as `walk` gives them, of all images below a folder, and of other files."""
    found = sorted(walk(root))
    return [n for n, is_image in found if is_image], [n for n, is_image in found if not is_image]


def left_out_note(left_out: Sequence[str]) -> tuple[str, ...]:
    """Say which files of a folder are no images; nothing where all are."""
    if not left_out:
        return ()
    shown = ", ".join(left_out[:3]) + (", ..." if len(left_out) > 3 else "")
    verb = "file is" if len(left_out) == 1 else "files are"
    return (f"{len(left_out)} {verb} left out, being no image in a format that is read ({shown})",)


def _labels(root: Path, names: list[str], num_classes: int | None, classes: Sequence[str]) -> tuple:
    """Give the images' labels, and what each would be if class folders were sorted as text."""
    tops = [_class_of(name) for name in names]
    folders = sorted({*tops} - {""})
    beside = root.resolve().with_name(f"{root.resolve().name}.wnid_to_index.json")
    other: tuple[int, ...] = ()
    if classes or beside.is_file():
        where = "the classifier's classes" if classes else f"the names of {beside}"
        try:
            given = {name: k for k, name in enumerate(classes)} or files.read_json(beside)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{beside} cannot be read as JSON ({error}): it must map folder names to labels"
            ) from error
        if not isinstance(given, dict) or not all(type(label) is int for label in given.values()):
            raise ValueError(f"{beside} must map folder names to integer labels, as {{'n01': 0}}")
        table = {unicodedata.normalize("NFC", name): label for name, label in given.items()}
        if unknown := [top for top in folders if top not in table]:
            raise ValueError(
                f"{root} has the class folder {unknown[0]!r} ({len(unknown)} such), which {where}"
                " lack; add it there or take it out of the folder"
            )
    else:
        ordered = in_order(folders)
        if ordered != folders:
            other = tuple(folders.index(folder) for folder in ordered)
        table = {top: index for index, top in enumerate(ordered)}
        if num_classes is not None and len(folders) != num_classes:
            advice = f"complete the folder or put {beside.name} (folder name to label) beside it"
            if not folders:
                advice = "sort its images, which lie flat, into a folder a class"
            raise ValueError(
                f"{root} has {len(folders)} class folders where the classifier has {num_classes}"
                f" classes, so labels do not follow from their order: {advice}"
            )
    labels = [table[top] if top else NO_LABEL for top in tops]
    return np.array(labels, np.int64), other


def class_folders(root: Path) -> list[str]:
    """Names of the top-level folders of `root` that hold images, in the order of their labels."""
    return in_order({_class_of(name) for name in _scan(root)[0]} - {""})


def _class_of(name: str) -> str:
    """The top-level folder of an image, '' if it lies flat; in one form, however accents are."""
    return unicodedata.normalize("NFC", name.rpartition("/")[0].partition("/")[0])


def in_order(folders: Collection[str]) -> list[str]:
    """Sort the names of class folders: by number where all are numbers, else as text."""
    if all(folder.isdecimal() and folder.isascii() for folder in folders):
        return sorted(folders, key=lambda folder: (int(folder), folder))
    return sorted(folders)
