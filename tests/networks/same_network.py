"""One small residual network in every framework, with the same weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
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


def linen_model():
    return si_jax.Model(LinenNet(), variables(), **IMAGE)


def nnx_model():
    net = NNXNet(nnx.Rngs(0))
    params, stats = variables()["params"], variables()["batch_stats"]

    def norm(bn, p, s):
        bn.scale[...], bn.bias[...] = p["scale"], p["bias"]
        bn.mean[...], bn.var[...] = s["mean"], s["var"]

    net.stem.kernel[...] = params["stem"]["kernel"]
    norm(net.bn, params["bn"], stats["bn"])
    net.block.conv.kernel[...] = params["block"]["conv"]["kernel"]
    norm(net.block.bn, params["block"]["bn"], stats["block"]["bn"])
    net.head.kernel[...] = params["head"]["kernel"]
    net.head.bias[...] = params["head"]["bias"]
    return si_jax.Model(net, **IMAGE)


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
    params, stats = variables()["params"], variables()["batch_stats"]

    def norm(p, s):
        return [p["scale"], p["bias"], s["mean"], s["var"]]

    block = net.get_layer("block")
    net.get_layer("stem").set_weights([params["stem"]["kernel"]])
    net.get_layer("bn").set_weights(norm(params["bn"], stats["bn"]))
    block.conv.set_weights([params["block"]["conv"]["kernel"]])
    block.bn.set_weights(norm(params["block"]["bn"], stats["block"]["bn"]))
    net.get_layer("head").set_weights([params["head"]["kernel"], params["head"]["bias"]])
    return si_jax.Model(net, **IMAGE)


def function_model():
    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def norm(x, p, s):
        return (x - s["mean"]) * (jax.lax.rsqrt(s["var"] + EPSILON) * p["scale"]) + p["bias"]

    def net(variables, x):
        params, stats = variables["params"], variables["batch_stats"]
        x = conv(x, params["stem"]["kernel"])
        x = jax.nn.relu(si_jax.tap(norm(x, params["bn"], stats["bn"]), "bn"))
        y = conv(x, params["block"]["conv"]["kernel"])
        y = si_jax.tap(norm(y, params["block"]["bn"], stats["block"]["bn"]), "block/bn")
        h = si_jax.tap(jax.nn.relu(x + y).mean((1, 2)), "params/head")
        return h @ params["head"]["kernel"] + params["head"]["bias"]

    return si_jax.Model(net, variables(), head="params/head", **IMAGE)


OTHERS = {"nnx": nnx_model, "keras": keras_model, "function": function_model}
