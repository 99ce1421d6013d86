"""The gradient-free engines against the general one, position by position."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import si_jax
from si_jax import activation, integration, splitting, taps
from si_jax.integration import AscentPath

SMALL = {  # each architecture, with few layers
    "resnet8": {"input_size": (8, 8)},
    "wrn_40_2": {"input_size": (8, 8), "depth": 10},
    "bit_r101x1": {"input_size": (64, 64), "units": (1, 1, 1, 1)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_closed_and_general_agree_at_every_position(name):
    model = si_jax.build_model(name, 7, seed=1, **SMALL[name])
    images = np.random.default_rng(0).integers(0, 256, (3, *model.image_shape), np.uint8)
    names = taps.default_taps(model, "si-z")
    path = AscentPath(2, 0.5, "multiply")
    assert activation.steppable(model, names) == names

    def masks(variables, images):
        linear = splitting.linearise(model, variables, images, names)
        integrated = integration.integrate_from(
            linear, names, target=integration.max_logit, path=path
        )
        general = {k: a != 0 for k, a in integrated.items()}
        first = {k: g != 0 for k, g in linear.gradient(integration.max_logit).items()}
        return activation.active_after_step(model, linear, names, path), general, first

    results = jax.jit(masks)(model.variables, model.normalise(jnp.asarray(images)))
    closed, general, first = jax.device_get(results)
    for tap in names:
        np.testing.assert_array_equal(closed[tap], general[tap], err_msg=tap)
    assert sum(int((first[k] & ~closed[k]).sum()) for k in names) > 100  # the step turned them off


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
    assert engine(taps=["stem", "branch"]) == "activation"
    assert engine(taps=["stem", "late"]) == "gradient"  # no ReLU follows
    assert engine(taps=["stem", "branch"], steps=3) == "activation"
    assert engine(taps=["stem", "late"], **multiply) == "closed"
    assert engine(taps=["late"], **multiply) == "general"
    assert engine(taps=["stem"], steps=3, **multiply) == "general"
    # what is added to `branch` depends on it by another way
    assert activation.steppable(gated, ("stem", "branch", "inner", "late")) == ("stem", "inner")


def test_closed_leaves_what_it_cannot_serve_to_the_general_engine(gated, images):
    options = {"taps": ["stem", "branch", "late"], "combine": "multiply", "step_size": 0.3}
    closed = si_jax.make_detector("si-z", gated, **options)
    general = si_jax.make_detector("si-z", gated, engine="general", **options)
    assert closed.settings["engine"] == "closed"
    np.testing.assert_allclose(
        closed.details(images)["tap_density"], general.details(images)["tap_density"], atol=1e-6
    )


def test_a_scaled_head_is_not_taken_for_a_matrix(images):
    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (1, 1), name="stem")(x)).mean((1, 2))
            return jnp.tanh(nn.Dense(3, name="head")(nn.Dense(4, name="features")(x)))

    variables = Scaled().init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    model = si_jax.Model(
        Scaled(), variables, input_size=(4, 4), mean=(0.5,) * 3, std=(0.25,) * 3, head="head"
    )
    assert activation.without_relu(model, ("stem", "features")) == ("features",)
