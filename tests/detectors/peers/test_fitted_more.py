"""AdaSCALE, ties, and the reservoir of fitting images."""

import jax
import numpy as np
from peer_networks import (
    FEATURES,
    Tiny,
    build,
    close,
    numpy_gradient,
)
from scipy.special import logsumexp, softmax

import si_jax
import si_jax.models
from si_jax.detectors.fitting import reservoir


def adascale_ratio(h, percentile):
    kept = [FEATURES - round(FEATURES * p / 100) for p in percentile]
    return np.array([x.sum() / np.sort(x)[-k:].sum() for x, k in zip(h, kept, strict=True)])


def test_adascale(score, model, images, train, h, h_train, head):
    options = {"low": 30.0, "high": 79.0, "k1": 40.0, "k2": 20.0, "weight": 3.0, "pixels": 0.3}

    def reaction(images, h):
        gradient, x = numpy_gradient(model, images, lambda logits: logits.max(axis=1).sum())
        moved = np.array(x)
        for g, one in zip(gradient, moved, strict=True):
            places = np.abs(g).ravel().argsort(kind="stable")[: int(g.size * 0.3)]
            one.ravel()[places] += 0.5 * np.sign(g.ravel()[places])
        after = model.features(moved).astype(np.float64)
        order = (-h).argsort(axis=1, kind="stable")
        change = np.take_along_axis(np.abs(after - h), order[:, :2], axis=1).sum(axis=1)
        return 3 * change + np.take_along_axis(after, order[:, :4], axis=1).sum(axis=1)

    known, new = reaction(train[0], h_train), reaction(images, h)
    share = (known[None] <= new[:, None]).mean(axis=1)
    assert np.ptp(share) > 0.5
    ratio = adascale_ratio(h, 30 + (1 - share) * 49)[:, None]
    expected = {
        "adascale-a": logsumexp((h * np.exp(ratio)) @ head[0] + head[1], axis=1),
        "adascale-l": logsumexp(model.logits(images) * ratio**2, axis=1),
    }
    for name, values in expected.items():
        close(score(name, **options), values, rtol=1e-4, atol=1e-4)


def test_kl_matching_does_not_tie_where_float32_saturates(images, train):
    net = build(Tiny())
    kernel = net.variables["params"]["head"]["kernel"]
    kernel *= 12
    logits = net.logits(images).astype(np.float64)
    assert (np.asarray(jax.nn.softmax(logits.astype(np.float32))).max(axis=1) == 1).mean() > 0.2
    found = si_jax.make_detector("kl-matching", net).fit(*train).score(images)
    p, known = (softmax(net.logits(x).astype(np.float64), axis=1) for x in (images, train[0]))
    predicted = known.argmax(axis=1)
    means = np.stack([known[predicted == c].mean(axis=0) for c in np.unique(predicted)])
    log_p = logits - logsumexp(logits, axis=1, keepdims=True)
    exact = -(p[:, None] * (log_p[:, None] - np.log(means))).sum(axis=-1).min(axis=1)
    close(found, exact, rtol=1e-4, atol=1e-7)
    print(len(np.unique(found)), len(np.unique(exact)), len(np.unique(exact.astype(np.float32))))
    assert len(np.unique(found)) >= 0.97 * len(np.unique(exact.astype(np.float32)))


def test_reservoir_is_even_and_does_not_depend_on_the_batches():
    rows = np.arange(40.0)[:, None]
    one, many = (reservoir(np.split(rows, n), 10) for n in (1, 8))
    np.testing.assert_array_equal(one, many)
    assert len(np.unique(one)) == 10
    np.testing.assert_array_equal(reservoir([rows], 40), rows)
    drawn = [reservoir([rows], 10, seed).ravel() for seed in range(400)]
    counts = np.bincount(np.concatenate(drawn).astype(int), minlength=40)
    assert abs(counts - 100).max() < 50  # 5.8 standard deviations
