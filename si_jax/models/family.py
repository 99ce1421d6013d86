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

    `modules` and `aliases` are (pattern, replacement) pairs: the ones turn a Flax module path into
    the other name, the others another spelling of that name into it.
    """

    block: str  # pattern that begins the name of a weight in one of the network's blocks
    modules: Sequence[tuple[str, str]]
    head: str  # name of the head's weight matrix
    infer: Callable[[Shapes], dict[str, Any]]  # the options that they imply, if any
    leaves: Mapping[str, str] = field(default_factory=PYTORCH.copy)  # Flax leaf name -> the other
    special: Mapping[str, str] = field(default_factory=dict)  # Flax path -> name where no rule fits
    aliases: Sequence[tuple[str, str]] = ()
    separator: str = "."  # between the module's name and the leaf's
    oihw: bool = True  # kernels are (out, in, height, width) or (out, in), else as in Flax
    assumed: Callable[[Mapping[str, Any]], list[str]] = lambda options: []  # what no file says


@dataclass(frozen=True)
class Family:
    """A network class, and what the rest of the library must know of it.

    `taps` gives patterns by role, see `si_jax.taps`; `("(features)",)` is the head's input.
    """

    title: str  # what the network is called in messages, such as "CIFAR ResNet"
    build: Callable[..., nn.Module]  # the class: `num_classes` and options by keyword -> module
    head: str  # path of the last linear layer
    taps: Callable[[Any], Mapping[str, Sequence[str]]]
    stages: Callable[[Any], tuple[str, ...]]  # paths of their outputs, in order; none without maps
    layouts: Sequence[Layout] = ()  # how checkpoints of it are read; the first is the usual one
