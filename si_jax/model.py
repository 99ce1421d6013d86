"""A network together with its weights and with what is needed to feed it."""

import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from si_jax import batching, splitting
from si_jax.checks import check_choice
from si_jax.networks import checking
from si_jax.networks import head as heads
from si_jax.networks.framework import framework_of
from si_jax.networks.network import Network, may_mix_images

PRECISIONS = ("highest", "high", "default")
DEFAULT_BATCH_SIZE = 64


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Model(Network):
    """A network, its weights, and how images enter it.

    Any network of a framework in `si_jax.networks` that maps images to logits will do:
    `Model(module, variables, input_size=28, mean=0.5, std=0.5)`.

    Attributes:
        module: the network, ready for inference.
        variables: its variables.
        input_size: height and width of the images, in pixels.
        mean: mean of each channel, in [0, 1] units, subtracted from uint8 images.
        std: standard deviation of each channel, in [0, 1] units, by which they are divided.
        head: path of the layer that gives the logits, such as `"linear"`; its input is the
            features. None if the network has none, as a cosine classifier.
        name: architecture's name, for reports.
        call_kwargs: further keywords of the network's call, such as `{"train": False}`.
        precision: matrix precision: `"highest"` (float32 everywhere), `"high"` or `"default"`.
        card: what is known of the checkpoint; empty for a network that came from none.
        output: key or index of the logits in the network's output; None if it is the logits.
        scale: what the numbers in images mean that are no uint8 arrays: `"uint8"` for 0 to 255,
            `"unit"` for [0, 1], `"normalised"` for less the mean and divided by the deviation;
            None where float32 arrays are normalised and others refused.
    """

    def __init__(
        self,
        module: Any,
        variables: Any = None,
        input_size: int | Sequence[int] | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        head: str | None = None,
        name: str = "custom",
        call_kwargs: Mapping[str, Any] | None = None,
        precision: str = "highest",
        card: Mapping[str, Any] | None = None,
        output: str | int | None = None,
        scale: str | None = None,
    ):
        """Take over a network; the arguments are the attributes.

        `variables` are as `module.init` of a Linen module returns them, None where the network
        holds them itself. One number is both parts of `input_size`, or the `mean` or `std` of grey
        images. `head` is the last linear layer, None where there is no doubt which it is.

        Raises:
            ValueError: if the network cannot be run, or an argument does not fit it.
        """
        check_choice(PRECISIONS, precision=precision)
        framework = framework_of(module)
        module, variables = framework.prepare(module, variables)
        vars(self).update(
            module=module,
            variables=jax.tree.map(_own, variables),
            input_size=checked_size(input_size),
            mean=_channels("mean", mean),
            std=_channels("std", std),
            head=head,
            name=name,
            call_kwargs=dict(call_kwargs or {}),
            precision=precision,
            card=dict(card or {}),
            output=output,
            scale=scale,
        )
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean (={self.mean}) and std (={self.std}) must have one value per channel each"
            )
        if scale is not None:
            check_choice(checking.SCALES, scale=scale)
        checking.check_constants(self.mean, self.std)
        checking.check_weights(variables)
        if jax.tree.leaves(variables):  # else weights are still to come
            vars(self)["head"] = self._checked_head(head)

    def _checked_head(self, head: str | None) -> str | None:
        """The head, of a network that gives logits of each image for itself, as it must."""
        if self.num_classes < 2:
            raise ValueError(
                "the network gives one logit, and detectors need one for each of two classes or"
                " more: give a network that returns (0, logit) instead"
            )
        look = self.outline
        if kind := heads.output_activation(look.closed.jaxpr, look.logits):
            raise ValueError(heads.no_logits(kind))
        found = heads.head_of(self, head)
        if may_mix_images(self) and self.is_concrete and self._mixes_images():
            raise ValueError(
                "the network's logits of an image depend on the other images of its batch, as where"
                " BatchNorm uses the statistics of the batch: have it use the running ones, by an"
                ' argument of the network\'s in call_kwargs, such as {"train": False}'
            )
        return found

    @property
    def is_concrete(self) -> bool:
        """Whether the weights are there, and not only their shapes."""
        leaves = jax.tree.leaves(self.variables)
        return not any(isinstance(x, jax.ShapeDtypeStruct | jax.core.Tracer) for x in leaves)

    def _mixes_images(self) -> bool:
        """Whether the logits of one image change with the images beside it."""
        images = np.random.default_rng(0).uniform(0, 255, (3, 4, *self.image_shape))
        images[1, 1:] /= 8
        images[2, 1:] = images[2, 1:] / 8 + 200
        images[:, 0] = images[0, 0]
        run = jax.jit(
            lambda variables, x: splitting.forward(self, variables, self.normalise(x)).logits
        )
        one, *others = (np.asarray(run(self.variables, x.astype(np.uint8)))[0] for x in images)
        limit = 1e-3 * np.abs(one).max()
        return any(np.abs(other - one).max() > limit for other in others)

    def __repr__(self) -> str:
        height, width, channels = self.image_shape
        return (
            f"Model({self.name!r}, {self.framework.name} {self.framework.title(self.module)},"
            f" {self.num_parameters:,} parameters, images {height}x{width}x{channels},"
            f" head={self.head!r})"
        )

    @cached_property
    def num_parameters(self) -> int:
        """Number of trainable weights."""
        return sum(x.size for x in jax.tree.leaves(self.variables.get("params", self.variables)))

    def head_weights(
        self, variables: Mapping[str, Any]
    ) -> Float[Array | np.ndarray, "features classes"]:
        """The weights by which the features become the logits, float32.

        Raises:
            ValueError: if the logits are not a linear map of what enters `head`.
        """
        return self._head(variables)[0]

    def head_bias(self, variables: Mapping[str, Any]) -> Float[Array | np.ndarray, "classes"]:
        """The logits of features that are all zero, float32.

        Raises:
            ValueError: as `head_weights`.
        """
        return self._head(variables)[1]

    @cached_property
    def linear_head(self) -> Callable[[Mapping[str, Any]], heads.Weights] | None:
        """Variables -> the linear map of the features to the logits; None if it is not linear."""
        return heads.linear_head(self, self.head) if self.head else None

    def _head(self, variables):
        if not self.head:
            raise ValueError(heads.no_head(self))
        if self.linear_head is None:
            raise ValueError(
                f"head (={self.head!r}) is not linear: the network's logits are not its input times"
                " weights plus a bias, as this detector needs them; those that need the logits"
                " alone, such as 'energy', serve this network"
            )
        with jax.transfer_guard("allow"):  # weights on the host are moved once, outside any batch
            return self.linear_head(variables)

    def prepare_images(self, images: Any, scale: str | None = None) -> np.ndarray:
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
        shape = (1,) * (images.ndim - 1) + (-1,)
        mean, std = (jnp.asarray(x, jnp.float32).reshape(shape) for x in (self.mean, self.std))
        return (images.astype(jnp.float32) / 255 - mean) / std

    def logits(
        self, images: Any, *, batch_size: int = DEFAULT_BATCH_SIZE, scale: str | None = None
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
            ValueError: if `images` do not fit the model, see `prepare_images`, or a logit is not
                finite.
        """
        return self.outputs(images, batch_size=batch_size, scale=scale)["logits"]

    def features(
        self, images: Any, *, batch_size: int = DEFAULT_BATCH_SIZE, scale: str | None = None
    ) -> np.ndarray:
        """Input of the classifier head, (N, features) float32; arguments as for `logits`.

        Raises:
            ValueError: as `logits`, and if the network has no head.
        """
        if not self.head:
            raise ValueError(heads.no_head(self))
        return self.outputs(images, batch_size=batch_size, scale=scale)["features"]

    def outputs(
        self,
        images: Any,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        allow_small_batch: bool = True,
        scale: str | None = None,
    ) -> dict[str, np.ndarray]:
        """`"logits"` and `"features"` of images, by one pass; arguments as for `logits`.

        Args:
            images: as for `logits`.
            batch_size: images per forward pass.
            allow_small_batch: as for `si_jax.batching.Batched`.
            scale: as for `logits`.
        """
        images = self.prepare_images(images, scale)
        out = self.run(images, batch_size=batch_size, allow_small_batch=allow_small_batch)
        bad = np.flatnonzero(~np.isfinite(out["logits"]).all(axis=-1))
        if len(bad):
            raise ValueError(
                f"the network gives NaN or infinite logits for {len(bad)} of {len(images)} images,"
                f" image {bad[0]} the first: its weights are broken, or the images hold values that"
                " are too large"
            )
        return out

    @cached_property
    def replicated(self) -> batching.Replicated:
        """The variables on the devices, for all that runs this network."""
        return batching.Replicated(self.variables)

    @cached_property
    def run(self) -> batching.Batched:
        """`outputs` of checked images, whatever their values."""

        def run(variables, images):
            out = splitting.forward(self, variables, self.normalise(images))
            return {"logits": out.logits, "features": out.features}

        return batching.Batched(run, self.replicated)


def _own(x: Any) -> Any:
    """A copy of an array on a device, which is still there when the one given is donated."""
    concrete = isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
    return x.copy() if concrete else x


def checked_size(input_size: int | Sequence[int] | None) -> tuple[int, int]:
    """A height and a width in pixels; one number is both."""
    size: Any = input_size if isinstance(input_size, Sequence) else (input_size, input_size)
    whole = [isinstance(n, numbers.Integral) and n is not True and int(n) > 0 for n in size]
    if len(size) != 2 or not all(whole):
        raise ValueError(
            f"input_size (={input_size!r}) must be a height and a width of at least 1 pixel"
        )
    return int(size[0]), int(size[1])


def _channels(name: str, values: float | Sequence[float] | None) -> tuple[float, ...]:
    """One number for each channel."""
    try:
        numbers = np.atleast_1d(np.asarray([] if values is None else values, np.float64))
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.ndim != 1 or not len(numbers):
        raise ValueError(f"{name} (={values!r}) must be one number for each channel")
    return tuple(numbers.tolist())
