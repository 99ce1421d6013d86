"""One small residual network in every framework, with the same weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import si_jax

IMAGE = {"input_size": (8, 8), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
WIDTH, CLASSES, EPSILON = 6, 4, 1e-5


class LinenBlock(linen.Module):
    @linen.compact
    def __call__(self, x):
        y = linen.Conv(WIDTH, (3, 3), use_bias=False, name="conv")(x)
        y = linen.BatchNorm(use_running_average=True, epsilon=EPSILON, name="bn")(y)
        return linen.relu(x + y)


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(WIDTH, (3, 3), use_bias=False, name="stem")(x)
        x = linen.BatchNorm(use_running_average=True, epsilon=EPSILON, name="bn")(x)
        x = LinenBlock(name="block")(linen.relu(x))
        return linen.Dense(CLASSES, name="head")(x.mean((1, 2)))


class NNXBlock(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(WIDTH, WIDTH, (3, 3), use_bias=False, rngs=rngs)
        self.bn = nnx.BatchNorm(WIDTH, epsilon=EPSILON, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(x + self.bn(self.conv(x)))


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, WIDTH, (3, 3), use_bias=False, rngs=rngs)
        self.bn = nnx.BatchNorm(WIDTH, epsilon=EPSILON, rngs=rngs)
        self.block = NNXBlock(rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = self.block(nnx.relu(self.bn(self.stem(x))))
        return self.head(self.dropout(x.mean((1, 2))))


@functools.cache
def variables():
    """Random weights and statistics, as Linen has them."""
    shapes = jax.eval_shape(LinenNet().init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    rng = np.random.default_rng(5)

    def draw(path, leaf):
        x = rng.standard_normal(leaf.shape).astype(np.float32)
        return np.abs(x) + 0.5 if path[-1].key in ("scale", "var") else 0.4 * x

    return jax.tree.map_with_path(draw, shapes)


@functools.cache
def weights():
    """Path such as `block/bn/scale` -> array."""
    leaves = jax.tree.leaves_with_path(variables())
    return {"/".join(key.key for key in path[1:]): leaf for path, leaf in leaves}


def transposed(leaf):
    """A kernel with its output channels first, as Equinox and PyTorch have them."""
    return leaf.transpose({4: (3, 2, 0, 1), 2: (1, 0)}.get(leaf.ndim, (0,)))


def linen_model():
    return si_jax.Model(LinenNet(), variables(), **IMAGE)


def nnx_model():
    graph, params, stats, rest = nnx.split(NNXNet(nnx.Rngs(0)), nnx.Param, nnx.BatchStat, ...)
    nnx.replace_by_pure_dict(params, variables()["params"])
    nnx.replace_by_pure_dict(stats, variables()["batch_stats"])
    return si_jax.Model(nnx.merge(graph, params, stats, rest), **IMAGE)


def keras_model():
    import keras

    class Block(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.conv = keras.layers.Conv2D(WIDTH, 3, padding="same", use_bias=False, name="conv")
            self.bn = keras.layers.BatchNormalization(epsilon=EPSILON, name="bn")

        def call(self, x):
            return keras.ops.relu(x + self.bn(self.conv(x)))

    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(WIDTH, 3, padding="same", use_bias=False, name="stem")(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(epsilon=EPSILON, name="bn")(x))
    x = keras.layers.GlobalAveragePooling2D()(Block(name="block")(x))
    net = keras.Model(inputs, keras.layers.Dense(CLASSES, name="head")(x))
    names = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}
    for variable in net.variables:
        place, _, name = variable.path.rpartition("/")
        variable.assign(weights()[f"{place}/{names.get(name, name)}"])
    return si_jax.Model(net, **IMAGE)


def equinox_model():
    import equinox as eqx

    class Block(eqx.Module):
        conv: eqx.nn.Conv2d
        bn: eqx.nn.BatchNorm

        def __init__(self, key):
            self.conv = eqx.nn.Conv2d(WIDTH, WIDTH, 3, padding=1, use_bias=False, key=key)
            self.bn = eqx.nn.BatchNorm(WIDTH, "batch", EPSILON, mode="ema")

        def __call__(self, x, state):
            y, state = self.bn(self.conv(x), state)
            return jax.nn.relu(x + y), state

    class Net(eqx.Module):
        stem: eqx.nn.Conv2d
        bn: eqx.nn.BatchNorm
        block: Block
        dropout: eqx.nn.Dropout
        head: eqx.nn.Linear

        def __init__(self, key):
            self.stem = eqx.nn.Conv2d(3, WIDTH, 3, padding=1, use_bias=False, key=key)
            self.bn = eqx.nn.BatchNorm(WIDTH, "batch", EPSILON, mode="ema")
            self.block = Block(key)
            self.dropout = eqx.nn.Dropout(0.5)
            self.head = eqx.nn.Linear(WIDTH, CLASSES, key=key)

        def __call__(self, x, state, key=None):
            x, state = self.bn(self.stem(x), state)
            x, state = self.block(jax.nn.relu(x), state)
            return self.head(self.dropout(x.mean((1, 2)), key=key)), state

    net, state = eqx.nn.make_with_state(Net)(jax.random.key(0))

    def put(path, leaf):
        *place, name = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        if name == "weight":
            name = "scale" if leaf.ndim == 1 else "kernel"
        found = weights().get("/".join([*place, name]))
        return leaf if found is None else jnp.asarray(transposed(found))

    net = jax.tree.map_with_path(put, net)
    for bn, path in ((net.bn, "bn"), (net.block.bn, "block/bn")):
        statistics = weights()[f"{path}/mean"], weights()[f"{path}/var"]
        state = state.set(bn.ema_state_index, statistics)
    return si_jax.Model(net, state, **IMAGE)


def torch_model():
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
            return self.head(self.dropout(x.mean((2, 3))))

    names = {"scale": "weight", "kernel": "weight", "mean": "running_mean", "var": "running_var"}
    state = {}
    for path, leaf in weights().items():
        *place, name = path.split("/")
        state[".".join([*place, names.get(name, name)])] = torch.tensor(transposed(leaf))
    net = Net()
    net.load_state_dict(state, strict=False)
    return si_jax.Model(net, **IMAGE)


def function_model():
    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def norm(x, p, s):  # of one rank and dtype, as strict modes want it
        p, s = jax.tree.map(lambda a: a[None, None, None], (p, s))
        return (x - s["mean"]) * (jax.lax.rsqrt(s["var"] + EPSILON) * p["scale"]) + p["bias"]

    def net(variables, x):
        params, stats = variables["params"], variables["batch_stats"]
        x = conv(x, params["stem"]["kernel"])
        x = jax.nn.relu(si_jax.tap(norm(x, params["bn"], stats["bn"]), "bn"))
        y = conv(x, params["block"]["conv"]["kernel"])
        y = si_jax.tap(norm(y, params["block"]["bn"], stats["block"]["bn"]), "block/bn")
        h = si_jax.tap(jax.nn.relu(x + y).mean((1, 2)), "params/head")
        return h @ params["head"]["kernel"] + params["head"]["bias"][None]

    return si_jax.Model(net, variables(), head="params/head", **IMAGE)


NETWORKS = {
    "linen": linen_model,
    "nnx": nnx_model,
    "keras": keras_model,
    "equinox": equinox_model,
    "function": function_model,
    "torch": torch_model,
}
PACKAGES = {"keras": "keras", "equinox": "equinox", "torch": "torchax"}


@functools.cache
def model(framework):
    """The network in a framework; the test is skipped where that is not installed."""
    pytest.importorskip(PACKAGES.get(framework, "flax"))
    return NETWORKS[framework]()
