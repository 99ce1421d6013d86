"""Score files: one for each detector and image set, valid for exactly one computation.

A file carries a key, the hash of all that determines its scores (`si_jax.evaluation.keys`). Files
are written beside their final name and renamed, so what has that name is always whole, whoever
else writes at the time.
"""

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
        seen: images that were gone through, from the first one on; those that were left out as
            unreadable count.
        arrays: name -> array with a row for each image that was scored; empty if there is none.
        done: whether that is the whole set.
    """

    seen: int
    arrays: dict[str, np.ndarray]
    done: bool


NOTHING = Progress(0, {}, False)


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

    def path(self, detector: str, image_set: str, *, partial: bool = False) -> Path:
        """Path of a score file, or of the one that holds partial progress."""
        name = escaped(image_set) + (f"{PARTIAL}.npz" if partial else ".npz")
        return self.directory / escaped(detector) / name

    def load(self, detector: str, image_set: str, key: str) -> Progress:
        """What is stored under that key; nothing where the file is of another computation."""
        for partial in (False, True):
            arrays = read_keyed(self.path(detector, image_set, partial=partial), key)
            progress = None if arrays is None else _progress(arrays, done=not partial)
            if progress is not None:
                return progress
        return NOTHING

    def save(
        self,
        detector: str,
        image_set: str,
        key: str,
        arrays: Mapping[str, np.ndarray],
        *,
        done: bool,
        seen: int | None = None,
    ) -> Path:
        """Write scores, and where they are all of the set's, delete its partial progress.

        Args:
            detector: the detector's name.
            image_set: the set's name.
            key: see `si_jax.evaluation.keys.key_of`.
            arrays: `"score"` and others with as many rows.
            done: whether that is the whole set.
            seen: images that were gone through; as many as there are rows by default.

        Returns:
            The file's path.
        """
        path = self.path(detector, image_set, partial=not done)
        seen = len(arrays["score"]) if seen is None else seen
        write_keyed(path, key, {"seen": np.array(seen), **arrays})
        if done:
            self.drop_partial(detector, image_set)
        return path

    def drop_partial(self, detector: str, image_set: str) -> None:
        """Delete partial progress, of whichever computation."""
        self.path(detector, image_set, partial=True).unlink(missing_ok=True)


def _progress(arrays: dict[str, np.ndarray], *, done: bool) -> Progress | None:
    """A score file's content; None where the arrays are not as `save` writes them."""
    seen = arrays.pop("seen", None)
    score = arrays.get("score")
    if score is None or score.ndim != 1 or seen is None or seen.ndim or seen.dtype.kind != "i":
        return None
    if not len(score):
        return Progress(int(seen), {}, done)
    if any(a.ndim == 0 or len(a) != len(score) for a in arrays.values()):
        return None
    index, label = arrays.get("index"), arrays.get("label")
    if index is None or label is None or index.dtype.kind != "i" or label.dtype.kind not in "iu":
        return None
    if score.dtype.kind != "f" or not len(score) <= seen or index.max() >= seen:
        return None
    return Progress(int(seen), arrays, done)
