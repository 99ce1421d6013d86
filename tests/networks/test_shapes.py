"""Other people's networks, which return and take other things than ours."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from scipy.special import logsumexp

import si_jax
import study_without_relu as without_relu
from si_jax.data import digits
from si_jax.networks import framework

pytestmark = pytest.mark.usefixtures("quick_to_compile")

GREY = {"input_size": 28, "mean": 0.5, "std": 0.5, "call_kwargs": {"train": False}}
"""Grey images of 28x28 pixels."""


class Pooling(nn.Module):
    """A head that pools over the positions itself."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(digits.CLASSES, name="dense")(x.mean((1, 2)))


class Net(nn.Module):
    """BatchNorm and Dropout with `train`, a module called twice, and several kinds of outputs."""

    returns: str = "logits"
    classes: int = digits.CLASSES
    bias: bool = True

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(16, (4, 4), strides=4, name="stem")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        twice = nn.Conv(16, (3, 3), name="twice")
        x = nn.relu(twice(nn.relu(twice(x))))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        if self.returns == "pooled":
            return Pooling(name="head")(x)
        x = x.mean((1, 2))
        logits = nn.Dense(self.classes, use_bias=self.bias, name="head")(x)
        outputs = {"dict": {"x": x, "logits": logits}, "tuple": (x, logits)}
        return outputs.get(self.returns, logits)


@pytest.fixture(scope="module")
def images():
    return digits.load("test")[0][:60, 2:30, 2:30, :1]


@pytest.fixture(scope="module")
def plain():
    variables = Net().init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)), train=False)
    return si_jax.Model(Net(), variables, **GREY)


def head(model, change):
    """The plain network's variables with another head."""
    params = dict(model.variables["params"])
    params["head"] = change(params["head"])
    return {**model.variables, "params": params}


VARIANTS = {
    "plain": (Net(), lambda h: h, None),
    "a dict": (Net("dict"), lambda h: h, "logits"),
    "a tuple": (Net("tuple"), lambda h: h, 1),
    "pooled in the head": (Net("pooled"), lambda h: {"dense": h}, None),
    "no bias": (Net(bias=False), lambda h: {"kernel": h["kernel"]}, None),
    "two classes": (Net(classes=2), lambda h: {k: v[..., :2] for k, v in h.items()}, None),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_shape_of_network_is_served(name, plain, images):
    module, change, output = VARIANTS[name]
    model = si_jax.Model(module, head(plain, change), output=output, **GREY)
    kernel = model.head_weights(model.variables)
    assert model.head == ("head/dense" if name == "pooled in the head" else "head")
    assert model.num_classes == kernel.shape[1] == VARIANTS[name][0].classes
    out = model.outputs(images)
    expected = plain.logits(images)[:, :2] if name == "two classes" else plain.logits(images)
    if name == "no bias":
        expected = expected - plain.head_bias(plain.variables)
    np.testing.assert_allclose(out["logits"], expected, rtol=1e-4, atol=1e-4)
    react = si_jax.make_detector("react", model, threshold=1e9).score(images)
    np.testing.assert_allclose(react, logsumexp(out["logits"], axis=-1), rtol=1e-4)


class Deterministic(nn.Module):
    """`Net` with the argument by the other name that it may have."""

    @nn.compact
    def __call__(self, x, deterministic):
        return Net(name="net")(x, train=not deterministic)


def test_a_network_whose_argument_is_deterministic(plain, images):
    variables = {kind: {"net": tree} for kind, tree in plain.variables.items()}
    options = {**GREY, "call_kwargs": {"deterministic": True}}
    model = si_jax.Model(Deterministic(), variables, **options)
    assert model.head == "net/head"
    np.testing.assert_allclose(model.logits(images), plain.logits(images), rtol=1e-5, atol=1e-5)
    for wrong in ({}, {"deterministic": False}):
        with pytest.raises(ValueError, match="call_kwargs"):
            si_jax.Model(Deterministic(), variables, **{**GREY, "call_kwargs": wrong})


def test_two_paths_to_one_nnx_module():
    class Shared(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(3, 3, rngs=rngs)
            self.second = self.first
            self.head = nnx.Linear(3, 4, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.second(nnx.relu(self.first(x))))
            return self.head(x.mean((1, 2)))

    net = Shared(nnx.Rngs(0))
    size = {"input_size": 4, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    model = si_jax.Model(net, **size)
    assert [call.path for call in model.calls] == ["first", "first#1", "head"]
    with pytest.raises(ValueError, match=r"'second'\) is not called .* first, first#1, head"):
        si_jax.Model(net, **size, head="second")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    np.testing.assert_allclose(
        model.logits(pixels), net(model.normalise(jnp.asarray(pixels))), rtol=1e-5, atol=1e-6
    )
    assert si_jax.make_detector("si-z", model, taps="first*").score(pixels).shape == (5,)


def test_the_table_of_networks_without_relu(monkeypatch):
    few = {part: tuple(x[:100] for x in digits.load(part)) for part in ("train", "test")}
    monkeypatch.setattr(digits, "load", few.get)
    rows = {row: without_relu.DETECTORS[row] for row in ("msp", "si-c-forward")}
    monkeypatch.setattr(without_relu, "DETECTORS", rows)
    name = "convolutions, SiLU"
    measured = {name: without_relu.measure(name, [0], steps=40, count=20)}
    accuracy, results = measured[name]
    assert accuracy > 0.2 and results["si-c-forward"]["noise"] > 0.5
    lines = without_relu.table(measured).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| msp", "| si-c-forward"]


def test_a_framework_of_which_nothing_is_imported_serves_nothing(monkeypatch):
    """No framework is imported to look whether a network is of it."""
    imported = []
    monkeypatch.setattr(framework.importlib, "import_module", imported.append)
    with warnings.catch_warnings(), pytest.raises(ValueError, match="an Equinox or PyTorch module"):
        framework.framework_of(object())
    assert not imported
