"""Networks that can be worked out by hand, and images for them."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import si_jax

SIZE, WIDTHS, CLASSES = 6, (7, 9), 5
NAMES = ("si-c", "si-c-forward")


class Net(nn.Module):
    """Two 1x1 convolutions, each with a BatchNorm and a ReLU, so that all can be done by hand."""

    @nn.compact
    def __call__(self, x):
        for number, width in enumerate(WIDTHS, 1):
            x = nn.Dense(width, name=f"conv{number}")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True, name=f"bn{number}")(x))
        return nn.Dense(CLASSES, name="head")(x.mean(axis=(1, 2)))


class Pooled(nn.Module):
    """A norm that no ReLU follows at once."""

    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm(name="norm")(nn.Conv(6, (3, 3), name="conv")(x))
        x = nn.relu(nn.max_pool(x, (2, 2), strides=(2, 2)))
        return nn.Dense(CLASSES, name="head")(x.mean(axis=(1, 2)))


def build(module, seed=0, size=SIZE):
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, size, size, 3)))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 2, leaf.shape).astype(np.float32)
        scale = 0.3 if leaf.ndim == 1 else 1.5 / np.sqrt(np.prod(leaf.shape[:-1]))
        return rng.normal(0, scale, leaf.shape).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    return si_jax.Model(module, variables, (size, size), (0.5,) * 3, (0.25,) * 3, head="head")


def smooth(count, seed, size=SIZE):
    """Images with a colour of their own and some texture."""
    rng = np.random.default_rng(seed)
    colour = rng.integers(30, 226, (count, 1, 1, 3))
    return np.clip(colour + rng.normal(0, 40, (count, size, size, 3)), 0, 255).astype(np.uint8)
