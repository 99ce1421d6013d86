"""The one saved form: a directory of JSON and arrays, with a list of every file's SHA-256.

The list is compared before anything else opens a file; `sha256sum --check SHA256SUMS` compares it
too. Arrays are compared by name and shape before any memory is taken; nothing is unpickled or
executed. A directory inside may be of that form itself: then the outer list holds the inner one.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from pydantic import BaseModel, ValidationError

from si_jax.data import files

SUMS = "SHA256SUMS"
WEIGHTS = "weights"
"""The folder of a network's arrays in a saved directory."""
SHOWN = 10  # faults that a message lists
SomeCard = TypeVar("SomeCard", bound=BaseModel)


def save_variables(directory: str | os.PathLike, variables: Any, *, dtype: Any = None) -> str:
    """Write the arrays of a network of any framework to a new directory.

    Args:
        directory: it must not exist.
        variables: a pytree of arrays: a Linen network's variables, a Flax NNX state, an Equinox
            module's arrays, or a mapping of names.
        dtype: dtype in which floating-point arrays are stored, such as `jnp.bfloat16`; None keeps
            theirs.

    Returns:
        The hash that `load_variables` can compare; see `weights_hash`.

    Raises:
        ValueError: if the directory exists, there are no arrays, two have one name, or one holds
            values that are not finite, in its own dtype or in the one in which it is stored.
    """
    tree = to_store(variables, dtype)
    with saving(directory, SUMS) as hidden:
        write_arrays(hidden / WEIGHTS, tree)
    return weights_hash(tree)


def load_variables(directory: str | os.PathLike, like: Any, *, sha256: str | None = None) -> Any:
    """Read the arrays that `save_variables` wrote.

    Args:
        directory: where they lie.
        like: a pytree of arrays or of `jax.ShapeDtypeStruct`, with the names and shapes that are
            expected.
        sha256: the hash that the stored arrays must have; None compares none.

    Returns:
        A tree as `like`, with NumPy arrays of its dtypes.

    Raises:
        ValueError: if the directory is damaged, does not have the hash, or holds arrays of other
            names or shapes than `like`, all of which are listed, or values that are not finite.
    """
    directory = Path(directory).resolve()
    inside = check_sums(directory)  # an older version wrote no list, and the arrays without folder
    return read_variables(directory / WEIGHTS if inside else directory, like, sha256=sha256)


@contextlib.contextmanager
def saving(directory: str | os.PathLike, card: str, overwrite: bool = False) -> Iterator[Path]:
    """A hidden directory to fill, which is listed and takes its name once the block ends well.

    A directory of that name is replaced if `overwrite` and it holds the file `card`.
    """
    directory = Path(directory).resolve()
    if not (overwrite and (directory / card).is_file()):
        files.check_new(directory)
    with files.written_whole(directory) as hidden:
        yield hidden
        lines = [f"{file_hash(hidden / name)}  {name}\n" for name in _files(hidden) if name != SUMS]
        files.write_text(hidden / SUMS, "".join(lines))


def check_sums(directory: Path) -> bool:
    """Compare the files of a directory with its list; False if it has none, being older.

    Files whose names begin with a dot, and others right in the directory, may be added.
    """
    if not os.path.lexists(directory / SUMS):
        return False
    try:
        lines = files.read_bytes(directory / SUMS).decode().splitlines()
        rows = [re.fullmatch(r"([0-9a-f]{64})  (.+)", line) for line in lines]
        expected = {row[2]: row[1] for row in rows if row}
        if not lines or len(expected) != len(lines):
            raise ValueError("it is no list of SHA-256 sums")
        found = _files(directory)
        for name, digest in expected.items():
            if name not in found:
                raise ValueError(f"{name} is missing")
            if file_hash(directory / name) != digest:
                raise ValueError(f"{name} was changed, as {SUMS} says")
        if others := [n for n in found if n not in expected and "/" in n]:
            raise ValueError(f"{others[0]} is not listed in {SUMS}: take it away")
    except (OSError, ValueError) as error:
        raise ValueError(f"{directory} is damaged or was edited: {error}") from None
    return True


def file_hash(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with files.open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        if len(found) > files.MAX_FILES:
            raise ValueError(f"it holds more than {files.MAX_FILES} files")
    return found


def read_card(path: Path, card: type[SomeCard]) -> SomeCard:
    """A file of JSON as the model `card` has it."""
    try:
        return card.model_validate(files.read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        value = f"{name} (={repr(first['input'])[:100]}): " if name else ""
        reason = value + first["msg"].removeprefix("Value error, ")
    except (OSError, ValueError) as error:
        reason = str(error)
    raise ValueError(f"{path} is no {card.model_config['title']}, or is damaged: {reason}")


def to_store(variables: Any, dtype: Any = None) -> dict[str, Any]:
    """The arrays of a network as they are written, nested by the parts of their names."""
    arrays = {name: _stored(name, x, dtype) for name, x in _named(variables).items()}
    return unflatten_dict(arrays, sep="/")


def read_variables(directory: Path, like: Any, *, sha256: str | None = None) -> Any:
    """`load_variables` of a folder of arrays whose files have been compared."""
    if not directory.is_dir():
        raise ValueError(f"{directory} is not there: it should hold the weights")
    expected, stored = _named(like), _named(read_arrays(directory, shapes_only=True))
    faults = [f"missing: {n} {tuple(x.shape)}" for n, x in expected.items() if n not in stored]
    faults += [f"left over: {n} {x.shape}" for n, x in stored.items() if n not in expected]
    faults += [
        f"wrong shape: {n} {stored[n].shape}, where the network has {tuple(x.shape)}"
        for n, x in expected.items()
        if n in stored and stored[n].shape != tuple(x.shape)
    ]
    if faults:
        more = [f"and {len(faults) - SHOWN} more"] * (len(faults) > SHOWN)
        raise ValueError(
            f"{directory} holds the weights of another network, with {len(faults)} differences:\n  "
            + "\n  ".join([*faults[:SHOWN], *more])
        )
    arrays = _named(read_arrays(directory))
    if sha256 is not None and sha256 != weights_hash(unflatten_dict(arrays, sep="/")):
        raise ValueError(f"{directory} is damaged: its weights do not have the hash that was noted")
    for name, array in arrays.items():
        check_finite(f"{directory}: {name}", array, "the weights are unusable")
    leaves = [arrays[name].astype(x.dtype) for name, x in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def weights_hash(weights: Any) -> str:
    """Hex SHA-256 over the names, dtypes, shapes and bytes of a tree of arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(weights):
        leaf = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)}:{leaf.dtype}:{leaf.shape};".encode())
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def check_finite(name: str, array: np.ndarray, consequence: str) -> None:
    """Refuse an array of floating-point numbers that are not all finite in float32."""
    real = jnp.issubdtype(array.dtype, jnp.floating)
    if real and (bad := int((~np.isfinite(array.astype(np.float32))).sum())):
        raise ValueError(
            f"{name} holds NaN or infinite values ({bad} of {array.size}): {consequence}"
        )


def _named(tree: Any) -> dict[str, Any]:
    """Path such as `params/conv1/kernel` -> leaf, in the order of the tree's leaves."""
    arrays: dict[str, Any] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        # orbax puts dots between the parts of a name, so those inside a part count as such
        name = jax.tree_util.keystr(path, simple=True, separator="/").replace(".", "/")
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise ValueError(f"variables: {name} is of type {type(leaf).__name__}, not an array")
        if name in arrays:
            raise ValueError(f"variables: two arrays are called {name}")
        arrays[name] = leaf
    if not arrays:
        raise ValueError("variables hold no arrays")
    return arrays


def _stored(name: str, value: Any, dtype: Any) -> np.ndarray:
    """The array as it is written."""
    array = np.asarray(value)
    if not array.size:
        raise ValueError(f"variables: {name} is empty (shape {array.shape})")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    check_finite(name, array, "they are not saved")
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype or array.dtype)
    if not np.isfinite(narrow.astype(np.float64)).all():
        largest = np.abs(array.astype(np.float64)).max()
        raise ValueError(
            f"dtype (={narrow.dtype}) cannot hold {name}, whose largest value is {largest:.6g}:"
            " store it as bfloat16 or float32"
        )
    return narrow


def write_arrays(directory: Path, tree: Any) -> None:
    """Write a tree of arrays to a new directory."""
    import orbax.checkpoint as ocp

    with _checkpointer(ocp) as checkpointer:
        checkpointer.save(directory, tree)
    # needed on storage without renaming alone, and it names this machine's directories
    (directory / "commit_success.txt").unlink(missing_ok=True)


def read_arrays(directory: Path, *, shapes_only: bool = False) -> Any:
    """The tree that `write_arrays` wrote, of NumPy arrays, or of their shapes and dtypes alone."""
    import orbax.checkpoint as ocp

    jax.devices()  # fails here where JAX has none, which is no damage
    try:
        with _checkpointer(ocp) as checkpointer:
            shapes = checkpointer.metadata(directory).item_metadata.tree
            if shapes_only:
                return shapes
            arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
            return checkpointer.restore(directory, restore_args=arguments)
    except Exception as error:  # of any kind, whichever byte is damaged
        reason = (str(error).splitlines() or [""])[0][:200]
        raise ValueError(
            f"{directory} is damaged: orbax cannot read it ({type(error).__name__}: {reason})"
        ) from None


def _checkpointer(ocp: Any) -> Any:
    """Orbax's, which reads and writes without waiting for other processes of the run."""
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process{index}"
    )
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)
