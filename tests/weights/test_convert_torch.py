"""Converted networks against PyTorch ones that are written here: logits, and gradients at the taps.

The networks below follow the papers and carry the names of the published checkpoints. Weights and
running statistics are random. A unit within rounding error of zero may come out on the other side
of its ReLU, which changes gradients, so images are drawn until no unit is that near.
"""

import re
from collections import OrderedDict

import jax
import numpy as np
import pytest

import si_jax
from si_jax import integration, taps
from si_jax.models import ARCHITECTURES, Architecture
from si_jax.models.bit import BiT
from si_jax.models.resnet import ResNet
from si_jax.models.wide_resnet import WideResNet

torch = pytest.importorskip("torch", reason="the networks to compare with are PyTorch's")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_device")
MARGIN = 2e-6  # of a unit's distance from zero, relative to the layer's largest


class Pad(nn.Module):
    """The parameter-free shortcut: every second position, new channels of zeros on both sides."""

    def __init__(self, stride, before, after):
        super().__init__()
        self.stride, self.before, self.after = stride, before, after

    def forward(self, x):
        x = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(x, (0, 0, 0, 0, self.before, self.after))


class Basic(nn.Module):
    def __init__(self, inputs, width, stride, shortcut):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != width:
            if shortcut == "conv":
                projection = nn.Conv2d(inputs, width, 1, stride, bias=False)
                self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(width))
            else:
                half = (width - inputs) // 2
                self.shortcut = Pad(stride, half, width - inputs - half)

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(out + self.shortcut(x))


class CifarResNet(nn.Module):
    def __init__(self, classes, blocks, widths, shortcut):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        inputs, self.stages = widths[0], len(blocks)
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), 1):
            layers = []
            for index in range(count):
                stride = 2 if stage > 1 and index == 0 else 1
                layers.append(Basic(inputs, width, stride, shortcut))
                inputs = width
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.linear(x.mean((2, 3)))


class Wide(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.bn1, self.relu1 = nn.BatchNorm2d(inputs), nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(width), nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.convShortcut = None
        if inputs != width:
            self.convShortcut = nn.Conv2d(inputs, width, 1, stride, bias=False)

    def forward(self, x):
        out = self.relu1(self.bn1(x))
        if self.convShortcut is not None:
            x = self.convShortcut(out)
        return x + self.conv2(self.relu2(self.bn2(self.conv1(out))))


class WideStage(nn.Module):
    def __init__(self, *blocks):
        super().__init__()
        self.layer = nn.Sequential(*blocks)

    def forward(self, x):
        return self.layer(x)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


class Wrn(nn.Module):
    def __init__(self, classes, depth, widen):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        inputs = 16
        for stage, width in enumerate((16 * widen, 32 * widen, 64 * widen), 1):
            blocks = []
            for index in range((depth - 4) // 6):
                blocks.append(Wide(inputs, width, 2 if stage > 1 and index == 0 else 1))
                inputs = width
            setattr(self, f"block{stage}", WideStage(*blocks))
        self.bn1, self.relu, self.pool = nn.BatchNorm2d(inputs), nn.ReLU(), Mean()
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(self.pool(self.relu(self.bn1(x))))


class StdConv2d(nn.Conv2d):
    def forward(self, x):
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, correction=0)
        weight = (self.weight - mean) / torch.sqrt(variance + 1e-10)
        return functional.conv2d(x, weight, None, self.stride, self.padding)


class PreActBottleneck(nn.Module):
    def __init__(self, inputs, width, stride, project):
        super().__init__()
        middle = width // 4
        self.gn1 = nn.GroupNorm(32, inputs)
        self.conv1 = StdConv2d(inputs, middle, 1, bias=False)
        self.gn2 = nn.GroupNorm(32, middle)
        self.conv2 = StdConv2d(middle, middle, 3, stride, 1, bias=False)
        self.gn3 = nn.GroupNorm(32, middle)
        self.conv3 = StdConv2d(middle, width, 1, bias=False)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        if project:
            self.downsample = StdConv2d(inputs, width, 1, stride, bias=False)

    def forward(self, x):
        out = self.relu1(self.gn1(x))
        shortcut = self.downsample(out) if hasattr(self, "downsample") else x
        out = self.conv2(self.relu2(self.gn2(self.conv1(out))))
        return shortcut + self.conv3(self.relu3(self.gn3(out)))


class ResNetV2(nn.Module):
    def __init__(self, classes, units):
        super().__init__()
        conv = StdConv2d(3, 64, 7, 2, 3, bias=False)
        pool = nn.MaxPool2d(3, 2, 0)
        self.root = nn.Sequential(OrderedDict(conv=conv, pad=nn.ConstantPad2d(1, 0.0), pool=pool))
        inputs, blocks = 64, OrderedDict()
        for block, count in enumerate(units, 1):
            width, layers = 128 * 2**block, OrderedDict()
            for unit in range(1, count + 1):
                stride = 2 if block > 1 and unit == 1 else 1
                layers[f"unit{unit:02d}"] = PreActBottleneck(inputs, width, stride, unit == 1)
                inputs = width
            blocks[f"block{block}"] = nn.Sequential(layers)
        self.body = nn.Sequential(blocks)
        self.before_head = nn.Sequential(
            OrderedDict(gn=nn.GroupNorm(32, inputs), relu=nn.ReLU(), avg=nn.AdaptiveAvgPool2d(1))
        )
        self.head = nn.Sequential(OrderedDict(conv=nn.Conv2d(inputs, classes, 1)))

    def forward(self, x):
        return self.head(self.before_head(self.body(self.root(x))))[:, :, 0, 0]


def cifar(build, **options):
    return Architecture(build, 100, (32, 32), "cifar100", "linear", options)


ODD = {"blocks": (1, 2, 1, 1), "widths": (4, 10, 10, 14)}
EXTRA = {  # small networks of other shapes than those of the table
    "resnet_odd": cifar(ResNet, **ODD),
    "bit_tiny": Architecture(
        BiT, 1000, (64, 64), "half", "head", {"units": (1, 1, 1, 2), "width_factor": 1}
    ),
}
NETWORKS = {  # name of the test -> architecture, PyTorch network, image size
    "resnet8": ("resnet8", lambda: CifarResNet(10, (1, 1, 1), (16, 32, 64), "conv"), 8),
    "resnet14, padded": ("resnet14", lambda: CifarResNet(6, (2, 2, 2), (16, 32, 64), "pad"), 8),
    "four stages, padded": ("resnet_odd", lambda: CifarResNet(5, *ODD.values(), "pad"), 8),
    "wrn_16_4": ("wrn_16_4", lambda: Wrn(10, 16, 4), 8),
    "bit": ("bit_tiny", lambda: ResNetV2(9, (1, 1, 1, 2)), 64),
}
RENAMED = {  # Flax path -> PyTorch's, written apart from the converter's table
    ResNet: {r"shortcut_bn": "shortcut.1", r"layer(\d)_(\d+)/": r"layer\1.\2."},
    WideResNet: {r"block(\d)_(\d+)/": r"block\1.layer.\2."},
    BiT: {r"block(\d)_(unit\d+)/": r"body.block\1.\2.", "before_head/gn": "before_head.gn"},
}


def randomised(network, seed):
    """`network` in evaluation mode with all its weights and statistics random."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, mean, std):
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * std + mean)

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                normal(module.running_mean, 0, 0.2)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                module.num_batches_tracked.fill_(17)
            if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                normal(module.bias, 0, 0.2)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                normal(module.weight, 0.1 / fan_in, (2 / fan_in) ** 0.5)
                if module.bias is not None:
                    normal(module.bias, 0, 0.1)
    return network.eval()


def images_clear_of_zero(network, size):
    """Two images, NCHW, for which no ReLU's input is within rounding error of zero."""
    clear = []

    def look(module, args):
        clear.append(args[0].abs().min() > MARGIN * args[0].abs().max())

    relus = [m for m in network.modules() if isinstance(m, nn.ReLU)]
    if isinstance(network, ResNetV2):  # no gradient is taken before the last block
        tail = (network.body.block4, network.before_head)
        relus = [m for part in tail for m in part.modules() if isinstance(m, nn.ReLU)]
    hooks = [relu.register_forward_pre_hook(look) for relu in relus]
    for seed in range(50):
        images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))
        clear.clear()
        with torch.no_grad():
            network(images)
        if all(clear):
            break
    else:
        raise AssertionError("no images found")
    for hook in hooks:
        hook.remove()
    return images


def reference(network, images, modules):
    """Logits, and the gradient of each image's largest logit at the outputs of `modules`."""
    outputs, hooks = {}, []
    for name in modules:

        def keep(module, args, out, name=name):
            out.retain_grad()
            outputs[name] = out

        hooks.append(network.get_submodule(name).register_forward_hook(keep))
    logits = network(images)
    logits.max(1).values.sum().backward()
    for hook in hooks:
        hook.remove()
    return logits.detach().numpy(), {name: out.grad.numpy() for name, out in outputs.items()}


def channels_last(gradient, shape):
    """NCHW -> NHWC, or (N, C) where the tap has no positions."""
    return np.moveaxis(gradient, 1, -1).reshape(len(gradient), *shape)


@pytest.mark.parametrize("case", NETWORKS)
def test_logits_and_gradients_at_every_tap(case, monkeypatch, tmp_path):
    for name, architecture in EXTRA.items():
        monkeypatch.setitem(ARCHITECTURES, name, architecture)
    name, build, size = NETWORKS[case]
    network = randomised(build(), seed=1)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "network.pth")
    model = si_jax.convert_torch(name, tmp_path / "network.pth", input_size=(size, size))
    assert model.num_parameters == sum(p.numel() for p in network.parameters())

    paths = list(taps.default_taps(model, "si-z"))
    if isinstance(model.module, BiT):
        paths.append("before_head/gn")
    modules = {}
    for path in paths:
        modules[path] = path
        for pattern, replacement in RENAMED[type(model.module)].items():
            modules[path] = re.sub(pattern, replacement, modules[path])
    images = images_clear_of_zero(network, size)
    logits, expected = reference(network, images, modules.values())
    ours = images.numpy().transpose(0, 2, 3, 1)

    scale = np.abs(logits).max()
    found = model.logits(ours, batch_size=2)
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-4 * scale)
    assert np.ptp(logits, axis=1).min() > 0.1 * scale  # the classes do differ

    @jax.jit
    def first_gradients(variables, images):
        return integration.first_gradients(
            model, variables, images, paths, target=integration.max_logit
        )

    gradients = first_gradients(model.variables, ours)
    assert set(gradients) == set(paths)
    for path in paths:
        value = np.asarray(gradients[path])
        grad = channels_last(expected[modules[path]], value.shape[1:])
        assert np.abs(grad).max() > 0
        np.testing.assert_array_equal(value != 0, grad != 0, err_msg=path)
        tolerance = 1e-4 * np.abs(grad).max()
        np.testing.assert_allclose(value, grad, rtol=0, atol=tolerance, err_msg=path)


@pytest.mark.parametrize("broken", ["epsilon", "stride", "shortcut", "pool"])
def test_the_comparison_notices_another_network(broken, monkeypatch):
    """Each peculiarity of a family changes the logits by far more than the tolerance."""
    for name, architecture in EXTRA.items():
        monkeypatch.setitem(ARCHITECTURES, name, architecture)
    case = {"epsilon": "resnet8", "stride": "four stages, padded", "pool": "bit"}
    name, build, size = NETWORKS[case.get(broken, "wrn_16_4")]
    network = randomised(build(), seed=1)
    model = si_jax.convert_torch(name, network.state_dict(), input_size=(size, size))
    if broken == "epsilon":
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-3
    elif broken == "stride":
        monkeypatch.setattr(
            Pad,
            "forward",
            lambda self, x: functional.pad(
                x[:, :, :: self.stride, :: self.stride],
                (0, 0, 0, 0, 0, self.before + self.after),
            ),
        )
    elif broken == "shortcut":
        monkeypatch.setattr(
            Wide,
            "forward",
            lambda self, x: (
                (x if self.convShortcut is None else self.convShortcut(x))
                + self.conv2(self.relu2(self.bn2(self.conv1(self.relu1(self.bn1(x))))))
            ),
        )
    else:
        network.root.pad.value = -float("inf")
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network(images).numpy()
    found = model.logits(images.numpy().transpose(0, 2, 3, 1), batch_size=2)
    assert np.abs(found - logits).max() > 1e-3 * np.abs(logits).max()
