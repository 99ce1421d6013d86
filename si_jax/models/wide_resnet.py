"""Wide ResNets with pre-activation blocks (Zagoruyko & Komodakis, 2016)."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from si_jax.checks import check_counts
from si_jax.models import family
from si_jax.models.resnet import batch_norm


class WideBlock(nn.Module):
    """Pre-activation block; a projection shortcut starts from the normalised, rectified input."""

    width: int
    stride: int = 1
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: family.Maps, train: bool = False) -> family.NewMaps:
        """Apply the block."""
        conv = partial(nn.Conv, features=self.width, use_bias=False, dtype=self.dtype)
        norm = partial(batch_norm, train=train, dtype=self.dtype)
        out = nn.relu(norm(name="bn1")(x))
        if x.shape[-1] != self.width:
            x = conv(kernel_size=(1, 1), strides=self.stride, padding=0, name="shortcut_conv")(out)
        out = conv(kernel_size=(3, 3), strides=self.stride, padding=1, name="conv1")(out)
        out = nn.relu(norm(name="bn2")(out))
        if self.dropout:
            out = nn.Dropout(self.dropout, deterministic=not train)(out)
        return x + conv(kernel_size=(3, 3), padding=1, name="conv2")(out)


class WideResNet(nn.Module):
    """WRN-depth-widen; WRN-40-2 has depth 40 and widen 2."""

    num_classes: int
    depth: int = 40  # 6n + 4 layers, n blocks in each of three stages
    widen: int = 2  # factor on the widths 16, 32 and 64
    dropout: float = 0.0  # rate inside the blocks, in training only
    dtype: Any = jnp.float32  # of the computation; the weights stay float32

    @nn.compact
    def __call__(self, x: family.Images, train: bool = False) -> family.Logits:
        """Logits of normalised images."""
        if type(self.depth) is not int or not 10 <= self.depth <= 1000 or (self.depth - 4) % 6:
            raise ValueError(f"depth (={self.depth!r}) must be 6n + 4 with n >= 1, such as 40")
        check_counts("widen", (self.widen,), most=1000)
        x = nn.Conv(16, (3, 3), padding=1, use_bias=False, dtype=self.dtype, name="conv1")(x)
        for stage, width in enumerate((16, 32, 64), 1):
            for index in range((self.depth - 4) // 6):
                stride = 2 if index == 0 and stage > 1 else 1
                options = (width * self.widen, stride, self.dropout, self.dtype)
                x = WideBlock(*options, name=f"block{stage}_{index}")(x, train)
        x = nn.relu(batch_norm(train=train, dtype=self.dtype, name="bn1")(x))
        x = AveragePool(name="pool")(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="fc")(x)


class AveragePool(nn.Module):
    """Mean over all positions, a module so that its output can be a tap."""

    @nn.compact
    def __call__(self, x: family.Maps) -> family.Pooled:
        """Pool."""
        return jnp.mean(x, axis=(1, 2))


def _taps(module: WideResNet) -> Mapping[str, Sequence[str]]:
    norms = ("block*/bn?", "bn1")
    return {
        "si-z": (*norms, "pool"),
        "gaia-z": norms,
        "inner": norms,
        "outer": ("pool",),
        "si-c": norms,
        "si-c-inner": ("block2_*/bn?", "block3_*/bn?", "bn1"),
    }


def _stages(module: WideResNet) -> tuple[str, ...]:
    return tuple(f"block{stage}_{(module.depth - 4) // 6 - 1}" for stage in (1, 2, 3))


def _infer(shapes: family.Shapes) -> dict[str, Any]:
    """Depth and widening factor."""
    indices = family.numbers(shapes, r"block1\.layer\.(\d+)\.conv1\.weight$")
    width = shapes.get("block1.layer.0.conv1.weight", ())
    if not indices or len(width) != 4:
        return {}
    return {"depth": 6 * (max(indices) + 1) + 4, "widen": max(1, width[0] // 16)}


_LAYOUT = family.Layout(
    block=r"block\d+\.layer\.\d+\.",
    modules=(
        (r"^block(\d+)_(\d+)/", r"block\1.layer.\2."),
        (r"shortcut_conv$", "convShortcut"),
    ),
    head="fc.weight",
    infer=_infer,
    aliases=((r"^(linear|classifier)\.", "fc."),),
)
FAMILY = family.Family("Wide ResNet", WideResNet, "fc", _taps, _stages, (_LAYOUT,))
