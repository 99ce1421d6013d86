"""Names of the same weight: in a Flax network, in a layout's table, and in a checkpoint."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from si_jax.models.family import Layout

COUNTERS = ("num_batches_tracked", "n_averaged", "num_updates")
WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod)\.)+")
"""What data parallelism, averaging and compilation put before every name."""


def flax_name(path: tuple[Any, ...]) -> str:
    """Name of a weight, from its path in the tree of variables."""
    return "/".join(key.key for key in path)


def source_name(path: tuple[Any, ...], layout: Layout) -> str:
    """Name of the same weight in a checkpoint of that layout."""
    if (special := layout.special.get(flax_name(path))) is not None:
        return special
    module, leaf = flax_name(path[1:-1]), path[-1].key
    for pattern, replacement in layout.modules:
        module = re.sub(pattern, replacement, module)
    return module + layout.separator + layout.leaves.get(leaf, leaf)


def canonical(
    layout: Layout, names: Iterable[str], part: str | None, notes: list[str]
) -> Mapping[str, str] | None:
    """Name in a layout's table -> the checkpoint's, without counters; None if none is a block's."""
    names = [name for name in names if name.rpartition(".")[2] not in COUNTERS]
    matches = [re.match(rf"(?:(.*?)[./])??{layout.block}", name) for name in names]
    prefixes = dict.fromkeys((match[1] or "") for match in matches if match)
    if part is not None and (chosen := [p for p in prefixes if f".{part}." in f".{p}."]):
        prefixes = dict.fromkeys(chosen)
    if not prefixes:
        return None
    if len(prefixes) > 1:
        listed = ", ".join(repr(p) for p in list(prefixes)[:8])
        raise ValueError(
            f"the checkpoint holds several networks, whose names have the prefixes {listed}: choose"
            " one by part"
        )
    (prefix,) = prefixes
    if prefix:
        prefix += "/" if any(name.startswith(f"{prefix}/") for name in names) else "."
        if not WRAPPERS.fullmatch(prefix):
            notes.append(f"the prefix {prefix!r} was taken off the names")
    result: dict[str, str] = {}
    for original in names:
        inside = prefix and original.startswith(prefix)
        name = original[len(prefix) :] if inside else WRAPPERS.sub("", original)
        for pattern, replacement in layout.aliases:
            name = re.sub(pattern, replacement, name)
        if name in result:
            raise ValueError(
                f"the checkpoint has {name} twice, as {result[name]!r} and as {original!r}"
            )
        result[name] = original
    return result
