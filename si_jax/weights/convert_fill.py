"""Put the arrays of a checkpoint where the Flax network has them."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from si_jax.models.family import Layout
from si_jax.weights.convert_files import shape_of, to_float32
from si_jax.weights.convert_names import flax_name, source_name


def fill(
    abstract: Any,
    layout: Layout,
    state: Mapping[str, Any],
    names: Mapping[str, str],
    notes: list[str],
) -> Any:
    """The tree of `abstract`'s shapes, filled from `state`.

    A head without bias gets zeros. Sub-modules of the file in which the network has no weight at
    all, such as a second head, are left out if nothing else is wrong. Both are noted.

    Args:
        abstract: names, shapes and dtypes of the network's variables.
        layout: how the checkpoint names them.
        state: the checkpoint, by its own names.
        names: name as in the layout -> name in the checkpoint.
        notes: gets a sentence for each thing that is passed over.

    Raises:
        ValueError: listing every fault.
    """
    faults: list[str] = []
    arrays, used = [], set()
    leaves = jax.tree.leaves_with_path(abstract)
    for path, leaf in leaves:
        ours, key = flax_name(path), source_name(path, layout)
        used.add(key)
        if key not in names and ours.endswith("/bias") and _head_of(key) == _head_of(layout.head):
            notes.append(f"the head has no bias ({key}): zeros are taken")
            arrays.append(np.zeros(leaf.shape, np.float32))
            continue
        if key not in names:
            faults.append(f"missing: {key} (for {ours} {leaf.shape})")
            continue
        original = names[key]
        value = to_float32(original, state[original])
        if path[-1].key == "kernel":
            value = _to_kernel(value, leaf.ndim, layout.oihw)
        if value.shape != leaf.shape:
            shape = shape_of(state[original])
            faults.append(f"wrong shape: {original} {shape}, for {ours} {leaf.shape}")
        arrays.append(np.ascontiguousarray(value))
    unused = [key for key in names if key not in used]
    apart = {} if faults else _apart(unused, used, layout.separator)
    faults += [
        f"left over: {names[key]} {shape_of(state[names[key]])}"
        for key in unused
        if key not in apart
    ]
    if faults:
        raise ValueError(
            f"the checkpoint does not fit the network: {len(faults)} faults, where the network has"
            f" {len(leaves)} weights:\n  " + "\n  ".join(faults)
        )
    for module in dict.fromkeys(apart.values()):
        count = list(apart.values()).count(module)
        notes.append(f"assumed: {module} ({count} weights) plays no part in the network's logits")
    return jax.tree.unflatten(jax.tree.structure(abstract), arrays)


def _apart(unused: list[str], used: set[str], separator: str) -> dict[str, str]:
    """Unused name -> the outermost module that it is in, if the network has nothing in there."""
    modules = {key.partition(separator)[0] for key in used}
    outermost = {key: key.partition(separator)[0] for key in unused if separator in key}
    return {key: module for key, module in outermost.items() if module not in modules}


def _head_of(key: str) -> str:
    return key[: -len(key.replace("/", ".").rpartition(".")[2])]


def _to_kernel(value: np.ndarray, ndim: int, oihw: bool) -> np.ndarray:
    """A kernel in Flax's order: (height, width, in, out), or (in, out) for a linear layer."""
    if value.ndim == 4 and oihw:
        value = value.transpose(2, 3, 1, 0)
    elif value.ndim == 2 and oihw:
        value = value.T
    if ndim == 2 and value.ndim == 4 and value.shape[:2] == (1, 1):
        value = value[0, 0]  # a 1x1 convolution that serves as the linear head
    return value
