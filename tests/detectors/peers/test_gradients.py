"""Detectors that need gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peer_networks import CLASSES, close, numpy_gradient
from scipy.special import softmax


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradnorm_is_the_gradient_of_the_kl_divergence(score, model, h, head, temperature):
    weights, bias = (jnp.asarray(a, jnp.float32) for a in head)

    def divergence(w, row):
        log_p = jax.nn.log_softmax((row @ w + bias) / temperature)
        return jnp.mean(-jnp.log(CLASSES) - log_p)

    gradient = jax.vmap(jax.grad(divergence), (None, 0))(weights, jnp.asarray(h, jnp.float32))
    expected = np.abs(gradient).sum(axis=(1, 2))
    close(score("gradnorm", temperature=temperature), expected, rtol=1e-4)


def test_odin(score, model, images):
    x = np.asarray(model.normalise(jnp.asarray(images)))

    def top_log_probability(x):
        logits = model.module.apply(model.variables, x[None])[0] / 1000
        return jnp.max(jax.nn.log_softmax(logits))

    gradient = np.asarray(jax.jit(jax.vmap(jax.grad(top_log_probability)))(x[:12]))
    sign = np.where(-gradient >= 0, 1, -1)
    moved = x[:12] - 0.0014 / np.array(model.std, np.float32) * sign
    expected = softmax(model.logits(moved.astype(np.float32)) / 1000.0, axis=1).max(axis=1)
    close(score("odin")[:12], expected, rtol=1e-6, atol=0)
    assert np.abs(score("odin") - score("odin", step=0.0)).max() > 1e-6


def test_odin_without_a_step_is_the_softmax_at_its_temperature(score, model, images):
    for temperature in (1.0, 1000.0):
        expected = softmax(model.logits(images) / temperature, axis=1).max(axis=1)
        close(score("odin", step=0.0, temperature=temperature), expected, rtol=1e-6, atol=0)


def test_gradnorm_over_all_weights(score, model, images):
    def divergence(params, image):
        logits = model.module.apply({"params": params}, model.normalise(jnp.asarray(image)[None]))
        return jnp.sum(jnp.log(1 / CLASSES) - jax.nn.log_softmax(logits / 3)) / CLASSES

    for i in (0, 5):
        leaves = jax.tree.leaves(jax.grad(divergence)(model.variables["params"], images[i]))
        expected = sum(np.abs(np.asarray(g, np.float64)).sum() for g in leaves)
        close(score("gradnorm", temperature=3.0, parameters="all")[i], expected, rtol=1e-4)


def test_i_odin_moves_one_value(score, model, images):
    def loss(logits):
        return -jax.nn.log_softmax(logits / 10).max(axis=1).sum()

    gradient, x = numpy_gradient(model, images, loss)
    moved = np.array(x)
    for g, one in zip(gradient, moved, strict=True):
        place = np.unravel_index(np.abs(g).argmax(), g.shape)
        one[place] -= 0.5 / model.std[place[-1]] * (1 if g[place] >= 0 else -1)
    expected = softmax(model.logits(moved).astype(np.float64) / 10, axis=1).max(axis=1)
    close(score("i-odin", temperature=10.0, step=0.5), expected, rtol=1e-4)


def test_grad_uncertainty(score, model, images, h):
    def loss(params, image):
        logits = model.module.apply({"params": params}, model.normalise(jnp.asarray(image)[None]))
        p = jax.nn.softmax(logits)[0]
        return -jnp.sum(jnp.log(p))  # the binary cross-entropy with a label of ones

    for i in (0, 5):
        gradient = jax.grad(loss)(model.variables["params"], images[i])
        squares = {
            name: sum(np.square(np.asarray(g, np.float64)).sum() for g in jax.tree.leaves(part))
            for name, part in gradient.items()
        }
        close(score("grad-uncertainty")[i], squares["head"], rtol=1e-4)
        whole = score("grad-uncertainty", parameters="all")[i]
        close(whole, sum(squares.values()), rtol=1e-4)
