"""PyTorch networks to compare with, and what is taken of them: random weights, logits, gradients.

The networks follow the papers and carry the names of the published checkpoints. ImageNet's are
written out, since torchvision's package fits one build of PyTorch only; their names and shapes are
compared with torchvision's own (`STATES` in `tests/weights/test_convert_torch.py`).
"""

import math
from collections import OrderedDict

import pytest

from si_jax.splitting import FEATURES

torch = pytest.importorskip("torch", reason="the networks to compare with are PyTorch's")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

MARGIN = 2e-6  # of a unit's distance from zero, relative to the layer's largest


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


def conv(inputs, outputs, size, stride=1):
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class Block(nn.Module):
    """Two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1."""

    def __init__(self, inputs, width, stride, bottleneck):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        if bottleneck:
            sizes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        else:
            sizes = [(inputs, width, 3, stride), (width, width, 3, 1)]
        self.count = len(sizes)
        for index, size in enumerate(sizes, 1):
            setattr(self, f"conv{index}", conv(*size))
            setattr(self, f"bn{index}", nn.BatchNorm2d(size[1]))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        out = x
        for index in range(1, self.count + 1):
            out = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(out))
            if index < self.count:
                out = self.relu(out)
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ImageNetResNet(nn.Module):
    def __init__(self, blocks, bottleneck=False, classes=1000, base=64):
        super().__init__()
        self.conv1, self.bn1 = conv(3, base, 7, 2), nn.BatchNorm2d(base)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        self.stages = range(1, 1 + len(blocks))
        inputs = base
        for stage, count in enumerate(blocks):
            width, layers = base * 2**stage, []
            for index in range(count):
                stride = 2 if stage and not index else 1
                layers.append(Block(inputs, width, stride, bottleneck))
                inputs = 4 * width if bottleneck else width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


class EncoderLayer(nn.Module):
    def __init__(self, width, hidden, heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        drop = nn.Identity()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), drop, nn.Linear(hidden, width), drop
        )

    def forward(self, x):
        inputs = self.ln_1(x)
        x = x + self.self_attention(inputs, inputs, inputs, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Encoder(nn.Module):
    def __init__(self, tokens, layers, heads, width, hidden):
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        names = [f"encoder_layer_{index}" for index in range(layers)]
        self.layers = nn.Sequential(
            OrderedDict((name, EncoderLayer(width, hidden, heads)) for name in names)
        )
        self.ln = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x):
        return self.ln(self.layers(x + self.pos_embedding))


class VisionTransformer(nn.Module):
    def __init__(self, size, patch, layers, heads, width, hidden, classes=1000):
        super().__init__()
        self.conv_proj = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.encoder = Encoder((size // patch) ** 2 + 1, layers, heads, width, hidden)
        self.heads = nn.Sequential(OrderedDict(head=nn.Linear(width, classes)))

    def forward(self, x):
        tokens = self.conv_proj(x).flatten(2).transpose(1, 2)
        token = self.class_token.expand(len(x), -1, -1)
        return self.heads(self.encoder(torch.cat([token, tokens], 1))[:, 0])


def randomised(network, seed=0):
    """The network with random weights and statistics, such that activations stay near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in [*network.named_parameters(), *network.named_buffers()]:
            if not x.is_floating_point():
                continue
            x.normal_(generator=generator)
            if x.ndim > 1:
                x /= math.sqrt(x[0].numel())
            elif name.endswith(("weight", "var")):
                x.abs_().add_(0.5)
            else:
                x *= 0.3
    return network


def images_clear_of_zero(network, size):
    """Two images, NCHW, for which no ReLU's input is within rounding error of zero."""
    parts, clear = [network], []
    if isinstance(network, ResNetV2):  # no gradient is taken before the last block
        parts = network.body.block4, network.before_head

    def look(module, args):
        clear.append(args[0].abs().min() > MARGIN * args[0].abs().max())

    relus = [module for part in parts for module in part.modules() if isinstance(module, nn.ReLU)]
    hooks = [relu.register_forward_pre_hook(look) for relu in relus]
    for seed in range(50):
        images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))
        clear.clear()
        with torch.no_grad():
            network(images)
        if all(clear):
            for hook in hooks:
                hook.remove()
            return images
    raise AssertionError("no images found")


def passed(network, x, head, taps, replaced=None):
    """One pass of PyTorch: (logits, what enters the head, tap -> value, tap -> offset added to it).

    Of paths, `"conv#1"` is the second call, `"(features)"` what enters the head; `replaced` holds
    what stands in the place of a tap.
    """
    values, added, counts, features = {}, {}, {}, []
    paths = {tap: (head if tap == FEATURES else tap).partition("#")[0] for tap in taps}
    modules = {tap: network.get_submodule(path.replace("/", ".")) for tap, path in paths.items()}

    def shown(tap, out):
        out = (replaced or {}).get(tap, out)
        values[tap], added[tap] = out.detach(), torch.zeros_like(out).requires_grad_()
        return out + added[tap]

    def hook(module, args, out):
        for tap in (tap for tap in taps if modules[tap] is module and tap != FEATURES):
            if counts.get(tap, 0) == int(tap.partition("#")[2] or 0):
                out = shown(tap, out)
            counts[tap] = counts.get(tap, 0) + 1
        return out

    def enters(module, args):
        entered = shown(FEATURES, args[0]) if FEATURES in taps else args[0]
        features.append(entered.flatten(1))
        return (entered,)

    handles = [module.register_forward_hook(hook) for module in set(modules.values())]
    last = network.get_submodule(head.replace("/", "."))
    handles.append(last.register_forward_pre_hook(enters))
    logits = network.eval()(torch.as_tensor(x))
    for handle in handles:
        handle.remove()
    return logits, features[0], values, added


def last(network, tap, x):
    """What is at a tap, with its channels as the last axis."""
    path = tap.partition("#")[0].replace("/", ".")
    if tap == FEATURES:
        return x.flatten(1)
    return x.movedim(1, -1) if x.ndim == 4 and channels_first(network.get_submodule(path)) else x


def channels_first(module):
    return type(module) not in (nn.LayerNorm, nn.RMSNorm, nn.Linear)
