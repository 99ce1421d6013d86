"""What a family of networks declares: its taps, its stages, and how checkpoints name it."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flax import linen as nn
from jaxtyping import Array, Float

MAX_BLOCKS = 1000
MAX_WIDTH = 100_000

Images = Float[Array, "batch height width 3"]
Maps = Float[Array, "batch height width channels"]
NewMaps = Float[Array, "batch new_height new_width new_channels"]
Pooled = Float[Array, "batch channels"]
Logits = Float[Array, "batch classes"]

Shapes = Mapping[str, tuple[int, ...]]
"""Name of a weight, as in a layout's table -> its shape in the file; () for what is no array."""


def numbers(shapes: Shapes, pattern: str) -> list[int]:
    """The numbers in those names of weights that begin as the pattern says."""
    return [int(match[1]) for name in shapes if (match := re.match(pattern, name))]


class IfPresent(str):
    """A tap pattern that may match nothing, as the layer depends on the network's options."""


PYTORCH = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
"""Flax leaf name -> PyTorch's, where it is another."""


@dataclass(frozen=True)
class Layout:
    """How published checkpoints name what a network holds, and what their shapes say of it.

    Attributes:
        block: pattern that begins the name of a weight in one of the network's blocks.
        modules: (pattern, replacement) pairs that turn a Flax module path into the other name.
        head: name of the head's weight matrix.
        infer: names and shapes -> the options that they imply; nothing where they imply none.
        leaves: Flax leaf name -> the other leaf name, where it is another.
        special: Flax path -> the other name, where no rule fits.
        aliases: other spellings of the same names, as (pattern, replacement) pairs.
        separator: what stands between the module's name and the leaf's.
        oihw: whether kernels are stored as (out, in, height, width), linear layers as (out, in).
        assumed: options -> what a file does not say and is taken for granted, for people.
    """

    block: str
    modules: Sequence[tuple[str, str]]
    head: str
    infer: Callable[[Shapes], dict[str, Any]]
    leaves: Mapping[str, str] = field(default_factory=PYTORCH.copy)
    special: Mapping[str, str] = field(default_factory=dict)
    aliases: Sequence[tuple[str, str]] = ()
    separator: str = "."
    oihw: bool = True
    assumed: Callable[[Mapping[str, Any]], list[str]] = lambda options: []


@dataclass(frozen=True)
class Family:
    """A network class, and what the rest of the library must know of it.

    Attributes:
        title: what the network is called in messages, such as "CIFAR ResNet".
        build: the class: `num_classes` and options by keyword -> module.
        head: path of the last linear layer.
        taps: module -> role -> patterns, see `si_jax.taps`; `("(features)",)` is the head's input.
        stages: module -> paths of the outputs of its stages, in order; none where it has no maps.
        layouts: how checkpoints of it are read; the first is the usual one.
    """

    title: str
    build: Callable[..., nn.Module]
    head: str
    taps: Callable[[Any], Mapping[str, Sequence[str]]]
    stages: Callable[[Any], tuple[str, ...]]
    layouts: Sequence[Layout] = ()
