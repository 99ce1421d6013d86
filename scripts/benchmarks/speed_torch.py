"""What a PyTorch user would run instead, to be timed beside this library.

Written from the definitions: the plain forward pass; GAIA-Z by backward hooks, one forward and one
backward pass; and S&I-Z as a loop over the taps, in which each tap's output is replaced and the
network is run again for each step.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.torch_networks import CifarResNet, Wrn
from si_jax.model import Model
from si_jax.models import architecture

STEPS, STEP_SIZE = 2, 1 / 255


def programs(name: str, input_size: tuple[int, int], batch_size: int) -> dict[str, Callable]:
    """Title -> function without arguments that runs one batch of random images to its scores.

    Args:
        name: a CIFAR ResNet or a WRN of `si_jax.models.ARCHITECTURES`.
        input_size: height and width of the images.
        batch_size: images per call.

    Raises:
        ValueError: if the network is another one.
    """
    torch.manual_seed(0)
    network, taps = _network(name)
    network.eval().requires_grad_(False)
    images = torch.randn(batch_size, 3, *input_size)
    model = Model(network, None, input_size, (0.0,) * 3, (1.0,) * 3)
    last = images.permute(0, 2, 3, 1).numpy()
    return {
        "by torchax: forward pass": lambda: model.run(last, batch_size=batch_size)["logits"],
        "PyTorch: forward pass": lambda: _logits(network, images),
        "PyTorch: gaia-z by hooks": lambda: gaia_z(network, taps, images),
        "PyTorch: si-z, multiply, tap by tap": lambda: si_z(network, taps, images),
    }


@torch.inference_mode()
def _logits(network: nn.Module, images: Tensor) -> np.ndarray:
    return network(images).numpy()


def gaia_z(network: nn.Module, taps: Sequence[nn.Module], images: Tensor) -> np.ndarray:
    """Minus the mean squared share of non-zero gradients, by hooks: (batch,) scores."""
    outputs: list[Tensor] = []

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
    return _score(torch.autograd.grad(largest, outputs))


def si_z(network: nn.Module, taps: Sequence[nn.Module], images: Tensor) -> np.ndarray:
    """S&I-Z with two steps that are multiplied, each tap on its own: (batch,) scores."""
    products: list[Tensor] = []
    for tap in taps:
        z, labels, product = None, None, torch.ones(())
        for step in range(STEPS):
            logits, z = _replaced(network, tap, images, z)
            labels = logits.argmax(dim=1) if labels is None else labels
            last = step == STEPS - 1
            (g,) = torch.autograd.grad(logits.max(dim=1).values.sum(), z, retain_graph=not last)
            product = product * g
            if not last:
                loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
                (up,) = torch.autograd.grad(loss, z)
                z = z.detach() + STEP_SIZE * up.sign()
        products.append(product)
    return _score(products)


def _replaced(
    network: nn.Module, tap: nn.Module, images: Tensor, z: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Logits with the tap's output replaced by `z` (None: its own), and that output, a leaf."""
    leaf: list[Tensor] = []

    def replace(module, inputs, output):
        leaf.append((output if z is None else z).detach().requires_grad_())
        return leaf[0]

    handle = tap.register_forward_hook(replace)
    try:
        return network(images), leaf[0]
    finally:
        handle.remove()


def _score(gradients: Sequence[Tensor]) -> np.ndarray:
    densities = torch.cat([(g != 0).float().mean(dim=(2, 3)) for g in gradients], dim=1)
    return -(densities**2).mean(dim=1).numpy()


def _network(name: str) -> tuple[nn.Module, list[nn.Module]]:
    """A network with random weights, and the layers that S&I-Z taps but for a pooled one."""
    arch = architecture(name)
    options = arch.options
    if "depth" in options and "widen" in options:
        wide = Wrn(arch.num_classes, options["depth"], options["widen"])
        return wide, _norms(wide)
    if options.get("stem") != "cifar" or options["bottleneck"]:
        raise ValueError(f"model (={name!r}): only CIFAR's ResNets and WRNs are compared")
    network = CifarResNet(arch.num_classes, options["blocks"], options["widths"], "conv")
    return network, [network.conv1, *_norms(network)[1:]]  # the stem's convolution, not its norm


def _norms(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
