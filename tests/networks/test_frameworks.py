"""The same network in every framework gives the same numbers."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import same_network as same
from flax import linen as nn
from flax import nnx

import si_jax
from si_jax import splitting
from si_jax.integration import max_logit
from si_jax.networks import linen
from si_jax.networks.framework import framework_of
from si_jax.taps import select

TAPS = ("bn", "block/bn")
IMAGES = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), np.uint8)
NEW = np.random.default_rng(1).integers(0, 256, (24, 8, 8, 3), np.uint8)
SCORED = {"adascale-a": NEW, "adascale-l": NEW}  # ranked among the fitted: no ties by rounding
LABELS = np.arange(24) % same.CLASSES
SMALLER = {
    "knn": {"k": 3},
    "nnguide": {"k": 3},
    "lts": {"percentile": 65.0},
    "rankfeat": {"taps": "block/bn"},
}


def test_outputs_features_and_gradients_are_the_same(linen_model, other):
    assert other.num_classes == same.CLASSES and other.num_features == same.WIDTH
    assert select(linen_model) == select(other) == TAPS
    passes = {}
    for model in (linen_model, other):
        args = (model, model.variables, model.normalise(jnp.asarray(IMAGES)))
        passes[model] = (
            splitting.forward(*args, record=(*TAPS, splitting.FEATURES)),
            splitting.linearise(*args, TAPS).gradient(max_logit),
            model.head_weights(model.variables),
            model.head_bias(model.variables),
        )
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)  # noqa: E731
    jax.tree.map(close, passes[linen_model], passes[other])


def test_taps_and_the_head_are_named_alike(linen_model, other):
    assert dataclasses.replace(other, head=None).head == other.head
    for model in (linen_model, other):
        assert select(model, "block/bn") == ("block/bn",)
        assert select(model, ["block/*", "b?"]) == tuple(
            path
            for path in ("bn", "block/conv", "block/bn")
            if path in (c.path for c in model.calls)
        )
        is_norm = model.framework.is_norm
        assert tuple(p for p in select(model, is_norm) if p.endswith("bn")) == TAPS
        with pytest.raises(ValueError, match=r"nothing in the network matches 'gn'.* bn, "):
            select(model, "gn")


@cache
def scores(model, name):
    detector = si_jax.make_detector(name, model, **SMALLER.get(name, {}))
    return detector.fit(IMAGES, LABELS).score(SCORED.get(name, IMAGES))


@pytest.mark.parametrize("name", sorted(si_jax.DETECTORS))
def test_every_detector_gives_the_same_scores(linen_model, other, name):
    np.testing.assert_allclose(scores(linen_model, name), scores(other, name), rtol=2e-4, atol=2e-5)


class Normed(nn.Module):
    """Two hidden layers, perhaps lifted by `lift`."""

    lift: str = "none"

    @nn.compact
    def __call__(self, x):
        lifts = {"none": lambda m: m, "jit": nn.jit, "remat": nn.remat}
        block = lifts[self.lift](Hidden) if self.lift in lifts else Hidden
        x = block(name="a")(x)
        return nn.Dense(3, name="head")(block(name="b")(x).mean((1, 2)))


class Hidden(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.LayerNorm(name="norm")(nn.Dense(3, name="dense")(x)))


class Decorated(nn.Module):
    remat: bool

    @nn.compact
    def __call__(self, x):
        block = RematHidden if self.remat else JitHidden
        x = block(name="a")(x)
        return nn.Dense(3, name="head")(block(name="b")(x).mean((1, 2)))


class RematHidden(Hidden):
    @nn.remat
    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.LayerNorm(name="norm")(nn.Dense(3, name="dense")(x)))


class JitHidden(Hidden):
    @nn.jit
    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.LayerNorm(name="norm")(nn.Dense(3, name="dense")(x)))


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        def body(module, x, _):
            return module(x), None

        block = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        x, _ = block(Hidden(name="layers"), x, None)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


def init(module):
    return module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


@pytest.mark.parametrize(
    "lifted", [Normed("jit"), Normed("remat"), Decorated(True), Decorated(False)], ids=str
)
def test_lifted_modules_have_the_scores_of_plain_ones(lifted):
    variables = init(Normed())
    plain = si_jax.Model(Normed(), variables, **same.IMAGE)
    model = si_jax.Model(lifted, variables, **same.IMAGE)
    assert [c.path for c in model.calls] == [c.path for c in plain.calls]
    for name, options in (("gaia-z", {}), ("si-z", {"combine": "multiply"}), ("si-a", {})):
        a, b = (si_jax.make_detector(name, m, **options).score(IMAGES) for m in (plain, model))
        np.testing.assert_allclose(a, b, rtol=1e-5)
    jax.jit(jax.checkpoint(lambda x: x))(1.0)  # nothing of JAX's own stays switched off
    assert "remat" in str(jax.make_jaxpr(lambda x: lifted_again(x, variables))(IMAGES[:1] / 255))


def lifted_again(x, variables):
    return Normed("remat").apply(variables, x)


def test_layers_under_scan_are_no_taps_but_logits_work():
    module = Scanned()
    model = si_jax.Model(module, init(module), **same.IMAGE)
    expected = module.apply(model.variables, model.normalise(jnp.asarray(IMAGES)))
    np.testing.assert_allclose(model.logits(IMAGES), expected, atol=1e-5)
    assert np.isfinite(si_jax.make_detector("energy", model).score(IMAGES)).all()
    for name in ("gaia-z", "rankfeat"):
        with pytest.raises(ValueError, match=r"layers/norm.*nn\.scan"):
            si_jax.make_detector(name, model)


class Mode(nn.Module):
    """Needs `train`, has dropout and BatchNorm, returns what `returns` says."""

    returns: str = "logits"
    classes: int = 4
    bias: bool = True

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(6, (3, 3))(x)))
        x = nn.Dropout(0.5, deterministic=not train)(x.mean((1, 2)))
        aux = nn.Dense(2, name="aux")(x)
        logits = nn.Dense(self.classes, use_bias=self.bias, name="head")(x)
        return {"dict": {"logits": logits, "aux": aux}, "tuple": (aux, logits)}.get(
            self.returns, logits
        )


def mode(**options):
    module = Mode(**options)
    return module, module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)


@pytest.mark.parametrize(
    ("options", "output"),
    [({}, None), ({"returns": "dict"}, "logits"), ({"returns": "tuple"}, 1),
     ({"classes": 1000}, None), ({"bias": False}, None)],
)  # fmt: skip
def test_other_shapes_of_networks(options, output):
    module, variables = mode(**options)
    model = si_jax.Model(
        module, variables, 8, (0.5,) * 3, (0.5,) * 3, call_kwargs={"train": False}, output=output
    )
    assert model.head == "head" and model.num_classes == options.get("classes", 4)
    scores = si_jax.make_detector("react", model, threshold=1e9).score(IMAGES)
    logits = np.float64(model.logits(IMAGES))
    np.testing.assert_allclose(scores, np.log(np.exp(logits).sum(1)), rtol=1e-5)
    assert len(repr(model)) < 200


def test_grey_images_and_boxed_parameters():
    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, x):
            kernel = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
            return nn.Dense(4, kernel_init=kernel, name="head")(nn.relu(x.mean((1, 2))))

    variables = Boxed().init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    model = si_jax.Model(Boxed(), variables, input_size=28, mean=0.5, std=0.5)
    assert model.image_shape == (28, 28, 1)
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
    assert np.isfinite(si_jax.make_detector("gradnorm", model).score(images)).all()


def test_mistakes_are_told_in_one_sentence(unchecked):
    module, variables = mode()
    size = {"input_size": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    off = {"call_kwargs": {"train": False}}
    both = mode(returns="dict")
    cases = [
        ((module, variables), size, "call_kwargs"),
        ((module, variables), size | {"call_kwargs": {"train": True}}, "train"),
        ((module, None), size | off, "variables"),
        ((Mode, variables), size | off, "is a class"),
        (both, size | off, "output"),
        (both, size | off | {"output": "nothing"}, "nothing"),
        ((module, variables), size | off | {"head": "nowhere"}, "nowhere.*head"),
        ((module, variables), size | off | {"input_size": (8, 0)}, "input_size"),
        ((module, variables), size | off | {"mean": "half"}, "mean"),
        ((module, variables), size | off | {"mean": 0.5, "std": 0.5}, "number of channels"),
        (("resnet", variables), size, "no framework"),
        ((HeadTwice(), init(HeadTwice())), size | {"head": "head"}, "more than once"),
    ]
    for args, options, expected in cases:
        with pytest.raises(ValueError, match=expected):
            si_jax.Model(*args, **options)


class HeadTwice(nn.Module):
    @nn.compact
    def __call__(self, x):
        head = nn.Dense(3, name="head")
        return head(x[:, 0].mean(1)) + head(x[:, 1].mean(1))


def test_nnx_modules_stay_as_they_are_and_chance_is_refused():
    class Noisy(nnx.Module):
        def __init__(self, rngs):
            self.head = nnx.Linear(3, 4, rngs=rngs)
            self.rngs = rngs.fork() if hasattr(rngs, "fork") else rngs

        def __call__(self, x):
            x = x.mean((1, 2))
            return self.head(x + jax.random.normal(self.rngs.noise(), x.shape))

    with pytest.raises(ValueError, match="random"):
        si_jax.Model(Noisy(nnx.Rngs(0, noise=1)), **same.IMAGE)
    net = same.NNXNet(nnx.Rngs(0))
    si_jax.Model(net, **same.IMAGE).logits(IMAGES)
    assert not net.dropout.deterministic and not net.bn.use_running_average
    assert isinstance(net.head.kernel[...], jax.Array)


def test_keras_mistakes():
    keras = pytest.importorskip("keras")
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3, "softmax")]
    )
    with pytest.raises(ValueError, match=r"softmax.*classifier_activation=None"):
        si_jax.Model(model, **same.IMAGE)
    model.layers[-1].activation = keras.activations.linear
    assert si_jax.Model(model, **same.IMAGE).num_classes == 3
    with pytest.raises(ValueError, match="no weights"):
        si_jax.Model(keras.Sequential([keras.layers.Dense(3)]), **same.IMAGE)


def test_a_framework_is_registered_once_and_for_a_class(unchecked):
    class Base:
        pass

    class Child(Base):
        pass

    mine = dataclasses.replace(linen.FRAMEWORK, name="chain")
    si_jax.register_framework(Base, mine)
    assert framework_of(Child()) is mine
    with pytest.raises(ValueError, match="is registered already, for chain"):
        si_jax.register_framework(Base, mine)
    for base in (object, Base()):
        with pytest.raises(ValueError, match="must be the class of the framework's networks"):
            si_jax.register_framework(base, mine)
    with pytest.raises(ValueError, match=r"\(=Child\) is a class: give an instance"):
        framework_of(Child)
