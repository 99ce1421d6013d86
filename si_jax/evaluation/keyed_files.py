"""Files of arrays that carry a key, and rows that are gathered from many of them.

The key is the hash of all that determines the arrays (`si_jax.evaluation.keys`); a file under
another key is as good as none. What has a row for each image of a large set is read from its file
when it is asked for, and written part by part, so that no set has to fit into memory.
"""

import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Bool

from si_jax.data.files import BrokenArchive, read_arrays, write_atomically


class Stored(Mapping[str, np.ndarray]):
    """The arrays of one file: a few are in memory, any other is read each time it is asked for.

    Args:
        path: the file.
        key: its key.
        held: name -> array of those in memory.
        others: names of those that are not.
    """

    def __init__(
        self, path: Path, key: str, held: Mapping[str, np.ndarray], others: Collection[str]
    ):
        self._path, self._key = path, key
        self._held, self._others = dict(held), tuple(others)

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self._held:
            return self._held[name]
        if name not in self._others:
            raise KeyError(name)
        arrays = read_keyed(self._path, self._key, [name])
        if not arrays:
            raise OSError(
                f"{self._path} was deleted or changed meanwhile: run it again, and let nothing"
                " else write there"
            )
        return arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*self._held, *self._others))

    def __len__(self) -> int:
        return len(self._held) + len(self._others)

    def share(self, other: "Stored", names: Iterable[str]) -> None:
        """Hold one copy with another file, of those arrays that are the same in both."""
        for name in names:
            if np.array_equal(self[name], other[name]):
                self._held[name] = other[name]


class Gathered(Mapping[str, np.ndarray]):
    """The rows of several sources as one, in the order of `"index"`, each image once.

    No array but the index is held; one that is asked for is made of the sources' own.

    Args:
        sources: name -> array with a row for each image, `"index"` among them; those without
            arrays are left out.
        wanted: whether to take the image of an index; None for all.
    """

    def __init__(
        self,
        sources: Iterable[Mapping[str, np.ndarray]],
        wanted: Bool[np.ndarray, "n"] | None = None,
    ):
        ordered = sorted((s for s in sources if s), key=lambda source: source["index"][0])
        self._sources = ordered
        parts = [source["index"] for source in ordered] or [np.zeros(0, np.int64)]
        self._index = np.concatenate(parts) if len(parts) > 1 else parts[0]
        del parts
        self._chosen: np.ndarray | None = None  # of the sources' rows; None for all, in order
        if not (self._index[1:] > self._index[:-1]).all():
            self._index, self._chosen = np.unique(self._index, return_index=True)
        if wanted is not None and not (taken := wanted[self._index]).all():
            self._index = self._index[taken]
            self._chosen = np.flatnonzero(taken) if self._chosen is None else self._chosen[taken]

    def __getitem__(self, name: str) -> np.ndarray:
        if name == "index":
            return self._index
        if name not in list(self):
            raise KeyError(name)
        if self._chosen is None:
            return np.concatenate(list(self.blocks(name)))
        return np.concatenate([source[name] for source in self._sources])[self._chosen]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources[0] if len(self._index) else ())

    def __len__(self) -> int:
        return len(list(iter(self)))

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """An array in pieces, one a source; in one piece where their rows are interleaved."""
        if self._chosen is not None:
            yield self[name]
            return
        for source in self._sources:
            if isinstance(source, Gathered):
                yield from source.blocks(name)
            else:
                yield source[name]


def read_keyed(
    path: Path, key: str, names: Collection[str] | None = None
) -> dict[str, np.ndarray] | None:
    """The arrays that `write_keyed` wrote under that key; None for anything else.

    Args:
        path: the file.
        key: what it must hold.
        names: the arrays to read; those that are not there are left out. All by default.
    """
    try:
        arrays = read_arrays(path, None if names is None else ("key", *names))
    except (OSError, BrokenArchive):
        return None
    return arrays if str(arrays.pop("key", "")) == key else None


def write_keyed(
    path: Path,
    key: str,
    arrays: Mapping[str, Any],
    rows: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write arrays, compressed, beside the key of what determines them.

    Args:
        path: the file.
        key: its key.
        arrays: name -> array.
        rows: more of them; `Gathered` ones are written piece by piece.

    Raises:
        OSError: naming the file, if it cannot be written.
    """

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in {"key": np.array(key), **arrays}.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
            for name in rows:
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    _write_rows(member, rows, name)

    write_atomically(path, write)


def _write_rows(member: Any, rows: Mapping[str, np.ndarray], name: str) -> None:
    """Write an array into a `.npy` file, piece by piece."""
    if not isinstance(rows, Gathered):
        np.lib.format.write_array(member, np.asarray(rows[name]), allow_pickle=False)
        return
    form = None
    for block in rows.blocks(name):
        if form is None:
            form = block.shape[1:], block.dtype
            header = np.lib.format.header_data_from_array_1_0(block)
            header |= {"shape": (len(rows["index"]), *block.shape[1:]), "fortran_order": False}
            np.lib.format.write_array_header_1_0(member, header)
        if (block.shape[1:], block.dtype) != form:
            raise ValueError(f"{name}: {block.dtype} of shape {block.shape} does not fit the rest")
        member.write(block.tobytes())
