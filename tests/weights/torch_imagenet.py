"""ImageNet's networks in PyTorch, with the names of torchvision's modules and weights.

They are written out, since torchvision's package fits one build of PyTorch only. Their names and
shapes are compared with torchvision's own (`STATES` in `test_convert_torch.py`).
"""

from collections import OrderedDict

import pytest

torch = pytest.importorskip("torch", reason="the networks to compare with are PyTorch's")
from torch import nn  # noqa: E402


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
        self.relu = nn.ReLU()
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
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class ImageNetResNet(nn.Module):
    def __init__(self, blocks, bottleneck=False, classes=1000):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 64, 7, 2), nn.BatchNorm2d(64)
        self.relu, self.maxpool = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        inputs = 64
        for stage, count in enumerate(blocks):
            width, layers = 64 * 2**stage, []
            for index in range(count):
                stride = 2 if stage and not index else 1
                layers.append(Block(inputs, width, stride, bottleneck))
                inputs = 4 * width if bottleneck else width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
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
