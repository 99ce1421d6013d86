"""A network together with its weights and with what is needed to feed it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from si_jax import batching, splitting

PRECISIONS = ("highest", "high", "default")
DEFAULT_BATCH_SIZE = 64


@dataclass(frozen=True)
class Model:
    """A Linen network, its weights, and how images enter it.

    Any Linen network that maps images to logits will do:
    `Model(module, variables, input_size=(28, 28), mean=(0.5,), std=(0.5,), head="Dense_1")`.

    Attributes:
        module: the network.
        variables: its variables, as `module.init` returns them.
        input_size: height and width of the images, in pixels.
        mean: mean of each channel, in [0, 1] units, subtracted from uint8 images.
        std: standard deviation of each channel, in [0, 1] units, by which they are divided.
        head: path of the last linear layer, such as `"linear"`; its input is the features.
        name: architecture's name, for reports.
        call_kwargs: further keywords of the network's `__call__`, such as `{"train": False}`.
        precision: matrix precision: `"highest"` (float32 everywhere), `"high"` or `"default"`.
        card: what is known of the checkpoint; empty for a network that came from none.
    """

    module: nn.Module
    variables: Mapping[str, Any]
    input_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    head: str
    name: str = "custom"
    call_kwargs: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "highest"
    card: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"precision (={self.precision!r}) must be one of {', '.join(PRECISIONS)}"
            )
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean (={self.mean}) and std (={self.std}) must have one value per channel each"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        return (*self.input_size, len(self.mean))

    @cached_property
    def calls(self) -> tuple[splitting.Call, ...]:
        """Every sub-module's call, in the order in which they end; see `splitting.calls`."""
        return splitting.calls(self)

    @cached_property
    def num_classes(self) -> int:
        """Number of logits."""
        return splitting.abstract_forward(self).logits.shape[-1]

    @cached_property
    def num_parameters(self) -> int:
        """Number of trainable weights."""
        return sum(x.size for x in jax.tree.leaves(self.variables["params"]))

    def head_weights(
        self, variables: Mapping[str, Any]
    ) -> Float[Array | np.ndarray, "features classes"]:
        """The weight matrix of the classifier head.

        Raises:
            ValueError: if the module at `head` is no linear layer.
        """
        node = variables["params"]
        for name in self.head.split("/"):
            node = node.get(name, {}) if isinstance(node, Mapping) else {}
        kernel = node.get("kernel") if isinstance(node, Mapping) else None
        if kernel is None or kernel.ndim != 2:
            raise ValueError(
                f"head (={self.head!r}) must be the path of a linear layer (flax.linen.Dense)"
            )
        return kernel

    def check(self, images: np.ndarray) -> np.ndarray:
        """`images`, if they can be fed to this network.

        Raises:
            ValueError: if the rank, the size, the number of channels or the dtype is wrong, or a
                value is not finite.
        """
        images = np.asarray(images) if not isinstance(images, jax.Array) else images
        if images.ndim != 4 or tuple(images.shape[1:]) != self.image_shape:
            expected = "x".join(map(str, self.image_shape))
            raise ValueError(
                f"images (shape {tuple(images.shape)}) must have shape (N, {expected}): the model's"
                " height, width and channels, channels last"
            )
        if images.dtype not in (np.uint8, np.float32):
            raise ValueError(
                f"images (dtype {images.dtype}) must be uint8, or float32 if already normalised"
            )
        if images.dtype == np.float32 and not bool(np.isfinite(images).all()):
            raise ValueError("images hold NaN or infinite values: clean them before scoring")
        return images

    def normalise(self, images: Array) -> Float[Array, "batch height width channels"]:
        """uint8 images scaled to [0, 1] and standardised; float32 images as they are."""
        if images.dtype != jnp.uint8:
            return images
        mean, std = jnp.asarray(self.mean, jnp.float32), jnp.asarray(self.std, jnp.float32)
        return (images.astype(jnp.float32) / 255 - mean) / std

    def logits(
        self,
        images: UInt8[np.ndarray, "batch height width channels"]
        | Float[np.ndarray, "batch height width channels"],
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> Float[np.ndarray, "batch classes"]:
        """Logits of images.

        Args:
            images: uint8 in the model's input size, normalised inside, or float32 already
                normalised.
            batch_size: images per forward pass.

        Raises:
            ValueError: if `images` do not fit the model; see `check`.
        """
        return self.outputs(images, batch_size=batch_size)["logits"]

    def features(self, images: np.ndarray, *, batch_size: int = DEFAULT_BATCH_SIZE) -> np.ndarray:
        """Input of the classifier head, (N, features) float32; arguments as for `logits`."""
        return self.outputs(images, batch_size=batch_size)["features"]

    def outputs(
        self, images: np.ndarray, *, batch_size: int = DEFAULT_BATCH_SIZE, shrink: bool = True
    ) -> dict[str, np.ndarray]:
        """`"logits"` and `"features"` of images, by one pass; arguments as for `logits`.

        Args:
            images: as for `logits`.
            batch_size: images per forward pass.
            shrink: whether fewer images than that make a smaller batch, see
                `si_jax.batching.Batched`.
        """
        return self._forward(self.check(images), batch_size=batch_size, shrink=shrink)

    @cached_property
    def placed(self) -> batching.Placed:
        """The variables on the devices, for all that runs this network."""
        return batching.Placed(self.variables)

    @cached_property
    def _forward(self) -> batching.Batched:
        def forward(variables, images):
            out = splitting.forward(self, variables, self.normalise(images))
            return {"logits": out.logits, "features": out.features}

        return batching.Batched(forward, self.placed)
