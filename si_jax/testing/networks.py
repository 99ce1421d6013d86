"""Small networks of several kinds, with random weights, on images of 8x8 pixels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from si_jax.model import Model

SIZE, CLASSES = 8, 4


class Small(nn.Module):
    """Two convolutions, a norm and an activation behind each, a pool and a linear head."""

    classes: int = CLASSES
    width: int = 8
    activation: Callable = nn.relu
    dtype: Any = jnp.float32
    bias: bool = True
    block: Callable = lambda block: block

    @nn.compact
    def __call__(self, x):
        """Logits of images."""
        block = self.block(Block)
        x = block(6, 2, self.activation, self.dtype, name="block1")(x)
        x = block(self.width, 1, self.activation, self.dtype, name="block2")(x)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.classes, use_bias=self.bias, dtype=self.dtype, name="head")(x)


class Block(nn.Module):
    """A convolution, a norm and an activation."""

    width: int
    stride: int
    activation: Callable
    dtype: Any

    @nn.compact
    def __call__(self, x):
        """The block's feature map."""
        strides = (self.stride, self.stride)
        x = nn.Conv(self.width, (3, 3), strides, dtype=self.dtype, name="conv")(x)
        x = nn.GroupNorm(2, dtype=self.dtype, name="norm")(x)
        return self.activation(x)


NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bfloat16": {"dtype": jnp.bfloat16},
    "remat": {"block": nn.remat},
    "no ReLU": {"activation": nn.gelu},
    "no bias": {"bias": False},
    "two classes": {"classes": 2},
}
"""Kind of network -> what distinguishes it from the plain one."""


def small_model(kind: str = "plain", *, seed: int = 0) -> Model:
    """A network of a kind in `NETWORKS`, with random weights."""
    module = Small(**NETWORKS[kind])
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    rng = np.random.default_rng(seed)

    def draw(leaf):
        if leaf.ndim == 1:
            return rng.normal(0.3, 0.3, leaf.shape).astype(np.float32)
        spread = 2 / np.sqrt(np.prod(leaf.shape[:-1]))
        return rng.normal(0, spread, leaf.shape).astype(np.float32)

    return Model(
        module,
        jax.tree.map(draw, shapes),
        input_size=(SIZE, SIZE),
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.25, 0.3),
        head="head",
        name=f"small, {kind}",
    )
