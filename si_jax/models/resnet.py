"""ResNets (He et al., 2016): CIFAR's with a 3x3 stem, ImageNet's with a 7x7 one and a max-pool."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from si_jax.checks import check_choice, check_counts
from si_jax.models import family


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, or a bottleneck of 1x1, 3x3 and 1x1.

    A bottleneck makes four times its width, and has its stride in the 3x3 convolution. The shortcut
    changes shape by `"conv"`, a 1x1 convolution and BatchNorm, or by `"pad"`, subsampling and zero
    channels, half of them on each side.
    """

    width: int
    stride: int = 1
    shortcut: str = "conv"
    bottleneck: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: family.Maps, train: bool = False) -> family.NewMaps:
        """Apply the block."""
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = partial(batch_norm, train=train, dtype=self.dtype)
        width, stride = self.width, self.stride
        sizes = [(3, width, stride), (3, width, 1)]
        if self.bottleneck:
            sizes = [(1, width, 1), (3, width, stride), (1, 4 * width, 1)]
        out = x
        for i, (size, channels, step) in enumerate(sizes, 1):
            layer = conv(channels, (size, size), step, padding=size // 2, name=f"conv{i}")
            out = norm(name=f"bn{i}")(layer(out))
            out = nn.relu(out) if i < len(sizes) else out
        extra = out.shape[-1] - x.shape[-1]
        if stride != 1 or extra:
            if self.shortcut == "conv":
                layer = conv(out.shape[-1], (1, 1), stride, padding=0, name="shortcut_conv")
                x = norm(name="shortcut_bn")(layer(x))
            else:
                x = x[:, ::stride, ::stride]
                x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))
        return nn.relu(out + x)


class ResNet(nn.Module):
    """ResNet with any number of blocks a stage and any widths; see `Block`."""

    num_classes: int
    blocks: Sequence[int] = (3, 4, 6, 3)  # in each stage; all but the first halve the resolution
    widths: Sequence[int] = (64, 128, 256, 512)  # of the stages' blocks; the stem has the first's
    shortcut: str = "conv"  # or "pad"
    stem: str = "cifar"  # a 3x3 convolution; "imagenet": 7x7 and a max-pool, both with stride 2
    bottleneck: bool = False
    dtype: Any = jnp.float32  # of the computation; the weights stay float32

    @nn.compact
    def __call__(self, x: family.Images, train: bool = False) -> family.Logits:
        """Logits of normalised images."""
        check_counts("blocks", self.blocks, most=family.MAX_BLOCKS)
        check_counts("widths", self.widths, most=family.MAX_WIDTH, length=len(self.blocks))
        check_choice(("conv", "pad"), shortcut=self.shortcut)
        check_choice(("cifar", "imagenet"), stem=self.stem)
        if self.bottleneck not in (True, False):
            raise ValueError(f"bottleneck (={self.bottleneck!r}) must be True or False")
        if self.bottleneck and self.shortcut == "pad":
            raise ValueError("shortcut (='pad') is only there for networks without bottlenecks")
        large = self.stem == "imagenet"
        size, stride = (7, 2) if large else (3, 1)
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        x = conv(self.widths[0], (size, size), stride, padding=size // 2, name="conv1")(x)
        x = nn.relu(batch_norm(train=train, dtype=self.dtype, name="bn1")(x))
        if large:  # padded with minus infinity
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, (blocks, width) in enumerate(zip(self.blocks, self.widths, strict=True), 1):
            for index in range(blocks):
                kinds = (self.shortcut, self.bottleneck, self.dtype)
                stride = 2 if index == 0 and stage > 1 else 1
                x = Block(width, stride, *kinds, name=f"layer{stage}_{index}")(x, train)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="linear")(x)


def batch_norm(*, train: bool, dtype: Any, name: str) -> nn.BatchNorm:
    """BatchNorm with PyTorch's epsilon and momentum; frozen statistics unless `train`."""
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name=name
    )


def _taps(module: ResNet) -> Mapping[str, Sequence[str]]:
    """Every norm; of the stem the convolution for `si-z`, as published.

    An ImageNet stem has no taps: through its max-pool only one of nine positions has a gradient.
    """
    last = len(module.blocks)
    norms = ("layer*/bn?", family.IfPresent("layer*/shortcut_bn"))
    late: tuple[str, ...] = ()
    for n in sorted({max(1, last - 1), last}):
        late += (f"layer{n}_*/bn?", family.IfPresent(f"layer{n}_*/shortcut_bn"))
    small = module.stem == "cifar"
    return {
        "si-z": (*("conv1",) * small, *norms),
        "gaia-z": (*("bn1",) * small, *norms),
        "inner": late,
        "outer": _stages(module)[-1:],
        "si-c": (*("conv1",) * small, *norms),
        "si-c-inner": late,
    }


def _stages(module: ResNet) -> tuple[str, ...]:
    return tuple(f"layer{stage}_{n - 1}" for stage, n in enumerate(module.blocks, 1))


def _infer(shapes: family.Shapes) -> dict[str, Any]:
    """Blocks, widths, stem, and the kinds of blocks and shortcuts."""
    stages = sorted({*family.numbers(shapes, r"layer(\d+)\.\d+\.conv1\.weight$")})
    if stages != list(range(1, len(stages) + 1)):
        return {}
    blocks = [max(family.numbers(shapes, rf"layer{n}\.(\d+)\.conv1\.weight$")) + 1 for n in stages]
    convs = [shapes.get(f"layer{n}.0.conv1.weight", ()) for n in stages]
    stem = shapes.get("conv1.weight", ())
    projected = any(".shortcut." in name for name in shapes)
    bottleneck = "layer1.0.conv3.weight" in shapes
    return {
        "blocks": tuple(blocks),
        "widths": tuple(shape[0] if len(shape) == 4 else 0 for shape in convs),
        "shortcut": "conv" if projected or bottleneck else "pad",
        "stem": "imagenet" if len(stem) == 4 and stem[-1] == 7 else "cifar",
        "bottleneck": bottleneck,
    }


def _assumed(options: Mapping[str, Any]) -> list[str]:
    large = options.get("stem") == "imagenet"
    assumed = ["a 3x3 max-pool with stride 2 behind the stem" if large else "no max-pool"]
    if options.get("bottleneck"):
        assumed.append("a bottleneck's stride is in its 3x3 convolution")
    if options.get("shortcut") == "pad":
        assumed.append("shortcuts take every second position and pad channels on both sides")
    return assumed


_LAYOUT = family.Layout(
    block=r"layer\d+\.\d+\.",
    modules=(
        (r"^layer(\d+)_(\d+)/", r"layer\1.\2."),
        (r"shortcut_conv$", "shortcut.0"),
        (r"shortcut_bn$", "shortcut.1"),
    ),
    head="linear.weight",
    infer=_infer,
    aliases=((r"^(fc|classifier)\.", "linear."), (r"\.downsample\.", ".shortcut.")),
    assumed=_assumed,
)
FAMILY = family.Family("ResNet", ResNet, "linear", _taps, _stages, (_LAYOUT,))
