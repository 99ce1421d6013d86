"""Arrays on disk: written by orbax, read one at a time.

Orbax keeps arrays as zarr in a tensorstore database. They are read with tensorstore itself and not
by orbax, which reads all arrays beside each other: at a damaged one it stops, and what the others
then find is printed as a traceback by the thread that finds it.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from si_jax.data.directories import check_files

DRIVERS = {".zarray": "zarr", "zarr.json": "zarr3"}


def write_arrays(directory: Path, tree: Any) -> None:
    """Write a tree of arrays to a new directory."""
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer(use_ocdbt=True) as checkpointer:
        checkpointer.save(directory, tree)
    # needed on storage without renaming alone, and it names this machine's directories
    (directory / "commit_success.txt").unlink(missing_ok=True)


def read_arrays(directory: str | os.PathLike) -> dict[str, np.ndarray]:
    """Every array in a directory that orbax wrote.

    Args:
        directory: where they lie.

    Returns:
        Name -> array. The name has a dot between its parts, as orbax stores it: `state.mean`.

    Raises:
        ValueError: if the directory cannot be read.
    """
    directory = Path(directory).resolve()
    stored = open_arrays(directory)
    return {name: read_array(directory, name, array) for name, array in stored.items()}


def open_arrays(directory: Path) -> dict[str, Any]:
    """Name -> stored array, of which only shape and dtype have been read.

    Raises:
        ValueError: if the directory cannot be read.
    """
    import tensorstore as ts

    check_files(directory)
    base = {"driver": "ocdbt", "base": f"file://{directory}/"}
    arrays = {}
    try:
        for key in ts.KvStore.open(base).result().list().result():
            name, _, last = key.decode().rpartition("/")
            if last in DRIVERS:
                store = {"driver": DRIVERS[last], "kvstore": {**base, "path": f"{name}/"}}
                arrays[name] = ts.open(store, open=True).result()
    # tensorstore raises ValueError, OSError and others, whichever byte is damaged
    except Exception as error:
        raise _damaged(directory, error) from None
    return arrays


def read_array(directory: Path, name: str, array: Any) -> np.ndarray:
    """The values of an array that `open_arrays` found.

    Raises:
        ValueError: if it cannot be read.
    """
    chunk = array.chunk_layout.read_chunk.shape or ()
    if any(c > max(n, 1) for c, n in zip(chunk, array.shape, strict=False)):
        raise _damaged(directory, ValueError(f"{name} is cut into pieces larger than itself"))
    try:
        return np.asarray(array.read().result())
    except Exception as error:
        raise _damaged(directory, error) from None


def _damaged(directory: Path, error: Exception) -> ValueError:
    reason = str(error).splitlines()[0] if str(error) else ""
    return ValueError(
        f"{directory} is damaged: it cannot be read as orbax weights ({type(error).__name__}:"
        f" {reason[:200]})"
    )
