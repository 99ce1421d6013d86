"""Supports and the engines that read them, against gradients, position by position."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import si_jax
from si_jax import activation, integration, splitting, support, taps
from si_jax.detectors import Inputs
from si_jax.integration import AscentPath

SMALL = {  # each architecture, with few layers
    "resnet8": {"input_size": (8, 8)},
    "wrn_40_2": {"input_size": (8, 8), "depth": 10},
    "bit_r101x1": {"input_size": (64, 64), "units": (1, 1, 1, 1)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_supports_are_those_of_the_gradients_at_every_position(name):
    model = si_jax.build_model(name, 7, seed=1, **SMALL[name])
    images = np.random.default_rng(0).integers(0, 256, (3, *model.image_shape), np.uint8)
    names = taps.default_taps(model, "si-z")
    found = support.look(model, names)
    assert {look.blocked for look in found.values()} == {()}
    assert {look.steps_by for look in found.values()} == {"bound"}
    path = AscentPath(2, 0.5, "multiply")

    def masks(variables, images):
        linear = splitting.linearise(model, variables, images, names)
        integrated = integration.integrate(linear, names, target=integration.max_logit, path=path)
        first = linear.gradient(integration.max_logit)
        ascent = linear.gradient(integration.direction(linear, integration.max_logit, path))
        tape = support.record(linear.traced, linear.values, model.variables, names)
        pairs, stepped = {}, {}
        for k in names:
            z = linear.out.outputs[k]
            most, least = tape.after_step(k, z + 0.5 * jnp.sign(ascent[k]))
            sure = (most == least).all(range(1, most.ndim), keepdims=True)
            pairs[k] = first[k] != 0, tape.support(k), tape.bound(k, z)
            stepped[k] = integrated[k] != 0, (first[k] != 0) & most, sure
        return pairs, stepped

    results = jax.jit(masks)(model.variables, model.normalise(jnp.asarray(images)))
    pairs, stepped = jax.device_get(results)
    for tap in names:
        by_gradient, by_support, bound = pairs[tap]
        np.testing.assert_array_equal(by_support, by_gradient, err_msg=tap)
        assert not (by_support & ~bound).any(), tap
        general, closed, sure = stepped[tap]
        np.testing.assert_array_equal(closed & sure, general & sure, err_msg=tap)
    assert sum(int(sure.sum()) for _, _, sure in stepped.values()) > len(names)
    off = sum(int((pairs[k][0] & ~stepped[k][0]).sum()) for k in names)
    assert off > 100  # the step turned them off


class Gated(nn.Module):
    """A norm of which one channel's scale is 0, a residual branch, and no ReLU at the end."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (1, 1), name="stem")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True, name="norm")(x))
        x = nn.Conv(4, (1, 1), name="branch")(x)
        x = nn.relu(x + nn.Conv(4, (1, 1), name="inner")(nn.relu(x)))
        x = nn.Conv(6, (1, 1), name="late")(x)
        return nn.Dense(3, name="head")(jnp.tanh(x).mean((1, 2)))


@pytest.fixture(scope="module")
def gated():
    variables = Gated().init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    variables["params"]["norm"]["scale"] = jnp.array([1.0, 0.0, -1.0, 2.0])
    variables["params"]["norm"]["bias"] = jnp.array([0.1, 1.0, 0.2, -0.1])
    return si_jax.Model(
        Gated(), variables, input_size=(4, 4), mean=(0.5,) * 3, std=(0.25,) * 3, head="head"
    )


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), np.uint8)


def test_a_pass_that_overflows_is_never_a_quiet_one(gated):
    variables = jax.tree.map(jnp.copy, gated.variables)
    variables["params"]["stem"]["kernel"] = jnp.full((1, 1, 3, 4), 9e19)
    variables["params"]["norm"]["scale"] = jnp.full(4, -9e19)
    broken = dataclasses.replace(gated, variables=variables)
    white = np.full((2, 4, 4, 3), 255, np.uint8)
    assert np.isfinite(broken.logits(white)).all()  # minus infinity is 0 behind the ReLU
    detector = si_jax.make_detector("gaia-z", broken, taps="stem", engine="activation")
    np.testing.assert_array_equal(detector.score(white), -1)  # the lowest there is


def test_a_scale_of_zero_is_no_way_to_the_relu(gated, images):
    density = {
        engine: si_jax.make_detector("si-z", gated, taps="stem", engine=engine).details(images)
        for engine in ("activation", "gradient")
    }
    np.testing.assert_array_equal(
        density["activation"]["tap_density"], density["gradient"]["tap_density"]
    )
    # three of the four channels at most, though the bias alone turns the other one on
    assert density["activation"]["tap_density"].max() <= 0.75


def test_auto_takes_the_cheapest_engine_that_serves(gated):
    def engine(**options):
        return si_jax.make_detector("si-z", gated, **options).settings["engine"]

    multiply = {"combine": "multiply"}
    assert engine(taps=["stem", "inner", "late"]) == "activation"
    assert engine(taps=["stem", "inner"], steps=3) == "activation"
    assert engine(taps=["stem", "late"], **multiply) == "closed"
    assert engine(taps=["stem"], steps=3, **multiply) == "general"
    # what is added to `branch` depends on it by another way
    assert engine(taps=["branch"]) == "general"
    assert engine(taps=["branch", "stem"], **multiply) == "closed"
    with pytest.raises(ValueError, match=r"'activation' does not serve si-z .* do: general"):
        engine(taps=["branch"], engine="activation")


class Sorted(nn.Module):
    """A convolution, a max-pool, a sort, and a convolution behind it."""

    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(5, (3, 3), name="stem")(x)), (2, 2), (2, 2))
        x = nn.Conv(5, (1, 1), name="behind")(jnp.sort(x, axis=1))
        return nn.Dense(3, name="head")(nn.relu(x).mean((1, 2)))


def test_equations_that_are_not_known_are_left_to_gradients(images):
    variables = Sorted().init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    model = si_jax.Model(Sorted(), variables, input_size=4, mean=(0.5,) * 3, std=(0.25,) * 3)
    found = support.look(model, ("stem", "behind"))
    assert (found["stem"].blocked, found["behind"].blocked) == (("sort",), ())

    def engine(name, taps, **options):
        return si_jax.make_detector(name, model, taps=taps, **options).settings["engine"]

    assert engine("gaia-z", ["behind"]) == "activation"
    assert engine("gaia-z", ["stem", "behind"]) == "gradient"
    assert engine("si-z", ["stem"]) == "general"
    assert engine("si-z", ["stem", "behind"]) == "closed"  # and the stem by `general`


class Thin(nn.Module):
    """A convolution of two channels that are often off behind one of four."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (1, 1), name="stem")(x))
        x = nn.relu(nn.Conv(2, (1, 1), name="behind", use_bias=False)(x - 0.4))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


def test_images_of_which_the_fast_way_is_not_sure_are_computed_by_the_definition():
    """Alone or among others, by scores as by predictions."""
    variables = Thin().init(jax.random.key(0), jnp.zeros((1, 2, 2, 3)))
    model = si_jax.Model(Thin(), variables, input_size=2, mean=(0.5,) * 3, std=(0.25,) * 3)
    images = np.random.default_rng(1).integers(0, 256, (40, 2, 2, 3), np.uint8)
    options = {"taps": "stem", "step_size": 0.3}
    fast = si_jax.make_detector("si-z", model, **options)
    exact = si_jax.make_detector("si-z", model, engine="general", **options)
    assert fast.settings["engine"] == "activation"
    settled = jax.jit(lambda v, x: fast.compute(Inputs(model, v, x), {})["settled"])
    settled = np.asarray(settled(variables, images))
    assert 0 < settled.sum() < len(images)
    scores = exact.score(images)
    np.testing.assert_allclose(fast.score(images), scores, rtol=1e-6)
    np.testing.assert_allclose(fast.score(images[~settled][:1]), scores[~settled][:1], rtol=1e-6)
    np.testing.assert_allclose(fast.calibrate(images).predict(images).score, scores, rtol=1e-6)
    assert fast.details(images).keys() == exact.details(images).keys()


def test_closed_leaves_what_it_cannot_serve_to_the_general_engine(gated, images):
    options = {"taps": ["stem", "branch", "late"], "combine": "multiply", "step_size": 0.3}
    closed = si_jax.make_detector("si-z", gated, **options)
    general = si_jax.make_detector("si-z", gated, engine="general", **options)
    assert closed.settings["engine"] == "closed"
    np.testing.assert_allclose(
        closed.details(images)["tap_density"], general.details(images)["tap_density"], atol=1e-6
    )


def test_a_dense_layer_that_no_activation_follows():
    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (1, 1), name="stem")(x)).mean((1, 2))
            return jnp.tanh(nn.Dense(3, name="head")(nn.Dense(4, name="features")(x)))

    variables = Scaled().init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    model = si_jax.Model(
        Scaled(), variables, input_size=(4, 4), mean=(0.5,) * 3, std=(0.25,) * 3, head="head"
    )
    assert activation.without_activation(model, ("stem", "features")) == ("features",)


class Identity(nn.Module):
    """Its input, as dropout is at inference, or a shortcut without a projection."""

    @nn.compact
    def __call__(self, x):
        return x


class Branched(nn.Module):
    """A value that is read by another way too, beside that by an identity."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (1, 1), name="stem")(x)
        x = nn.relu(Identity(name="same")(x)) + nn.relu(-0.2 - x)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


@pytest.mark.parametrize(
    ("name", "engines"), [("gaia-z", ("auto", "general")), ("si-z", ("auto",))]
)
def test_an_identitys_output_is_not_its_input(name, engines, images):
    variables = Branched().init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    model = si_jax.Model(Branched(), variables, input_size=4, mean=(0.5,) * 3, std=(0.25,) * 3)
    x = model.normalise(jnp.asarray(images))
    z = splitting.forward(model, variables, x, record=["stem"]).outputs["stem"]
    expected = {"same": z > 0, "stem": (z > 0) | (z < -0.2)}
    for engine in engines:
        for tap, on in expected.items():
            detector = si_jax.make_detector(name, model, taps=tap, engine=engine)
            found = detector.details(images)["tap_density"][:, 0]
            np.testing.assert_allclose(found, on.mean((1, 2, 3)), atol=1e-6)
