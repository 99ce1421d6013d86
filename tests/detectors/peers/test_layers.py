"""Detectors that read several layers, against NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peer_networks import CLASSES, close
from test_fitted import gaussian_distances

import si_jax
from si_jax import splitting
from si_jax.detectors.layers import bin_edges, gram_sums

TAPS = ("conv1", "conv2")


@pytest.fixture(scope="module")
def maps(model, images, train):
    """The taps' outputs of the images and of the fitting images, float64."""

    def read(images):
        x = model.normalise(jnp.asarray(images))
        out = splitting.forward(model, model.variables, x, record=TAPS).outputs
        return [np.asarray(out[tap], np.float64) for tap in TAPS]

    return read(images), read(train[0])


def test_multi_mahalanobis(make, images, maps, train):
    assert make("multi-mahalanobis").settings["taps"] == list(TAPS)
    new, known = ([x.mean(axis=(1, 2)) for x in part] for part in maps)
    nearest = [
        gaussian_distances(h, h_train, train[1])[0].min(axis=1)
        for h, h_train in zip(new, known, strict=True)
    ]
    close(make("multi-mahalanobis").score(images), -sum(nearest), rtol=1e-3)
    one = make("multi-mahalanobis", taps="conv2").score(images)
    close(one, -nearest[1], rtol=1e-3)


def numpy_gram(maps, orders):
    """The published statistic: whole Gram matrices."""
    found = []
    for x in maps:
        flat = np.moveaxis(x.reshape(len(x), -1, x.shape[-1]), 1, 2)
        for p in range(1, orders + 1):
            sums = ((flat**p) @ np.moveaxis(flat**p, 1, 2)).sum(axis=2)
            found.append(np.sign(sums) * np.abs(sums) ** (1 / p))
    return np.concatenate(found, axis=1)


def test_gram_sums():
    x = np.random.default_rng(0).gamma(1, 3, (5, 3, 4, 6)).astype(np.float32)
    close(gram_sums(jnp.asarray(x), 10), numpy_gram([x.astype(np.float64)], 10), rtol=1e-4)
    huge = np.asarray(gram_sums(jnp.asarray(100 * x), 10))
    assert np.isfinite(huge).all()  # the tenth power of the largest overflows float32
    close(huge, 1e4 * np.asarray(gram_sums(jnp.asarray(x), 10)), rtol=1e-4)
    assert not np.asarray(gram_sums(jnp.zeros((1, 2, 2, 3)), 4)).any()


def test_gram(model, images, maps, train):
    orders = 4
    predicted, known = (model.logits(x).argmax(axis=1) for x in (train[0], images))
    held = np.arange(len(known)) % 10 == 0
    old, new = (numpy_gram(part, orders) for part in maps)
    used = old[~held]
    low, high = np.empty((2, CLASSES, old.shape[1]))
    for c in range(CLASSES):
        own = used[known[~held] == c] if (known[~held] == c).any() else used
        low[c], high[c] = own.min(axis=0), own.max(axis=0)

    def deviations(g, c):
        below = np.maximum(low[c] - g, 0) / np.abs(low[c] + 1e-6)
        above = np.maximum(g - high[c], 0) / np.abs(high[c] + 1e-6)
        return np.stack(
            [part.sum(axis=1) for part in np.split(below + above, [6 * orders], axis=1)]
        )

    expected = deviations(old[held], known[held]).mean(axis=1)
    total = (deviations(new, predicted) / expected[:, None]).sum(axis=0)
    assert (expected > 0).all() and (total > 0).mean() > 0.3
    detector = si_jax.make_detector("gram", model, orders=orders).fit(images)
    close(detector.score(train[0]), -total, rtol=1e-3, atol=1e-3)


def test_gram_of_one_image_is_refused(model, images):
    with pytest.raises(ValueError, match="too few"):
        si_jax.make_detector("gram", model).fit(images[:1])


def test_nac(score, model, images, maps, train):
    def states(images, maps):
        x = model.normalise(jnp.asarray(images))

        def divergence(offsets):
            edit = {tap: lambda z, d=d: z + d for tap, d in offsets.items()}
            logits = splitting.forward(model, model.variables, x, edit=edit).logits
            return -jnp.mean(jax.nn.log_softmax(logits), axis=-1).sum()

        zeros = {tap: jnp.zeros(z.shape) for tap, z in zip(TAPS, maps, strict=True)}
        gradient = jax.grad(divergence)(zeros)
        return [
            1 / (1 + np.exp(-20 * z.mean(axis=(1, 2)) * np.asarray(gradient[tap]).sum(axis=(1, 2))))
            for tap, z in zip(TAPS, maps, strict=True)
        ]

    half = np.emath.logn(1e3, np.linspace(1, np.sqrt(1e3), 10)).real
    edges = np.append(np.concatenate([half[:-1], (1 - half)[::-1]])[:-1], [1.01, 1.2])
    scores = []
    for new, known in zip(states(images, maps[0]), states(train[0], maps[1]), strict=True):
        coverage = []
        for channel, old in zip(new.T, known.T, strict=True):
            counts = [np.sum((old >= a) & (old < b)) for a, b in itertools.pairwise(edges)]
            places = [np.flatnonzero((s >= edges[:-1]) & (s < edges[1:]))[0] for s in channel]
            coverage.append(np.minimum(np.array(counts) / 12, 1)[places])
        scores.append(np.mean(coverage, axis=0))
    found = score("nac", alpha=20, bins=20, least=12)
    close(found, np.mean(scores, axis=0), atol=1e-5)
    assert len(np.unique(found)) > 30


def test_bins_are_narrow_around_the_middle():
    edges = bin_edges(50)
    assert len(edges) == 48 and edges[0] == 0 and 0.8 < edges[-1] < 1
    close(edges[24], 0.5)
    assert (np.diff(edges[:25], 2) < 0).all() and (np.diff(edges[24:], 2) > 0).all()
