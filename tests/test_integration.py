"""The adversarial path against a loop written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from small_networks import CONSTANTS, written

import si_jax
from si_jax import integration, splitting
from si_jax.integration import AscentPath, max_logit


@pytest.fixture(scope="module")
def two_layers():
    """logits = relu(x W + b) V + c."""

    def network(x):
        x = nn.Dense(7, name="first", bias_init=nn.initializers.normal(1.0))(x.reshape(len(x), -1))
        return nn.Dense(4, name="head")(nn.relu(x))

    return written(network, 2)


def numpy_path(model, images, steps, step_size, combine, objective):
    """The definition in NumPy, in float64, for the tap `first`."""
    first, head = (model.variables["params"][k] for k in ("first", "head"))
    w, b, v, c = (
        np.asarray(a, np.float64)
        for a in (first["kernel"], first["bias"], head["kernel"], head["bias"])
    )
    results = []
    for image in np.asarray(images, np.float64):
        z = image.reshape(-1) @ w + b
        label, steps_so_far = None, []
        for _ in range(steps):
            logits = np.maximum(z, 0) @ v + c
            top = int(np.argmax(logits))
            label = top if label is None else label
            g = v[:, top] * (z > 0)
            p = np.exp(logits - logits.max())
            p /= p.sum()
            p[label] -= 1
            ce = (v @ p) * (z > 0)
            z = z + step_size * np.sign(ce if objective == "ce" else g)
            steps_so_far.append(g)
        results.append((np.sum if combine == "add" else np.prod)(steps_so_far, axis=0))
    return np.stack(results)


@pytest.mark.parametrize("objective", ["ce", "max"])
@pytest.mark.parametrize("combine", ["add", "multiply"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_against_a_loop_by_hand(two_layers, steps, combine, objective):
    images = jax.random.normal(jax.random.key(3), (9, 2, 2, 3))
    path = AscentPath(steps, 0.2, combine, objective)
    linear = splitting.linearise(two_layers, two_layers.variables, images, ["first"])
    found = integration.integrate(linear, ["first"], target=max_logit, path=path)["first"]
    expected = numpy_path(two_layers, images, steps, 0.2, combine, objective)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(found) != 0, expected != 0)


def test_the_order_is_the_networks_and_not_the_alphabets():
    """So each of several taps, in chunks, has what it has alone."""

    def network(variables, x):
        x = x.reshape(len(x), -1) @ variables["a"]
        for name in ("z", "layer10", "layer9"):
            x = jnp.tanh(si_jax.tap(x, name) @ variables["b"]) + x
        return si_jax.tap(x, "head") @ variables["head"]["kernel"]

    rng = np.random.default_rng(0)
    shapes = {"a": (12, 6), "b": (6, 6), "head": {"kernel": (6, 4)}}
    variables = jax.tree.map(
        lambda n: rng.standard_normal(n, np.float32), shapes, is_leaf=lambda x: type(x) is tuple
    )
    model = si_jax.Model(network, variables, 2, head="head", **CONSTANTS)
    images = jax.random.normal(jax.random.key(3), (5, 2, 2, 3))
    options = {"target": max_logit, "path": AscentPath(3, 0.1), "tap_chunk": 2}

    def integrated(*taps):
        def run(variables, images):
            linear = splitting.linearise(model, variables, images, taps)
            return integration.integrate(linear, taps, **options)

        return jax.jit(run)(variables, images)

    together = integrated("z", "layer10", "layer9")
    for tap, found in together.items():
        np.testing.assert_allclose(found, integrated(tap)[tap], rtol=1e-5, atol=1e-6)


def test_ties_give_the_first_logit():
    out = splitting.Forward(jnp.array([[1.0, 3.0, 3.0]]), jnp.zeros((1, 1)), {})
    gradient = jax.grad(lambda logits: max_logit(out._replace(logits=logits))[0])(out.logits)
    np.testing.assert_array_equal(gradient, [[0.0, 1.0, 0.0]])


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 1.5}, "steps"),
        ({"step_size": -1.0}, "step_size"),
        ({"step_size": float("nan")}, "step_size"),
        ({"combine": "subtract"}, "combine"),
        ({"objective": "min"}, "objective"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_options_are_refused_by_name(options, name):
    with pytest.raises(ValueError, match=name):
        AscentPath(**options)
