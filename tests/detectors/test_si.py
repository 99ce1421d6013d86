"""The S&I family: tap by tap or many at once, and by hand."""

import jax
import numpy as np
from flax import linen as nn
from pictures import noise

import si_jax


def test_the_general_engine_depends_on_no_batches_and_no_chunks_of_taps(small, tiny_images):
    options = {"engine": "general", "combine": "multiply", "step_size": 0.05, "steps": 3}
    one, other = (
        si_jax.make_detector("si-z", small, batch_size=size, tap_chunk=chunk, **options).details(
            tiny_images
        )
        for size, chunk in ((13, 2), (4, 1))
    )
    positions = 4 * 4 * 8
    np.testing.assert_allclose(other["tap_density"], one["tap_density"], atol=0.1 / positions)
    np.testing.assert_allclose(other["score"], one["score"], rtol=1e-5)


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
    images = noise(5, 2, 2, 3)
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
