"""BiT's ResNetV2: GroupNorm and weight standardisation (Kolesnikov et al., 2020)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from si_jax.models.checks import MAX_BLOCKS, check_counts


class StdConv(nn.Module):
    """Convolution without bias whose filters are standardised (biased variance, 1e-10 inside).

    Attributes:
        features: number of output channels.
        kernel_size: height and width of the kernel, one number.
        stride: stride in both directions.
        dtype: dtype of the convolution; standardisation is done in float32.
    """

    features: int
    kernel_size: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch new_height new_width features"]:
        """Convolve, zero-padded by half the kernel."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        mean = jnp.mean(kernel, axis=(0, 1, 2))
        variance = jnp.var(kernel, axis=(0, 1, 2))
        kernel = (kernel - mean) / jnp.sqrt(variance + 1e-10)
        padding = self.kernel_size // 2
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            ((padding, padding), (padding, padding)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class Bottleneck(nn.Module):
    """Pre-activation bottleneck; a projection starts from the normalised, rectified input.

    Attributes:
        width: number of output channels, four times the bottleneck's.
        stride: stride of the 3x3 convolution and of the projection.
        project: whether the shortcut is a projection.
        dtype: dtype of the computation; the weights stay float32.
    """

    width: int
    stride: int = 1
    project: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch new_height new_width new_channels"]:
        """Apply the unit."""
        conv = partial(StdConv, dtype=self.dtype)
        norm = partial(group_norm, dtype=self.dtype)
        out = nn.relu(norm(name="gn1")(x))
        if self.project:
            x = conv(self.width, 1, self.stride, name="downsample")(out)
        out = conv(self.width // 4, 1, name="conv1")(out)
        out = nn.relu(norm(name="gn2")(out))
        out = conv(self.width // 4, 3, self.stride, name="conv2")(out)
        out = nn.relu(norm(name="gn3")(out))
        return x + conv(self.width, 1, name="conv3")(out)


class BeforeHead(nn.Module):
    """GroupNorm, ReLU and average pool: what enters the classifier head."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch channels"]:
        """Pool the normalised, rectified feature map."""
        return jnp.mean(nn.relu(group_norm(dtype=self.dtype, name="gn")(x)), axis=(1, 2))


class BiT(nn.Module):
    """BiT-S/M ResNetV2; R101x1 has units (3, 4, 23, 3) and width factor 1.

    Attributes:
        num_classes: number of logits.
        units: bottleneck units in each of the four blocks.
        width_factor: factor on all widths.
        dtype: dtype of the computation; the weights stay float32.
    """

    num_classes: int
    units: Sequence[int] = (3, 4, 23, 3)
    width_factor: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width 3"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits of normalised images; `train` changes nothing, as no statistics are kept."""
        check_counts("units", self.units, most=MAX_BLOCKS, length=4)
        check_counts("width_factor", (self.width_factor,), most=1000)
        x = StdConv(64 * self.width_factor, 7, 2, dtype=self.dtype, name="root")(x)
        # The root's max-pool is padded with zeros, not with minus infinity.
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = nn.max_pool(x, (3, 3), strides=(2, 2))
        for block, units in enumerate(self.units, 1):
            for unit in range(1, units + 1):
                x = Bottleneck(
                    256 * self.width_factor * 2 ** (block - 1),
                    stride=2 if unit == 1 and block > 1 else 1,
                    project=unit == 1,
                    dtype=self.dtype,
                    name=f"block{block}_unit{unit:02d}",
                )(x)
        x = BeforeHead(dtype=self.dtype, name="before_head")(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x)


def group_norm(*, dtype: Any, name: str) -> nn.GroupNorm:
    """GroupNorm over 32 groups with PyTorch's epsilon."""
    return nn.GroupNorm(32, epsilon=1e-5, use_fast_variance=False, dtype=dtype, name=name)
