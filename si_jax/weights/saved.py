"""The one saved form: a directory of JSON and arrays, with a list of every file's SHA-256.

The list is compared before anything else opens a file, so that whoever parses one finds what was
written; `sha256sum --check SHA256SUMS` compares it too. Arrays are written and read by orbax, and
nothing is unpickled or executed. What lies in such a directory may be of that form itself: then the
outer list holds the inner one.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from pydantic import BaseModel, ValidationError

from si_jax.data.directories import MAX_FILES, check_new, written_whole
from si_jax.data.files import open_regular, read_bytes, read_json, write_text

SUMS = "SHA256SUMS"
SomeCard = TypeVar("SomeCard", bound=BaseModel)


@contextlib.contextmanager
def saving(directory: str | os.PathLike, card: str, overwrite: bool = False) -> Iterator[Path]:
    """A hidden directory to fill, which is listed and takes its name once the block ends well.

    A directory of that name is replaced if `overwrite` and it holds the file `card`.
    """
    directory = Path(directory).resolve()
    if not (overwrite and (directory / card).is_file()):
        check_new(directory)
    with written_whole(directory) as hidden:
        yield hidden
        lines = [f"{_sum(hidden / name)}  {name}\n" for name in _files(hidden) if name != SUMS]
        write_text(hidden / SUMS, "".join(lines))


def check_sums(directory: Path) -> bool:
    """Compare the files of a directory with its list; False if it has none, being older.

    Files whose names begin with a dot, and others right in the directory, may be added.
    """
    if not os.path.lexists(directory / SUMS):
        return False
    try:
        lines = read_bytes(directory / SUMS).decode().splitlines()
        rows = [re.fullmatch(r"([0-9a-f]{64})  (.+)", line) for line in lines]
        expected = {row[2]: row[1] for row in rows if row}
        if not lines or len(expected) != len(lines):
            raise ValueError("it is no list of SHA-256 sums")
        found = _files(directory)
        for name, digest in expected.items():
            if name not in found:
                raise ValueError(f"{name} is missing")
            if _sum(directory / name) != digest:
                raise ValueError(f"{name} was changed, as {SUMS} says")
        if others := [n for n in found if n not in expected and "/" in n]:
            raise ValueError(f"{others[0]} is not listed in {SUMS}: take it away")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{directory} is damaged or was edited: {reason}") from None
    return True


def _sum(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read ({error.strerror})") from None


def _files(directory: Path) -> list[str]:
    """The paths of all files but hidden ones; of an inner directory with a list, that alone."""
    found: list[str] = []
    for folder, inner, names in os.walk(directory):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        if SUMS in names and Path(folder) != directory:
            names, inner[:] = [SUMS], []
        found += [
            Path(folder, name).relative_to(directory).as_posix()
            for name in sorted(names)
            if not name.startswith(".")
        ]
        if len(found) > MAX_FILES:
            raise ValueError(f"it holds more than {MAX_FILES} files")
    return found


def read_card(path: Path, card: type[SomeCard]) -> SomeCard:
    """A file of JSON as the model `card` has it."""
    try:
        return card.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        value = f"{name} (={repr(first['input'])[:100]}): " if name else ""
        reason = value + first["msg"].removeprefix("Value error, ")
    except (OSError, ValueError) as error:
        reason = str(error)
    raise ValueError(f"{path} is no {card.model_config['title']}, or is damaged: {reason}")


def write_arrays(directory: Path, tree: Any) -> None:
    """Write a tree of arrays to a new directory."""
    import orbax.checkpoint as ocp

    with _checkpointer(ocp) as checkpointer:
        checkpointer.save(directory, tree)
    # needed on storage without renaming alone, and it names this machine's directories
    (directory / "commit_success.txt").unlink(missing_ok=True)


def stored_shapes(directory: Path) -> Any:
    """The shapes and dtypes of the tree that `write_arrays` wrote, of which no array is read."""
    return _orbax(directory, lambda ocp, checkpointer, shapes: shapes)


def read_arrays(directory: Path) -> Any:
    """The tree that `write_arrays` wrote, of NumPy arrays."""

    def restore(ocp, checkpointer, shapes):
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        return checkpointer.restore(directory, restore_args=arguments)

    return _orbax(directory, restore)


def _checkpointer(ocp: Any) -> Any:
    """Orbax's, which reads and writes without waiting for other processes of the run."""
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process{index}"
    )
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _orbax(directory: Path, read: Callable[[Any, Any, Any], Any]) -> Any:
    import orbax.checkpoint as ocp

    jax.devices()  # fails here where JAX has none, which is no damage
    try:
        with _checkpointer(ocp) as checkpointer:
            return read(ocp, checkpointer, checkpointer.metadata(directory).item_metadata.tree)
    except Exception as error:  # of any kind, whichever byte is damaged
        reason = (str(error).splitlines() or [""])[0][:200]
        raise ValueError(
            f"{directory} is damaged: orbax cannot read it ({type(error).__name__}: {reason})"
        ) from None
