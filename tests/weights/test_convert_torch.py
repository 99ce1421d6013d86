"""Converted networks against PyTorch ones: logits, and gradients at the taps.

Weights and running statistics are random. A unit within rounding error of zero may come out on the
other side of its ReLU, which changes gradients, so images are drawn until no unit is that near.
"""

import functools
import hashlib
import re

import jax
import numpy as np
import pytest

import si_jax
from si_jax import splitting, taps
from si_jax.integration import max_logit
from si_jax.models import ARCHITECTURES, Architecture, bit, resnet, vit, wide_resnet
from si_jax.models.bit import BiT
from si_jax.models.resnet import ResNet
from si_jax.models.wide_resnet import WideResNet

torch = pytest.importorskip("torch", reason="the networks to compare with are PyTorch's")
from torch_networks import (  # noqa: E402
    ImageNetResNet,
    ResNetV2,
    VisionTransformer,
    images_clear_of_zero,
    last,
    passed,
    randomised,
)

from benchmarks.torch_networks import CifarResNet, Wrn  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_device")


ODD = {"blocks": (1, 2, 1, 1), "widths": (4, 10, 10, 14)}
SMALL = {"blocks": (1, 2, 1, 1), "widths": (8, 16, 32, 64), "stem": "imagenet"}
EXTRA = {  # small networks of other shapes than those of the table
    "resnet_odd": Architecture(resnet.FAMILY, 100, (8, 8), "cifar100", ODD),
    "wrn_tiny": Architecture(
        wide_resnet.FAMILY, 100, (8, 8), "cifar100", {"depth": 10, "widen": 2}
    ),
    "bit_tiny": Architecture(
        bit.FAMILY, 1000, (32, 32), "half", {"units": (2, 1, 1, 1), "width_factor": 1}
    ),
    "imagenet_basic": Architecture(resnet.FAMILY, 1000, (32, 32), "imagenet", SMALL),
    "imagenet_bottleneck": Architecture(
        resnet.FAMILY, 1000, (32, 32), "imagenet", {**SMALL, "bottleneck": True}
    ),
    "vit_tiny": Architecture(
        vit.FAMILY, 1000, (16, 24), "imagenet",
        {"patch": 8, "layers": 2, "width": 128, "hidden": 64, "heads": 2},
    ),
}  # fmt: skip


IMAGENET = {  # network -> SHA-256 of the sorted lines "name shape", its first 16 digits, which is
    # torchvision 0.29's, and for ResNets also timm 1.0's
    "resnet18": (lambda: ImageNetResNet((2, 2, 2, 2)), "5191d63ec3989592"),
    "resnet34": (lambda: ImageNetResNet((3, 4, 6, 3)), "f8de2a1812ef85e4"),
    "resnet50": (lambda: ImageNetResNet((3, 4, 6, 3), bottleneck=True), "a87e91cd6bd1f939"),
    "resnet101": (lambda: ImageNetResNet((3, 4, 23, 3), bottleneck=True), "dbc3ca74fffafc72"),
    "vit_b_16": (lambda: VisionTransformer(224, 16, 12, 12, 768, 3072), "2c2360f6707280a8"),
}

NETWORKS = {  # architecture -> PyTorch network
    "resnet8": lambda: CifarResNet(10, (1, 1, 1), (16, 32, 64), "conv"),
    "resnet_odd": lambda: CifarResNet(5, *ODD.values(), "pad"),
    "wrn_tiny": lambda: Wrn(10, 10, 2),
    "bit_tiny": lambda: ResNetV2(9, (2, 1, 1, 1)),
    "imagenet_basic": lambda: ImageNetResNet(SMALL["blocks"], classes=7, base=8),
    "imagenet_bottleneck": lambda: ImageNetResNet(SMALL["blocks"], True, classes=9, base=8),
}
RENAMED = {  # Flax path -> PyTorch's, written apart from the converter's table
    ResNet: {r"shortcut_bn": "shortcut.1", r"layer(\d)_(\d+)/": r"layer\1.\2."},
    WideResNet: {r"block(\d)_(\d+)/": r"block\1.layer.\2."},
    BiT: {r"block(\d)_(unit\d+)/": r"body.block\1.\2.", "before_head/gn": "before_head.gn"},
}
HEADS = {CifarResNet: "linear", Wrn: "fc", ResNetV2: "head.conv", ImageNetResNet: "fc"}
RENAMED_BY_TORCHVISION = {**RENAMED[ResNet], r"shortcut_bn": "downsample.1"}


@pytest.fixture(autouse=True)
def extra_architectures():
    ARCHITECTURES.update(EXTRA)


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_gradients_at_every_tap(name, tmp_path):
    network = randomised(NETWORKS[name](), seed=1).eval()
    size = 8 if isinstance(network, CifarResNet | Wrn) else 32
    torch.save({"state_dict": network.state_dict()}, tmp_path / "network.pth")
    model = si_jax.convert_torch(name, tmp_path / "network.pth", input_size=(size, size))
    assert model.num_parameters == sum(p.numel() for p in network.parameters())

    paths = list(taps.default_taps(model, "si-z"))
    if isinstance(model.module, BiT):
        paths.append("before_head/gn")
    modules = {}
    renamed = RENAMED_BY_TORCHVISION if "imagenet" in name else RENAMED[type(model.module)]
    for path in paths:
        modules[path] = path
        for pattern, replacement in renamed.items():
            modules[path] = re.sub(pattern, replacement, modules[path])
    images = images_clear_of_zero(network, size)
    logits, _, _, added = passed(network, images, HEADS[type(network)], modules.values())
    gradients = torch.autograd.grad(logits.max(1).values.sum(), added.values())
    expected = {k: last(network, k, x).numpy() for k, x in zip(added, gradients, strict=True)}
    logits = logits.detach().numpy()
    ours = images.numpy().transpose(0, 2, 3, 1)

    scale = np.abs(logits).max()
    found = model.logits(ours, batch_size=2)
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-4 * scale)
    assert np.ptp(logits, axis=1).min() > 0.1 * scale  # the classes do differ

    @jax.jit
    def first_gradients(variables, images):
        return splitting.linearise(model, variables, images, paths).gradient(max_logit)

    gradients = first_gradients(model.variables, ours)
    assert set(gradients) == set(paths)
    for path in paths:
        value = np.asarray(gradients[path])
        grad = expected[modules[path]].reshape(value.shape)
        assert np.abs(grad).max() > 0
        np.testing.assert_array_equal(value != 0, grad != 0, err_msg=path)
        tolerance = 1e-4 * np.abs(grad).max()
        np.testing.assert_allclose(value, grad, rtol=0, atol=tolerance, err_msg=path)


@functools.cache
def state_of(name):
    """Names of a network's weights, and arrays of their shapes."""
    with torch.device("meta"):
        state = IMAGENET[name][0]().state_dict()
    return {key: np.broadcast_to(np.float32(1), x.shape) for key, x in state.items()}


def test_imagenets_networks_have_torchvisions_names_and_shapes():
    for name, (_, expected) in IMAGENET.items():
        lines = "\n".join(f"{key} {x.shape}" for key, x in sorted(state_of(name).items()))
        assert hashlib.sha256(lines.encode()).hexdigest()[:16] == expected, name


@pytest.mark.parametrize("name", ["resnet50", "vit_b16"])
def test_torchvisions_weights_all_land(name):
    model = si_jax.convert_torch(f"imagenet_{name}", state_of(name.replace("b16", "b_16")))
    assert (model.input_size, model.mean[0]) == ((224, 224), 0.485)


def test_an_imagenet_resnet_is_no_cifar_resnet():
    state = state_of("resnet18")
    with pytest.raises(ValueError, match=r"stem cifar.*stem imagenet.*as 'imagenet_resnet18'"):
        si_jax.convert_torch("resnet18", state)
    with pytest.raises(ValueError, match=r"bottleneck True.*as 'imagenet_resnet18'"):
        si_jax.convert_torch("imagenet_resnet50", state)


def test_a_vision_transformer_of_torchvision():
    network = randomised(VisionTransformer(32, 8, 2, 2, 128, 64, classes=7)).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = network(images).detach().numpy()
    model = si_jax.convert_torch("vit_tiny", network.state_dict(), input_size=(32, 32))
    assert "assumed: 2 heads of 64 channels" in model.card["notes"]
    assert model.num_parameters == sum(p.numel() for p in network.parameters())
    converted = model.logits(images.numpy().transpose(0, 2, 3, 1), batch_size=2)
    np.testing.assert_allclose(converted, logits, rtol=0, atol=1e-5 * np.abs(logits).max())
    with pytest.raises(ValueError, match=r"wrong shape: encoder.pos_embedding \(1, 17, 128\)"):
        si_jax.convert_torch("vit_tiny", network.state_dict())
