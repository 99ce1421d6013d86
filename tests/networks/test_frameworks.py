"""The same network in every framework gives the same numbers, under JAX's strict modes too.

So it does in two threads at once, inside another, and after an error: no call stays replaced.
"""

import dataclasses
import gc
import importlib
import threading
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import same_network as same
from flax import linen as nn
from jax.experimental.compilation_cache import compilation_cache
from pictures import noise
from small_networks import written

import si_jax
from si_jax import splitting
from si_jax.integration import max_logit
from si_jax.networks import linen
from si_jax.networks.framework import framework_of
from si_jax.taps import select

TAPS = ("bn", "block/bn")
IMAGES = noise(24)
OPTIONS = {
    "react": {},
    "odin": {},
    "rankfeat": {"taps": "block/bn"},
    "gaia-z": {},
    "si-z": {"combine": "multiply"},
    "si-c": {},
}
"""Detectors of every kind: what they read of a network is all that any detector reads."""

PROMOTING = ("Keras", "PyTorch")
"""Frameworks whose own layers add arrays of other ranks and dtypes."""

pytestmark = pytest.mark.usefixtures("quick_to_compile", "unchecked")


@pytest.fixture(scope="session")
def linen_model():
    return same.model("linen")


@pytest.fixture(scope="session", params=[k for k in same.NETWORKS if k != "linen"])
def other(request):
    return same.model(request.param)


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
    """Scores under JAX's strict modes."""
    strict = model.framework.name not in PROMOTING
    with (
        jax.debug_nans(True),
        jax.numpy_rank_promotion("raise" if strict else "allow"),
        jax.numpy_dtype_promotion("strict" if strict else "standard"),
    ):
        return fresh_scores(model, name)


def fresh_scores(model, name):
    detector = si_jax.make_detector(name, model, **OPTIONS[name])
    return detector.fit(IMAGES, np.arange(24) % same.CLASSES).score(IMAGES)


@pytest.mark.parametrize("name", OPTIONS)
def test_detectors_give_the_same_scores(linen_model, other, name):
    np.testing.assert_allclose(scores(linen_model, name), scores(other, name), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("framework", same.NETWORKS)
def test_no_tracer_outlives_its_trace_and_nothing_needs_jit(framework):
    model = same.model(framework)
    gc.freeze()  # JAX collects the garbage after each trace that it checks
    with jax.checking_leaks():
        found = si_jax.make_detector("gaia-z", model).score(IMAGES[:2])
    np.testing.assert_allclose(found, scores(model, "gaia-z")[:2], rtol=1e-4)
    with jax.disable_jit():
        found = si_jax.make_detector("react", model, threshold=1.0).score(IMAGES[:2])
    expected = si_jax.make_detector("react", model, threshold=1.0).score(IMAGES[:2])
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.fixture
def compiled_programs(tmp_path):
    """A compilation cache of its own, which keeps every program."""
    options = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    kept = {name: getattr(jax.config, name) for name in options}
    for name, value in zip(options, (str(tmp_path), 0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield lambda: {path.name for path in tmp_path.glob("*-cache")}
    for name, value in kept.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.mark.parametrize("framework", same.NETWORKS)
def test_a_network_that_is_made_again_is_served_by_the_compilation_cache(
    framework, compiled_programs, request
):
    """On one device, where scores are those on two."""
    on_two = scores(same.model(framework), "gaia-z")
    request.getfixturevalue("one_device")
    expected = fresh_scores(same.fresh_model(framework), "gaia-z")
    np.testing.assert_allclose(expected, on_two, rtol=0, atol=1e-5 * np.ptp(on_two))
    compiled = compiled_programs()
    np.testing.assert_array_equal(fresh_scores(same.fresh_model(framework), "gaia-z"), expected)
    assert compiled and compiled_programs() == compiled


REPLACED = {
    "Flax NNX": ("flax.nnx", "Linear"),
    "Keras": ("keras.layers", "Layer"),
    "Equinox": ("equinox.nn", "Linear"),
}
"""Framework -> a class whose `__call__` is replaced while a network runs."""


def call_of(model):
    """What is replaced while the model runs, as it is now."""
    module, name = REPLACED.get(model.framework.name, ("builtins", "type"))
    return vars(getattr(importlib.import_module(module), name))["__call__"]


def logits(model, edit=lambda z: z):
    images = model.normalise(jnp.asarray(IMAGES))
    return np.asarray(splitting.forward(model, model.variables, images, edit={"bn": edit}).logits)


def test_two_models_in_two_threads_and_an_error_inside_leave_no_trace(other):
    original = call_of(other)
    models = [other, dataclasses.replace(other)]
    expected = other.logits(IMAGES)
    results = {}

    def score(i):
        for _ in range(3):
            results[i] = logits(models[i], lambda z: z * i)

    threads = [threading.Thread(target=score, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(results[1], expected, atol=1e-5)
    assert not np.allclose(results[0], expected)

    def broken(z):
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        logits(other, broken)
    assert call_of(other) is original
    np.testing.assert_allclose(logits(other), expected, atol=1e-5)


def test_a_model_inside_another_is_seen_for_itself(linen_model, other):
    original = call_of(other)
    expected = linen_model.logits(IMAGES)
    for outer, inner in ((other, linen_model), (linen_model, other), (other, other)):
        seen = []

        def nested(z, inner=inner, seen=seen):
            seen.append(logits(inner, lambda z: 2 * z))
            return z

        np.testing.assert_allclose(logits(outer, nested), expected, atol=1e-5)
        np.testing.assert_allclose(seen[0], logits(linen_model, lambda z: 2 * z), atol=1e-5)
    assert call_of(other) is original


class Hidden(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.LayerNorm(name="norm")(nn.Dense(3, name="dense")(x)))


class RematHidden(Hidden):
    __call__ = nn.remat(Hidden.__call__)


class JitHidden(Hidden):
    __call__ = nn.jit(Hidden.__call__)


LIFTS = {
    "none": Hidden,
    "jit": nn.jit(Hidden),
    "remat": nn.remat(Hidden),
    "decorated by jit": JitHidden,
    "decorated by remat": RematHidden,
}


def normed(lift, **options):
    """Two hidden layers, perhaps lifted."""

    def network(x):
        x = LIFTS[lift](name="b")(LIFTS[lift](name="a")(x))
        return nn.Dense(3, name="head")(x.mean((1, 2)))

    return written(network, **options)


@cache
def plain_network():
    """A network without lifted modules, and its scores."""
    model = normed("none")
    return model, si_jax.make_detector("gaia-z", model).score(IMAGES)


@pytest.mark.parametrize("lift", list(LIFTS)[1:])
def test_lifted_modules_have_the_scores_of_plain_ones(lift):
    plain, expected = plain_network()
    model = normed(lift, change=lambda _: plain.variables)
    assert [c.path for c in model.calls] == [c.path for c in plain.calls]
    found = si_jax.make_detector("gaia-z", model).score(IMAGES)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.jit(jax.checkpoint(lambda x: x))(1.0)  # nothing of JAX's own stays switched off
    if lift == "remat":
        assert "remat" in str(
            jax.make_jaxpr(lambda x: model.module.apply(model.variables, x))(IMAGES[:1] / 255)
        )


def test_layers_under_scan_are_no_taps_but_logits_work():
    def scanned(x):
        def body(module, x, _):
            return module(x), None

        block = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        x, _ = block(Hidden(name="layers"), x, None)
        return nn.Dense(3, name="head")(x.mean((1, 2)))

    model = written(scanned)
    expected = model.module.apply(model.variables, model.normalise(jnp.asarray(IMAGES)))
    np.testing.assert_allclose(model.logits(IMAGES), expected, atol=1e-5)
    assert np.isfinite(si_jax.make_detector("energy", model).score(IMAGES)).all()
    for name in ("gaia-z", "rankfeat"):
        with pytest.raises(ValueError, match=r"layers/norm.*nn\.scan"):
            si_jax.make_detector(name, model)


def test_grey_images_and_boxed_parameters():
    def boxed(x):
        kernel = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        return nn.Dense(4, kernel_init=kernel, name="head")(nn.relu(x.mean((1, 2))))

    model = written(boxed, 28, mean=0.5, std=0.5)
    assert model.image_shape == (28, 28, 1)
    scores = si_jax.make_detector("gradnorm", model).score(noise(3, 28, 28, 1))
    assert np.isfinite(scores).all()


def test_a_detector_is_saved_and_takes_its_network_again(other, tmp_path):
    detector = si_jax.make_detector("energy", other)
    loaded = si_jax.load_detector(detector.save(tmp_path / "saved"), model=other)
    np.testing.assert_array_equal(loaded.score(IMAGES), detector.score(IMAGES))


def test_nnx_modules_stay_as_they_are():
    net = same.NNXNet()
    si_jax.Model(net, **same.IMAGE).logits(IMAGES)
    assert not net.dropout.deterministic and not net.bn.use_running_average
    assert isinstance(net.head.kernel[...], jax.Array)


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
