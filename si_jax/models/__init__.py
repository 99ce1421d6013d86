"""Networks, one architecture a file, and their table.

In flows an architecture's name; out flows a Flax network that knows nothing of detectors, with
what is needed to feed it (input size, normalisation, path of the classifier head).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from flax import linen as nn

from si_jax.models.bit import BiT
from si_jax.models.resnet import ResNet
from si_jax.models.wide_resnet import WideResNet

NORMALISATIONS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Name -> mean and standard deviation of the red, green and blue channel, in [0, 1] units."""


@dataclass(frozen=True)
class Architecture:
    """What is needed to build a network and to feed it.

    Attributes:
        build: `num_classes` and overrides by keyword -> module.
        num_classes: number of logits unless told otherwise.
        input_size: height and width of the images, in pixels.
        normalisation: a key of `NORMALISATIONS`.
        head: path of the last linear layer.
        options: the keywords with which `build` makes this very network.
    """

    build: Callable[..., nn.Module]
    num_classes: int
    input_size: tuple[int, int]
    normalisation: str
    head: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel, in [0, 1] units."""
        return NORMALISATIONS[self.normalisation][0]

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel, in [0, 1] units."""
        return NORMALISATIONS[self.normalisation][1]


_cifar = partial(
    Architecture,
    num_classes=100,
    input_size=(32, 32),
    normalisation="cifar100",
)
_resnet = partial(_cifar, ResNet, head="linear")
_wrn = partial(_cifar, WideResNet, head="fc")
_bit = partial(
    Architecture,
    BiT,
    num_classes=1000,
    input_size=(480, 480),
    normalisation="half",
    head="head",
)

_narrow = {"widths": (16, 32, 64)}
ARCHITECTURES: dict[str, Architecture] = {
    "resnet8": _resnet(options={"blocks": (1, 1, 1), **_narrow}),
    "resnet14": _resnet(options={"blocks": (2, 2, 2), **_narrow}),
    "resnet20": _resnet(options={"blocks": (3, 3, 3), **_narrow}),
    "resnet32": _resnet(options={"blocks": (5, 5, 5), **_narrow}),
    "resnet56": _resnet(options={"blocks": (9, 9, 9), **_narrow}),
    "resnet18": _resnet(options={"blocks": (2, 2, 2, 2), "widths": (64, 128, 256, 512)}),
    "resnet34": _resnet(options={"blocks": (3, 4, 6, 3), "widths": (64, 128, 256, 512)}),
    "wrn_16_4": _wrn(options={"depth": 16, "widen": 4}),
    "wrn_28_10": _wrn(options={"depth": 28, "widen": 10}),
    "wrn_40_2": _wrn(options={"depth": 40, "widen": 2}),
    "bit_r50x1": _bit(options={"units": (3, 4, 6, 3), "width_factor": 1}),
    "bit_r101x1": _bit(options={"units": (3, 4, 23, 3), "width_factor": 1}),
    "bit_r50x3": _bit(options={"units": (3, 4, 6, 3), "width_factor": 3}),
    "bit_r101x3": _bit(options={"units": (3, 4, 23, 3), "width_factor": 3}),
    "bit_r152x2": _bit(options={"units": (3, 8, 36, 3), "width_factor": 2}),
    "bit_r152x4": _bit(options={"units": (3, 8, 36, 3), "width_factor": 4}),
}
"""Every architecture by name."""


def architecture(name: str) -> Architecture:
    """The architecture called `name`.

    Raises:
        ValueError: if there is none; the message lists those there are.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown model {name!r}: choose one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]
