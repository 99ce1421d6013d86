"""The rows of a score file that grows batch by batch, in memory and on disk."""

from collections.abc import Mapping

import numpy as np

from si_jax.data.image_set import ImageSet
from si_jax.evaluation.store import Progress, Store, joined


class Rows:
    """What is known of one detector on one set.

    A batch is added in one step, so that an interruption at any moment leaves a consistent whole.

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
        self._rows = [progress.arrays]
        self._fresh: list[tuple[Mapping[str, np.ndarray], np.ndarray]] = []
        self.lacks = np.ones(len(image_set), bool)
        self.lacks[progress.arrays.get("index", [])] = False
        self.lacks[progress.left_out] = False

    def add(self, arrays: Mapping[str, np.ndarray], left_out: np.ndarray) -> None:
        """Add a batch.

        Args:
            arrays: `"index"`, `"label"`, `"score"` and more of the images that were scored; empty
                if there is none.
            left_out: indices of the images that cannot be read.
        """
        if not arrays and not len(left_out):
            return
        self._fresh.append((arrays, left_out))
        self.lacks[arrays.get("index", [])] = False
        self.lacks[left_out] = False

    def save_part(self) -> None:
        """Store what was added since the last time, as one part."""
        if not self._fresh:
            return
        rows = joined(arrays for arrays, _ in self._fresh)
        left_out = np.concatenate([left_out for _, left_out in self._fresh])
        self._store.save_part(*self._place, Progress(rows, left_out, False))
        self._rows.append(rows)  # if it ends here, a row is known twice, which does no harm
        self._fresh = []

    def save(self) -> dict[str, np.ndarray]:
        """Store all rows as the set's score file, in place of the parts, and return them."""
        self._rows = [joined([*self._rows, *(arrays for arrays, _ in self._fresh)])]
        self._store.save(*self._place, self._rows[0], seen=len(self.lacks))
        self._fresh = []
        return self._rows[0]

    @property
    def empty(self) -> bool:
        """Whether there is no row."""
        return not any(self._rows) and not any(arrays for arrays, _ in self._fresh)
