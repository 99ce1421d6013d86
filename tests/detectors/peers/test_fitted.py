"""Detectors that are fitted, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from peer_networks import CLASSES, FEATURES, Tiny, build, close, numpy_gradient
from scipy.special import logsumexp, softmax
from scipy.stats import multivariate_normal, weibull_min

import si_jax
from si_jax.detectors.fitting import reservoir
from si_jax.detectors.neighbours import kth_distance, nearest_distance


def test_react(score, make, h, h_train, head):
    weights, bias = head
    limit = np.percentile(h_train, 90)
    close(make("react").state["threshold"], limit)
    expected = logsumexp(np.minimum(h, limit) @ weights + bias, axis=1)
    close(score("react"), expected)
    close(score("react", threshold=float(limit)), expected)
    assert np.abs(score("react") - score("energy")).max() > 0.01


def test_react_without_a_limit_is_energy(score, make):
    close(score("react", threshold=float("inf")), score("energy"))
    assert not make("react", threshold=float("inf")).needs_fit


def test_dice(score, h, h_train, head):
    weights, bias = head
    contribution = h_train.mean(axis=0)[:, None] * weights
    kept = contribution > np.percentile(contribution, 90)
    assert kept.sum() == 4
    close(score("dice"), logsumexp(h @ (weights * kept) + bias, axis=1))


def test_knn(score, h, h_train):
    unit, bank = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (h, h_train))
    distances = np.sort(np.linalg.norm(unit[:, None] - bank, axis=-1), axis=1)
    for k in (1, 5, 80):
        close(score("knn", k=k), -distances[:, k - 1])


def test_knn_finds_its_own_training_images(make, train):
    close(make("knn", k=1).score(train[0]), 0, atol=1e-6)


def test_kth_distance_by_chunks(monkeypatch):
    rng = np.random.default_rng(0)
    x, bank = (rng.normal(size=(n, 6)).astype(np.float32) for n in (9, 23))
    x, bank = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, bank))
    monkeypatch.setattr("si_jax.detectors.neighbours.BANK_CHUNK", 4)
    distances = np.sort(np.linalg.norm(x[:, None] - bank, axis=-1), axis=1)
    for k in (1, 7, 23):
        close(kth_distance(jnp.asarray(x), jnp.asarray(bank), k), distances[:, k - 1])


def gaussian_distances(h, h_train, labels):
    means = np.stack([h_train[labels == c].mean(axis=0) for c in range(CLASSES)])
    inverse = np.linalg.inv(np.cov((h_train - means[labels]).T, bias=True))
    difference = h[:, None] - means
    classes = np.einsum("ncf,fg,ncg->nc", difference, inverse, difference)
    centred = h - h_train.mean(axis=0)
    inverse = np.linalg.inv(np.cov(h_train.T, bias=True))
    return classes, np.einsum("nf,fg,ng->n", centred, inverse, centred)


@pytest.mark.parametrize("normalise", [False, True])
def test_mahalanobis(score, h, h_train, train, normalise):
    if normalise:
        h, h_train = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (h, h_train))
    classes, whole = gaussian_distances(h, h_train, train[1])
    nearest = classes.min(axis=1)
    close(score("mahalanobis", normalise=normalise), -nearest, rtol=1e-3)
    relative = score("relative-mahalanobis", normalise=normalise)
    close(relative, whole - nearest, rtol=1e-3, atol=1e-3)


def test_mahalanobis_leaves_out_features_that_never_vary(train, images, h, h_train):
    net = build(Tiny())
    net.variables["params"]["conv2"]["bias"][3] = -1e3
    scores = si_jax.make_detector("mahalanobis", net).fit(*train).score(images)
    others = np.delete(np.arange(FEATURES), 3)
    classes, _ = gaussian_distances(h[:, others], h_train[:, others], train[1])
    close(scores, -classes.min(axis=1), rtol=1e-3)


def test_vim(score, h, h_train, head, model, images):
    weights, bias = head
    origin = -np.linalg.pinv(weights.T) @ bias
    for dim in (None, 3):
        used = FEATURES // 2 if dim is None else dim
        values, vectors = np.linalg.eigh((h_train - origin).T @ (h_train - origin) / len(h_train))
        rest = vectors[:, np.argsort(-values)[used:]]
        train_norm = np.linalg.norm((h_train - origin) @ rest, axis=1)
        alpha = (h_train @ weights + bias).max(axis=1).mean() / train_norm.mean()
        virtual = alpha * np.linalg.norm((h - origin) @ rest, axis=1)
        expected = logsumexp(h @ weights + bias, axis=1) - virtual
        close(score("vim", dim=dim), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("features", "dim"), [(2048, 1000), (1024, 512), (768, 512), (64, 32)])
def test_vims_rule_for_its_dimension(features, dim):
    class Wide(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(features, name="wide")(x.mean(axis=(1, 2)))
            return nn.Dense(2, name="head")(x)

    shapes = jax.eval_shape(Wide().init, jax.random.key(0), jnp.ones((1, 2, 2, 1)))
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    net = si_jax.Model(Wide(), ones, (2, 2), (0.5,), (0.5,), head="head")
    assert si_jax.make_detector("vim", net).settings["dim"] == dim


def test_kl_matching(score, model, images, train):
    p, p_train = (softmax(model.logits(x).astype(np.float64), axis=1) for x in (images, train[0]))
    predicted = p_train.argmax(axis=1)
    present = np.unique(predicted)
    means = np.stack([p_train[predicted == c].mean(axis=0) for c in present])
    divergences = (p[:, None] * np.log(p[:, None] / means)).sum(axis=-1)
    close(score("kl-matching"), -divergences.min(axis=1), rtol=1e-4)


def test_vra(score, h, h_train, head):
    low, high = np.percentile(h_train, [60, 95])
    shaped = np.where(h < low, 0, np.minimum(h, high))
    assert (h < low).any() and (h > high).any()
    close(score("vra"), logsumexp(shaped @ head[0] + head[1], axis=1))
    close(score("vra", low=0.0), score("react", percentile=95.0))


def test_nnguide(score, model, images, train, h, h_train):
    unit, bank = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (h, h_train))
    energy, known = (logsumexp(model.logits(x).astype(np.float64), axis=1) for x in
                     (images, train[0]))  # fmt: skip
    products = np.sort(unit @ (bank * known[:, None]).T, axis=1)[:, -3:]
    close(score("nnguide", k=3), energy * products.mean(axis=1), rtol=1e-4)


def test_fdbd(score, model, images, h, h_train, head):
    logits, weights = model.logits(images).astype(np.float64), head[0].T
    expected = np.empty(len(h))
    for i, (f, x) in enumerate(zip(logits, h, strict=True)):
        y = f.argmax()
        others = [c for c in range(CLASSES) if c != y]
        far = [abs(f[y] - f[c]) / np.linalg.norm(weights[y] - weights[c]) for c in others]
        expected[i] = np.mean(far) / np.linalg.norm(x - h_train.mean(axis=0))
    close(score("fdbd"), expected, rtol=1e-4)


def test_fdbd_of_classes_with_equal_weights_is_finite(images, train):
    net = build(Tiny())
    net.variables["params"]["head"]["kernel"][:, 1] = net.variables["params"]["head"]["kernel"][
        :, 0
    ]
    assert np.isfinite(si_jax.make_detector("fdbd", net).fit(*train).score(images)).all()


def test_nci(score, model, images, h, h_train, head):
    predicted = model.logits(images).argmax(axis=1)
    z = h - h_train.mean(axis=0)
    along = (head[0].T[predicted] * z).sum(axis=1) / np.linalg.norm(z, axis=1)
    for alpha in (0.0001, 0.1):
        close(score("nci", alpha=alpha), along + alpha * np.abs(h).sum(axis=1), rtol=1e-4)


def test_she(model, images, train, h, h_train):
    """One class has no image that is classified right."""
    predicted, known = (model.logits(x).argmax(axis=1) for x in (images, train[0]))
    labels = np.where(np.arange(80) % 3, known, train[1])
    labels[(labels == predicted[0]) & (known == predicted[0])] = (predicted[0] + 1) % CLASSES
    labels[:8] = np.arange(8) % CLASSES
    means = []
    for c in range(CLASSES):
        right = (known == c) & (labels == c)
        means.append(h_train[right if right.any() else labels == c].mean(axis=0))
    found = si_jax.make_detector("she", model).fit(train[0], labels).score(images)
    close(found, (h * np.stack(means)[predicted]).sum(axis=1), rtol=1e-4)


def test_residual(score, h, h_train, head):
    origin = -np.linalg.pinv(head[0].T) @ head[1]
    _, _, basis = np.linalg.svd(h_train - origin, full_matrices=True)
    rest = basis[4:].T
    close(score("residual", dim=4), -np.linalg.norm((h - origin) @ rest, axis=1), rtol=1e-3)


def test_temperature_scaling(model, images, train):
    logits = model.logits(train[0]).astype(np.float64)
    labels = np.where(np.arange(80) % 3, logits.argmax(axis=1), train[1])

    def loss(t):
        return np.mean(logsumexp(logits / t, axis=1) - logits[np.arange(80), labels] / t)

    detector = si_jax.make_detector("temperature-scaling", model).fit(train[0], labels)
    t = float(detector.state["temperature"])
    assert 0.1 < t < 10 and abs(t - 1) > 0.01
    assert loss(t) < min(loss(0.999 * t), loss(1.001 * t))
    expected = softmax(model.logits(images).astype(np.float64) / t, axis=1).max(axis=1)
    close(detector.score(images), expected)
    detector.fit(train[0], logits.argmax(axis=1))  # all of them right
    np.testing.assert_allclose(detector.state["temperature"], 0.5, rtol=1e-3)


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
    assert len(np.unique(found)) >= 0.97 * len(np.unique(exact.astype(np.float32)))


def test_gmm(score, h, h_train, train):
    for reg in (1e-6, 0.1):
        terms = []
        for c in range(CLASSES):
            own = h_train[train[1] == c]
            covariance = np.cov(own.T, bias=True) + reg * np.eye(FEATURES)
            terms.append(multivariate_normal(own.mean(axis=0), covariance).logpdf(h) + np.log(0.25))
        close(score("gmm", reg=reg), logsumexp(terms, axis=0), rtol=1e-3, atol=1e-3)


def test_pnml(score, h, h_train, head):
    u, known = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (h, h_train))
    p = softmax(u @ head[0] + head[1], axis=1)
    x = np.einsum("nf,fg,ng->n", u, np.linalg.pinv(known.T @ known), u)
    k = (x / (1 + x))[:, None]
    regret = np.log((p / (p + (1 - p) * p**k)).sum(axis=1)) / np.log(CLASSES)
    close(score("pnml"), -regret, rtol=1e-4, atol=0)


def test_relation(score, model, images, train, h, h_train):
    u, known = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (h, h_train))
    p, p_train = (softmax(model.logits(x).astype(np.float64), axis=1) for x in (images, train[0]))
    edges = np.maximum(u @ known.T, 0) * (p @ p_train.T)
    assert 0.01 < (edges <= 0.3).mean() < 0.99
    for power in (1, 4):
        expected = np.where(edges > 0.3, edges**power, 0).sum(axis=1)
        close(score("relation", power=power, least=0.3), expected, rtol=1e-4)


def test_cfood(score, h, h_train):
    u, bank = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (h, h_train))
    n = len(bank)
    fractions = np.concatenate(
        [np.linspace(0.001, 0.1, 100), np.linspace(0.105, 0.5, 81), np.linspace(0.51, 0.99, 49)]
    )
    radii = np.sort(((bank[:, None] - bank) ** 2).sum(axis=-1), axis=1)
    for share in (0.01, 0.3):
        expected = np.ones(len(u))
        for i, x in enumerate(u):
            distances = ((x - bank) ** 2).sum(axis=1)
            for fraction in fractions[::-1]:
                place = int(max(fraction * n - 1, 0))
                if (radii[:, place + 1] >= distances).mean() >= share:
                    first = int(max(fractions[0] * n - 1, 0)) == place
                    same = [f for f in fractions if int(max(f * n - 1, 0)) == place]
                    expected[i] = fractions[0] if first else same[0]
        found = score("cfood", share=share)
        close(found, -expected)
        assert len(np.unique(found)) > 5


@pytest.fixture(scope="module")
def balanced(train):
    """A network that predicts every class, and labels with which it mostly agrees."""
    mean = build(Tiny()).logits(train[0]).mean(axis=0)
    net = build(Tiny())
    net.variables["params"]["head"]["bias"] -= mean
    return net, np.where(np.arange(80) % 5, net.logits(train[0]).argmax(axis=1), train[1])


def test_openmax(balanced, images, train):
    net, labels = balanced
    logits, known = (net.logits(x).astype(np.float64) for x in (images, train[0]))
    assert np.bincount(labels[known.argmax(axis=1) == labels], minlength=CLASSES).min() >= 3
    shares = np.zeros_like(logits)
    for c in range(CLASSES):
        own = known[(labels == c) & (known.argmax(axis=1) == c)]
        mean = own.mean(axis=0)
        tail = np.sort(np.linalg.norm(own - mean, axis=1))[-6:]
        shape, _, scale = weibull_min.fit(tail - tail.min() + 10_000, floc=0)
        distances = np.linalg.norm(logits - mean, axis=1) - tail.min() + 10_000
        shares[:, c] = weibull_min.cdf(distances, shape, 0, scale)
    for row, share in zip(logits, shares, strict=True):
        weights = np.zeros(CLASSES)
        weights[(-row).argsort()[:3]] = [1, 2 / 3, 1 / 3]
        share *= weights
    unknown = (logits * shares).sum(axis=1, keepdims=True)
    p = softmax(np.concatenate([unknown, logits * (1 - shares)], axis=1), axis=1)
    detector = si_jax.make_detector("openmax", net, tail=6, alpha=3).fit(train[0], labels)
    found = detector.score(images).astype(np.float64)
    close(found, np.log(1 - p[:, 0]) - np.log(p[:, 0]), rtol=2e-3, atol=2e-3)
    assert np.ptp(shares) > 0.9
    close(detector.score(images[:1]), found[:1])  # whatever the other images are


def test_grood(balanced, images, train):
    net, labels = balanced
    h, known = (net.features(x).astype(np.float64) for x in (images, train[0]))
    means = np.stack([known[labels == c].mean(axis=0) for c in range(CLASSES)])

    def gradients(h, predicted):
        def loss(other, x, y):
            prototypes = jnp.concatenate([jnp.asarray(means), other[None]])
            return -jax.nn.log_softmax(-jnp.linalg.norm(x - prototypes, axis=1))[y]

        by_image = jax.vmap(jax.grad(loss), (None, 0, 0))
        return np.asarray(by_image(jnp.asarray(means.mean(axis=0)), h, predicted), np.float64)

    right = net.logits(train[0]).argmax(axis=1) == labels
    assert 0 < right.sum() < 80
    bank = gradients(known, labels)[right]
    new = gradients(h, net.logits(images).argmax(axis=1))
    expected = ((new[:, None] - bank) ** 2).sum(axis=-1).min(axis=1)
    detector = si_jax.make_detector("grood", net).fit(train[0], labels)
    close(detector.score(images), -expected, rtol=1e-3, atol=1e-6)
    close(detector.score(train[0][right]), 0, atol=1e-9)


def test_nearest_distance(monkeypatch):
    rng = np.random.default_rng(0)
    x, bank = (rng.normal(size=(n, 6)).astype(np.float32) for n in (9, 23))
    bank *= rng.uniform(0.1, 3, (23, 1)).astype(np.float32)
    x[0] = bank[7] + np.float32(1e-4)
    monkeypatch.setattr("si_jax.detectors.neighbours.BANK_CHUNK", 4)
    expected = np.linalg.norm(x[:, None].astype(float) - bank, axis=-1).min(axis=1)
    x, bank = jnp.asarray(x), jnp.asarray(bank)
    close(nearest_distance(x, bank), expected, rtol=1e-3, atol=0)
    few = np.linalg.norm(x[:, None] - bank[:3], axis=-1).min(axis=1)
    close(nearest_distance(x, bank[:3]), few)


def test_reservoir_is_even_and_does_not_depend_on_the_batches():
    rows = np.arange(40.0)[:, None]
    one, many = (reservoir(np.split(rows, n), 10) for n in (1, 8))
    np.testing.assert_array_equal(one, many)
    assert len(np.unique(one)) == 10
    np.testing.assert_array_equal(reservoir([rows], 40), rows)
    drawn = [reservoir([rows], 10, seed).ravel() for seed in range(400)]
    counts = np.bincount(np.concatenate(drawn).astype(int), minlength=40)
    assert abs(counts - 100).max() < 50  # 5.8 standard deviations
