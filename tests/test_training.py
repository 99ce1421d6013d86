"""Training: it learns, a seed reproduces it, norms are not decayed, mistakes are named."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from si_jax import training


@pytest.fixture(scope="module")
def coloured():
    """Images of noise whose brightest channel is their class."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 64)
    images = rng.integers(0, 120, (64, 8, 8, 3))
    images[np.arange(64), :, :, labels] += 100
    return images.astype(np.uint8), labels


@pytest.mark.slow
def test_it_learns_and_a_seed_reproduces_it(tiny, coloured):
    recipe = training.Recipe(epochs=6, batch_size=16, learning_rate=0.05, crop_padding=1)
    trained = training.train(tiny, *coloured, recipe)
    assert training.accuracy(trained, *coloured) > 0.9 > training.accuracy(tiny, *coloured)
    again = training.train(tiny, *coloured, recipe)
    for a, b in zip(
        jax.tree.leaves(trained.variables), jax.tree.leaves(again.variables), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_only_kernels_decay():
    recipe = training.Recipe(epochs=1, learning_rate=1.0, weight_decay=0.5, momentum=0.0)
    optimiser = training._optimiser(recipe, steps=10)
    params = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2), "bias": jnp.ones(2)}
    state, zero = optimiser.init(params), jax.tree.map(jnp.zeros_like, params)
    for _ in range(2):  # the first step of the warm-up has a learning rate of zero
        changes, state = optimiser.update(zero, state, params)
        params = optax.apply_updates(params, changes)
    assert (params["kernel"] < 1).all()
    assert (params["scale"] == 1).all() and (params["bias"] == 1).all()


def test_augmentation_crops_and_mirrors():
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3) + 1
    same = training.augment(jnp.asarray(images), jax.random.key(0), 0, flip=False)
    np.testing.assert_array_equal(same, images)
    many = images.repeat(20, axis=0)
    flipped = training.augment(jnp.asarray(many), jax.random.key(0), 0, flip=True)
    mirrored = [np.array_equal(new, old[:, ::-1]) for new, old in zip(flipped, many, strict=True)]
    assert 5 < sum(mirrored) < 35
    cropped = np.asarray(training.augment(jnp.asarray(images), jax.random.key(1), 2, flip=False))
    assert cropped.shape == images.shape and set(np.unique(cropped)) <= {0, *np.unique(images)}


@pytest.mark.parametrize(
    ("labels", "recipe", "message"),
    [
        (np.full(64, 5), {}, "below 5"),
        (np.full(64, -1), {}, "below 5"),
        (np.zeros(63, int), {}, "one class index"),
        (np.zeros(64, int), {"batch_size": 65}, "batch_size"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_mistakes(tiny, coloured, labels, recipe, message):
    recipe = training.Recipe(epochs=1, **{"batch_size": 16, **recipe})
    with pytest.raises(ValueError, match=message):
        training.train(tiny, coloured[0], labels, recipe)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops(tiny, coloured):
    recipe = training.Recipe(epochs=3, batch_size=16, learning_rate=1e30, warmup=0.01)
    with pytest.raises(ValueError, match=r"loss became.*learning rate"):
        training.train(tiny, *coloured, recipe)
