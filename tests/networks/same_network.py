"""One small residual network in every framework, with the same weights, and with what none may do.

`does` is "good", or what the network does at its end: "none" has no linear layer, "twice" calls its
head twice, "chance" draws random numbers at inference.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from small_networks import Written

import si_jax

IMAGE = {"input_size": (8, 8), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
WIDTH, CLASSES, EPSILON = 6, 4, 1e-5


def ended(does, x, head, chance):
    """The logits of pooled features, or what a network gives in their place."""
    if does == "none":
        return x * x
    x = chance(x) if does == "chance" else x
    return head(x) + head(2 * x) if does == "twice" else head(x)


def linen_module(does):
    def normed(x, name):
        x = nn.Conv(WIDTH, (3, 3), use_bias=False, name=name)(x)
        return nn.BatchNorm(use_running_average=True, epsilon=EPSILON, name="bn")(x)

    def net(x):
        block = Written(lambda x: nn.relu(x + normed(x, "conv")), name="block")
        x = block(nn.relu(normed(x, "stem"))).mean((1, 2))
        chance = nn.Dropout(0.5, deterministic=False)
        return ended(does, x, nn.Dense(CLASSES, name="head"), chance)

    return Written(net)


@functools.cache
def variables(dtype=jnp.float32):
    """Random weights and statistics, as Linen has them."""
    module, images = linen_module("good"), jnp.zeros((1, 8, 8, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    rng = np.random.default_rng(5)

    def draw(path, leaf):
        x = rng.standard_normal(leaf.shape).astype(np.float32)
        x = np.abs(x) + 0.5 if path[-1].key in ("scale", "var") else 0.4 * x
        return x.astype(dtype)

    return jax.tree.map_with_path(draw, shapes)


def weights(dtype=jnp.float32):
    """Path such as `block/bn/scale` -> array."""
    leaves = jax.tree.leaves_with_path(variables(dtype))
    return {"/".join(key.key for key in path[1:]): leaf for path, leaf in leaves}


def transposed(leaf):
    """A kernel with its output channels first, as PyTorch and Equinox have them."""
    return leaf.transpose({4: (3, 2, 0, 1), 2: (1, 0)}.get(leaf.ndim, (0,)))


def linen(does="good", dtype=jnp.float32):
    return linen_module(does), variables(dtype)


class NNXBlock(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(WIDTH, WIDTH, (3, 3), use_bias=False, rngs=rngs)
        self.bn = nnx.BatchNorm(WIDTH, epsilon=EPSILON, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(x + self.bn(self.conv(x)))


class NNXNet(nnx.Module):
    def __init__(self, does="good"):
        self.does, self.rngs = does, nnx.Rngs(0)
        self.stem = nnx.Conv(3, WIDTH, (3, 3), use_bias=False, rngs=self.rngs)
        self.bn = nnx.BatchNorm(WIDTH, epsilon=EPSILON, rngs=self.rngs)
        self.block = NNXBlock(self.rngs)
        self.dropout = nnx.Dropout(0.5, rngs=self.rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=self.rngs)

    def __call__(self, x):
        x = self.dropout(self.block(nnx.relu(self.bn(self.stem(x)))).mean((1, 2)))
        chance = lambda x: x + jax.random.normal(self.rngs.noise(), x.shape)  # noqa: E731
        return ended(self.does, x, self.head, chance)


def in_nnx(does="good", dtype=jnp.float32):
    graph, params, stats, rest = nnx.split(NNXNet(does), nnx.Param, nnx.BatchStat, ...)
    nnx.replace_by_pure_dict(params, variables(dtype)["params"])
    nnx.replace_by_pure_dict(stats, variables(dtype)["batch_stats"])
    return (nnx.merge(graph, params, stats, rest),)


def in_keras(does="good", dtype=jnp.float32):
    import keras

    policy = {"dtype": jnp.dtype(dtype).name}

    def conv(name):
        options = {"padding": "same", "use_bias": False, "name": name, **policy}
        return keras.layers.Conv2D(WIDTH, 3, **options)

    def norm():
        return keras.layers.BatchNormalization(epsilon=EPSILON, name="bn", **policy)

    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="block", **policy)
            self.conv, self.bn = conv("conv"), norm()

        def call(self, x):
            return keras.ops.relu(x + self.bn(self.conv(x)))

    class Noise(keras.layers.Layer):
        def __init__(self):
            super().__init__(**policy)
            self.seed = keras.random.SeedGenerator(1)

        def call(self, x):
            return x + keras.random.normal(keras.ops.shape(x), seed=self.seed)

    inputs = keras.Input((8, 8, 3))
    x = Block()(keras.layers.ReLU(**policy)(norm()(conv("stem")(inputs))))
    x = keras.layers.GlobalAveragePooling2D(**policy)(x)
    head = keras.layers.Dense(CLASSES, name="head", **policy)
    net = keras.Model(inputs, ended(does, x, head, Noise()))
    names = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}
    for variable in net.weights:
        place, _, name = variable.path.rpartition("/")
        if place:
            variable.assign(weights(dtype)[f"{place}/{names.get(name, name)}"])
    return (net,)


def in_equinox(does="good", dtype=jnp.float32):
    import equinox as eqx

    key = jax.random.key(0)

    def conv(inputs):
        return eqx.nn.Conv2d(inputs, WIDTH, 3, padding=1, use_bias=False, key=key)

    def norm():
        return eqx.nn.BatchNorm(WIDTH, "batch", EPSILON, mode="ema")

    class Block(eqx.Module):
        conv: eqx.nn.Conv2d
        bn: eqx.nn.BatchNorm

        def __call__(self, x, state):
            y, state = self.bn(self.conv(x), state)
            return jax.nn.relu(x + y), state

    class Net(eqx.Module):
        stem: eqx.nn.Conv2d
        bn: eqx.nn.BatchNorm
        block: Block
        dropout: eqx.nn.Dropout
        head: eqx.nn.Linear

        def __call__(self, x, state, key=None):
            x, state = self.bn(self.stem(x), state)
            x, state = self.block(jax.nn.relu(x), state)
            x = self.dropout(x.mean((1, 2)), key=key)
            chance = lambda x: x + jax.random.normal(key, x.shape)  # noqa: E731
            return ended(does, x, self.head, chance), state

    def make():
        head = eqx.nn.Linear(WIDTH, CLASSES, key=key)
        return Net(conv(3), norm(), Block(conv(WIDTH), norm()), eqx.nn.Dropout(0.5), head)

    net, state = eqx.nn.make_with_state(make)()

    def put(path, leaf):
        *place, name = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        if name == "weight":
            name = "scale" if leaf.ndim == 1 else "kernel"
        found = weights(dtype).get("/".join([*place, name]))
        return leaf if found is None else jnp.asarray(transposed(found))

    net = jax.tree.map_with_path(put, net)
    for bn, path in ((net.bn, "bn"), (net.block.bn, "block/bn")):
        statistics = [jnp.asarray(weights()[f"{path}/{name}"]) for name in ("mean", "var")]
        state = state.set(bn.ema_state_index, tuple(statistics))
    return net, state


def in_torch(does="good", dtype=jnp.float32):
    import torch
    from torch import nn

    def conv(inputs):
        return nn.Conv2d(inputs, WIDTH, 3, padding=1, bias=False)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = conv(WIDTH), nn.BatchNorm2d(WIDTH, EPSILON)

        def forward(self, x):
            return torch.relu(x + self.bn(self.conv(x)))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.bn, self.block = conv(3), nn.BatchNorm2d(WIDTH, EPSILON), Block()
            self.dropout, self.head = nn.Dropout(), nn.Linear(WIDTH, CLASSES)

        def forward(self, x):
            x = self.block(torch.relu(self.bn(self.stem(x))))
            x = self.dropout(x.mean((2, 3)))
            return ended(does, x, self.head, nn.functional.dropout)

    names = {"scale": "weight", "kernel": "weight", "mean": "running_mean", "var": "running_var"}
    net, state = Net(), {}
    for path, leaf in weights().items():
        *place, name = path.split("/")
        state[".".join([*place, names.get(name, name)])] = torch.tensor(transposed(leaf))
    net.load_state_dict(state, strict=False)
    return (net.to(getattr(torch, jnp.dtype(dtype).name)),)


def function(does="good", dtype=jnp.float32):
    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel.astype(x.dtype), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def norm(x, p, s):  # of one rank and dtype, as strict modes want it
        p, s = jax.tree.map(lambda a: a[None, None, None].astype(x.dtype), (p, s))
        return (x - s["mean"]) * (jax.lax.rsqrt(s["var"] + EPSILON) * p["scale"]) + p["bias"]

    def net(variables, x):
        params, stats = variables["params"], variables["batch_stats"]

        def head(h):
            h = si_jax.tap(h, "params/head")
            return h @ params["head"]["kernel"].astype(h.dtype) + params["head"]["bias"][
                None
            ].astype(h.dtype)

        x = conv(x, params["stem"]["kernel"])
        x = jax.nn.relu(si_jax.tap(norm(x, params["bn"], stats["bn"]), "bn"))
        y = conv(x, params["block"]["conv"]["kernel"])
        y = si_jax.tap(norm(y, params["block"]["bn"], stats["block"]["bn"]), "block/bn")
        return ended(does, jax.nn.relu(x + y).mean((1, 2)), head, None)

    return net, variables(dtype)


NETWORKS = {
    "linen": linen,
    "nnx": in_nnx,
    "keras": in_keras,
    "equinox": in_equinox,
    "function": function,
    "torch": in_torch,
}
PACKAGES = {"keras": "keras", "equinox": "equinox", "torch": "torchax"}
"""What must be installed; the test is skipped where it is not."""


def made(framework, does="good", dtype=jnp.float32):
    """The network in a framework, and its variables where they lie apart."""
    pytest.importorskip(PACKAGES.get(framework, "flax"))
    return NETWORKS[framework](does, dtype)


def fresh_model(framework):
    head = "params/head" if framework == "function" else None
    return si_jax.Model(*made(framework), **IMAGE, head=head)


model = functools.cache(fresh_model)
