"""Small PyTorch networks in the styles of those that people have."""

import copy
import math
from collections import OrderedDict

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch_networks import (  # noqa: E402
    ImageNetResNet,
    ResNetV2,
    VisionTransformer,
    last,
    passed,
    randomised,
)

SIZE, CLASSES, STEPS, STEP = 16, 5, 2, 0.001


def conv(inputs, outputs, size=3, stride=1, **options):
    options = {"bias": False, "padding": size // 2} | options
    return nn.Conv2d(inputs, outputs, size, stride, **options)


def normed(act, *args, **options):
    """A convolution, a norm and an activation in place."""
    layer = conv(*args, **options)
    return nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels), act(inplace=True))


class Apply(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


class Residual(nn.Sequential):
    """A branch to which its input is added in place."""

    def forward(self, x):
        out = super().forward(x)
        out += x
        return out


def vgg():
    features = nn.Sequential(
        *normed(nn.ReLU, 3, 6, bias=True), nn.MaxPool2d(2, 2),
        *normed(nn.ReLU, 6, 8, bias=True), nn.MaxPool2d(2, 2),
    )  # fmt: skip
    layers = nn.Linear(72, 12), nn.ReLU(True), nn.Dropout(), nn.Linear(12, CLASSES)
    pool, classifier = nn.AdaptiveAvgPool2d((3, 3)), nn.Sequential(nn.Flatten(), *layers)
    return nn.Sequential(OrderedDict(features=features, avgpool=pool, classifier=classifier))


class SqueezeExcite(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)

    def forward(self, x):
        return torch.sigmoid(self.fc2(F.silu(self.fc1(self.pool(x)), inplace=True))) * x


def mobilenet(act=nn.ReLU6, squeeze=lambda width: nn.Identity()):
    def inverted(kind, outputs, stride):
        end = squeeze(12), conv(12, outputs, 1), nn.BatchNorm2d(outputs)
        return kind(normed(act, 6, 12, 1), normed(act, 12, 12, 3, stride, groups=12), *end)

    blocks = inverted(Residual, 6, 1), inverted(nn.Sequential, 8, 2)
    features = nn.Sequential(normed(act, 3, 6, 3, 2), *blocks, normed(act, 8, 12, 1))
    mean = Apply(lambda x: x.mean([2, 3]))
    return nn.Sequential(features, mean, nn.Dropout(0.2), nn.Linear(12, CLASSES))


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias)
        return x.permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.dwconv = conv(width, width, 7, groups=width, bias=True)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1, self.act = nn.Linear(width, 4 * width), nn.GELU()
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x):
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(self.act(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


def convnext():
    mean = Apply(lambda x: x.mean([-2, -1]))
    stem = conv(3, 6, 4, 4, padding=0, bias=True), LayerNorm2d(6)
    end = mean, nn.LayerNorm(6), nn.Linear(6, CLASSES)
    return nn.Sequential(*stem, ConvNeXtBlock(6), ConvNeXtBlock(6), *end)


class ShiftedWindows(nn.Module):
    def __init__(self, width, window, shift):
        super().__init__()
        self.window, self.shift, self.heads = window, shift, 2
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, self.heads))
        grid = torch.stack(torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij")).flatten(1)
        steps = (grid[:, :, None] - grid[:, None, :]) + window - 1
        self.register_buffer("index", steps[0] * (2 * window - 1) + steps[1], persistent=False)

    def forward(self, x):
        n, h, w, c = x.shape
        m, s = self.window, self.shift
        y = torch.roll(self.norm(x), (-s, -s), (1, 2))
        y = y.view(n, h // m, m, w // m, m, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, m * m, c)
        qkv = self.qkv(y).reshape(-1, m * m, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index.view(-1)].view(m * m, m * m, -1).permute(2, 0, 1)
        if s:
            region = torch.zeros(h, w, device=x.device)
            slices = (slice(0, -m), slice(-m, -s), slice(-s, None))
            for i, rows in enumerate(slices):
                for j, columns in enumerate(slices):
                    region[rows, columns] = 3 * i + j
            region = region.view(h // m, m, w // m, m).permute(0, 2, 1, 3).reshape(-1, m * m)
            apart = region[:, None, :] != region[:, :, None]
            mask = torch.zeros(apart.shape, device=x.device).masked_fill(apart, -100.0)
            bias = (bias + mask[:, None]).repeat(n, 1, 1, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        y = self.proj(y.transpose(1, 2).reshape(-1, m * m, c))
        y = y.view(n, h // m, w // m, m, m, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        return x + torch.roll(y, (s, s), (1, 2))


def swin():
    def perceptron():
        layers = nn.LayerNorm(6), nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 6)
        return Residual(*layers)

    corners = Apply(lambda x: torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1))
    merging = corners, nn.LayerNorm(24), nn.Linear(24, 12, bias=False)
    blocks = ShiftedWindows(6, 4, 0), perceptron(), ShiftedWindows(6, 4, 2), perceptron()
    return nn.Sequential(
        nn.Conv2d(3, 6, 2, 2), Apply(lambda x: x.permute(0, 2, 3, 1)), *blocks, *merging,
        nn.LayerNorm(12), Apply(lambda x: x.permute(0, 3, 1, 2).mean((2, 3))),
        nn.Linear(12, CLASSES),
    )  # fmt: skip


class Joined(nn.Sequential):
    """Layers behind a list of maps, as DenseNets have them."""

    def forward(self, maps):
        return super().forward(torch.cat(maps, 1))


class Odd(nn.Module):
    """What else people write: what is shared, made on the way, held beside, or changed in place."""

    def __init__(self):
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(conv(3, 6, bias=True))
        self.norm, self.act = nn.InstanceNorm2d(6, affine=True), nn.LeakyReLU(0.1, inplace=True)
        self.shared = nn.utils.weight_norm(conv(6, 6))
        self.mean = torch.tensor([0.1, -0.2, 0.3])  # no buffer
        self.lists = [torch.tensor(0.5)]
        self.register_buffer("scale", torch.rand(6))
        self.join = Joined(nn.BatchNorm2d(12), nn.ReLU(True), conv(12, 6))
        self.prelu, self.rms = nn.PReLU(6), nn.RMSNorm(6)
        self.head = nn.Linear(6, CLASSES)
        self.head.bias = self.prelu.bias = None

    def forward(self, x):
        x = x.clone()
        x[:, 0] *= 2
        x = self.norm(self.conv(x - self.mean[:, None, None]))
        self.act(x)  # what it returns is left
        x = self.shared(self.prelu(self.shared(x))) * self.lists[0]
        x.mul_(self.scale.view(1, -1, 1, 1)).clamp_(min=-3)
        ramp = torch.arange(x.shape[-1]) / x.shape[-1]
        x = torch.where(x > 0, x, 0.3 * x) + ramp
        x = F.max_pool2d(F.hardswish(x), 3, 2, ceil_mode=True)
        x = F.dropout(self.join([x, x.flip(1)]), 0.5, training=self.training)
        x = F.avg_pool2d(F.relu(x, inplace=True), 2)
        x = torch.einsum("nchw->nc", x) / math.prod(x.shape[2:])
        return self.head(self.rms(x))


STYLES = {
    "vgg": vgg,
    "resnet": lambda: ImageNetResNet((2, 1), classes=CLASSES, base=6),
    "mobilenet": mobilenet,
    "efficientnet": lambda: mobilenet(nn.SiLU, SqueezeExcite),
    "convnext": convnext,
    "vit": lambda: VisionTransformer(SIZE, 4, 2, 2, 8, 16, CLASSES),
    "swin": swin,
    "bit": lambda: ResNetV2(CLASSES, (1,)),
    "odd": Odd,
}


def make(style):
    """A network of a style with random weights, in training mode as it is made."""
    torch.manual_seed(0)
    return randomised(STYLES[style]())


def copied(network):
    """A copy; PyTorch itself copies no module under `nn.utils.weight_norm`."""
    return randomised(type(network)() if type(network) is Odd else copy.deepcopy(network))


def integrated(network, x, head, tap, target):
    """Sum of the gradients of a target (logits, features) -> numbers, along S&I's path at a tap."""
    replaced, labels, total = {}, None, 0
    for _ in range(STEPS):
        logits, features, values, added = passed(network, x, head, [tap], replaced)
        labels = logits.argmax(1) if labels is None else labels
        of = added[tap]
        (gradient,) = torch.autograd.grad(target(logits, features).sum(), of, retain_graph=True)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        (ascent,) = torch.autograd.grad(loss, of)
        replaced = {tap: values[tap] + STEP * ascent.sign()}
        total = total + gradient
    total = last(network, tap, total)
    return total.reshape(len(x), -1, total.shape[-1])


def zero_deflation(network, x, head, taps):
    """Minus the mean of the squared share of positions whose integrated gradient is not zero."""
    found = [integrated(network, x, head, k, lambda y, _: y.max(1).values) for k in taps]
    densities = [(gradient != 0).float().mean(1) for gradient in found]
    return -(torch.cat(densities, 1) ** 2).mean(1).numpy()


def channel_average(network, x, head, taps, outer, chosen):
    """Minus the mean squared channel average, over that of the log-softmax at the outer tap.

    `chosen` holds 1 for the features that enter the sum.
    """

    def average(tap, target):
        return integrated(network, x, head, tap, target).mean(1)

    inner = [average(tap, lambda _, z: z * torch.tensor(chosen)) for tap in taps]
    end = average(outer, lambda y, _: torch.log_softmax(y, 1)).abs().mean(1)
    return -(torch.cat(inner, 1) ** 2).mean(1).numpy() / end.numpy()
