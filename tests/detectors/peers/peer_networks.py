"""What the tests of the peers share: their names, options, and small networks."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import si_jax

CLASSES, FEATURES = 4, 10
SMALLER = {"knn": {"k": 5}, "lts": {"percentile": 65.0}}
"""Options for few images and features, where the defaults are too large."""


class Tiny(nn.Module):
    bias: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3), strides=2, name="conv1")(x))
        x = nn.Conv(FEATURES, (3, 3), name="conv2")(x)
        x = jnp.mean(nn.relu(x), axis=(1, 2))
        return nn.Dense(CLASSES, use_bias=self.bias, name="head")(x)


class Flat(nn.Module):
    """No feature map at all."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(5, name="hidden")(x.reshape(len(x), -1)))
        return nn.Dense(CLASSES, name="head")(x)


def build(module, seed=0):
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    rng = np.random.default_rng(seed)

    def draw(leaf):
        scale = 0.3 if leaf.ndim == 1 else 2 / np.sqrt(np.prod(leaf.shape[:-1]))
        return rng.normal(0, scale, leaf.shape).astype(np.float32)

    variables = jax.tree.map(draw, shapes)
    return si_jax.Model(module, variables, (8, 8), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), head="head")


def close(actual, expected, rtol=2e-5, atol=2e-5):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def numpy_gradient(model, images, objective):
    x = model.normalise(jnp.asarray(images))
    return np.asarray(jax.grad(lambda x: objective(model.module.apply(model.variables, x)))(x)), x
