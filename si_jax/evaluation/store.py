"""Score files: one for each detector and image set, valid for exactly one computation.

A file carries a key, the hash of all that determines its scores (`si_jax.evaluation.keys`). Files
are written beside their final name and renamed, so what has that name is always whole, whoever
else writes at the time. What is known of a set that is not finished lies beside it in parts: small
files, each with the rows of some of its images.
"""

import glob
import io
import os
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from si_jax.data.files import BrokenArchive, read_arrays, write_atomically

META = ("key", "seen")
"""What a score file holds beside its arrays."""

PARTIAL = ".partial"
LONGEST = 150
"""Bytes of a set's name, escaped; file systems allow 255, prefixes and endings included."""

RESERVED = ("total",)
"""Names that results use for something else."""


def check_names(names: Iterable[str]) -> None:
    """Refuse names of image sets that cannot be told apart, be written or be shown.

    Raises:
        ValueError: if a name is empty, reserved, too long or holds characters that cannot be
            printed, or two names are alike but for upper and lower case.
    """
    seen: dict[str, str] = {}
    for name in names:
        if not name or name != name.strip() or not name.isprintable():
            raise ValueError(
                f"the set's name {name!a} must be printable characters without spaces at its"
                " ends: choose another name"
            )
        if name in RESERVED:
            raise ValueError(f"the set's name {name!r} is reserved: choose another name")
        if len(escaped(name)) > LONGEST:
            raise ValueError(
                f"the set's name {name[:30]!r}... is too long: choose one of at most {LONGEST}"
                " bytes (three for each that is no letter, digit, or one of . _ -)"
            )
        if (other := seen.setdefault(name.casefold(), name)) != name:
            raise ValueError(
                f"the sets' names {other!r} and {name!r} differ in case alone, which not all file"
                " systems tell apart: choose another name"
            )


def check_distinct(names: Iterable[str], what: str = "set") -> None:
    """Refuse a name that is given twice.

    Raises:
        ValueError: naming it.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"the {what} {name!r} is given twice: give each name once")
        seen.add(name)


def escaped(name: str) -> str:
    """A name as a file's, different for different names: `%` and hex for what is no plain letter.

    No escaped name ends in what marks a file of partial progress.
    """
    text = urllib.parse.quote(name, safe="")
    text = "%2E" + text[1:] if text.startswith(".") else text
    return text.replace(PARTIAL, "%2E" + PARTIAL[1:])


@dataclass(frozen=True)
class Progress:
    """What is known of one detector on one set.

    Attributes:
        arrays: name -> array with a row for each image that was scored; empty if there is none.
        left_out: indices of the images that could not be read, and have no row.
        done: whether that is the whole set.
    """

    arrays: dict[str, np.ndarray]
    left_out: np.ndarray
    done: bool

    @property
    def seen(self) -> int:
        """Number of images that were gone through."""
        return len(self.left_out) + len(self.arrays.get("index", ()))


NOTHING = Progress({}, np.zeros(0, np.int64), False)


def joined(parts: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The rows of several parts, in the order of `"index"`, each image once.

    Returns:
        Name -> array; empty if there is no row.
    """
    parts = [part for part in parts if part]
    if not parts:
        return {}
    arrays = dict(parts[0])
    if len(parts) > 1:
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in arrays}
    index = arrays["index"]
    if (np.diff(index) > 0).all():
        return arrays
    _, order = np.unique(index, return_index=True)
    return {name: array[order] for name, array in arrays.items()}


def gaps(index: np.ndarray, size: int) -> np.ndarray:
    """The indices below `size` that are not in `index`."""
    absent = np.ones(size, bool)
    absent[index] = False
    return np.flatnonzero(absent)


def read_keyed(path: Path, key: str) -> dict[str, np.ndarray] | None:
    """The arrays that `write_keyed` wrote under that key; None for anything else."""
    try:
        arrays = read_arrays(path)
    except (OSError, BrokenArchive):
        return None
    return arrays if str(arrays.pop("key", "")) == key else None


def write_keyed(path: Path, key: str, arrays: Mapping[str, Any]) -> None:
    """Write arrays, compressed, beside the key of what determines them.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    content = io.BytesIO()
    np.savez_compressed(content, key=np.array(key), **arrays)
    write_atomically(path, lambda file: file.write(content.getbuffer()))


class Store:
    """Score files below one directory.

    Args:
        directory: where they lie, as `<directory>/<detector>/<set>.npz`.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = Path(directory)

    def path(self, detector: str, image_set: str, *, part: int | None = None) -> Path:
        """Path of a score file, or of the part of one whose first image has the index `part`."""
        ending = ".npz" if part is None else f"{PARTIAL}.{part}.npz"
        return self.directory / escaped(detector) / (escaped(image_set) + ending)

    def load(self, detector: str, image_set: str, key: str) -> Progress:
        """What is stored under that key; nothing where the files are of another computation."""
        arrays = read_keyed(self.path(detector, image_set), key)
        whole = None if arrays is None else _whole(arrays)
        if whole is not None:
            return whole
        read = (read_keyed(path, key) for path in self._parts(detector, image_set))
        parts = [part for arrays in read if arrays is not None and (part := _part(arrays))]
        rows = joined(part.arrays for part in parts)
        without = [part.left_out for part in parts] or [NOTHING.left_out]
        left_out = np.setdiff1d(np.concatenate(without), rows.get("index", []))
        return Progress(rows, left_out, False)

    def save(
        self,
        detector: str,
        image_set: str,
        key: str,
        arrays: Mapping[str, np.ndarray],
        *,
        seen: int | None = None,
    ) -> Path:
        """Write all scores of a set, and delete the parts.

        Args:
            detector: the detector's name.
            image_set: the set's name.
            key: see `si_jax.evaluation.keys.key_of`.
            arrays: `"score"`, `"index"`, `"label"` and others with as many rows.
            seen: images that were gone through; as many as there are rows by default.

        Returns:
            The file's path.
        """
        path = self.path(detector, image_set)
        seen = len(arrays["score"]) if seen is None else seen
        write_keyed(path, key, {"seen": np.array(seen), **arrays})
        self.drop_parts(detector, image_set)
        return path

    def save_part(self, detector: str, image_set: str, key: str, progress: Progress) -> Path:
        """Write the rows of some images of a set, beside the parts that are there.

        A part with the same first image is replaced.
        """
        indices = [progress.left_out, progress.arrays.get("index", NOTHING.left_out)]
        path = self.path(detector, image_set, part=int(np.concatenate(indices).min()))
        write_keyed(path, key, {"left_out": progress.left_out, **progress.arrays})
        return path

    def drop_parts(self, detector: str, image_set: str) -> None:
        """Delete the parts of a set, of whichever computation."""
        for path in self._parts(detector, image_set):
            path.unlink(missing_ok=True)

    def _parts(self, detector: str, image_set: str) -> list[Path]:
        whole = self.path(detector, image_set)
        return sorted(whole.parent.glob(glob.escape(whole.stem) + f"{PARTIAL}*.npz"))


def _whole(arrays: dict[str, np.ndarray]) -> Progress | None:
    """A score file's content; None where the arrays are not as `save` writes them."""
    seen = arrays.pop("seen", None)
    if seen is None or seen.ndim or seen.dtype.kind != "i" or not _are_rows(arrays):
        return None
    index = arrays["index"]
    if not len(index) <= seen or index.max() >= seen:
        return None
    return Progress(arrays, gaps(index, int(seen)), True)


def _part(arrays: dict[str, np.ndarray]) -> Progress | None:
    """A part's content; None where the arrays are not as `save_part` writes them."""
    left_out = arrays.pop("left_out", None)
    if left_out is None or left_out.ndim != 1 or left_out.dtype.kind != "i":
        return None
    return Progress(arrays, left_out, False) if not arrays or _are_rows(arrays) else None


def _are_rows(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether these are a score, an index and a label for each image, and what more there is."""
    score, index, label = (arrays.get(name) for name in ("score", "index", "label"))
    if score is None or index is None or label is None:
        return False
    if any(a.ndim == 0 or len(a) != len(score) for a in arrays.values()):
        return False
    if score.ndim != 1 or score.dtype.kind != "f" or not len(score):
        return False
    if index.ndim != 1 or index.dtype.kind != "i" or index.min() < 0:
        return False
    return label.ndim == 1 and label.dtype.kind in "iu"
