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
