"""BiT's ResNetV2: GroupNorm and weight standardisation (Kolesnikov et al., 2020)."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from si_jax.checks import check_counts
from si_jax.models import family

group_norm = partial(nn.GroupNorm, 32, epsilon=1e-5, use_fast_variance=False)  # PyTorch's epsilon


class StdConv(nn.Module):
    """Convolution without bias whose filters are standardised (biased variance, 1e-10 inside)."""

    features: int
    kernel_size: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: family.Maps) -> family.NewMaps:
        """Convolve, zero-padded by half the kernel."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        mean, variance = (f(kernel, axis=(0, 1, 2)) for f in (jnp.mean, jnp.var))
        kernel = (kernel - mean) / jnp.sqrt(variance + 1e-10)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        strides, padding = (self.stride,) * 2, [(self.kernel_size // 2,) * 2] * 2
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout)


class Bottleneck(nn.Module):
    """Pre-activation bottleneck; a projection starts from the normalised, rectified input."""

    width: int
    stride: int = 1
    project: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: family.Maps) -> family.NewMaps:
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
    def __call__(self, x: family.Maps) -> family.Pooled:
        """Pool the normalised, rectified feature map."""
        return jnp.mean(nn.relu(group_norm(dtype=self.dtype, name="gn")(x)), axis=(1, 2))


class BiT(nn.Module):
    """BiT-S/M ResNetV2; R101x1 has units (3, 4, 23, 3) and width factor 1."""

    num_classes: int
    units: Sequence[int] = (3, 4, 23, 3)  # bottlenecks in each of the four blocks
    width_factor: int = 1  # on all widths
    dtype: Any = jnp.float32  # of the computation; the weights stay float32

    @nn.compact
    def __call__(self, x: family.Images, train: bool = False) -> family.Logits:
        """Logits of normalised images; `train` changes nothing, as no statistics are kept."""
        check_counts("units", self.units, most=family.MAX_BLOCKS, length=4)
        check_counts("width_factor", (self.width_factor,), most=1000)
        x = StdConv(64 * self.width_factor, 7, 2, dtype=self.dtype, name="root")(x)
        # The root's max-pool is padded with zeros, not with minus infinity.
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = nn.max_pool(x, (3, 3), strides=(2, 2))
        width = 256 * self.width_factor
        for block, units in enumerate(self.units, 1):
            for unit in range(1, units + 1):
                stride = 2 if unit == 1 and block > 1 else 1
                options = (width * 2 ** (block - 1), stride, unit == 1, self.dtype)
                x = Bottleneck(*options, name=f"block{block}_unit{unit:02d}")(x)
        x = BeforeHead(dtype=self.dtype, name="before_head")(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x)


def _taps(module: BiT) -> Mapping[str, Sequence[str]]:
    """The norms of the last block, before which no gradient is needed, and what enters the head.

    With `:gn` the tenth tap is the GroupNorm inside `before_head` in place of `before_head` itself,
    which the published evaluation uses for Textures.
    """
    block4 = "block4_*/gn?"
    return {
        "si-z": (block4, "before_head"),
        "si-z:gn": (block4, "before_head/gn"),
        "gaia-z": (block4, "before_head"),
        "gaia-z:gn": (block4, "before_head/gn"),
        "inner": (block4,),
        "outer": ("before_head",),
        "si-c": (block4, "before_head/gn"),
        "si-c-inner": (block4,),
    }


def _stages(module: BiT) -> tuple[str, ...]:
    return tuple(f"block{block}_unit{n:02d}" for block, n in enumerate(module.units, 1))


def _infer(unit: str, root: str, width_axis: int, shapes: family.Shapes) -> dict[str, Any]:
    """Units and width factor; `unit` is a pattern with the block's number left open."""
    units = [max(family.numbers(shapes, unit.format(block)), default=0) for block in (1, 2, 3, 4)]
    width = shapes.get(root, ())
    if not min(units) or len(width) != 4:
        return {}
    return {"units": tuple(units), "width_factor": max(1, width[width_axis] // 64)}


_UNIT = r"^block(\d+)_unit(\d+)/"
_TORCH = family.Layout(
    block=r"body\.block\d+\.unit\d+\.",
    modules=(
        (r"^root$", "root.conv"),
        (_UNIT, r"body.block\1.unit\2."),
        (r"^before_head/gn$", "before_head.gn"),
        (r"^head$", "head.conv"),
    ),
    head="head.conv.weight",
    infer=partial(_infer, r"body\.block{}\.unit(\d+)\.", "root.conv.weight", 0),
    aliases=((r"^head\.gn\.", "before_head.gn."),),
)
_ROOT = "resnet/root_block/standardized_conv2d"
_GOOGLE = family.Layout(
    block=r"resnet/block\d+/unit\d+/",
    modules=(
        (r"^root$", _ROOT),
        (_UNIT + "gn1$", r"resnet/block\1/unit\2/a/group_norm"),
        (_UNIT + "gn2$", r"resnet/block\1/unit\2/b/group_norm"),
        (_UNIT + "gn3$", r"resnet/block\1/unit\2/c/group_norm"),
        (_UNIT + "conv1$", r"resnet/block\1/unit\2/a/standardized_conv2d"),
        (_UNIT + "conv2$", r"resnet/block\1/unit\2/b/standardized_conv2d"),
        (_UNIT + "conv3$", r"resnet/block\1/unit\2/c/standardized_conv2d"),
        (_UNIT + "downsample$", r"resnet/block\1/unit\2/a/proj/standardized_conv2d"),
        (r"^before_head/gn$", "resnet/group_norm"),
        (r"^head$", "resnet/head/conv2d"),
    ),
    head="resnet/head/conv2d/kernel",
    infer=partial(_infer, r"resnet/block{}/unit(\d+)/", f"{_ROOT}/kernel", 3),
    leaves={"scale": "gamma", "bias": "beta"},
    special={"params/head/bias": "resnet/head/conv2d/bias"},  # a norm's is called beta
    separator="/",
    oihw=False,
)
FAMILY = family.Family("BiT ResNetV2", BiT, "head", _taps, _stages, (_TORCH, _GOOGLE))
