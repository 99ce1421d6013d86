"""Scores of the detectors that others have published, against NumPy, on whole arrays."""

import dataclasses
import itertools
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax
from scipy.stats import multivariate_normal, weibull_min

import compare_published
import si_jax
from si_jax import splitting
from si_jax.detectors import DETECTORS, layers
from si_jax.detectors.fitting import Batches, reservoir
from si_jax.detectors.neighbours import nearest_distance
from si_jax.evaluation.scoring import Scorer
from si_jax.testing import random_images, small_model

pytestmark = pytest.mark.usefixtures("one_device")  # programs compile faster
CASES = []
CLASSES, FEATURES = 4, 10
TAPS = ("layers_0", "layers_2")


def network(images, spread=8):
    """A network of its own that predicts every class; its logits vary by `spread`."""
    convolutions = [nn.Conv(6, (3, 3), strides=2), nn.relu, nn.Conv(FEATURES, (3, 3)), nn.relu]
    module = nn.Sequential([*convolutions, lambda x: x.mean(axis=(1, 2)), nn.Dense(CLASSES)])
    drawn = module.init(jax.random.key(1), jnp.ones((1, 8, 8, 3)))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    plain = si_jax.Model(module, drawn, (8, 8), mean, std, head="layers_5")
    variables = jax.tree.map(np.array, drawn)
    head = variables["params"]["layers_5"]
    head["kernel"] *= spread
    head["bias"] -= plain.features(images).mean(axis=0) @ head["kernel"]
    return dataclasses.replace(plain, variables=variables)


def unit(h):
    return h / np.linalg.norm(h, axis=1, keepdims=True)


class Outputs:
    """What the network makes of images, in float64; their labels where they are fitted on."""

    def __init__(self, model, images, labels=None):
        self.model, self.images, self.labels = model, images, labels
        self.x = model.normalise(jnp.asarray(images))
        out = self.run(self.x, record=TAPS)
        self.logits = np.asarray(out.logits, np.float64)
        self.maps = [np.asarray(out.outputs[tap], np.float64) for tap in TAPS]
        self.h = model.features(images).astype(np.float64)
        self.u = unit(self.h)
        self.p = softmax(self.logits, axis=1)
        self.predicted = self.logits.argmax(axis=1)
        head = model.variables["params"]["layers_5"]
        self.w, self.b = (np.asarray(head[name], np.float64) for name in ("kernel", "bias"))

    def __len__(self):
        return len(self.images)

    def run(self, x, **options):
        return splitting.forward(self.model, self.model.variables, x, **options)

    def energy(self, h):
        """Of features that enter the head."""
        return logsumexp(h @ self.w + self.b, axis=1)

    def gradient(self, objective):
        """Of the sum of a function of each image's logits, by the images."""
        return np.asarray(jax.grad(lambda x: jax.vmap(objective)(self.run(x).logits).sum())(self.x))

    def parameter_gradients(self, objective):
        """Of a function of its logits by all parameters, of each image."""

        def of_one(params, x):
            return objective(self.model.module.apply({"params": params}, x[None])[0])

        by_image = jax.jit(jax.vmap(jax.grad(of_one), (None, 0)))
        return by_image(self.model.variables["params"], self.x)


def close(actual, expected, rtol=2e-5, atol=2e-5):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


@pytest.fixture(scope="module")
def new():
    images = random_images(small_model(), 70, seed=1)
    return Outputs(network(images), images)


@pytest.fixture(scope="module")
def known(new):
    """Images like the others to fit on, and labels with which the network mostly agrees."""
    rng, cyclic = np.random.default_rng(2), np.arange(80) % CLASSES
    noise = rng.integers(-30, 30, (80, 8, 8, 3))
    images = np.clip(new.images[rng.integers(0, 40, 80)] + noise, 0, 255).astype(np.uint8)
    predicted = new.model.logits(images).argmax(axis=1)
    labels = np.where(np.arange(80) % 3, predicted, cyclic)
    assert 3 <= np.bincount(labels[predicted == labels], minlength=CLASSES).min() < 20
    return Outputs(new.model, images, labels)


def options(*cases, rtol=2e-5, atol=2e-5):
    """The function below gives what the detector of its name gives with each of these options.

    Its defaults are the published ones; `new` are outputs of images, `known` of those of the fit.
    """

    def add(function):
        name = function.__name__.replace("_", "-")
        CASES.extend((name, given, function, {"rtol": rtol, "atol": atol}) for given in cases)
        return function

    return add


@pytest.fixture(scope="module")
def scores(new, known):
    """Of every case; the fits share one pass, and so do those that need a forward pass alone."""
    batches = Batches(lambda: [(known.images, known.labels)], new.model, keep=True)
    devices = jax.local_devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: devices)
        patch.setattr("si_jax.detectors.neighbours.BANK_CHUNK", 32)  # of 80
        detectors = {
            number: si_jax.make_detector(name, new.model, **given).fit_batches(batches)
            for number, (name, given, *_) in enumerate(CASES)
        }
        return {number: x["score"] for number, x in Scorer(detectors)(new.images).items()}


@options({}, {"temperature": 7.0})
def energy(new, known, temperature=1):
    return temperature * logsumexp(new.logits / temperature, axis=1)


@options({})
def msp(new, known):
    return new.p.max(axis=1)


@options({})
def max_logit(new, known):
    return new.logits.max(axis=1)


@options({})
def entropy(new, known):
    return (new.p * np.log(new.p)).sum(axis=1)


@options({}, {"gamma": 0.5, "top": 2})
def gen(new, known, gamma=0.1, top=100):
    p = np.sort(new.p)[:, -top:]
    return -((p * (1 - p)) ** gamma).sum(axis=1)


@options({})
def temperature_scaling(new, known):
    """The temperature is the best of many."""

    def loss(t):
        logits = known.logits / t
        return np.mean(logsumexp(logits, axis=1) - logits[np.arange(len(known)), known.labels])

    t = minimize_scalar(loss, bounds=(0.5, 20), method="bounded", options={"xatol": 1e-9}).x
    assert 0.6 < t < 10 and abs(t - 1) > 0.01
    return softmax(new.logits / t, axis=1).max(axis=1)


@options({})
def kl_matching(new, known):
    means = [known.p[known.predicted == c].mean(axis=0) for c in np.unique(known.predicted)]
    return -(new.p[:, None] * np.log(new.p[:, None] / means)).sum(axis=-1).min(axis=1)


def largest(h, percentile):
    """Which features are not among the smaller."""
    count = FEATURES - round(FEATURES * percentile / 100)
    kept = np.zeros(h.shape, bool)
    np.put_along_axis(kept, np.argsort(-h, axis=1, kind="stable")[:, :count], True, axis=1)
    return kept


def shares(h, percentile):
    """Sum of all features by the sum of the larger."""
    kept = h * largest(h, percentile)
    return h.sum(axis=1, keepdims=True) / kept.sum(axis=1, keepdims=True)


PERCENTILES = [{"percentile": percentile} for percentile in (0.0, 20.0, 65.0)]


@options({}, *PERCENTILES)
def ash_p(new, known, percentile=65):
    return new.energy(new.h * largest(new.h, percentile))


@options({}, *PERCENTILES)
def ash_b(new, known, percentile=65):
    kept = largest(new.h, percentile)
    return new.energy(kept * new.h.sum(axis=1, keepdims=True) / kept.sum(axis=1, keepdims=True))


@options({}, *PERCENTILES)
def ash_s(new, known, percentile=65):
    kept = new.h * largest(new.h, percentile)
    return new.energy(kept * np.exp(shares(new.h, percentile)))


@options({}, *PERCENTILES)
def scale(new, known, percentile=85):
    return new.energy(new.h * np.exp(shares(new.h, percentile)))


@options({"percentile": 60.0}, {"percentile": 85.0})
def lts(new, known, percentile):
    return logsumexp(new.logits * shares(new.h, percentile) ** 2, axis=1)


@options({}, {"percentile": 50.0}, {"threshold": 0.5}, {"threshold": float("inf")})
def react(new, known, percentile=90, threshold=None):
    limit = np.percentile(known.h, percentile) if threshold is None else threshold
    return new.energy(np.minimum(new.h, limit))


@options({}, {"low": 0.0, "high": 90.0})
def vra(new, known, low=60, high=95):
    low, high = np.percentile(known.h, [low, high])
    assert (new.h > high).any()
    return new.energy(np.where(new.h < low, 0, np.minimum(new.h, high)))


@options({}, {"percentile": 50.0})
def dice(new, known, percentile=90):
    contribution = known.h.mean(axis=0)[:, None] * new.w
    kept = contribution > np.percentile(contribution, percentile)
    return logsumexp(new.h @ (new.w * kept) + new.b, axis=1)


def without_rank_one(maps):
    """Each image's map, of positions times channels, less its first singular component."""
    flat = np.asarray(maps, np.float64).reshape(len(maps), -1, maps.shape[-1])
    u, s, vt = np.linalg.svd(flat, full_matrices=False)
    return (flat - s[:, :1, None] * u[:, :, :1] * vt[:, :1]).reshape(maps.shape)


@options({}, {"taps": TAPS})
def rankfeat(new, known, taps=("layers_2",)):
    """The last map of a network of unknown stages."""
    edits = [{tap: lambda z: jnp.float32(without_rank_one(z))} for tap in taps]
    logits = [new.run(new.x, edit=edit).logits for edit in edits]
    return logsumexp(np.mean(logits, axis=0), axis=1)


@options({}, {"temperature": 0.1})
def mcm(new, known, temperature=1):
    return softmax(new.u @ unit(new.w.T).T / temperature, axis=1).max(axis=1)


@options({"k": 1}, {"k": 5}, {"k": 80}, {})
def knn(new, known, k=50):
    return -np.sort(np.linalg.norm(new.u[:, None] - known.u, axis=-1), axis=1)[:, k - 1]


@options({}, {"k": 3})
def nnguide(new, known, k=10):
    bank = known.u * logsumexp(known.logits, axis=1, keepdims=True)
    return logsumexp(new.logits, axis=1) * np.sort(new.u @ bank.T, axis=1)[:, -k:].mean(axis=1)


@options({}, {"least": 0.3}, {"power": 4.0, "least": 0.3})
def relation(new, known, power=1, least=0.03):
    edges = np.maximum(new.u @ known.u.T, 0) * (new.p @ known.p.T)
    assert 0.01 < (edges <= 0.3).mean() < 0.99
    return np.where(edges > least, edges**power, 0).sum(axis=1)


@options({}, {"share": 0.3})
def cfood(new, known, share=0.01):
    n = len(known)
    fractions = np.concatenate(
        [np.linspace(0.001, 0.1, 100), np.linspace(0.105, 0.5, 81), np.linspace(0.51, 0.99, 49)]
    )
    places = np.maximum(fractions * n - 1, 0).astype(int)
    radii = np.sort(((known.u[:, None] - known.u) ** 2).sum(axis=-1), axis=1)[:, places + 1]
    distances = ((new.u[:, None] - known.u) ** 2).sum(axis=-1)
    held = (radii >= distances[:, :, None]).mean(axis=1) >= share
    found = np.where(held.any(axis=1), fractions[held.argmax(axis=1)], 1)
    assert len(np.unique(found)) > 5
    return -found


@options({})
def fdbd(new, known):
    rows = []
    for f, h, y in zip(new.logits, new.h, new.predicted, strict=True):
        others = [c for c in range(CLASSES) if c != y]
        far = [abs(f[y] - f[c]) / np.linalg.norm(new.w[:, y] - new.w[:, c]) for c in others]
        rows.append(np.mean(far) / np.linalg.norm(h - known.h.mean(axis=0)))
    return rows


@options({}, {"alpha": 0.1})
def nci(new, known, alpha=0.0001):
    along = (new.w.T[new.predicted] * unit(new.h - known.h.mean(axis=0))).sum(axis=1)
    return along + alpha * np.abs(new.h).sum(axis=1)


@options({})
def she(new, known):
    right = known.predicted == known.labels
    means = [known.h[right & (known.labels == c)].mean(axis=0) for c in range(CLASSES)]
    return (new.h * np.stack(means)[new.predicted]).sum(axis=1)


@options({"tail": 6, "alpha": 3}, rtol=2e-3, atol=2e-3)
def openmax(new, known, tail, alpha):
    lost = np.zeros_like(new.logits)
    for c in range(CLASSES):
        own = known.logits[(known.labels == c) & (known.predicted == c)]
        mean = own.mean(axis=0)
        far = np.sort(np.linalg.norm(own - mean, axis=1))[-tail:]
        shape, _, spread = weibull_min.fit(far - far.min() + 10_000, floc=0)
        distances = np.linalg.norm(new.logits - mean, axis=1) - far.min() + 10_000
        lost[:, c] = weibull_min.cdf(distances, shape, 0, spread)
    ranks = (-new.logits).argsort(axis=1).argsort(axis=1)
    lost *= np.maximum(alpha - ranks, 0) / alpha
    assert np.ptp(lost) > 0.9
    unknown = (new.logits * lost).sum(axis=1, keepdims=True)
    p = softmax(np.concatenate([unknown, new.logits * (1 - lost)], axis=1), axis=1)[:, 0]
    return np.log(1 - p) - np.log(p)


@options({}, rtol=1e-3, atol=1e-6)
def grood(new, known):
    means = np.stack([known.h[known.labels == c].mean(axis=0) for c in range(CLASSES)])

    def loss(other, h, y):
        prototypes = jnp.concatenate([jnp.asarray(means), other[None]])
        return -jax.nn.log_softmax(-jnp.linalg.norm(h - prototypes, axis=1))[y]

    gradients = partial(jax.vmap(jax.grad(loss), (None, 0, 0)), jnp.asarray(means.mean(axis=0)))
    bank = gradients(known.h, known.labels)[known.predicted == known.labels]
    found = np.asarray(gradients(new.h, new.predicted), np.float64)
    return -((found[:, None] - bank) ** 2).sum(axis=-1).min(axis=1)


def class_distances(h, fitted, labels):
    """Squared, by the covariance that all classes share."""
    means = np.stack([fitted[labels == c].mean(axis=0) for c in range(CLASSES)])
    inverse = np.linalg.inv(np.cov((fitted - means[labels]).T, bias=True))
    difference = h[:, None] - means
    return np.einsum("ncf,fg,ncg->nc", difference, inverse, difference).min(axis=1)


@options({}, {"normalise": True}, rtol=1e-3)
def mahalanobis(new, known, normalise=False):
    h, fitted = (new.u, known.u) if normalise else (new.h, known.h)
    return -class_distances(h, fitted, known.labels)


@options({}, {"normalise": True}, rtol=1e-3, atol=1e-3)
def relative_mahalanobis(new, known, normalise=False):
    h, fitted = (new.u, known.u) if normalise else (new.h, known.h)
    centred, inverse = h - fitted.mean(axis=0), np.linalg.inv(np.cov(fitted.T, bias=True))
    whole = np.einsum("nf,fg,ng->n", centred, inverse, centred)
    return whole - class_distances(h, fitted, known.labels)


@options({"taps": TAPS}, {"taps": "layers_2"}, rtol=1e-3)
def multi_mahalanobis(new, known, taps):
    means = zip(*([z.mean(axis=(1, 2)) for z in x.maps] for x in (new, known)), strict=True)
    distances = [class_distances(*pair, known.labels) for pair in means]
    return -sum(distances) if taps == TAPS else -distances[-1]


@options({}, {"reg": 0.1}, rtol=1e-3, atol=1e-3)
def gmm(new, known, reg=1e-6):
    terms = []
    for c in range(CLASSES):
        own = known.h[known.labels == c]
        covariance = np.cov(own.T, bias=True) + reg * np.eye(FEATURES)
        terms.append(multivariate_normal(own.mean(axis=0), covariance).logpdf(new.h))
        terms[-1] += np.log(len(own) / len(known))
    return logsumexp(terms, axis=0)


@options({}, {"dim": 3}, rtol=1e-3, atol=1e-3)
def vim(new, known, dim=FEATURES // 2):
    origin = -np.linalg.pinv(new.w.T) @ new.b
    centred = known.h - origin
    values, vectors = np.linalg.eigh(centred.T @ centred / len(known))
    rest = vectors[:, np.argsort(-values)[dim:]]
    alpha = known.logits.max(axis=1).mean() / np.linalg.norm(centred @ rest, axis=1).mean()
    return logsumexp(new.logits, axis=1) - alpha * np.linalg.norm((new.h - origin) @ rest, axis=1)


@options({"dim": 4}, rtol=1e-3)
def residual(new, known, dim):
    origin = -np.linalg.pinv(new.w.T) @ new.b
    _, _, basis = np.linalg.svd(known.h - origin, full_matrices=True)
    return -np.linalg.norm((new.h - origin) @ basis[dim:].T, axis=1)


@options({}, rtol=1e-4, atol=0)
def pnml(new, known):
    p = softmax(new.u @ new.w + new.b, axis=1)
    x = np.einsum("nf,fg,ng->n", new.u, np.linalg.pinv(known.u.T @ known.u), new.u)
    k = (x / (1 + x))[:, None]
    return -np.log((p / (p + (1 - p) * p**k)).sum(axis=1)) / np.log(CLASSES)


def numpy_gram(maps, orders):
    """The published statistic: whole Gram matrices."""
    found = []
    for x in maps:
        flat = np.moveaxis(x.reshape(len(x), -1, x.shape[-1]), 1, 2)
        for p in range(1, orders + 1):
            sums = ((flat**p) @ np.moveaxis(flat**p, 1, 2)).sum(axis=2)
            found.append(np.sign(sums) * np.abs(sums) ** (1 / p))
    return np.concatenate(found, axis=1)


@options({"orders": 4, "taps": TAPS}, rtol=1e-3, atol=1e-3)
def gram(new, known, orders, taps):
    held = np.arange(len(known)) % 10 == 0
    g, fitted = (numpy_gram(x.maps, orders) for x in (new, known))
    used = fitted[~held]
    low, high = np.empty((2, CLASSES, used.shape[1]))
    for c in range(CLASSES):
        own = used[known.predicted[~held] == c]
        low[c], high[c] = own.min(axis=0), own.max(axis=0)

    def deviations(g, c):
        below = np.maximum(low[c] - g, 0) / np.abs(low[c] + 1e-6)
        above = np.maximum(g - high[c], 0) / np.abs(high[c] + 1e-6)
        layers = np.split(below + above, [6 * orders], axis=1)
        return np.stack([part.sum(axis=1) for part in layers])

    expected = deviations(fitted[held], known.predicted[held]).mean(axis=1)
    total = (deviations(g, new.predicted) / expected[:, None]).sum(axis=0)
    assert (expected > 0).all() and (total > 0).mean() > 0.3
    return -total


@options({"alpha": 20, "bins": 20, "least": 12, "taps": TAPS})
def nac(new, known, alpha, bins, least, taps):
    def states(x):
        def divergence(offsets):
            edit = {tap: lambda z, d=d: z + d for tap, d in offsets.items()}
            return -jnp.mean(jax.nn.log_softmax(x.run(x.x, edit=edit).logits), axis=-1).sum()

        zeros = {tap: jnp.zeros(z.shape) for tap, z in zip(TAPS, x.maps, strict=True)}
        gradient = jax.grad(divergence)(zeros)
        products = [
            z.mean(axis=(1, 2)) * np.asarray(gradient[tap]).sum(axis=(1, 2))
            for tap, z in zip(TAPS, x.maps, strict=True)
        ]
        return [1 / (1 + np.exp(-alpha * product)) for product in products]

    half = np.emath.logn(1e3, np.linspace(1, np.sqrt(1e3), bins // 2)).real
    edges = np.append(np.concatenate([half[:-1], (1 - half)[::-1]])[:-1], [1.01, 1.2])
    rows = []
    for found, fitted in zip(states(new), states(known), strict=True):
        coverage = []
        for channel, old in zip(found.T, fitted.T, strict=True):
            counts = [np.sum((old >= a) & (old < b)) for a, b in itertools.pairwise(edges)]
            places = [np.flatnonzero((s >= edges[:-1]) & (s < edges[1:]))[0] for s in channel]
            coverage.append(np.minimum(np.array(counts) / least, 1)[places])
        rows.append(np.mean(coverage, axis=0))
    return np.mean(rows, axis=0)


def top_log_probability(logits):
    return jax.nn.log_softmax(logits).max()


@options({}, {"step": 0.0}, {"step": 0.0, "temperature": 1.0}, rtol=1e-6, atol=0)
def odin(new, known, temperature=1000, step=0.0014):
    gradient = new.gradient(lambda logits: top_log_probability(logits / temperature))
    sign = np.where(-gradient >= 0, 1, -1)
    moved = new.x - np.float32(step / np.array(new.model.std)) * sign
    return softmax(new.model.logits(np.float32(moved)) / temperature, axis=1).max(axis=1)


@options({"temperature": 10.0, "step": 0.5}, rtol=1e-4)
def i_odin(new, known, temperature, step):
    """One value of each image is moved."""
    moved = np.array(new.x)
    gradient = -new.gradient(lambda logits: top_log_probability(logits / temperature))
    for g, one in zip(gradient, moved, strict=True):
        place = np.unravel_index(np.abs(g).argmax(), g.shape)
        one[place] -= step / new.model.std[place[-1]] * (1 if g[place] >= 0 else -1)
    logits = new.model.logits(moved).astype(np.float64)
    return softmax(logits / temperature, axis=1).max(axis=1)


@options({}, {"temperature": 3.0}, {"temperature": 3.0, "parameters": "all"}, rtol=1e-4)
def gradnorm(new, known, temperature=1, parameters="head"):
    """Of the KL divergence from the uniform distribution."""
    gradients = new.parameter_gradients(
        lambda logits: jnp.mean(-jnp.log(CLASSES) - jax.nn.log_softmax(logits / temperature))
    )
    used = gradients["layers_5"]["kernel"] if parameters == "head" else gradients
    return sum(np.abs(g).reshape(len(new), -1).sum(axis=1) for g in jax.tree.leaves(used))


@options({}, {"parameters": "all"}, rtol=1e-4)
def grad_uncertainty(new, known, parameters="head"):
    """Of the binary cross-entropy with a label of ones."""
    gradients = new.parameter_gradients(lambda logits: -jnp.sum(jax.nn.log_softmax(logits)))
    used = gradients["layers_5"] if parameters == "head" else gradients
    return sum(np.square(g).reshape(len(new), -1).sum(axis=1) for g in jax.tree.leaves(used))


ADASCALE = {"low": 30.0, "high": 79.0, "k1": 40.0, "k2": 20.0, "weight": 3.0, "pixels": 0.3}


def adascale_ratios(new, known):
    def reaction(x):
        gradient, moved = x.gradient(jnp.max), np.array(x.x)
        for g, one in zip(gradient, moved, strict=True):
            places = np.abs(g).ravel().argsort(kind="stable")[: int(g.size * 0.3)]
            one.ravel()[places] += 0.5 * np.sign(g.ravel()[places])
        after = x.model.features(moved).astype(np.float64)
        order = (-x.h).argsort(axis=1, kind="stable")
        change = np.take_along_axis(np.abs(after - x.h), order[:, :2], axis=1).sum(axis=1)
        return 3 * change + np.take_along_axis(after, order[:, :4], axis=1).sum(axis=1)

    share = (reaction(known)[None] <= reaction(new)[:, None]).mean(axis=1)
    assert np.ptp(share) > 0.5
    percentiles = 30 + (1 - share) * 49
    return np.stack([shares(h[None], p)[0] for h, p in zip(new.h, percentiles, strict=True)])


@options(ADASCALE, rtol=1e-4, atol=1e-4)
def adascale_a(new, known, **given):
    return new.energy(new.h * np.exp(adascale_ratios(new, known)))


@options(ADASCALE, rtol=1e-4, atol=1e-4)
def adascale_l(new, known, **given):
    return logsumexp(new.logits * adascale_ratios(new, known) ** 2, axis=1)


NAMES = [f"{name} {given or ''}" for name, given, *_ in CASES]


@pytest.mark.parametrize("number", range(len(CASES)), ids=NAMES)
def test_scores_are_numpys(number, scores, new, known):
    _, given, expected, tolerance = CASES[number]
    close(scores[number], expected(new, known, **given), **tolerance)


def test_every_peer_is_here():
    own = {"si-c", "si-c-forward", "si-z", "si-a", "gaia-z", "gaia-a"}
    assert {name for name, *_ in CASES} == set(DETECTORS) - own


def test_the_comparison_by_hand_with_pytorch_ood(monkeypatch):
    assert set(compare_published.NOTES) <= set(DETECTORS)
    monkeypatch.setitem(sys.modules, "pytorch_ood", None)
    with pytest.raises(ValueError, match='pip install "pytorch-ood"'):
        compare_published.main([])


@pytest.fixture
def net(new):
    """A network of its own, whose parameters may be changed, and these."""
    net = network(new.images)
    return net, net.variables["params"]


def test_an_image_without_any_activation_has_a_score(net):
    silent, params = net
    params["layers_2"]["bias"][:] = -1e3
    image = np.zeros((1, 8, 8, 3), np.uint8)
    assert not silent.features(image).any()
    for name in ("ash-p", "ash-b", "ash-s", "scale", "gradnorm"):
        assert np.isfinite(si_jax.make_detector(name, silent).score(image)).all(), name


def test_features_that_never_vary_are_left_out_by_mahalanobis(net, new, known):
    constant, params = net
    params["layers_2"]["bias"][3] = -1e3
    detector = si_jax.make_detector("mahalanobis", constant).fit(known.images, known.labels)
    h, fitted = (np.delete(x.h, 3, axis=1) for x in (new, known))
    close(detector.score(new.images), -class_distances(h, fitted, known.labels), rtol=1e-3)


def test_classes_with_equal_weights_have_no_boundary_for_fdbd(net, new, known):
    equal, params = net
    params["layers_5"]["kernel"][:, 1] = params["layers_5"]["kernel"][:, 0]
    detector = si_jax.make_detector("fdbd", equal).fit(known.images)
    assert np.isfinite(detector.score(new.images)).all()


def test_kl_matching_does_not_tie_where_float32_saturates(new, known):
    sure = network(new.images, spread=300)
    new, known = Outputs(sure, new.images), Outputs(sure, known.images)
    assert (softmax(np.float32(new.logits), axis=1).max(axis=1) == 1).mean() > 0.2
    found = si_jax.make_detector("kl-matching", sure).fit(known.images).score(new.images)
    means = [known.p[known.predicted == c].mean(axis=0) for c in np.unique(known.predicted)]
    log_p = new.logits - logsumexp(new.logits, axis=1, keepdims=True)
    exact = -(new.p[:, None] * (log_p[:, None] - np.log(means))).sum(axis=-1).min(axis=1)
    close(found, exact, rtol=1e-4, atol=1e-7)
    assert len(np.unique(found)) >= 0.97 * len(np.unique(np.float32(exact)))


def test_she_of_a_class_without_an_image_that_is_classified_right(new, known):
    labels = known.labels.copy()
    of_none = new.predicted[0]
    labels[(labels == of_none) & (known.predicted == of_none)] = (of_none + 1) % CLASSES
    right = labels == known.predicted
    assert of_none in labels and of_none not in labels[right]
    means = [known.h[labels == of_none].mean(axis=0)] * CLASSES
    for c in set(labels[right]):
        means[c] = known.h[right & (labels == c)].mean(axis=0)
    found = si_jax.make_detector("she", new.model).fit(known.images, labels).score(new.images)
    close(found, (new.h * np.stack(means)[new.predicted]).sum(axis=1), rtol=1e-4)


def test_a_temperature_where_all_are_classified_right_is_the_least(known):
    detector = si_jax.make_detector("temperature-scaling", known.model)
    detector.fit(known.images, known.predicted)
    close(detector.state["temperature"], 0.5, rtol=1e-3)


def test_images_of_the_fit_are_at_no_distance(known):
    right = known.predicted == known.labels
    for name, given, atol in (("knn", {"k": 1}, 1e-6), ("grood", {}, 1e-9)):
        detector = si_jax.make_detector(name, known.model, **given)
        detector.fit(known.images, known.labels)
        close(detector.score(known.images[right]), 0, atol=atol)


def test_the_nearest_is_exact_however_near(monkeypatch):
    rng = np.random.default_rng(0)
    x, bank = (rng.normal(size=(n, 6)).astype(np.float32) for n in (9, 23))
    bank *= rng.uniform(0.1, 3, (23, 1)).astype(np.float32)
    x[0] = bank[7] + np.float32(1e-4)
    monkeypatch.setattr("si_jax.detectors.neighbours.BANK_CHUNK", 4)
    distances = np.linalg.norm(x[:, None].astype(float) - bank, axis=-1)
    for count in (3, 23):
        found = nearest_distance(jnp.asarray(x), jnp.asarray(bank[:count]))
        close(found, distances[:, :count].min(axis=1), rtol=1e-3, atol=0)


def test_sums_of_high_powers_and_of_nothing():
    x = np.random.default_rng(0).gamma(1, 3, (5, 3, 4, 6)).astype(np.float32)
    found = np.asarray(layers.gram_sums(jnp.asarray(x), 10))
    close(found, numpy_gram([x.astype(np.float64)], 10), rtol=1e-4)
    huge = layers.gram_sums(jnp.asarray(100 * x), 10)  # the tenth power overflows float32
    close(huge, 1e4 * found, rtol=1e-4)
    assert not np.asarray(layers.gram_sums(jnp.zeros((1, 2, 2, 3)), 4)).any()


@pytest.mark.parametrize("shape", [(3, 4, 5, 7), (3, 2, 2, 9)])
def test_without_rank_one_is_numpys_svd(shape):
    maps = np.random.default_rng(0).normal(1, 1, shape).astype(np.float32)
    found = np.asarray(layers.without_rank_one(jnp.asarray(maps)))
    close(found, without_rank_one(maps), atol=1e-5)
    assert not np.asarray(layers.without_rank_one(jnp.zeros(shape))).any()


@pytest.mark.parametrize(
    ("network", "options", "taps"),
    [
        ("resnet14", {}, ["layer2_1", "layer3_1"]),
        ("wrn_16_4", {}, ["block2_1", "block3_1"]),
        ("bit_r50x1", {"units": (1, 1, 2, 1)}, ["block3_unit02", "block4_unit01"]),
    ],
)
def test_rankfeat_takes_the_outputs_of_the_last_stages(network, options, taps):
    row = si_jax.models.ARCHITECTURES[network]
    module = row.family.build(num_classes=3, **row.options | options)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, *row.input_size, 3)))
    net = si_jax.Model(module, shapes, row.input_size, (0.5,) * 3, (0.5,) * 3, row.family.head)
    assert si_jax.make_detector("rankfeat", net).settings["taps"] == taps
    assert si_jax.make_detector("rankfeat", net, stages=1).settings["taps"] == taps[1:]


class Flat(nn.Module):
    """No feature map at all."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.width, name="hidden")(x.reshape(len(x), -1)))
        return nn.Dense(CLASSES, name="head")(x)


def flat(width):
    variables = Flat(width).init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    return si_jax.Model(Flat(width), variables, (8, 8), (0.5,) * 3, (0.5,) * 3, head="head")


@pytest.mark.parametrize(("width", "dim"), [(2048, 1000), (1024, 512), (768, 512), (64, 32)])
def test_vims_rule_for_its_dimension(width, dim):
    assert si_jax.make_detector("vim", flat(width)).settings["dim"] == dim


def test_rankfeat_without_a_feature_map():
    with pytest.raises(ValueError, match="needs a feature map"):
        si_jax.make_detector("rankfeat", flat(5))


def test_reservoir_is_even_and_does_not_depend_on_the_batches():
    rows = np.arange(40.0)[:, None]
    one, many = (reservoir(np.split(rows, n), 10) for n in (1, 8))
    np.testing.assert_array_equal(one, many)
    assert len(np.unique(one)) == 10
    np.testing.assert_array_equal(reservoir([rows], 40), rows)
    drawn = [reservoir([rows], 10, seed).ravel() for seed in range(400)]
    counts = np.bincount(np.concatenate(drawn).astype(int), minlength=40)
    assert abs(counts - 100).max() < 50  # 5.8 standard deviations


BY_CLASS = ("mahalanobis", "relative-mahalanobis", "multi-mahalanobis", "gmm", "she", "openmax")


@pytest.mark.parametrize("name", [*BY_CLASS, "grood"])
def test_labels_that_do_not_serve(known, name):
    detector, labels = si_jax.make_detector(name, known.model), known.labels
    for wrong, message in (
        (labels + 1, r"labels \(up to 4\)"),
        (np.where(labels == 2, 1, labels), "1 of the 4 classes have no fitting image, class 2"),
    ):
        with pytest.raises(ValueError, match=message):
            detector.fit(known.images, wrong)
    assert detector.state is None


SINGULAR = r"singular: images \(=12\) are too few"


@pytest.mark.parametrize(
    ("name", "options", "chosen", "message"),
    [
        ("knn", {"k": 81}, range(80), r"k \(=81\) must be at most .* 80"),
        *((name, {}, range(12), SINGULAR) for name in BY_CLASS[:3]),
        ("openmax", {"tail": 5}, [0, 1, 2, 3] * 5, "one distance from their mean"),
        ("cfood", {}, range(2), "too few"),
        ("gram", {}, range(1), "too few"),
        ("vim", {}, range(3), "span no further dimension"),
    ],
)
def test_fits_that_find_nothing_to_learn(known, name, options, chosen, message):
    detector = si_jax.make_detector(name, known.model, **options)
    with pytest.raises(ValueError, match=message):
        detector.fit(known.images[list(chosen)], np.arange(len(chosen)) % CLASSES)
