"""ResNets and Wide ResNets in PyTorch, which carry the names of the published checkpoints."""

from torch import nn
from torch.nn import functional


class Pad(nn.Module):
    """The parameter-free shortcut: every second position, new channels of zeros on both sides."""

    def __init__(self, stride, before, after):
        super().__init__()
        self.stride, self.before, self.after = stride, before, after

    def forward(self, x):  # noqa: D102
        x = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(x, (0, 0, 0, 0, self.before, self.after))


class Basic(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

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

    def forward(self, x):  # noqa: D102
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """A ResNet for small images; the shortcut is `"conv"` or `"pad"`."""

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

    def forward(self, x):  # noqa: D102
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.linear(x.mean((2, 3)))


class Wide(nn.Module):
    """A block of a WRN, its norms before the convolutions."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.bn1, self.relu1 = nn.BatchNorm2d(inputs), nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(width), nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.convShortcut = None
        if inputs != width:
            self.convShortcut = nn.Conv2d(inputs, width, 1, stride, bias=False)

    def forward(self, x):  # noqa: D102
        out = self.relu1(self.bn1(x))
        if self.convShortcut is not None:
            x = self.convShortcut(out)
        return x + self.conv2(self.relu2(self.bn2(self.conv1(out))))


class WideStage(nn.Module):
    """Blocks under the name `layer`."""

    def __init__(self, *blocks):
        super().__init__()
        self.layer = nn.Sequential(*blocks)

    def forward(self, x):  # noqa: D102
        return self.layer(x)


class Mean(nn.Module):
    """Mean over the positions."""

    def forward(self, x):  # noqa: D102
        return x.mean((2, 3))


class Wrn(nn.Module):
    """A Wide ResNet."""

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

    def forward(self, x):  # noqa: D102
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(self.pool(self.relu(self.bn1(x))))
