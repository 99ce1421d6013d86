"""The rows of a score file that grows batch by batch, in memory and on disk."""

from collections.abc import Mapping

import numpy as np

from si_jax.data.image_set import ImageSet
from si_jax.evaluation.keyed_files import Gathered, Stored
from si_jax.evaluation.store import HELD, Progress, Store


class Rows:
    """What is known of one detector on one set.

    What is stored is not held in memory. A batch is added in one step, so that an interruption at
    any moment leaves a consistent whole.

    Args:
        store: where the parts are kept.
        detector: the detector's name.
        image_set: the set.
        key: of the score file.
        progress: what is stored.

    Attributes:
        lacks: bool of shape (size,); which images of the set have not been gone through.
    """

    def __init__(
        self, store: Store, detector: str, image_set: ImageSet, key: str, progress: Progress
    ):
        self._store, self._place = store, (detector, image_set.name, key)
        self._fresh: list[tuple[Mapping[str, np.ndarray], np.ndarray]] = []
        self.lacks = np.ones(len(image_set), bool)
        self._scored = np.zeros(len(image_set), bool)
        self._mark(progress.arrays, progress.left_out)

    def add(self, arrays: Mapping[str, np.ndarray], left_out: np.ndarray) -> None:
        """Add a batch.

        Args:
            arrays: `"index"`, `"label"`, `"score"` and more of the images that were scored; empty
                if there is none.
            left_out: indices of the images that cannot be read.
        """
        if arrays or len(left_out):
            self._fresh.append((arrays, left_out))
            self._mark(arrays, left_out)

    def _mark(self, arrays: Mapping[str, np.ndarray], left_out: np.ndarray) -> None:
        index = arrays.get("index", np.array([], int))
        self._scored[index] = True
        self.lacks[index] = False
        self.lacks[left_out] = False

    def save_part(self) -> None:
        """Store what was added since the last time, as one part."""
        if not self._fresh:
            return
        rows = Gathered(arrays for arrays, _ in self._fresh)
        left_out = np.concatenate([left_out for _, left_out in self._fresh])
        self._store.save_part(*self._place, Progress(rows, left_out, False))
        self._fresh = []  # if it ends before, a row is stored twice, which does no harm

    def save(self) -> Stored:
        """Store all rows as the set's score file, in place of the parts, and return them.

        Raises:
            OSError: if a part is not there any more.
        """
        stored = self._store.load(*self._place).arrays
        rows = Gathered([stored, *(arrays for arrays, _ in self._fresh)], wanted=self._scored)
        path = self._store.path(*self._place[:2])
        if len(rows["index"]) != self._scored.sum():
            raise OSError(f"parts of {path} are gone: run it again, and let nothing delete them")
        held = {name: rows[name] for name in HELD}
        self._store.save(*self._place, rows, seen=len(self.lacks))
        self._fresh = []
        return Stored(path, self._place[-1], held, [name for name in rows if name not in held])

    @property
    def empty(self) -> bool:
        """Whether there is no row."""
        return not self._scored.any()
