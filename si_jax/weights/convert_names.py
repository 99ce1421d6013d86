"""What published checkpoints call the weights of the Flax networks.

Every Flax weight has one name in the other framework: the module's path is rewritten pattern by
pattern, the leaf's name by `Layout.leaves`.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Layout(NamedTuple):
    """How a published checkpoint names what a Flax network holds.

    Attributes:
        network: what the network is called in messages.
        block: pattern that begins the name of a weight in one of the network's blocks.
        modules: (pattern, replacement) pairs that turn a Flax module path into the other name.
        leaves: Flax leaf name -> the other leaf name.
        separator: what stands between the module's name and the leaf's.
        oihw: whether kernels are stored as (out, in, height, width), linear layers as (out, in).
    """

    network: str
    block: str
    modules: tuple[tuple[str, str], ...]
    leaves: Mapping[str, str]
    separator: str = "."
    oihw: bool = True


LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}

LAYOUTS: dict[str, Layout] = {
    "resnet": Layout(
        "CIFAR ResNet",
        r"layer\d+\.\d+\.",
        (
            (r"^layer(\d+)_(\d+)/", r"layer\1.\2."),
            (r"shortcut_conv$", "shortcut.0"),
            (r"shortcut_bn$", "shortcut.1"),
        ),
        LEAVES,
    ),
    "wide_resnet": Layout(
        "Wide ResNet",
        r"block\d+\.layer\.\d+\.",
        (
            (r"^block(\d+)_(\d+)/", r"block\1.layer.\2."),
            (r"shortcut_conv$", "convShortcut"),
        ),
        LEAVES,
    ),
    "bit": Layout(
        "BiT ResNetV2",
        r"body\.block\d+\.unit\d+\.",
        (
            (r"^root$", "root.conv"),
            (r"^block(\d+)_unit(\d+)/", r"body.block\1.unit\2."),
            (r"^before_head/gn$", "before_head.gn"),
            (r"^head$", "head.conv"),
        ),
        LEAVES,
    ),
    "bit_npz": Layout(
        "BiT ResNetV2",
        r"resnet/block\d+/unit\d+/",
        (
            (r"^root$", "resnet/root_block/standardized_conv2d"),
            (r"^block(\d+)_unit(\d+)/gn1$", r"resnet/block\1/unit\2/a/group_norm"),
            (r"^block(\d+)_unit(\d+)/gn2$", r"resnet/block\1/unit\2/b/group_norm"),
            (r"^block(\d+)_unit(\d+)/gn3$", r"resnet/block\1/unit\2/c/group_norm"),
            (r"^block(\d+)_unit(\d+)/conv1$", r"resnet/block\1/unit\2/a/standardized_conv2d"),
            (r"^block(\d+)_unit(\d+)/conv2$", r"resnet/block\1/unit\2/b/standardized_conv2d"),
            (r"^block(\d+)_unit(\d+)/conv3$", r"resnet/block\1/unit\2/c/standardized_conv2d"),
            (
                r"^block(\d+)_unit(\d+)/downsample$",
                r"resnet/block\1/unit\2/a/proj/standardized_conv2d",
            ),
            (r"^before_head/gn$", "resnet/group_norm"),
            (r"^head$", "resnet/head/conv2d"),
        ),
        {"kernel": "kernel", "scale": "gamma", "bias": "beta"},
        separator="/",
        oihw=False,
    ),
}
"""Layout's name -> how its checkpoints are read."""

ALIASES: dict[str, tuple[tuple[str, str], ...]] = {
    "resnet": ((r"^fc\.", "linear."), (r"\.downsample\.", ".shortcut.")),
    "wide_resnet": ((r"^linear\.", "fc."),),
    "bit": ((r"^head\.gn\.", "before_head.gn."),),
    "bit_npz": (),
}
"""Other spellings of the same names, as (pattern, replacement) pairs."""


def flax_name(path: tuple[Any, ...]) -> str:
    """Name of a weight, from its path in the tree of variables."""
    return "/".join(key.key for key in path)


def source_name(path: tuple[Any, ...], layout: Layout) -> str:
    """Name of the same weight in a checkpoint of that layout."""
    module, leaf = flax_name(path[1:-1]), path[-1].key
    for pattern, replacement in layout.modules:
        module = re.sub(pattern, replacement, module)
    if module == "resnet/head/conv2d":
        return f"{module}/{leaf}"  # the head alone has a bias, and it is called so
    return module + layout.separator + layout.leaves[leaf]


def canonical(layout: str, names: Iterable[str]) -> dict[str, str]:
    """Name as in the table -> name as it stands in the checkpoint, without the batch counters.

    Raises:
        ValueError: if two names of the checkpoint mean the same weight.
    """
    found: dict[str, str] = {}
    for original in names:
        name = original.removeprefix("module.")
        for pattern, replacement in ALIASES[layout]:
            name = re.sub(pattern, replacement, name)
        if name.endswith("num_batches_tracked"):
            continue
        if name in found:
            raise ValueError(
                f"the checkpoint has {name} twice, as {found[name]!r} and as {original!r}"
            )
        found[name] = original
    return found
