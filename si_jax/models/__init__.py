"""Networks, one architecture a file, and their table.

Each row of the table is a family of networks and the options that make one: to add an
architecture, write its module and its `Family` in a file here, and its rows below.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from si_jax.models import bit, resnet, vit, wide_resnet
from si_jax.models.family import Family

NORMALISATIONS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Name -> mean and standard deviation of the red, green and blue channel, in [0, 1] units."""


@dataclass(frozen=True)
class Architecture:
    """What is needed to build a network and to feed it."""

    family: Family
    num_classes: int  # by default
    input_size: tuple[int, int]  # height and width of the images, in pixels
    normalisation: str  # a key of `NORMALISATIONS`
    options: Mapping[str, Any] = field(default_factory=dict)  # of the class, for this very network


_cifar = partial(Architecture, num_classes=100, input_size=(32, 32), normalisation="cifar100")
_bit = partial(Architecture, bit.FAMILY, 1000, (480, 480), "half")
_imagenet = partial(Architecture, num_classes=1000, input_size=(224, 224), normalisation="imagenet")


def _resnet(row: Callable[..., Architecture], *blocks: int, **options: Any) -> Architecture:
    """A ResNet; with three stages it has CIFAR's narrow widths."""
    widths = (16, 32, 64) if len(blocks) == 3 else (64, 128, 256, 512)
    stem = "imagenet" if row is _imagenet else "cifar"
    options = {"blocks": blocks, "widths": widths, "stem": stem, "bottleneck": False, **options}
    return row(resnet.FAMILY, options=options)


_B16 = {"patch": 16, "layers": 12, "width": 768, "hidden": 3072, "heads": 12}

ARCHITECTURES: dict[str, Architecture] = {
    "resnet8": _resnet(_cifar, 1, 1, 1),
    "resnet14": _resnet(_cifar, 2, 2, 2),
    "resnet20": _resnet(_cifar, 3, 3, 3),
    "resnet32": _resnet(_cifar, 5, 5, 5),
    "resnet56": _resnet(_cifar, 9, 9, 9),
    "resnet18": _resnet(_cifar, 2, 2, 2, 2),
    "resnet34": _resnet(_cifar, 3, 4, 6, 3),
    "resnet50": _resnet(_cifar, 3, 4, 6, 3, bottleneck=True),
    "imagenet_resnet18": _resnet(_imagenet, 2, 2, 2, 2),
    "imagenet_resnet34": _resnet(_imagenet, 3, 4, 6, 3),
    "imagenet_resnet50": _resnet(_imagenet, 3, 4, 6, 3, bottleneck=True),
    "imagenet_resnet101": _resnet(_imagenet, 3, 4, 23, 3, bottleneck=True),
    "imagenet_vit_b16": _imagenet(vit.FAMILY, options=_B16),
    "wrn_16_4": _cifar(wide_resnet.FAMILY, options={"depth": 16, "widen": 4}),
    "wrn_28_10": _cifar(wide_resnet.FAMILY, options={"depth": 28, "widen": 10}),
    "wrn_40_2": _cifar(wide_resnet.FAMILY, options={"depth": 40, "widen": 2}),
    "bit_r50x1": _bit({"units": (3, 4, 6, 3), "width_factor": 1}),
    "bit_r101x1": _bit({"units": (3, 4, 23, 3), "width_factor": 1}),
    "bit_r50x3": _bit({"units": (3, 4, 6, 3), "width_factor": 3}),
    "bit_r101x3": _bit({"units": (3, 4, 23, 3), "width_factor": 3}),
    "bit_r152x2": _bit({"units": (3, 8, 36, 3), "width_factor": 2}),
    "bit_r152x4": _bit({"units": (3, 8, 36, 3), "width_factor": 4}),
}
"""Every architecture by name."""


def architecture(name: str) -> Architecture:
    """The architecture called `name`."""
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown model {name!r}: choose one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def family_of(module: Any) -> Family | None:
    """The family whose class `module` is of; None for a network that is not in the table."""
    families = (arch.family for arch in ARCHITECTURES.values())
    return next((family for family in families if family.build is type(module)), None)
