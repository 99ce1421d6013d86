"""ImageNet networks that are not of the library, for `scripts/benchmark.py`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

Conv = partial(nn.Conv, use_bias=False)


def _norm(x, name=None):
    return nn.BatchNorm(use_running_average=True, name=name)(x)


class VGG16(nn.Module):
    """VGG-16 (Simonyan & Zisserman, ICLR 2015), with a norm behind each convolution."""

    num_classes: int = 1000

    @nn.compact
    def __call__(self, x):
        """Logits of normalised images."""
        for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(depth):
                x = nn.relu(_norm(Conv(width, (3, 3))(x)))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(4096)(x))
        return nn.Dense(self.num_classes)(x)


class ResNet50(nn.Module):
    """ResNet-50 (He et al., CVPR 2016).

    Attributes:
        first: whether a block's stride is that of its first 1x1 convolution, as in the paper and
            `keras.applications`; otherwise of its 3x3 convolution, as in torchvision.
    """

    first: bool = False
    num_classes: int = 1000

    @nn.compact
    def __call__(self, x):
        """Logits of normalised images."""
        x = nn.relu(_norm(Conv(64, (7, 7), 2)(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, depth in enumerate((3, 4, 6, 3)):
            width = 64 * 2**stage
            for block in range(depth):
                stride = 2 if stage and not block else 1
                y = nn.relu(_norm(Conv(width, (1, 1), stride if self.first else 1)(x)))
                y = nn.relu(_norm(Conv(width, (3, 3), 1 if self.first else stride)(y)))
                y = _norm(Conv(4 * width, (1, 1))(y))
                if not block:
                    x = _norm(Conv(4 * width, (1, 1), stride)(x))
                x = nn.relu(x + y)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


class Inverted(nn.Module):
    """MobileNetV2 (Sandler et al., CVPR 2018) and EfficientNet-Lite0: depthwise blocks and ReLU6.

    Attributes:
        stages: expansion, channels, blocks, stride and kernel of each.
    """

    stages: tuple[tuple[int, int, int, int, int], ...]
    num_classes: int = 1000

    @nn.compact
    def __call__(self, x):
        """Logits of normalised images."""
        x = nn.relu6(_norm(Conv(32, (3, 3), 2)(x)))
        for expansion, channels, depth, first, kernel in self.stages:
            for stride in (first, *[1] * (depth - 1)):
                y, width = x, expansion * x.shape[-1]
                if expansion > 1:
                    y = nn.relu6(_norm(Conv(width, (1, 1))(y)))
                y = Conv(width, (kernel, kernel), stride, feature_group_count=width)(y)
                y = _norm(Conv(channels, (1, 1))(nn.relu6(_norm(y))))
                x = x + y if x.shape == y.shape else y
        x = nn.relu6(_norm(Conv(1280, (1, 1))(x)))
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


class ConvNeXt(nn.Module):
    """ConvNeXt-T (Liu et al., CVPR 2022)."""

    num_classes: int = 1000

    @nn.compact
    def __call__(self, x):
        """Logits of normalised images."""
        for i, (width, depth) in enumerate(((96, 3), (192, 3), (384, 9), (768, 3))):
            size = 2 if i else 4
            x = nn.LayerNorm()(x) if i else x
            x = nn.Conv(width, (size, size), size)(x)
            x = x if i else nn.LayerNorm()(x)
            for _ in range(depth):
                y = nn.LayerNorm()(nn.Conv(width, (7, 7), feature_group_count=width)(x))
                x = x + nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(y)))
        return nn.Dense(self.num_classes)(nn.LayerNorm()(jnp.mean(x, (1, 2))))


MOBILENET = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 32, 3, 2, 3),
    (6, 64, 4, 2, 3),
    (6, 96, 3, 1, 3),
    (6, 160, 3, 2, 3),
    (6, 320, 1, 1, 3),
)

EFFICIENTNET = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)

NETWORKS: dict[str, Callable[[], Any]] = {
    "vgg16": VGG16,
    "resnet50": ResNet50,
    "resnet50, stride first": partial(ResNet50, first=True),
    "mobilenet_v2": partial(Inverted, MOBILENET),
    "efficientnet_lite0": partial(Inverted, EFFICIENTNET),
    "convnext_t": ConvNeXt,
}
"""Name -> the network, on images of 224x224 pixels."""
