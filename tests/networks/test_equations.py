"""Which functions are recognised as activations like a ReLU, however JAX spells them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from pictures import noise
from small_networks import written

import si_jax
from si_jax import activation
from si_jax.detectors.si_c import readings
from si_jax.networks.equations import Equations
from si_jax.taps import default_taps

pytestmark = pytest.mark.usefixtures("quick_to_compile")


FUNCTIONS = {  # -> whether it is like a ReLU; whether it is certain that it switches nothing off
    "relu": (jax.nn.relu, True, False),
    "jnp.maximum": (lambda x: jnp.maximum(x, 0), True, False),
    "jnp.where": (lambda x: jnp.where(x > 0, x, 0), True, False),
    "hard_swish": (jax.nn.hard_swish, True, False),
    "gelu by tanh": (jax.nn.gelu, True, True),
    "gelu by erfc": (lambda x: jax.nn.gelu(x, approximate=False), True, True),
    "gelu by erf": (lambda x: x * 0.5 * (1 + jax.lax.erf(x / jnp.sqrt(2.0))), True, True),
    "gelu under jit": (jax.jit(jax.nn.gelu), True, True),
    "gelu in bfloat16": (lambda x: jax.nn.gelu(x.astype(jnp.bfloat16)), True, True),
    "gelu beside a shortcut": (lambda x: x + jax.nn.gelu(x), True, True),
    "silu": (jax.nn.silu, True, True),
    "silu by hand": (lambda x: x * jax.nn.sigmoid(1.702 * x), True, True),
    "silu under remat": (jax.checkpoint(jax.nn.silu), True, True),
    "mish": (jax.nn.mish, True, True),
    "softplus": (jax.nn.softplus, True, True),
    "relu6": (jax.nn.relu6, True, False),
    "a capped relu": (lambda x: jnp.minimum(jax.nn.relu(x), 0.7), True, False),
    "a clipped relu": (lambda x: jnp.clip(x, 0, 6), True, False),
    "hard_sigmoid": (jax.nn.hard_sigmoid, False, False),
    "hard_tanh": (jax.nn.hard_tanh, False, False),
    "hard_tanh, shifted": (lambda x: 3 * (jax.nn.hard_tanh(x / 3 - 1) + 1), True, False),
    "leaky_relu": (jax.nn.leaky_relu, True, True),
    "elu": (jax.nn.elu, True, True),
    "celu": (jax.nn.celu, True, True),
    "selu": (jax.nn.selu, True, True),
    "prelu": (lambda x: jnp.where(x >= 0, x, x.mean() ** 2 * x), True, True),
    "abs": (jnp.abs, False, False),
    "tanh": (jnp.tanh, False, False),
    "sigmoid": (jax.nn.sigmoid, False, False),
    "softmax": (jax.nn.softmax, False, True),
    "square": (jnp.square, False, True),
    "identity": (lambda x: x, False, True),
    "a variance": (lambda x: x * jax.lax.rsqrt(jnp.maximum(0, x.var()) + 1e-5), False, True),
    "max-pooling": (lambda x: nn.max_pool(x, (2,)), False, False),
    "a gate of its own input": (lambda x: x * (x > 0), True, False),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_activations_are_told_by_what_they_do(name):
    function, like_relu, smooth = FUNCTIONS[name]

    def network(x):
        return jnp.sum(function(3.0 * x), axis=1)

    closed = jax.make_jaxpr(network)(jnp.ones((2, 4, 3)))
    equations = Equations(closed)
    x = closed.jaxpr.eqns[0].outvars[0]
    assert (equations.activation(x) is not None) == like_relu
    assert activation.without_relu(equations, x) == smooth
    if found := equations.activation(x):  # from its output on as well
        assert (equations.input_of(found.output) is None) == found.switches
    assert equations.input_of(closed.jaxpr.outvars[0]) is None


def test_what_uses_the_inside_of_an_activation_makes_it_another():
    closed = jax.make_jaxpr(lambda x: (jnp.tanh(x), x * (1 + jnp.tanh(x))))(jnp.ones(3))
    inside = jax.make_jaxpr(lambda x: (t := jnp.tanh(x)) * 2 + x * (1 + t))(jnp.ones(3))
    for traced, expected in ((closed, True), (inside, False)):
        x = traced.jaxpr.invars[0]
        assert (Equations(traced).activation(x) is not None) == expected


@pytest.fixture(scope="module")
def smooth():
    """Attention between LayerNorms, a perceptron with GELU, and a convolution with SiLU."""

    def network(x):
        x = nn.silu(nn.GroupNorm(2, name="norm")(nn.Conv(6, (3, 3), name="conv")(x)))
        x = x.reshape(x.shape[0], -1, 6)
        y = nn.LayerNorm(name="ln_1")(x)
        x = x + nn.MultiHeadDotProductAttention(2, name="attention")(y, y)
        y = nn.gelu(nn.Dense(5, name="up")(nn.LayerNorm(name="ln_2")(x)))
        return nn.Dense(3, name="head")((x + nn.Dense(6, name="down")(y)).mean(1))

    return written(network, 4)


def test_densities_are_those_of_positive_inputs_and_tokens_are_positions(smooth):
    taps = default_taps(smooth, "si-c")
    assert taps == ("norm", "up")  # the LayerNorms are followed by no activation
    assert activation.taps_without_relu(smooth, taps) == taps
    images = noise(40, 4, 4, 3)
    detector = si_jax.make_detector("si-c", smooth)
    assert (detector.settings["engine"], detector.settings["taps"]) == ("activation", [*taps])
    found = readings.reader(smooth)
    density = readings.readings(found, smooth, images)["density"]
    _, state = smooth.module.apply(
        smooth.variables,
        smooth.normalise(jnp.asarray(images)),
        capture_intermediates=True,
        mutable="intermediates",
    )
    inputs = [state["intermediates"][k]["__call__"][0].reshape(40, 16, -1) for k in taps]
    expected = np.concatenate([(np.asarray(x) > 0).mean(1) for x in inputs], axis=-1)
    np.testing.assert_allclose(density, expected, atol=0.1 / 16)
    scores = detector.fit(images).score(images)
    forward = si_jax.make_detector("si-c-forward", smooth).fit(images).score(images)
    assert np.ptp(scores) > 0 and np.ptp(forward) > 0


def test_without_any_activation_behind_the_taps_si_c_says_so(smooth):
    with pytest.raises(ValueError, match="nor GELU, SiLU or their like follows ln_1, ln_2: name"):
        si_jax.make_detector("si-c", smooth, taps=["ln_1", "ln_2"])
    with pytest.raises(ValueError, match=r"there is none behind ln_2: .* use si-c"):
        si_jax.make_detector("si-c-forward", smooth, taps=["norm", "ln_2"])
    si_jax.make_detector("si-c", smooth, components="energy,channel-average")


def test_some_taps_by_gradient_is_an_engine_of_its_own(smooth):
    """Stored scores and saved detectors are not taken for those with all taps by gradient."""
    settings = si_jax.make_detector("si-c", smooth, taps=["norm", "ln_2"]).settings
    assert (settings["engine"], settings["taps"]) == ("mixed", ["norm", "ln_2"])
