"""A network together with its weights and with what is needed to feed it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from si_jax import batching, splitting
from si_jax.networks import checking

PRECISIONS = ("highest", "high", "default")
DEFAULT_BATCH_SIZE = 64


@dataclass(frozen=True, eq=False)
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
        scale: what the numbers in images mean that are no uint8 arrays: `"uint8"` for 0 to 255,
            `"unit"` for [0, 1], `"normalised"` for less the mean and divided by the deviation;
            None where float32 arrays are normalised and others refused.
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
    scale: str | None = None

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"precision (={self.precision!r}) must be one of {', '.join(PRECISIONS)}"
            )
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean (={self.mean}) and std (={self.std}) must have one value per channel each"
            )
        checking.check_scale(self.scale)
        checking.check_constants(self.mean, self.std)
        checking.check_weights(self.variables)

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

    def check(self, images: Any, scale: str | None = None) -> np.ndarray:
        """`images` as this network takes them, uint8 or float32 normalised.

        Args:
            images: as for `logits`.
            scale: as for `logits`.

        Raises:
            ValueError: if the rank, the size, the number of channels, the dtype or the scale is
                wrong, or a value is not finite.
        """
        scale = scale or self.scale
        return checking.as_images(images, self.image_shape, self.mean, self.std, scale)

    def normalise(self, images: Array) -> Float[Array, "batch height width channels"]:
        """uint8 images scaled to [0, 1] and standardised; float32 images as they are."""
        if images.dtype != jnp.uint8:
            return images
        mean, std = jnp.asarray(self.mean, jnp.float32), jnp.asarray(self.std, jnp.float32)
        return (images.astype(jnp.float32) / 255 - mean) / std

    def logits(
        self,
        images: Any,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        scale: str | None = None,
    ) -> Float[np.ndarray, "batch classes"]:
        """Logits of images.

        Args:
            images: (N, height, width, channels) in the model's input size: uint8, normalised
                inside, or float32 already normalised.
            batch_size: images per forward pass.
            scale: what the numbers in other arrays mean, see `Model`; None for the model's own.

        Returns:
            (N, classes) float32.

        Raises:
            ValueError: if `images` do not fit the model, see `check`, or a logit is not finite.
        """
        return self._outputs(images, batch_size, scale)["logits"]

    def features(
        self, images: Any, *, batch_size: int = DEFAULT_BATCH_SIZE, scale: str | None = None
    ) -> np.ndarray:
        """Input of the classifier head, (N, features) float32; arguments as for `logits`."""
        return self._outputs(images, batch_size, scale)["features"]

    def _outputs(self, images, batch_size, scale):
        images = self.check(images, scale)
        out = self._forward(images, batch_size=batch_size, shrink=True)
        bad = np.flatnonzero(~np.isfinite(out["logits"]).all(axis=-1))
        if len(bad):
            raise ValueError(
                f"the network gives NaN or infinite logits for {len(bad)} of {len(images)} images,"
                f" image {bad[0]} the first: its weights are broken, or the images hold values that"
                " are too large"
            )
        return out

    @cached_property
    def _forward(self) -> batching.Batched:
        def forward(variables, images):
            out = splitting.forward(self, variables, self.normalise(images))
            return {"logits": out.logits, "features": out.features}

        return batching.Batched(forward, self.variables)
