"""What the library takes for granted of a network is proven of it: head, channels, batch, taps.

So is that it returns logits, and nothing made of them. Other people's networks return and take
other things than ours.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from pictures import noise
from small_networks import CONSTANTS, Written, written

import si_jax
import study_without_relu as without_relu
from si_jax.data import digits
from si_jax.detectors.si_c import readings
from si_jax.networks import framework
from si_jax.networks.head import output_activation
from si_jax.taps import default_taps

pytestmark = pytest.mark.usefixtures("quick_to_compile")

IMAGES = noise(5)


def trunk(x):
    return nn.relu(nn.LayerNorm()(nn.Conv(8, (3, 3))(x))).mean((1, 2))


def moved(variables):
    """Weights that are not those that a network begins with: no bias is zero."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + rng.normal(size=x.shape).astype("f4") / 4, variables)


class LowRank(nn.Dense):
    """A `Dense` by its class, which adds what was learnt later."""

    @nn.compact
    def __call__(self, x):
        down = self.param("down", nn.initializers.normal(), (x.shape[-1], 2))
        up = self.param("up", nn.initializers.normal(), (2, self.features))
        return super().__call__(x) + x @ down @ up


HEADS = {
    "convolution": lambda h: nn.Conv(5, (1, 1))(h[:, None, None]).reshape(len(h), 5),
    "DenseGeneral": lambda h: nn.DenseGeneral((5,))(h),
    "Einsum": lambda h: nn.Einsum((8, 5), "bi,io->bo")(h),
    "low rank": lambda h: LowRank(5)(h),
    "weight norm": lambda h: nn.WeightNorm(nn.Dense(5))(h),
    "by keyword": lambda h: nn.Dense(5)(inputs=h),
    "scaled": lambda h: 3 * nn.Dense(5)(h) + 1,
}


@pytest.mark.parametrize("kind", HEADS)
def test_the_weights_of_the_head_are_what_maps_features_to_logits(kind):
    model = written(lambda x: HEADS[kind](trunk(x)), change=moved)
    out = model.outputs(IMAGES)
    weights, bias = model.head_weights(model.variables), model.head_bias(model.variables)
    assert weights.shape == (8, 5)
    given = out["features"] @ np.asarray(weights) + np.asarray(bias)
    np.testing.assert_allclose(given, out["logits"], rtol=1e-4, atol=1e-5)


def test_a_network_without_a_linear_head_has_what_reads_logits_and_densities():
    def cosine(x):  # logits of directions: not linear in the features
        h = trunk(x)
        kernel = jnp.cos(jnp.arange(40.0)).reshape(8, 5)
        return 16 * h @ kernel / jnp.linalg.norm(h, axis=-1, keepdims=True)

    model = written(cosine)
    assert model.head is None
    for name in ("si-c-forward", "gaia-z"):
        detector = si_jax.make_detector(name, model)
        if detector.needs_fit:
            detector.fit(noise(60, seed=2), progress=False)
        assert np.isfinite(detector.score(IMAGES)).all()


@pytest.mark.parametrize("name", ["gaia-a", "gaia-z"])
def test_channels_are_where_the_norm_has_them(name):
    def stacked(first):
        def network(x):
            x = nn.Conv(4, (3, 3))(x)
            norm = nn.BatchNorm(use_running_average=True, axis=1 if first else -1, name="norm")
            x = jnp.moveaxis(norm(jnp.moveaxis(x, -1, 1)), 1, -1) if first else norm(x)
            return nn.Dense(5)(nn.relu(x).mean((1, 2)))

        return si_jax.make_detector(name, written(network, change=moved)).score(IMAGES)

    np.testing.assert_allclose(stacked(True), stacked(False), rtol=1e-5)


@pytest.mark.parametrize(
    "norm",
    [
        lambda x: (x - x.mean((0, 1, 2))) / (x.std((0, 1, 2)) + 1e-3),
        lambda x: nn.BatchNorm(use_running_average=False)(x),
    ],
)
def test_a_network_that_mixes_the_images_of_a_batch_is_refused(norm):
    with pytest.raises(ValueError, match=r"other images|batch_stats. is immutable"):
        written(lambda x: nn.Dense(5)(nn.relu(norm(nn.Conv(4, (3, 3))(x))).mean((1, 2))))


class Wrapped(nnx.Module):
    """Blocks called as they are, under `nnx.jit` or under `nnx.remat`."""

    def __init__(self, how):
        rngs = nnx.Rngs(0)
        self.how = how
        self.conv = nnx.Conv(3, 6, (3, 3), rngs=rngs)
        self.norm = nnx.LayerNorm(6, rngs=rngs)
        self.head = nnx.Linear(6, 5, rngs=rngs)

    def block(self, x):
        return nnx.relu(self.norm(self.conv(x)))

    def __call__(self, x):
        call = {"plain": lambda f: f, "jit": nnx.jit, "remat": nnx.remat}[self.how]
        return self.head(call(Wrapped.block)(self, x).mean((1, 2)))


def test_nnx_jit_has_the_same_scores_and_remat_says_why_not():
    plain, jitted = (si_jax.Model(Wrapped(how), None, 8, **CONSTANTS) for how in ("plain", "jit"))
    for name in ("gaia-a", "gaia-z"):
        a, b = (si_jax.make_detector(name, m).score(IMAGES) for m in (plain, jitted))
        np.testing.assert_allclose(a, b, rtol=1e-5)
    with pytest.raises(
        ValueError, match="conv, norm lies inside a transformation of the network's own"
    ):
        si_jax.make_detector("gaia-z", si_jax.Model(Wrapped("remat"), None, 8, **CONSTANTS))


@pytest.mark.parametrize("activations", [("relu", "relu"), ("silu", "gelu")])
def test_an_activation_inside_a_layer_of_keras_is_read_as_one_behind_it(activations):
    keras = pytest.importorskip("keras")
    is_relu = "relu" in activations

    def build(inside):
        keras.utils.set_random_seed(0)
        x = inputs = keras.Input((8, 8, 3))
        for name, activation in zip(("first", "second"), activations, strict=True):
            given = {"activation": activation if inside else None, "name": name}
            x = keras.layers.Conv2D(5, 3, **given)(x)
            x = x if inside else keras.layers.Activation(activation)(x)
            norm = keras.layers.LayerNormalization(name=f"norm_{name}")
            x = keras.layers.MaxPooling2D(2, 1)(x) if is_relu else norm(x)
        outputs = keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x))
        return si_jax.Model(keras.Model(inputs, outputs), None, 8, **CONSTANTS)

    models, found = [build(inside) for inside in (True, False)], []
    paths = ("first/preactivation", "second/preactivation"), ("first", "second")
    for model, expected in zip(models, paths, strict=True):
        assert default_taps(model, "si-c") == expected
        reader = readings.reader(model, components="zero-deflation")
        assert reader.engine == "activation"
        found.append([readings.readings(reader, model, IMAGES)["density"]])
        if is_relu:  # in a network without norms, whose taps are what enters its activations
            detectors = [si_jax.make_detector(name, model) for name in ("gaia-z", "gaia-a")]
            assert detectors[0].settings["taps"] == [*expected]
            found[-1] += [detector.score(IMAGES) for detector in detectors]
        else:
            with pytest.raises(ValueError, match=r"gaia-z .* no ReLU lies behind norm_first, norm"):
                si_jax.make_detector("gaia-z", model)
    assert found[0][0].shape == (5, 10) and 0.2 < found[0][0].mean() < 0.8
    for inside, behind in zip(*found, strict=True):
        np.testing.assert_allclose(inside, behind, rtol=1e-5, atol=1e-6)


def test_probabilities_of_a_keras_network_are_refused_until_its_last_activation_is_taken_off():
    keras = pytest.importorskip("keras")
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Dense(5, activation="softmax")(keras.layers.Flatten()(inputs))
    network = keras.Model(inputs, outputs)
    with pytest.raises(ValueError, match=r"softmax.*classifier_activation=None"):
        si_jax.Model(network, None, 8, **CONSTANTS)
    network.layers[-1].activation = keras.activations.linear
    assert si_jax.Model(network, None, 8, **CONSTANTS).num_classes == 5


def test_the_model_owns_the_arrays_of_a_keras_network():
    keras = pytest.importorskip("keras")
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(inputs))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    network = keras.Model(inputs, keras.layers.Dense(5)(x))
    detector = si_jax.make_detector("energy", si_jax.Model(network, None, 8, **CONSTANTS))
    before = detector.score(IMAGES)
    network.compile("sgd", "mse")
    network.fit(IMAGES / 255, np.zeros((5, 5)), verbose=0)
    network.predict(IMAGES / 255, verbose=0)
    np.testing.assert_array_equal(detector.score(IMAGES), before)


def by_hand(x):
    return jnp.exp(x) / jnp.exp(x).sum(axis=-1, keepdims=True)


ENDS = {
    "softmax": (jax.nn.softmax, "softmax"),
    "log_softmax": (jax.nn.log_softmax, "log-softmax"),
    "log of softmax": (lambda x: jnp.log(jax.nn.softmax(x)), "log-softmax"),
    "under jit": (jax.jit(jax.nn.softmax), "softmax"),
    "by hand": (by_hand, "softmax"),
    "in half precision": (
        lambda x: jax.nn.softmax(x.astype(jnp.bfloat16)).astype(jnp.float32),
        "softmax",
    ),
    "sigmoid": (jax.nn.sigmoid, "sigmoid"),
    "logits": (lambda x: x, None),
    "scaled": (lambda x: 20 * x, None),
    "centred": (lambda x: x - x.mean(axis=-1, keepdims=True), None),
    "over a norm": (lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True), None),
}


@pytest.mark.parametrize("name", ENDS)
def test_endings_are_told(name):
    function, expected = ENDS[name]
    closed = jax.make_jaxpr(lambda x: function(x @ jnp.ones((3, 4))))(jnp.ones((2, 3)))
    assert output_activation(closed.jaxpr, closed.jaxpr.outvars[0]) == expected


@pytest.mark.parametrize(
    ("last", "classes", "message"),
    [
        (nn.softmax, 3, r"returns probabilities \(a softmax\).* what enters the softmax"),
        (nn.log_softmax, 3, r"log-probabilities \(a log-softmax\)"),
        (nn.sigmoid, 3, r"probabilities \(a sigmoid\), not logits"),
        (lambda x: x, 1, r"gives one logit.* returns \(0, logit\) instead"),
    ],
)
def test_they_are_refused_with_the_model(last, classes, message):
    with pytest.raises(ValueError, match=message):
        written(lambda x: last(nn.Dense(classes, name="head")(x.mean((1, 2)))))


GREY = {"mean": 0.5, "std": 0.5, "call_kwargs": {"train": False}}
PIXELS = noise(5, 8, 8, 1)


def network(returns="logits", bias=True):
    """BatchNorm and Dropout with `train`, a module called twice, and several kinds of outputs."""

    def call(x, train):
        x = nn.Conv(6, (2, 2), strides=2, name="stem")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        twice = nn.Conv(6, (3, 3), name="twice")
        x = nn.relu(twice(nn.relu(twice(x))))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        if returns == "pooled":  # a head that pools over the positions itself
            return Written(lambda x: nn.Dense(4, name="dense")(x.mean((1, 2))), name="head")(x)
        x = x.mean((1, 2))
        logits = nn.Dense(4, use_bias=bias, name="head")(x)
        return {"dict": {"x": x, "logits": logits}, "tuple": (x, logits)}.get(returns, logits)

    return call


@pytest.fixture(scope="module")
def plain():
    return written(network(), **GREY)


def with_head(model, change):
    """The network's variables with another head."""
    params = dict(model.variables["params"])
    params["head"] = change(params["head"])
    return {**model.variables, "params": params}


VARIANTS = {
    "a dict": (network("dict"), lambda h: h, "logits"),
    "a tuple": (network("tuple"), lambda h: h, 1),
    "pooled in the head": (network("pooled"), lambda h: {"dense": h}, None),
    "no bias": (network(bias=False), lambda h: {"kernel": h["kernel"]}, None),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_shape_of_network_is_served(name, plain):
    function, change, output = VARIANTS[name]
    model = si_jax.Model(Written(function), with_head(plain, change), 8, output=output, **GREY)
    assert model.head == ("head/dense" if name == "pooled in the head" else "head")
    assert model.num_classes == 4
    out = model.outputs(PIXELS)
    kernel, bias = plain.variables["params"]["head"]["kernel"], model.head_bias(model.variables)
    np.testing.assert_array_equal(model.head_weights(model.variables), kernel)
    np.testing.assert_allclose(out["features"] @ kernel + bias, out["logits"], atol=1e-5)
    np.testing.assert_allclose(out["logits"], plain.logits(PIXELS), atol=1e-5)


def test_what_a_network_needs_beside_images_is_named(plain):
    for wrong in ({}, {"train": True}):
        with pytest.raises(ValueError, match="call_kwargs"):
            si_jax.Model(plain.module, plain.variables, 8, **{**GREY, "call_kwargs": wrong})


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
    model = si_jax.Model(net, None, 8, **CONSTANTS)
    assert [call.path for call in model.calls] == ["first", "first#1", "head"]
    with pytest.raises(ValueError, match=r"'second'\) is not called .* first, first#1, head"):
        si_jax.Model(net, None, 8, **CONSTANTS, head="second")
    expected = net(model.normalise(jnp.asarray(IMAGES)))
    np.testing.assert_allclose(model.logits(IMAGES), expected, rtol=1e-5, atol=1e-6)
    assert si_jax.make_detector("si-z", model, taps="first*").score(IMAGES).shape == (5,)


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
