"""The S&I family: engines agree."""

import jax
import numpy as np
import pytest
from flax import linen as nn

import si_jax
from si_jax.data import digits
from si_jax.testing import small_model

pytestmark = pytest.mark.usefixtures("one_device")
LATE = ["layer3_0/bn?", "layer3_0/shortcut_bn"]


@pytest.fixture(scope="module")
def images():
    return np.concatenate([digits.load("test")[0][:7], digits.letters(6)])


def test_the_general_engine_does_not_depend_on_batches_either(tiny_images):
    model = small_model()
    options = {"engine": "general", "combine": "multiply", "step_size": 0.05, "steps": 3}
    one, other = (
        si_jax.make_detector("si-z", model, batch_size=size, tap_chunk=chunk, **options).details(
            tiny_images
        )
        for size, chunk in ((13, 2), (4, 1))
    )
    positions = 4 * 4 * 8
    np.testing.assert_allclose(other["tap_density"], one["tap_density"], atol=0.1 / positions)
    np.testing.assert_allclose(other["score"], one["score"], rtol=1e-5)


def test_si_z_with_add_is_gaia_z_by_every_engine(digits_model, images):
    gaia = si_jax.make_detector("gaia-z", digits_model, taps=LATE).details(images)
    for engine in ("auto", "general", "gradient", "activation"):
        found = si_jax.make_detector("si-z", digits_model, taps=LATE, engine=engine)
        found = found.details(images)
        np.testing.assert_allclose(found["score"], gaia["score"], rtol=1e-6)
        np.testing.assert_allclose(found["tap_density"], gaia["tap_density"], atol=1e-6)


def test_si_a_with_one_step_and_all_features_is_gaia_a(digits_model, images):
    gaia = si_jax.make_detector("gaia-a", digits_model).score(images)
    for engine in ("auto", "general"):
        si = si_jax.make_detector("si-a", digits_model, steps=1, select=1.0, engine=engine)
        np.testing.assert_allclose(si.score(images), gaia, rtol=1e-5)


def test_gaia_a_by_hand():
    """On a linear network with one norm everything has a closed form."""

    class Linear(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.LayerNorm(use_scale=False, use_bias=False, name="norm")(x)
            return nn.Dense(4, name="head")(x.mean((1, 2)))

    variables = Linear().init(jax.random.key(0), np.zeros((1, 2, 2, 3), np.float32))
    model = si_jax.Model(
        Linear(), variables, input_size=(2, 2), mean=(0.5,) * 3, std=(0.5,) * 3, head="head"
    )
    images = np.random.default_rng(0).integers(0, 256, (5, 2, 2, 3), np.uint8)
    w = np.asarray(variables["params"]["head"]["kernel"], np.float64)
    logits = model.logits(images).astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    outer2 = np.abs((1 - 4 * p) @ w.T).mean(-1)  # at the head's input
    v = 1 / 4  # d (sum of the features) / d position, the same everywhere
    expected = -(v**2) / outer2
    found = si_jax.make_detector("gaia-a", model).score(images)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    selected = si_jax.make_detector("si-a", model, steps=1, select=0.7).score(images)
    # two of the three features are selected: the third channel's gradient vanishes
    np.testing.assert_allclose(selected, expected * 2 / 3, rtol=1e-5)
