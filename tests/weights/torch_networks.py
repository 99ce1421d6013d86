"""PyTorch networks to compare with, and what is taken of them: random weights, logits, gradients.

The networks follow the papers and carry the names of the published checkpoints.
"""

from collections import OrderedDict

import pytest

torch = pytest.importorskip("torch", reason="the networks to compare with are PyTorch's")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from benchmarks.torch_networks import CifarResNet, Pad, Wide, Wrn  # noqa: E402, F401

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
