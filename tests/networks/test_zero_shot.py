"""Classifiers of an image encoder and the embeddings of class names."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from pictures import noise
from scipy.special import softmax
from small_networks import CONSTANTS, Written

import si_jax

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def encoder(x):
    x = nn.relu(nn.GroupNorm(2, name="norm")(nn.Conv(6, (3, 3), strides=2, name="conv")(x)))
    return nn.Dense(5, name="head")(x.mean((1, 2)))


class Other(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.norm(self.conv(x))).mean((1, 2))


ENCODER = Written(encoder)
LINEN = ENCODER.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
TEXTS = np.random.default_rng(0).standard_normal((4, 6), np.float32)
IMAGES = noise(30)
KINDS = {
    "linen": (ENCODER, LINEN, TEXTS[:, :5]),
    "function": (ENCODER.apply, LINEN, TEXTS[:, :5]),
    "nnx": (Other(nnx.Rngs(0)), None, TEXTS),
}


def build(kind, **options):
    encoder, variables, texts = KINDS[kind]
    return si_jax.Model(si_jax.zero_shot(encoder, texts, **options), variables, 8, **CONSTANTS)


@pytest.mark.parametrize("kind", KINDS)
def test_mcm_is_the_softmax_of_the_cosines(kind):
    encoder, variables, texts = KINDS[kind]
    model = build(kind)
    x = model.normalise(jnp.asarray(IMAGES))
    if kind == "nnx":
        encoder.eval()
    h = np.asarray(encoder(x) if variables is None else ENCODER.apply(variables, x), np.float64)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (h, texts)]
    cosines = unit[0] @ unit[1].T
    np.testing.assert_allclose(model.logits(IMAGES), 100 * cosines, rtol=1e-4, atol=1e-3)
    assert model.head == "class_names" and model.num_classes == 4
    scores = si_jax.make_detector("mcm", model).score(IMAGES)
    np.testing.assert_allclose(scores, softmax(cosines, axis=1).max(axis=1), rtol=1e-5)
    other = si_jax.make_detector("mcm", build(kind, scale=7.0)).score(IMAGES)
    np.testing.assert_allclose(other, scores, rtol=1e-5)


def test_it_is_tapped_as_other_networks_are():
    model = build("linen")
    assert [call.path for call in model.calls] == ["conv", "norm", "head", "class_names"]
    assert si_jax.make_detector("gaia-z", model).settings["taps"] == ["norm"]
    np.testing.assert_allclose(np.linalg.norm(model.features(IMAGES), axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_saved_and_changed_as_other_networks_are(kind, tmp_path):
    model = build(kind)
    detector = si_jax.make_detector("mcm", model)
    loaded = si_jax.load_detector(detector.save(tmp_path / "mcm"), model=model)
    np.testing.assert_array_equal(loaded.score(IMAGES), detector.score(IMAGES))
    again = dataclasses.replace(model, precision="high")
    np.testing.assert_allclose(again.logits(IMAGES), model.logits(IMAGES), rtol=1e-3, atol=0.1)


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match=r"text_embeddings \(shape \(6,\)\) must be one vector"):
        si_jax.zero_shot(ENCODER, TEXTS[0])
    with pytest.raises(ValueError, match="none of them zero"):
        si_jax.zero_shot(ENCODER, 0 * TEXTS)
    with pytest.raises(ValueError, match=r"scale \(=0.0\) must be above 0"):
        si_jax.zero_shot(ENCODER, TEXTS, scale=0.0)
    network = si_jax.zero_shot(ENCODER, TEXTS[:, :3])
    with pytest.raises(ValueError, match=r"gives an array of shape \(1, 5\), but .* \(batch, 3\)"):
        si_jax.Model(network, LINEN, 8, **CONSTANTS)
