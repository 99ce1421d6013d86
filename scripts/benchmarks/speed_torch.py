"""What a PyTorch user would run instead, to be timed beside this library.

Written from the definitions: the plain forward pass; GAIA-Z by backward hooks, one forward and one
backward pass; and S&I-Z as a loop over the taps, in which each tap's output is replaced and the
network is run again for each step.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from si_jax.models import architecture

STEPS, STEP_SIZE = 2, 1 / 255


def programs(name: str, input_size: tuple[int, int], batch_size: int) -> dict[str, Callable]:
    """Title -> function without arguments that runs one batch of random images to its scores.

    Args:
        name: a CIFAR ResNet or a WRN of `si_jax.models.ARCHITECTURES`.
        input_size: height and width of the images.
        batch_size: images per call.

    Raises:
        ValueError: if PyTorch is not installed, or the network is another one.
    """
    if not name.startswith(("resnet", "wrn")):
        raise ValueError(f"model (={name!r}): only ResNets and WRNs are compared with PyTorch")
    try:
        import torch
    except ImportError:
        raise ValueError(
            'a comparison with PyTorch needs it: run `pip install "si-jax[torch]"`'
        ) from None
    torch.manual_seed(0)
    network, taps = _network(torch, name)
    network.eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    images = torch.randn(batch_size, 3, *input_size)
    return {
        "PyTorch: forward pass": lambda: _logits(torch, network, images),
        "PyTorch: gaia-z by hooks": lambda: gaia_z(torch, network, taps, images),
        "PyTorch: si-z, multiply, tap by tap": lambda: si_z(torch, network, taps, images),
    }


def _logits(torch: Any, network: Any, images: Any) -> np.ndarray:
    with torch.inference_mode():
        return network(images).numpy()


def gaia_z(torch: Any, network: Any, taps: Any, images: Any) -> np.ndarray:
    """Minus the mean squared share of non-zero gradients, by hooks: (batch,) scores."""
    outputs: list[Any] = []

    def keep(module, inputs, output):
        output = output if output.requires_grad else output.requires_grad_()
        outputs.append(output)
        return output

    handles = [tap.register_forward_hook(keep) for tap in taps]
    try:
        largest = network(images).max(dim=1).values.sum()
    finally:
        for handle in handles:
            handle.remove()
    return _score(torch, torch.autograd.grad(largest, outputs))


def si_z(torch: Any, network: Any, taps: Any, images: Any) -> np.ndarray:
    """S&I-Z with two steps that are multiplied, each tap on its own: (batch,) scores."""
    products = []
    for tap in taps:
        z, labels, product = None, None, None
        for step in range(STEPS):
            logits, z = _replaced(network, tap, images, z)
            labels = logits.argmax(dim=1) if labels is None else labels
            last = step == STEPS - 1
            (g,) = torch.autograd.grad(logits.max(dim=1).values.sum(), z, retain_graph=not last)
            product = g if product is None else product * g
            if not last:
                loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
                (up,) = torch.autograd.grad(loss, z)
                z = z.detach() + STEP_SIZE * up.sign()
        products.append(product)
    return _score(torch, products)


def _replaced(network: Any, tap: Any, images: Any, z: Any) -> tuple[Any, Any]:
    """Logits with the tap's output replaced by `z` (None: its own), and that output, a leaf."""
    leaf = []

    def replace(module, inputs, output):
        leaf.append((output if z is None else z).detach().requires_grad_())
        return leaf[0]

    handle = tap.register_forward_hook(replace)
    try:
        return network(images), leaf[0]
    finally:
        handle.remove()


def _score(torch: Any, gradients: Any) -> np.ndarray:
    densities = torch.cat([(g != 0).float().mean(dim=(2, 3)) for g in gradients], dim=1)
    return -(densities**2).mean(dim=1).numpy()


def _network(torch: Any, name: str) -> tuple[Any, list[Any]]:
    """A network with random weights, and the layers that S&I-Z taps but for a pooled one."""
    options = architecture(name).options
    classes = architecture(name).num_classes
    if name.startswith("resnet"):
        network = _resnet(torch, options["blocks"], options["widths"], classes)
        norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        return network, [network[0], *norms[1:]]  # the stem's convolution, not its norm
    network = _wide(torch, options["depth"], options["widen"], classes)
    return network, [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def _conv(torch: Any, before: int, width: int, size: int, stride: int = 1) -> Any:
    return torch.nn.Conv2d(before, width, size, stride, size // 2, bias=False)


def _resnet(torch: Any, blocks: Any, widths: Any, classes: int) -> Any:
    nn = torch.nn
    base: Any = nn.Module

    class Block(base):
        def __init__(self, before, width, stride):
            super().__init__()
            self.conv1, self.bn1 = _conv(torch, before, width, 3, stride), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = _conv(torch, width, width, 3), nn.BatchNorm2d(width)
            same = stride == 1 and before == width
            self.shortcut = nn.Sequential()
            if not same:
                self.shortcut = nn.Sequential(
                    _conv(torch, before, width, 1, stride), nn.BatchNorm2d(width)
                )

        def forward(self, x):
            out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
            return (out + self.shortcut(x)).relu()

    layers = [_conv(torch, 3, widths[0], 3), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    before = widths[0]
    for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
        for index in range(count):
            layers.append(Block(before, width, 2 if stage and not index else 1))
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def _wide(torch: Any, depth: int, widen: int, classes: int) -> Any:
    nn = torch.nn
    base: Any = nn.Module

    class Block(base):
        def __init__(self, before, width, stride):
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(before), _conv(torch, before, width, 3, stride)
            self.bn2, self.conv2 = nn.BatchNorm2d(width), _conv(torch, width, width, 3)
            self.shortcut = None if before == width else _conv(torch, before, width, 1, stride)

        def forward(self, x):
            out = self.bn1(x).relu()
            x = x if self.shortcut is None else self.shortcut(out)
            return x + self.conv2(self.bn2(self.conv1(out)).relu())

    layers, before = [_conv(torch, 3, 16, 3)], 16
    for stage, width in enumerate((16 * widen, 32 * widen, 64 * widen)):
        for index in range((depth - 4) // 6):
            layers.append(Block(before, width, 2 if stage and not index else 1))
            before = width
    end = [nn.BatchNorm2d(before), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *end, nn.Linear(before, classes))
