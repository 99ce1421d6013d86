"""Small networks of Flax Linen, each written as a function of images."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import si_jax

CONSTANTS = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


class Written(nn.Module):
    """A network whose layers a function calls, as a compact method does."""

    function: Callable

    @nn.compact
    def __call__(self, *args, **kwargs):
        return self.function(*args, **kwargs)


def written(network, size=8, *, change=lambda x: x, **options):
    """A model of such a function, or of a Linen module, with the weights that it begins with."""
    module = network if isinstance(network, nn.Module) else Written(network)
    options = CONSTANTS | options
    images = jnp.zeros((1, size, size, np.size(options["mean"])))
    variables = module.init(jax.random.key(0), images, **options.get("call_kwargs", {}))
    return si_jax.Model(module, change(variables), size, **options)


TORCH = {"scale": "weight", "kernel": "weight", "mean": "running_mean", "var": "running_var"}
"""Linen's names of weights -> PyTorch's."""


def transposed(leaf):
    """A kernel with its output channels first, as PyTorch and Equinox have them."""
    return np.transpose(leaf, {4: (3, 2, 0, 1), 2: (1, 0)}.get(leaf.ndim, (0,)))


def torch_state(variables):
    """PyTorch's names of a Linen network's variables -> arrays in its order."""
    state = {}
    for path, leaf in jax.tree.leaves_with_path(variables):
        *place, name = [key.key for key in path[1:]]
        state[".".join([*place, TORCH.get(name, name)])] = transposed(leaf)
    return state
