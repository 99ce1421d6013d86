"""Score files: one for each detector and image set, valid for exactly one computation.

A file carries a key, the hash of all that determines its scores. Files are written beside their
final name and renamed, so what has that name is always whole, whoever else writes at the time.
"""

import functools
import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from si_jax.data.files import BROKEN, read_arrays, write_atomically

SOURCES = (
    "activation.py",
    "batching.py",
    "integration.py",
    "model.py",
    "evaluation/scoring.py",
    "splitting.py",
    "taps.py",
    "data",
    "detectors",
    "models",
    "networks",
)
"""The modules that decide what a score is."""

META = ("key", "seen")
"""What a score file holds beside its arrays."""


@functools.cache
def code_hash() -> str:
    """Hex hash of the source files that decide what a score is."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for name in SOURCES:
        path = root / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def key_of(facts: Mapping[str, Any]) -> str:
    """Hex hash of what determines a file's content; `facts` must be JSON."""
    text = json.dumps({**facts, "code": code_hash()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


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


class Store:
    """Score files below one directory.

    Args:
        directory: where they lie, as `<directory>/<detector>/<set>.npz`.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = Path(directory)

    def path(self, detector: str, image_set: str, *, partial: bool = False) -> Path:
        """Path of a score file, or of the one that holds partial progress."""
        name = image_set.replace("/", "_") + (".partial.npz" if partial else ".npz")
        return self.directory / detector / name

    def load(self, detector: str, image_set: str, key: str) -> Progress:
        """What is stored under that key; nothing where the file is of another computation."""
        for partial in (False, True):
            path = self.path(detector, image_set, partial=partial)
            try:
                arrays = read_arrays(path)
                found, seen = str(arrays.pop("key")), int(arrays.pop("seen"))
                arrays = arrays if len(arrays["score"]) else {}
            except BROKEN:
                continue
            if found == key:
                return Progress(seen, arrays, done=not partial)
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
            key: see `key_of`.
            arrays: `"score"` and others with as many rows.
            done: whether that is the whole set.
            seen: images that were gone through; as many as there are rows by default.

        Returns:
            The file's path.
        """
        path = self.path(detector, image_set, partial=not done)
        seen = len(arrays["score"]) if seen is None else seen
        content = io.BytesIO()
        np.savez_compressed(content, key=np.array(key), seen=np.array(seen), **arrays)
        write_atomically(path, lambda file: file.write(content.getbuffer()))
        if done:
            self.drop_partial(detector, image_set)
        return path

    def drop_partial(self, detector: str, image_set: str) -> None:
        """Delete partial progress, of whichever computation."""
        self.path(detector, image_set, partial=True).unlink(missing_ok=True)
