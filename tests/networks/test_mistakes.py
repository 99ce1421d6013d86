"""What is said of a network that cannot be served, in each framework."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import si_jax

SIZE = {"input_size": 4, "mean": (0.5,) * 3, "std": (0.25,) * 3}
pytestmark = pytest.mark.usefixtures("quick_to_compile")

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)

# What each network does: "none" has no linear layer, "twice" calls its head twice, "chance" draws
# random numbers at inference, "good" is as it should be.


def linen(does, dtype=jnp.float32):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.LayerNorm(name="norm")(x.mean((1, 2)))
            if does == "none":
                return x
            if does == "chance":
                x = nn.Dropout(0.5, deterministic=False)(x)
            head = nn.Dense(3, name="head")
            return head(x) + head(2 * x) if does == "twice" else head(x)

    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = Net().init(keys, jnp.zeros((1, 4, 4, 3)))
    return Net(), jax.tree.map(lambda x: x.astype(dtype), variables)


class NNXNet(nnx.Module):
    def __init__(self, does, dtype):
        rngs = nnx.Rngs(0, noise=1)
        self.norm = nnx.LayerNorm(3, param_dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(3, 3, param_dtype=dtype, rngs=rngs)
        self.rngs, self.does = rngs, does

    def __call__(self, x):
        x = self.norm(x.mean((1, 2)))
        if self.does == "none":
            return x
        if self.does == "chance":
            x = x + jax.random.normal(self.rngs.noise(), x.shape)
        return self.head(x) + self.head(2 * x) if self.does == "twice" else self.head(x)


def in_nnx(does, dtype=jnp.float32):
    return (NNXNet(does, dtype),)


def in_keras(does, dtype=jnp.float32):
    keras = pytest.importorskip("keras")

    class Noise(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.seed = keras.random.SeedGenerator(1)

        def call(self, x):
            return x + keras.random.normal(keras.ops.shape(x), seed=self.seed)

    policy = jnp.dtype(dtype).name
    norm = keras.layers.LayerNormalization(name="norm", dtype=policy)
    head = keras.layers.Dense(3, name="head", dtype=policy)
    inputs = keras.Input((4, 4, 3))
    x = norm(keras.layers.GlobalAveragePooling2D()(inputs))
    if does == "chance":
        x = Noise()(x)
    if does != "none":
        x = head(x) + head(2 * x) if does == "twice" else head(x)
    return (keras.Model(inputs, x),)


def in_equinox(does, dtype=jnp.float32):
    eqx = pytest.importorskip("equinox")

    class EquinoxNet(eqx.Module):
        conv: eqx.nn.Conv2d
        norm: eqx.nn.LayerNorm
        head: eqx.nn.Linear

        def __call__(self, x, key=None):
            x = self.norm(self.conv(x).mean((1, 2)))
            if does == "none":
                return x
            if does == "chance":
                x = x + jax.random.normal(key, x.shape)
            return self.head(x) + self.head(2 * x) if does == "twice" else self.head(x)

    key = jax.random.key(0)
    layers = eqx.nn.Conv2d(3, 3, 1, key=key), eqx.nn.LayerNorm(3), eqx.nn.Linear(3, 3, key=key)
    convert = lambda x: x.astype(dtype) if eqx.is_array(x) else x  # noqa: E731
    return (jax.tree.map(convert, EquinoxNet(*layers)),)


def in_torch(does, dtype=jnp.float32):
    pytest.importorskip("torchax")
    import torch
    from torch import nn

    class TorchNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = nn.LayerNorm(3), nn.Linear(3, 3)

        def forward(self, x):
            x = self.norm(x.mean((2, 3)))
            if does == "none":
                return torch.tanh(x)
            if does == "chance":
                x = nn.functional.dropout(x)
            return self.head(x) + self.head(2 * x) if does == "twice" else self.head(x)

    return (TorchNet().to(getattr(torch, jnp.dtype(dtype).name)),)


def function(does, dtype=jnp.float32):
    weights = np.random.default_rng(0).standard_normal((3, 3), np.float32)

    def net(variables, x):
        x = si_jax.tap(x.mean((1, 2)), "norm")
        for _ in range({"none": 0, "twice": 2}.get(does, 1)):
            x = si_jax.tap(x, "head")
        logits = x @ variables["head"]["w"]
        return jnp.tanh(logits) if does == "none" else logits

    return net, {"head": {"w": jnp.asarray(weights, dtype)}}


FRAMEWORKS = {
    "linen": linen,
    "nnx": in_nnx,
    "keras": in_keras,
    "equinox": in_equinox,
    "torch": in_torch,
    "function": function,
}


@pytest.fixture(params=FRAMEWORKS)
def framework(request):
    return request.param


def refused(network, **options):
    """The one sentence that a network is refused with."""
    with pytest.raises(ValueError) as caught:
        si_jax.Model(*network, **{**SIZE, **options})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_network_without_a_linear_head(framework):
    network = FRAMEWORKS[framework]("none")
    model = si_jax.Model(*network, **SIZE)
    assert model.head is None
    assert np.isfinite(si_jax.make_detector("energy", model).score(IMAGES)).all()
    for name in ("react", "knn", "gaia-a"):
        with pytest.raises(ValueError, match=r"the network has no head: .* give Model head="):
            si_jax.make_detector(name, model)
    with pytest.raises(ValueError, match=r"the network has no head: .*norm"):
        model.features(IMAGES)
    model = si_jax.Model(*network, **SIZE, head="norm")
    with pytest.raises(ValueError, match=r"head \(='norm'\) is not linear: the network's logits"):
        si_jax.make_detector("react", model, threshold=1.0)


def test_a_wrong_head(framework):
    network = FRAMEWORKS[framework]("good")
    told = refused(network, head="haed")
    assert told.startswith("head (='haed') is not called by the network; its sub-modules and taps")
    assert "norm" in told and told.endswith("head")
    if framework != "function":  # where the tap "norm" is the very features
        told = refused(network, head="norm")
        assert told.startswith("head (='norm') does not give the logits; what does is the linear ")
        assert told.endswith(" layer head")


def test_a_head_that_is_called_twice(framework):
    network = FRAMEWORKS[framework]("twice")
    for options in ({}, {"head": "head"}, {"head": "head#1"}):
        told = refused(network, **options)
        assert "is called more than once, so its input is not one set of features: give" in told


CHANCE = {
    "linen": 'needs PRNG for "dropout".*it draws random .*: switch that off by call_kwargs',
    "nnx": r"^the network draws random numbers \(rng\) at inference, so that scores would depend",
    "keras": r"^the network draws random numbers \(rng\) at inference, so that scores would depend",
    "equinox": "it draws random numbers, as dropout does: switch that off by call_kwargs",
    "torch": r"^the network draws random numbers \(rng\) at inference, so that scores would depend",
}


def test_a_module_that_draws_random_numbers():
    for name, expected in CHANCE.items():
        with pytest.raises(ValueError, match=expected):
            si_jax.Model(*FRAMEWORKS[name]("chance"), **SIZE)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mean": None}, r"mean \(=None\) must be one number for each channel"),
        ({"std": None}, r"std \(=None\) must be one number for each channel"),
        ({"mean": "half"}, r"mean \(='half'\) must be one number for each channel"),
        ({"mean": 0.5}, r"must have one value per channel each"),
        ({"mean": 0.5, "std": 0.5}, "do input_size, the number of channels in mean"),
        ({"input_size": None}, r"input_size \(=None\) must be a height and a width"),
        ({"input_size": (8, 0)}, r"input_size \(=\(8, 0\)\) must be a height and a width"),
        ({"output": "nothing"}, r"output \(='nothing'\) is no entry of what the network returns"),
        ({"call_kwargs": {"train": True}}, "unexpected keyword argument 'train'"),
        ({"variables": [1]}, "variables must be left out for a Flax NNX module"),
    ],
)
def test_arguments_that_do_not_fit(unchecked, given, said):
    with pytest.raises(ValueError, match=said):
        si_jax.Model(in_nnx("good")[0], **{**SIZE, **given})


def test_what_is_no_network_or_lacks_its_weights(unchecked):
    module, variables = linen("good")
    for given, said in {
        (module, None): r"variables \(=None\) must be given for a Flax Linen module",
        (module, 3): r"variables \(a int\) must be a mapping",
        (type(module), None): "is a class: give an instance of it",
        ("resnet", None): r"network \(a builtins.str\) is of no framework that is served",
    }.items():
        with pytest.raises(ValueError, match=said):
            si_jax.Model(*given, **SIZE)
    with pytest.raises(ValueError, match="where one entry is the logits, give its key or index"):
        si_jax.Model(lambda variables, x: {"logits": x.mean((1, 2))}, variables, **SIZE)


def test_keras_without_weights_or_on_another_backend(monkeypatch):
    keras = pytest.importorskip("keras")
    with pytest.raises(ValueError, match="no weights yet: call it once on an image"):
        si_jax.Model(keras.Sequential([keras.layers.Dense(3)]), **SIZE)
    net = in_keras("good")
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(ValueError, match=r"backend 'torch', .* KERAS_BACKEND=jax before"):
        si_jax.Model(*net, **SIZE)


def test_weights_of_half_precision(framework, dtype=jnp.bfloat16):
    network = FRAMEWORKS[framework]("good", dtype)
    if framework == "equinox":  # whose convolutions do not promote
        told = refused(network)
        assert "images enter as float32: convert each array of weights to it, by astype" in told
        return
    model = si_jax.Model(*network, **SIZE)
    scores = si_jax.make_detector("energy", model).score(IMAGES)
    assert scores.dtype == np.float32 and np.isfinite(scores).all()
    assert model.head_weights(model.variables).dtype == np.float32
