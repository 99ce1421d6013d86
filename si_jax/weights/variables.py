"""The arrays of any network on disk, compared by name and shape before any memory is taken."""

import hashlib
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from si_jax.weights.saved import SUMS, check_sums, read_arrays, saving, stored_shapes, write_arrays

SHOWN = 10  # faults that a message lists
WEIGHTS = "weights"
"""The folder of a network's arrays in a saved directory."""


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


def to_store(variables: Any, dtype: Any = None) -> dict[str, Any]:
    """The arrays of a network as they are written, nested by the parts of their names."""
    arrays = {name: _stored(name, x, dtype) for name, x in _named(variables).items()}
    return unflatten_dict(arrays, sep="/")


def read_variables(directory: Path, like: Any, *, sha256: str | None = None) -> Any:
    """`load_variables` of a folder of arrays whose files have been compared."""
    if not directory.is_dir():
        raise ValueError(f"{directory} is not there: it should hold the weights")
    expected, stored = _named(like), _named(stored_shapes(directory))
    faults = [f"missing: {n} {tuple(x.shape)}" for n, x in expected.items() if n not in stored]
    faults += [f"left over: {n} {x.shape}" for n, x in stored.items() if n not in expected]
    faults += [
        f"wrong shape: {n} {stored[n].shape}, where the network has {tuple(x.shape)}"
        for n, x in expected.items()
        if n in stored and stored[n].shape != tuple(x.shape)
    ]
    if faults:
        more = f"\n  and {len(faults) - SHOWN} more" * (len(faults) > SHOWN)
        raise ValueError(
            f"{directory} holds the weights of another network, with {len(faults)} differences:\n  "
            + "\n  ".join(faults[:SHOWN])
            + more
        )
    arrays = _named(read_arrays(directory))
    if sha256 is not None and sha256 != weights_hash(unflatten_dict(arrays, sep="/")):
        raise ValueError(f"{directory} is damaged: its weights do not have the hash that was noted")
    for name, array in arrays.items():
        _check_finite(f"{directory}: {name}", array, "the weights are unusable")
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
    _check_finite(name, array, "they are not saved")
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype or array.dtype)
    if not np.isfinite(narrow.astype(np.float64)).all():
        largest = np.abs(array.astype(np.float64)).max()
        raise ValueError(
            f"dtype (={narrow.dtype}) cannot hold {name}, whose largest value is {largest:.6g}:"
            " store it as bfloat16 or float32"
        )
    return narrow


def _check_finite(name: str, array: np.ndarray, consequence: str) -> None:
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return
    bad = int(array.size - np.isfinite(array.astype(np.float32)).sum())
    if bad:
        raise ValueError(
            f"{name} holds NaN or infinite values ({bad} of {array.size}): {consequence}"
        )
