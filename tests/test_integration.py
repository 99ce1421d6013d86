"""The adversarial path against a loop written by hand, finite differences, and plain jax.grad."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import si_jax
from si_jax import integration, splitting
from si_jax.integration import AscentPath, max_logit
from si_jax.taps import select


class TwoLayers(nn.Module):
    """logits = relu(x W + b) V + c, on images of one pixel row."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(7, name="first")(x.reshape(len(x), -1))
        return nn.Dense(4, name="head")(nn.relu(x))


@pytest.fixture(scope="module")
def two_layers():
    module = TwoLayers()
    variables = module.init(jax.random.key(1), jnp.zeros((1, 1, 2, 3)))
    bias = jax.random.normal(jax.random.key(2), (7,))
    variables["params"]["first"]["bias"] = bias
    return si_jax.Model(
        module, variables, input_size=(1, 2), mean=(0.0,) * 3, std=(1.0,) * 3, head="head"
    )


def numpy_path(model, images, steps, step_size, combine, objective):
    """Section 1's definition in NumPy, in float64, for the tap `first`."""
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
    images = jax.random.normal(jax.random.key(3), (9, 1, 2, 3))
    path = AscentPath(steps, 0.2, combine, objective)
    linear = splitting.linearise(two_layers, two_layers.variables, images, ["first"])
    found = integration.integrate(linear, ["first"], target=max_logit, path=path)["first"]
    expected = numpy_path(two_layers, images, steps, 0.2, combine, objective)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(found) != 0, expected != 0)


@pytest.mark.slow
@pytest.mark.parametrize(("tap_chunk", "objective"), [(4, "ce"), (100, "max")])
def test_against_splitting_one_tap_at_a_time(tiny, tiny_images, tap_chunk, objective):
    """jax.grad of the network in which one module's output is replaced, without any sharing."""
    images = tiny.normalise(jnp.asarray(tiny_images[:3]))
    taps = select(tiny, ["conv1", "layer2_*/bn?", "*shortcut_bn", "layer3_0"])
    path = AscentPath(3, 0.05, "add", objective)

    def rest(z, tap):
        return splitting.forward(tiny, tiny.variables, images, edit={tap: lambda _: z})

    def ascent(z, tap, labels):
        out = rest(z, tap)
        if objective == "max":
            return jnp.sum(jnp.max(out.logits, -1))
        log_p = jax.nn.log_softmax(out.logits)
        return -jnp.sum(jnp.take_along_axis(log_p, labels[:, None], -1))

    plain = splitting.forward(tiny, tiny.variables, images, record=taps)
    labels = jnp.argmax(plain.logits, -1)

    @jax.jit
    def combined(variables, x):
        linear = splitting.linearise(tiny, variables, x, taps)
        options = {"target": max_logit, "path": path, "tap_chunk": tap_chunk}
        return integration.integrate(linear, taps, **options)

    found = combined(tiny.variables, images)
    for tap in (taps[0], taps[4], taps[-1]):
        z, total = plain.outputs[tap], 0.0
        for _ in range(3):
            g = jax.grad(lambda z, tap=tap: jnp.sum(jnp.max(rest(z, tap).logits, -1)))(z)
            up = jax.grad(ascent)(z, tap, labels)
            z, total = z + 0.05 * jnp.sign(up), total + g
        np.testing.assert_allclose(found[tap], total, atol=1e-4 * float(jnp.abs(g).max()))


def test_the_order_is_the_networks_and_not_the_alphabets():
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
    model = si_jax.Model(network, variables, 2, (0.0,) * 3, (1.0,) * 3, head="head")
    args = (model, model.variables, jax.random.normal(jax.random.key(3), (5, 2, 2, 3)))
    options = {"target": max_logit, "path": AscentPath(3, 0.1)}
    taps = ("z", "layer10", "layer9")
    together = integration.integrate(splitting.linearise(*args, taps), taps, **options)
    for tap in taps:
        linear = splitting.linearise(*args, [tap])
        alone = integration.integrate(linear, [tap], **options)[tap]
        np.testing.assert_allclose(together[tap], alone, rtol=1e-5, atol=1e-6)


def test_gradients_against_finite_differences(tiny, tiny_images):
    images = tiny.normalise(jnp.asarray(tiny_images[:1]))
    tap = "layer2_1/bn1"
    linear = splitting.linearise(tiny, tiny.variables, images, [tap])
    gradient = linear.gradient(integration.log_softmax_sum)[tap]
    direction = jax.random.normal(jax.random.key(0), gradient.shape)

    def value(t):
        edit = {tap: lambda z: z + t * direction}
        out = splitting.forward(tiny, tiny.variables, images, edit=edit)
        return float(integration.log_softmax_sum(out)[0])

    step = 1e-2
    numeric = (value(step) - value(-step)) / (2 * step)
    assert numeric == pytest.approx(float(jnp.sum(gradient * direction)), rel=2e-2, abs=1e-3)


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
