"""Two models at once, one inside the other, and errors inside: no call stays replaced."""

import dataclasses
import importlib
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import splitting

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), np.uint8)
REPLACED = {
    "Flax NNX": "flax.nnx.Linear",
    "Keras": "keras.layers.Layer",
    "Equinox": "equinox.nn.Linear",
}
"""Framework -> a class whose `__call__` is replaced while a network runs."""


def call_of(model):
    """What is replaced while the model runs, as it is now."""
    if model.framework.name not in REPLACED:
        return None
    module, _, name = REPLACED[model.framework.name].rpartition(".")
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
