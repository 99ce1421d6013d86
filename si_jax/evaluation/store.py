"""Score files: one for each detector and image set, valid for exactly one computation.

A file carries a key, the hash of all that determines its scores (`si_jax.evaluation.keys`). Files
are written beside their final name and renamed, so what has that name is always whole, whoever
else writes at the time. What is known of a set that is not finished lies beside it in parts: small
files, each with the rows of some of its images.
"""

import glob
import os
import urllib.parse
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from si_jax.data.files import BrokenArchive, array_shapes
from si_jax.evaluation.keyed_files import Gathered, Stored, read_keyed, write_keyed

META = ("key", "seen")
"""What a score file holds beside its arrays."""

HELD = ("score", "index", "label")
"""What every score file has, with one number an image; these alone are held in memory."""

PARTIAL = ".partial"
LONGEST = 150
"""Bytes of a set's name, escaped; file systems allow 255, prefixes and endings included."""

RESERVED = ("total",)
"""Names that results use for something else."""


def check_names(names: Iterable[str], what: str = "set") -> None:
    """Refuse names of image sets or detectors that cannot be told apart, be written or be shown.

    Raises:
        ValueError: if a name is empty, reserved, too long or holds characters that cannot be
            printed, or two names are alike but for upper and lower case.
    """
    seen: dict[str, str] = {}
    for name in names:
        if not name or name != name.strip() or not name.isprintable():
            raise ValueError(
                f"the {what}'s name {name!a} must be printable characters without spaces at its"
                " ends: choose another name"
            )
        if name in RESERVED:
            raise ValueError(f"the {what}'s name {name!r} is reserved: choose another name")
        if len(escaped(name)) > LONGEST:
            raise ValueError(
                f"the {what}'s name {name[:30]!r}... is too long: choose one of at most {LONGEST}"
                " bytes (three for each that is no letter, digit, or one of . _ -)"
            )
        if (other := seen.setdefault(name.casefold(), name)) != name:
            raise ValueError(
                f"the {what}s' names {other!r} and {name!r} differ in case alone, which not all"
                " file systems tell apart: choose another name"
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

    arrays: Mapping[str, Any]
    left_out: np.ndarray
    done: bool

    @property
    def seen(self) -> int:
        """Number of images that were gone through."""
        return len(self.left_out) + len(self.arrays.get("index", ()))


NOTHING = Progress({}, np.zeros(0, np.int64), False)


def gaps(index: np.ndarray, size: int) -> np.ndarray:
    """The indices below `size` that are not in `index`."""
    absent = np.ones(size, bool)
    absent[index] = False
    return np.flatnonzero(absent)


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
        """What is stored under that key; nothing where the files are of another computation.

        Files are read through, to find any damage; of their arrays, `HELD` alone is held.
        """
        whole = _whole(self.path(detector, image_set), key)
        if whole is not None:
            return whole
        paths = self._parts(detector, image_set)
        parts = [part for path in paths if (part := _part(path, key)) is not None]
        rows = Gathered(part.arrays for part in parts)
        without = [part.left_out for part in parts] or [NOTHING.left_out]
        left_out = np.unique(np.concatenate(without))
        left_out = left_out[~_within(rows["index"], left_out)]
        return Progress(rows, left_out, False)

    def save(
        self,
        detector: str,
        image_set: str,
        key: str,
        arrays: Mapping[str, Any],
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
        write_keyed(path, key, {"seen": np.array(seen)}, arrays)
        self.drop_parts(detector, image_set)
        return path

    def save_part(self, detector: str, image_set: str, key: str, progress: Progress) -> Path:
        """Write the rows of some images of a set, beside the parts that are there.

        A part with the same first image is replaced.
        """
        indices = [progress.left_out, progress.arrays.get("index", NOTHING.left_out)]
        path = self.path(detector, image_set, part=int(np.concatenate(indices).min()))
        write_keyed(path, key, {"left_out": progress.left_out}, progress.arrays)
        return path

    def drop_parts(self, detector: str, image_set: str) -> None:
        """Delete the parts of a set, of whichever computation."""
        for path in self._parts(detector, image_set):
            path.unlink(missing_ok=True)

    def _parts(self, detector: str, image_set: str) -> list[Path]:
        whole = self.path(detector, image_set)
        return sorted(whole.parent.glob(glob.escape(whole.stem) + f"{PARTIAL}*.npz"))


def _within(ascending: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Which values are among others, of which no copy is made."""
    if not len(ascending):
        return np.zeros(len(values), bool)
    place = np.searchsorted(ascending, values).clip(max=len(ascending) - 1)
    return ascending[place] == values


def _whole(path: Path, key: str) -> Progress | None:
    """A score file's content; None where it is damaged, or not as `Store.save` writes it."""
    opened = _open(path, key, HELD, "seen")
    if opened is None:
        return None
    arrays, seen = opened
    if seen.ndim or seen.dtype.kind != "i" or not len(arrays["index"]) <= seen:
        return None
    if arrays["index"].max() >= seen:
        return None
    return Progress(arrays, gaps(arrays["index"], int(seen)), True)


def _part(path: Path, key: str) -> Progress | None:
    """A part's content; None where it is damaged, or not as `Store.save_part` writes it."""
    opened = _open(path, key, (), "left_out")
    if opened is None:
        return None
    arrays, left_out = opened
    if left_out.ndim != 1 or left_out.dtype.kind != "i":
        return None
    return Progress(arrays, left_out, False)


def _open(
    path: Path, key: str, held: Collection[str], fact: str
) -> tuple[Mapping[str, np.ndarray], np.ndarray] | None:
    """The rows in a file (of a part they may lack), and its one array beside them."""
    try:
        shapes = array_shapes(path)
    except (OSError, BrokenArchive):
        return None
    arrays = read_keyed(path, key, {*held, fact, "index"})
    if arrays is None or fact not in arrays:
        return None
    names = [name for name in shapes if name not in ("key", fact)]
    alone = arrays.pop(fact)
    if not names and not held:
        return {}, alone
    rows = {name: shapes[name] for name in names}
    if not _are_rows(rows, arrays.get("index")):
        return None
    kept = {name: arrays[name] for name in names if name in held}
    return Stored(path, key, kept, [name for name in names if name not in held]), alone


def _are_rows(
    shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]], index: np.ndarray | None
) -> bool:
    """Whether these are a score, an index and a label for each image, and what more there is."""
    if index is None or any(name not in shapes for name in HELD):
        return False
    (count, *more), kind = shapes["score"][0] or (0,), shapes["score"][1].kind
    if more or kind != "f" or not count:
        return False
    if any(shape[:1] != (count,) for shape, _ in shapes.values()):
        return False
    if index.ndim != 1 or index.dtype.kind != "i" or index.min() < 0:
        return False
    shape, dtype = shapes["label"]
    return len(shape) == 1 and dtype.kind in "iu"
