"""Supports and the engines that read them, against gradients, position by position."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from pictures import noise
from small_networks import Written, written

import si_jax
from si_jax import activation, integration, splitting, support, taps
from si_jax.detectors import Inputs
from si_jax.integration import AscentPath

IMAGES = noise(9, 4, 4, 3)


@pytest.mark.slow
def test_supports_are_those_of_the_gradients_at_every_position():
    model, images = si_jax.build_model("resnet8", 7, seed=1, input_size=(8, 8)), noise(3)
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


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        (1, {"window_strides": (3, 2)}),  # what no window covers is not read
        (2, {"window_strides": (3, 3), "padding": "SAME"}),
        (3, {"window_strides": (2, 2), "padding": [(1, 0), (0, 2)]}),
        (3, {"padding": [(-1, 1), (2, -2)], "rhs_dilation": (1, 2)}),
        (3, {"lhs_dilation": (2, 3), "padding": [(2, 2), (1, 3)]}),
        (2, {"window_strides": (1, 2), "feature_group_count": 2}),
    ],
)
def test_readers_through_a_convolution_are_counted_as_its_gradient_adds(kernel, options):
    options = {"window_strides": (1, 1), "padding": "VALID", **options}
    groups = options.get("feature_group_count", 1)

    def convolve(x):
        weights = jnp.ones((kernel, kernel, 4 // groups, 6))
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, weights, dimension_numbers=numbers, **options)

    out, pull = jax.vjp(convolve, jnp.zeros((2, 7, 8, 4)))
    on = jnp.asarray(np.random.default_rng(0).random(out.shape) < 0.2, jnp.float32)
    (equation,) = jax.make_jaxpr(convolve)(jnp.zeros((2, 7, 8, 4))).eqns[-1:]
    counts = support._through_convolution(equation, on)
    np.testing.assert_allclose(jnp.broadcast_to(counts, (2, 7, 8, 4)), pull(on)[0], atol=1e-4)


def gated_network(x):
    """A norm of which one channel's scale is 0, a residual branch, and no ReLU at the end."""
    x = nn.Conv(4, (1, 1), name="stem")(x)
    x = nn.relu(nn.BatchNorm(use_running_average=True, name="norm")(x))
    x = nn.Conv(4, (1, 1), name="branch")(x)
    x = nn.relu(x + nn.Conv(4, (1, 1), name="inner")(nn.relu(x)))
    x = nn.Conv(6, (1, 1), name="late")(x)
    return nn.Dense(3, name="head")(jnp.tanh(x).mean((1, 2)))


@pytest.fixture(scope="module")
def gated():
    def change(variables):
        norm = variables["params"]["norm"]
        norm["scale"] = jnp.array([1.0, 0.0, -1.0, 2.0])
        norm["bias"] = jnp.array([0.1, 1.0, 0.2, -0.1])
        return variables

    return written(gated_network, 4, change=change)


def test_a_pass_that_overflows_is_never_a_quiet_one(gated):
    variables = jax.tree.map(jnp.copy, gated.variables)
    variables["params"]["stem"]["kernel"] = jnp.full((1, 1, 3, 4), 9e19)
    variables["params"]["norm"]["scale"] = jnp.full(4, -9e19)
    broken = dataclasses.replace(gated, variables=variables)
    white = np.full((2, 4, 4, 3), 255, np.uint8)
    assert np.isfinite(broken.logits(white)).all()  # minus infinity is 0 behind the ReLU
    detector = si_jax.make_detector("gaia-z", broken, taps="stem", engine="activation")
    np.testing.assert_array_equal(detector.score(white), -1)  # the lowest there is


def density(model, engine, **options):
    detector = si_jax.make_detector("si-z", model, engine=engine, **options)
    return detector.details(IMAGES)["tap_density"]


def test_a_scale_of_zero_is_no_way_to_the_relu(gated):
    found = density(gated, "activation", taps="stem")
    np.testing.assert_array_equal(found, density(gated, "gradient", taps="stem"))
    # three of the four channels at most, though the bias alone turns the other one on
    assert found.max() <= 0.75


def test_auto_takes_the_cheapest_engine_that_serves(gated):
    def engine(*taps, **options):
        return si_jax.make_detector("si-z", gated, taps=taps, **options).settings["engine"]

    multiply = {"combine": "multiply"}
    assert engine("stem", "inner", "late") == "activation"
    assert engine("stem", "inner", steps=3) == "activation"
    assert engine("stem", "late", **multiply) == "closed"
    assert engine("stem", steps=3, **multiply) == "general"
    # what is added to `branch` depends on it by another way
    assert engine("branch") == "general"
    assert engine("branch", "stem", "late", **multiply) == "closed"  # but for the branch
    with pytest.raises(ValueError, match=r"'activation' does not serve si-z .* do: general"):
        engine("branch", engine="activation")
    options = {"taps": ["stem", "branch", "late"], "step_size": 0.3, **multiply}
    close = np.testing.assert_allclose
    close(density(gated, "closed", **options), density(gated, "general", **options), atol=1e-6)


def test_equations_that_are_not_known_are_left_to_gradients():
    def with_a_sort(x):
        x = nn.max_pool(nn.relu(nn.Conv(5, (3, 3), name="stem")(x)), (2, 2), (2, 2))
        x = nn.Conv(5, (1, 1), name="behind")(jnp.sort(x, axis=1))
        return nn.Dense(3, name="head")(nn.relu(x).mean((1, 2)))

    model = written(with_a_sort, 4)
    found = support.look(model, ("stem", "behind"))
    assert (found["stem"].blocked, found["behind"].blocked) == (("sort",), ())
    for name, paths, engine in (
        ("gaia-z", ["behind"], "activation"),
        ("gaia-z", ["stem", "behind"], "gradient"),
        ("si-z", ["stem"], "general"),
        ("si-z", ["stem", "behind"], "closed"),  # and the stem by `general`
    ):
        assert si_jax.make_detector(name, model, taps=paths).settings["engine"] == engine


def test_images_of_which_the_fast_way_is_not_sure_are_computed_by_the_definition():
    """Alone or among others, by scores as by predictions."""

    def thin(x):  # a convolution of two channels that are often off behind one of four
        x = nn.relu(nn.Conv(4, (1, 1), name="stem")(x))
        x = nn.relu(nn.Conv(2, (1, 1), name="behind", use_bias=False)(x - 0.4))
        return nn.Dense(3, name="head")(x.mean((1, 2)))

    model, images = written(thin, 2), noise(40, 2, 2, 3, seed=1)
    options = {"taps": "stem", "step_size": 0.3}
    fast = si_jax.make_detector("si-z", model, **options)
    exact = si_jax.make_detector("si-z", model, engine="general", **options)
    assert fast.settings["engine"] == "activation"
    settled = jax.jit(lambda v, x: fast.compute(Inputs(model, v, x), {})["settled"])
    settled = np.asarray(settled(model.variables, images))
    assert 0 < settled.sum() < len(images)
    scores = exact.score(images)
    np.testing.assert_allclose(fast.score(images), scores, rtol=1e-6)
    np.testing.assert_allclose(fast.score(images[~settled][:1]), scores[~settled][:1], rtol=1e-6)
    np.testing.assert_allclose(fast.calibrate(images).predict(images).score, scores, rtol=1e-6)
    assert fast.details(images).keys() == exact.details(images).keys()


def test_a_dense_layer_that_no_activation_follows():
    def scaled(x):
        x = nn.relu(nn.Conv(4, (1, 1), name="stem")(x)).mean((1, 2))
        return jnp.tanh(nn.Dense(3, name="head")(nn.Dense(4, name="features")(x)))

    taps = ("stem", "features")
    assert activation.without_activation(written(scaled, 4, head="head"), taps) == ("features",)


def test_an_identitys_output_is_not_its_input():
    """Where its input is read by another way too; an identity is dropout, or a bare shortcut."""

    def branched(x):
        x = nn.Conv(4, (1, 1), name="stem")(x)
        x = nn.relu(Written(lambda x: x, name="same")(x)) + nn.relu(-0.2 - x)
        return nn.Dense(3, name="head")(x.mean((1, 2)))

    model = written(branched, 4)
    x = model.normalise(jnp.asarray(IMAGES))
    z = splitting.forward(model, model.variables, x, record=["stem"]).outputs["stem"]
    expected = {"same": z > 0, "stem": (z > 0) | (z < -0.2)}
    for name, engine in (("gaia-z", "auto"), ("gaia-z", "general"), ("si-z", "auto")):
        for tap, on in expected.items():
            detector = si_jax.make_detector(name, model, taps=tap, engine=engine)
            found = detector.details(IMAGES)["tap_density"][:, 0]
            np.testing.assert_allclose(found, on.mean((1, 2, 3)), atol=1e-6)
