"""What the library takes for granted of a network is proven of it: head, channels, batch, taps.

So is that it returns logits, and nothing made of them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import si_jax
from si_jax.networks.head import output_activation

pytestmark = pytest.mark.usefixtures("quick_to_compile")

IMAGE = {"input_size": 8, "mean": (0.5,) * 3, "std": (0.25,) * 3}
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)


class Trunk(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.LayerNorm()(nn.Conv(8, (3, 3))(x)))


class LowRank(nn.Dense):
    """A `Dense` by its class, which adds what was learnt later."""

    @nn.compact
    def __call__(self, x):
        down = self.param("down", nn.initializers.normal(), (x.shape[-1], 2))
        up = self.param("up", nn.initializers.normal(), (2, self.features))
        return super().__call__(x) + x @ down @ up


class Headed(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x):
        x = Trunk()(x)
        if self.kind == "convolution":
            pooled = x.mean((1, 2), keepdims=True)
            return nn.Conv(5, (1, 1), name="head")(pooled).reshape(len(x), 5)
        h = x.mean((1, 2))
        if self.kind == "DenseGeneral":
            return nn.DenseGeneral((5,), name="head")(h)
        if self.kind == "Einsum":
            return nn.Einsum((8, 5), "bi,io->bo", name="head")(h)
        if self.kind == "low rank":
            return LowRank(5, name="head")(h)
        if self.kind == "weight norm":
            return nn.WeightNorm(nn.Dense(5, name="head"))(h)
        if self.kind == "by keyword":
            return nn.Dense(5, name="head")(inputs=h)
        return 3 * nn.Dense(5, name="head")(h) + 1  # "scaled"


def model_of(module, **options):
    variables = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda x: x + rng.normal(size=x.shape).astype("f4") / 4, variables)
    return si_jax.Model(module, variables, **IMAGE, **options)


KINDS = ("convolution", "DenseGeneral", "Einsum", "low rank", "weight norm", "by keyword", "scaled")


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_of_the_head_are_what_maps_features_to_logits(kind):
    model = model_of(Headed(kind))
    out = model.outputs(IMAGES)
    weights, bias = model.head_weights(model.variables), model.head_bias(model.variables)
    assert weights.shape == (8, 5)
    given = out["features"] @ np.asarray(weights) + np.asarray(bias)
    np.testing.assert_allclose(given, out["logits"], rtol=1e-4, atol=1e-5)


class Cosine(nn.Module):
    """Logits of directions: not linear in the features."""

    @nn.compact
    def __call__(self, x):
        h = Trunk()(x).mean((1, 2))
        h = h / jnp.linalg.norm(h, axis=-1, keepdims=True)
        kernel = self.param("kernel", nn.initializers.normal(), (8, 5))
        return 16 * h @ (kernel / jnp.linalg.norm(kernel, axis=0))


def test_a_network_without_a_linear_head_has_what_reads_logits_and_densities():
    model = model_of(Cosine())
    assert model.head is None
    for name in ("si-c-forward", "gaia-z"):
        detector = si_jax.make_detector(name, model)
        if detector.needs_fit:
            fit = np.random.default_rng(2).integers(0, 256, (60, 8, 8, 3), np.uint8)
            detector.fit(fit, progress=False)
        assert np.isfinite(detector.score(IMAGES)).all()


class Stacked(nn.Module):
    """BatchNorm over the channels, wherever they lie."""

    first: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3))(x)
        norm = nn.BatchNorm(use_running_average=True, axis=1 if self.first else -1, name="norm")
        x = jnp.moveaxis(norm(jnp.moveaxis(x, -1, 1)), 1, -1) if self.first else norm(x)
        return nn.Dense(5)(nn.relu(x).mean((1, 2)))


@pytest.mark.parametrize("name", ["gaia-a", "gaia-z"])
def test_channels_are_where_the_norm_has_them(name):
    scores = [
        si_jax.make_detector(name, model_of(Stacked(first))).score(IMAGES)
        for first in (True, False)
    ]
    np.testing.assert_allclose(*scores, rtol=1e-5)


class OverTheBatch(nn.Module):
    by_hand: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3))(x)
        if self.by_hand:
            x = (x - x.mean((0, 1, 2))) / (x.std((0, 1, 2)) + 1e-3)
        else:
            x = nn.BatchNorm(use_running_average=False)(x)
        return nn.Dense(5)(nn.relu(x).mean((1, 2)))


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_network_that_mixes_the_images_of_a_batch_is_refused(by_hand):
    with pytest.raises(ValueError, match=r"other images|batch_stats. is immutable"):
        model_of(OverTheBatch(by_hand))


ACTIVATIONS = {
    "nn.relu6": nn.relu6,
    "clip": lambda x: jnp.clip(x, 0, 6),
    "hard_tanh, shifted": lambda x: 3 * (nn.hard_tanh(x / 3 - 1) + 1),
}


class Activated(nn.Module):
    activation: str

    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm(name="norm")(nn.Conv(4, (3, 3))(x))
        return nn.Dense(5)(ACTIVATIONS[self.activation](4 * x).mean((1, 2)))


@pytest.mark.parametrize("name", ["gaia-z", "si-c-forward"])
def test_spellings_of_one_activation_have_one_score(name):
    scores = {}
    for activation in ACTIVATIONS:
        detector = si_jax.make_detector(name, model_of(Activated(activation)))
        if detector.needs_fit:
            fit = np.random.default_rng(2).integers(0, 256, (60, 8, 8, 3), np.uint8)
            detector.fit(fit, progress=False)
        scores[activation] = detector.score(IMAGES)
    first, *others = scores.values()
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-4)


class NormFree(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range(2):
            x = nn.relu(nn.Conv(4, (3, 3), name=f"conv{i}")(x))
        return nn.Dense(5)(x.mean((1, 2)))


def test_a_network_without_norms_is_tapped_at_what_enters_its_activations():
    detector = si_jax.make_detector("gaia-z", model_of(NormFree()))
    assert detector.settings["taps"] == ["conv0", "conv1"]


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
    plain, jitted = (si_jax.Model(Wrapped(how), **IMAGE) for how in ("plain", "jit"))
    for name in ("gaia-a", "gaia-z"):
        a, b = (si_jax.make_detector(name, m).score(IMAGES) for m in (plain, jitted))
        np.testing.assert_allclose(a, b, rtol=1e-5)
    with pytest.raises(
        ValueError, match="conv, norm lies inside a transformation of the network's own"
    ):
        si_jax.make_detector("gaia-z", si_jax.Model(Wrapped("remat"), **IMAGE))


def test_activations_inside_keras_layers_are_those_behind_them():
    keras = pytest.importorskip("keras")

    def model_of(inside):
        x = inputs = keras.Input((8, 8, 3))
        for i in range(2):
            activation = "relu" if inside else None
            x = keras.layers.Conv2D(4, 3, activation=activation, name=f"conv{i}")(x)
            x = x if inside else keras.layers.Activation("relu")(x)
            x = keras.layers.MaxPooling2D(2, 1)(x)
        outputs = keras.layers.Dense(5)(keras.layers.Flatten()(x))
        return keras.Model(inputs, outputs)

    networks = [model_of(inside) for inside in (True, False)]
    networks[1].set_weights(networks[0].get_weights())
    models = [si_jax.Model(network, **IMAGE) for network in networks]
    for name in ("gaia-z", "gaia-a"):
        inside, behind = (si_jax.make_detector(name, model) for model in models)
        assert inside.settings["taps"] == ["conv0/preactivation", "conv1/preactivation"]
        assert behind.settings["taps"] == ["conv0", "conv1"]
        np.testing.assert_allclose(inside.score(IMAGES), behind.score(IMAGES), rtol=1e-5)
    output = keras.layers.Dense(5, activation="softmax")(networks[0].layers[-2].output)
    network = keras.Model(networks[0].input, output)
    with pytest.raises(ValueError, match=r"softmax.*classifier_activation=None"):
        si_jax.Model(network, **IMAGE)
    network.layers[-1].activation = keras.activations.linear
    assert si_jax.Model(network, **IMAGE).num_classes == 5


def test_the_model_owns_the_arrays_of_a_keras_network():
    keras = pytest.importorskip("keras")
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(inputs))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    network = keras.Model(inputs, keras.layers.Dense(5)(x))
    detector = si_jax.make_detector("energy", si_jax.Model(network, **IMAGE))
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


class Ending(nn.Module):
    last: str
    classes: int = 3

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.classes, name="head")(x.mean((1, 2)))
        return getattr(nn, self.last)(x) if self.last else x


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Ending("softmax"), r"returns probabilities \(a softmax\).* what enters the softmax"),
        (Ending("log_softmax"), r"log-probabilities \(a log-softmax\)"),
        (Ending("sigmoid"), r"probabilities \(a sigmoid\), not logits"),
        (Ending("", classes=1), r"gives one logit.* returns \(0, logit\) instead"),
    ],
    ids=str,
)
def test_they_are_refused_with_the_model(module, message):
    with pytest.raises(ValueError, match=message):
        model_of(module)
