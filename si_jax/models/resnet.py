"""CIFAR ResNets: a 3x3 stem, no max-pool, stages of basic blocks (He et al., 2016)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from si_jax.models.checks import MAX_BLOCKS, MAX_WIDTH, check_choice, check_counts


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: identity, 1x1 convolution, or zero padding.

    Attributes:
        width: number of output channels.
        stride: stride of the first convolution and of the shortcut.
        shortcut: how the shortcut changes shape where it must: `"conv"`, a 1x1 convolution and
            BatchNorm, or `"pad"`, subsampling and zero channels, half of them on each side.
        dtype: dtype of the computation; the weights stay float32.
    """

    width: int
    stride: int = 1
    shortcut: str = "conv"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch new_height new_width new_channels"]:
        """Apply the block."""
        conv = partial(nn.Conv, features=self.width, use_bias=False, dtype=self.dtype)
        norm = partial(batch_norm, train=train, dtype=self.dtype)
        out = conv(kernel_size=(3, 3), strides=self.stride, padding=1, name="conv1")(x)
        out = nn.relu(norm(name="bn1")(out))
        out = conv(kernel_size=(3, 3), padding=1, name="conv2")(out)
        out = norm(name="bn2")(out)
        if self.stride != 1 or x.shape[-1] != self.width:
            if self.shortcut == "conv":
                x = conv(kernel_size=(1, 1), strides=self.stride, padding=0, name="shortcut_conv")(
                    x
                )
                x = norm(name="shortcut_bn")(x)
            else:
                extra = self.width - x.shape[-1]
                x = x[:, :: self.stride, :: self.stride]
                x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))
        return nn.relu(out + x)


class ResNet(nn.Module):
    """CIFAR ResNet with any number of blocks a stage and any widths.

    Attributes:
        num_classes: number of logits.
        blocks: basic blocks in each stage; every stage after the first halves the resolution.
        widths: channels of each stage; the stem has the first stage's.
        shortcut: `"conv"` or `"pad"`, see `BasicBlock`.
        dtype: dtype of the computation; the weights stay float32.
    """

    num_classes: int
    blocks: Sequence[int] = (3, 4, 6, 3)
    widths: Sequence[int] = (64, 128, 256, 512)
    shortcut: str = "conv"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width 3"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits of normalised images."""
        check_counts("blocks", self.blocks, most=MAX_BLOCKS)
        check_counts("widths", self.widths, most=MAX_WIDTH, length=len(self.blocks))
        check_choice("shortcut", self.shortcut, ("conv", "pad"))
        x = nn.Conv(
            self.widths[0], (3, 3), padding=1, use_bias=False, dtype=self.dtype, name="conv1"
        )(x)
        x = nn.relu(batch_norm(train=train, dtype=self.dtype, name="bn1")(x))
        for stage, (blocks, width) in enumerate(zip(self.blocks, self.widths, strict=True), 1):
            for index in range(blocks):
                x = BasicBlock(
                    width,
                    stride=2 if index == 0 and stage > 1 else 1,
                    shortcut=self.shortcut,
                    dtype=self.dtype,
                    name=f"layer{stage}_{index}",
                )(x, train)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="linear")(x)


def batch_norm(*, train: bool, dtype: Any, name: str) -> nn.BatchNorm:
    """BatchNorm with PyTorch's epsilon and momentum; frozen statistics unless `train`."""
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name=name
    )
