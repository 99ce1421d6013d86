"""Every peer against NumPy written for the purpose, its known limits, and its invariances."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.special import logsumexp, softmax

import si_jax
import si_jax.models
from si_jax import splitting
from si_jax.detectors import default_options
from si_jax.detectors.features import kept_count, without_rank_one
from si_jax.detectors.fitting import reservoir
from si_jax.detectors.head import head_logits
from si_jax.detectors.neighbours import kth_distance
from si_jax.evaluation.scoring import Scorer

CLASSES, FEATURES = 4, 10
FITTED = (
    "react", "vra", "dice", "knn", "nnguide", "she", "fdbd", "nci", "mahalanobis",
    "relative-mahalanobis", "vim", "residual", "kl-matching", "temperature-scaling", "adascale-a",
    "adascale-l",
)  # fmt: skip
FREE = (
    "entropy", "gen", "odin", "i-odin", "gradnorm", "ash-p", "ash-b", "ash-s", "scale", "lts",
    "rankfeat",
)  # fmt: skip
SMALLER = {"knn": {"k": 5}, "lts": {"percentile": 65.0}}
"""Options for few images and features, where the defaults are too large."""

SEVERAL = {"odin", "i-odin", "rankfeat", "adascale-a", "adascale-l"}
"""Those that need more than one forward pass."""
PEERS = (*FREE, *FITTED)


class Tiny(nn.Module):
    bias: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3), strides=2, name="conv1")(x))
        x = nn.Conv(FEATURES, (3, 3), name="conv2")(x)
        x = jnp.mean(nn.relu(x), axis=(1, 2))
        return nn.Dense(CLASSES, use_bias=self.bias, name="head")(x)


class Flat(nn.Module):
    """No feature map at all."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(5, name="hidden")(x.reshape(len(x), -1)))
        return nn.Dense(CLASSES, name="head")(x)


def build(module, seed=0):
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    rng = np.random.default_rng(seed)

    def draw(leaf):
        scale = 0.3 if leaf.ndim == 1 else 2 / np.sqrt(np.prod(leaf.shape[:-1]))
        return rng.normal(0, scale, leaf.shape).astype(np.float32)

    variables = jax.tree.map(draw, shapes)
    return si_jax.Model(module, variables, (8, 8), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), head="head")


@pytest.fixture(scope="module")
def model():
    return build(Tiny())


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(1)
    smooth = rng.integers(0, 256, (70, 2, 2, 3)).repeat(4, axis=1).repeat(4, axis=2)
    return np.clip(smooth + rng.integers(-40, 40, (70, 8, 8, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def train(images):
    rng = np.random.default_rng(2)
    noise = rng.integers(-30, 30, (80, 8, 8, 3))
    fit_images = np.clip(images[rng.integers(0, 40, 80)] + noise, 0, 255).astype(np.uint8)
    return fit_images, np.arange(80) % CLASSES


@pytest.fixture(scope="module")
def head(model):
    params = model.variables["params"]["head"]
    return np.asarray(params["kernel"], np.float64), np.asarray(params["bias"], np.float64)


@pytest.fixture(scope="module")
def h(model, images):
    return model.features(images).astype(np.float64)


@pytest.fixture(scope="module")
def h_train(model, train):
    return model.features(train[0]).astype(np.float64)


@pytest.fixture(scope="module")
def make(model, train):
    @functools.cache
    def make(name, **options):
        options = {**SMALLER.get(name, {}), **options}
        detector = si_jax.make_detector(name, model, **options)
        return detector.fit(*train) if detector.needs_fit else detector

    return make


@pytest.fixture(scope="module")
def score(make, images):
    return lambda name, **options: make(name, **options).score(images)


def close(actual, expected, rtol=2e-5, atol=2e-5):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def test_features_are_worth_testing_on(h):
    assert (h >= 0).all()
    assert (h == 0).any()
    assert (h.std(axis=0) > 0).all()


# Logits and features


def test_energy_is_logsumexp(score, model, images):
    logits = model.logits(images).astype(np.float64)
    close(score("energy"), logsumexp(logits, axis=1))
    close(score("energy", temperature=7.0), 7 * logsumexp(logits / 7, axis=1))
    close(score("msp"), softmax(logits, axis=1).max(axis=1))
    close(score("max-logit"), logits.max(axis=1))


def test_gen(score, model, images):
    p = np.sort(softmax(model.logits(images).astype(np.float64), axis=1))
    close(score("gen"), -((p * (1 - p)) ** 0.1).sum(axis=1))
    close(score("gen", gamma=0.5, top=2), -np.sqrt(p * (1 - p))[:, -2:].sum(axis=1))


def test_gen_by_hand():
    """p = (1/2, 1/4, 1/4), gamma = 1: 1/4 + 3/16 + 3/16."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="head")(x.mean(axis=(1, 2)))

    variables = {"params": {"head": {"kernel": np.zeros((3, 3)), "bias": np.log([2.0, 1.0, 1.0])}}}
    net = si_jax.Model(Net(), variables, (2, 2), (0.0,) * 3, (1.0,) * 3, head="head")
    detector = si_jax.make_detector("gen", net, gamma=1)
    close(detector.score(np.zeros((1, 2, 2, 3), np.uint8)), [-10 / 16])


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradnorm_is_the_gradient_of_the_kl_divergence(score, model, h, head, temperature):
    weights, bias = (jnp.asarray(a, jnp.float32) for a in head)

    def divergence(w, row):
        log_p = jax.nn.log_softmax((row @ w + bias) / temperature)
        return jnp.mean(-jnp.log(CLASSES) - log_p)

    gradient = jax.vmap(jax.grad(divergence), (None, 0))(weights, jnp.asarray(h, jnp.float32))
    expected = np.abs(gradient).sum(axis=(1, 2))
    close(score("gradnorm", temperature=temperature), expected, rtol=1e-4)


def numpy_kept(h, percentile):
    count = FEATURES - round(FEATURES * percentile / 100)
    kept = np.zeros(h.shape, bool)
    np.put_along_axis(kept, np.argsort(-h, axis=1, kind="stable")[:, :count], True, axis=1)
    return kept, count


@pytest.mark.parametrize("percentile", [20.0, 65.0])
def test_ash_and_scale(score, h, head, percentile):
    weights, bias = head
    kept, count = numpy_kept(h, percentile)
    pruned = h * kept
    total = h.sum(axis=1, keepdims=True)
    factor = np.exp(total / pruned.sum(axis=1, keepdims=True))
    shaped = {
        "ash-p": pruned,
        "ash-b": kept * total / count,
        "ash-s": pruned * factor,
        "scale": h * factor,
    }
    for name, features in shaped.items():
        expected = logsumexp(features @ weights + bias, axis=1)
        close(score(name, percentile=percentile), expected, rtol=1e-4)


def test_shaping_at_percentile_0(score, h, head):
    """Nothing is pruned: ASH-P is energy; ASH-S and SCALE keep their factor, exp(1)."""
    weights, bias = head
    close(score("ash-p", percentile=0), score("energy"))
    stretched = logsumexp(np.e * h @ weights + bias, axis=1)
    close(score("ash-s", percentile=0), stretched, rtol=1e-4)
    close(score("scale", percentile=0), stretched, rtol=1e-4)
    even = np.broadcast_to(h.mean(axis=1, keepdims=True), h.shape)
    close(score("ash-b", percentile=0), logsumexp(even @ weights + bias, axis=1))


def test_shaping_an_image_without_any_activation_is_finite():
    silent = build(Tiny())
    silent.variables["params"]["conv2"]["bias"][:] = -1e3
    image = np.zeros((1, 8, 8, 3), np.uint8)
    assert not silent.features(image).any()
    for name in ("ash-p", "ash-b", "ash-s", "scale", "gradnorm"):
        assert np.isfinite(si_jax.make_detector(name, silent).score(image)).all(), name


@pytest.mark.parametrize("shape", [(3, 4, 5, 7), (3, 2, 2, 9), (2, 3, 4, 3)])
def test_without_rank_one_is_numpys_svd(shape):
    maps = np.random.default_rng(0).normal(1, 1, shape).astype(np.float32)
    for image, reduced in zip(maps, np.asarray(without_rank_one(jnp.asarray(maps))), strict=True):
        u, s, vt = np.linalg.svd(image.reshape(-1, shape[-1]).astype(np.float64))
        expected = image - (s[0] * np.outer(u[:, 0], vt[0])).reshape(image.shape)
        close(reduced, expected, atol=1e-5)
        values = np.linalg.svd(reduced.reshape(-1, shape[-1]), compute_uv=False)
        close(values[: len(s) - 1], s[1:], atol=1e-5)


def test_without_rank_one_of_nothing_is_nothing():
    assert not np.asarray(without_rank_one(jnp.zeros((2, 3, 3, 4)))).any()


def test_rankfeat_on_a_foreign_network_takes_its_last_map(make, model, images, head):
    weights, bias = head
    detector = make("rankfeat")
    assert detector.settings["taps"] == ["conv2"]
    record = splitting.forward(
        model, model.variables, model.normalise(jnp.asarray(images)), record=["conv2"]
    )
    maps = np.asarray(record.outputs["conv2"], np.float64).reshape(len(images), -1, FEATURES)
    u, s, vt = np.linalg.svd(maps, full_matrices=False)
    maps = maps - s[:, :1, None] * u[:, :, :1] * vt[:, :1]
    logits = np.maximum(maps, 0).mean(axis=1) @ weights + bias
    close(detector.score(images), logsumexp(logits, axis=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "taps"),
    [
        ("resnet14", ["layer2_1", "layer3_1"]),
        ("wrn_16_4", ["block2_1", "block3_1"]),
        ("bit_r50x1", ["block3_unit06", "block4_unit03"]),
    ],
)
def test_rankfeat_takes_the_outputs_of_the_last_stages(network, taps):
    module = si_jax.models.ARCHITECTURES[network].build(num_classes=3, **options_of(network))
    size = si_jax.models.ARCHITECTURES[network].input_size
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, *size, 3)))
    net = si_jax.Model(
        module, shapes, size, (0.5,) * 3, (0.5,) * 3, si_jax.models.ARCHITECTURES[network].head
    )
    assert si_jax.make_detector("rankfeat", net).settings["taps"] == taps
    assert si_jax.make_detector("rankfeat", net, stages=1).settings["taps"] == taps[1:]


def options_of(network):
    return si_jax.models.ARCHITECTURES[network].options


def test_rankfeat_averages_the_logits_of_its_maps(make, images, model):
    both = make("rankfeat", taps=("conv1", "conv2")).score(images)
    args = (model, model.variables, model.normalise(jnp.asarray(images)))
    logits = [
        np.asarray(splitting.forward(*args, edit={tap: without_rank_one}).logits)
        for tap in ("conv1", "conv2")
    ]
    close(both, logsumexp(np.mean(logits, axis=0), axis=1), rtol=1e-4)


# Gradients


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


def test_odin_raises_the_probability_to_first_order(score):
    before, after = (score("odin", step=s, temperature=1.0) for s in (0.0, 1e-4))
    assert (after > before).mean() > 0.95


# Training features


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


def test_mahalanobis(score, h, h_train, train):
    classes, whole = gaussian_distances(h, h_train, train[1])
    close(score("mahalanobis"), -classes.min(axis=1), rtol=1e-3)
    close(score("relative-mahalanobis"), -(classes.min(axis=1) - whole), rtol=1e-3, atol=1e-3)


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
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    net = si_jax.Model(Wide(), zeros, (2, 2), (0.5,), (0.5,), head="head")
    assert si_jax.make_detector("vim", net).settings["dim"] == dim


def test_kl_matching(score, model, images, train):
    p, p_train = (softmax(model.logits(x).astype(np.float64), axis=1) for x in (images, train[0]))
    predicted = p_train.argmax(axis=1)
    present = np.unique(predicted)
    means = np.stack([p_train[predicted == c].mean(axis=0) for c in present])
    divergences = (p[:, None] * np.log(p[:, None] / means)).sum(axis=-1)
    close(score("kl-matching"), -divergences.min(axis=1), rtol=1e-4)


def test_entropy(score, model, images):
    p = softmax(model.logits(images).astype(np.float64), axis=1)
    close(score("entropy"), (p * np.log(p)).sum(axis=1))


def test_lts(score, model, images, h):
    for percentile in (60.0, 85.0):
        count = FEATURES - round(FEATURES * percentile / 100)
        top = np.sort(h, axis=1)[:, -count:]
        scale = (h.sum(axis=1) / top.sum(axis=1)) ** 2
        expected = logsumexp(model.logits(images).astype(np.float64) * scale[:, None], axis=1)
        close(score("lts", percentile=percentile), expected, rtol=1e-4)


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


def test_mahalanobis_of_features_of_unit_length(score, h, h_train, train):
    unit, known = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (h, h_train))
    classes, whole = gaussian_distances(unit, known, train[1])
    nearest = classes.min(axis=1)
    close(score("mahalanobis", normalise=True), -nearest, rtol=1e-3)
    close(score("relative-mahalanobis", normalise=True), whole - nearest, rtol=1e-3, atol=1e-3)


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


def test_gradnorm_over_all_weights(score, model, images):
    def divergence(params, image):
        logits = model.module.apply({"params": params}, model.normalise(jnp.asarray(image)[None]))
        return jnp.sum(jnp.log(1 / CLASSES) - jax.nn.log_softmax(logits / 3)) / CLASSES

    for i in (0, 5):
        leaves = jax.tree.leaves(jax.grad(divergence)(model.variables["params"], images[i]))
        expected = sum(np.abs(np.asarray(g, np.float64)).sum() for g in leaves)
        close(score("gradnorm", temperature=3.0, parameters="all")[i], expected, rtol=1e-4)


def numpy_gradient(model, images, objective):
    x = model.normalise(jnp.asarray(images))
    return np.asarray(jax.grad(lambda x: objective(model.module.apply(model.variables, x)))(x)), x


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


# All of them


@pytest.fixture(scope="module")
def by_batch_size(make, images):
    """Batch size -> detector -> its arrays, all detectors side by side."""
    found = {}
    for size in (1, 7):
        detectors = {name: make(name, batch_size=size) for name in PEERS}
        found[size] = Scorer(detectors)(images)
    return found


@pytest.mark.parametrize("name", PEERS)
def test_scores_do_not_depend_on_batch_size_or_order(make, by_batch_size, name, images):
    expected = make(name).score(images)
    assert expected.shape == (70,)
    assert expected.dtype == np.float32
    assert np.isfinite(expected).all()
    assert np.ptp(expected) > 0
    for size in (1, 7):  # beside the default, 64
        close(by_batch_size[size][name]["score"], expected, rtol=1e-4, atol=1e-4)
    order = np.random.default_rng(0).permutation(70)
    close(make(name).score(images[order]), expected[order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FITTED)
def test_unfitted_says_so(model, images, name):
    detector = si_jax.make_detector(name, model)
    assert detector.needs_fit
    with pytest.raises(ValueError, match=f"{name}.*must be fitted first"):
        detector.score(images)


@pytest.mark.parametrize("name", FITTED)
def test_a_saved_fit_gives_the_same_scores(make, model, images, train, name, tmp_path):
    fitted = make(name)
    np.savez(tmp_path / "fit.npz", **fitted.state)
    loaded = si_jax.make_detector(name, model, **SMALLER.get(name, {}))
    with np.load(tmp_path / "fit.npz") as file:
        loaded.load_state(dict(file))
    np.testing.assert_array_equal(loaded.score(images), fitted.score(images))


@pytest.mark.parametrize("name", FITTED)
def test_the_fit_does_not_depend_on_the_batches(make, model, images, train, name):
    detector = si_jax.make_detector(name, model, **SMALLER.get(name, {}))
    edges = [0, 3, 33, 80]
    pieces = [slice(a, b) for a, b in itertools.pairwise(edges)]
    detector.fit_batches(lambda: ((train[0][p], train[1][p]) for p in pieces))
    close(detector.score(images), make(name).score(images), rtol=1e-3, atol=1e-3)


def test_what_a_forward_pass_does_not_do(make):
    assert {n for n in PEERS if not make(n).forward_only} == SEVERAL


def test_one_forward_pass_serves_all_forward_only_detectors(make, model, images, monkeypatch):
    count = []
    forward = splitting.forward
    monkeypatch.setattr(splitting, "forward", lambda *a, **k: count.append(1) or forward(*a, **k))
    detectors = {n: make(n) for n in ("energy", *PEERS) if n not in SEVERAL}
    scorer = Scorer(detectors)
    count.clear()
    scorer(images)
    assert len(count) == 1


@pytest.mark.parametrize("name", ["ash-s", "dice", "vim", "gradnorm"])
def test_a_head_without_bias(name, images, train):
    net = build(Tiny(bias=False))
    close(net.head_bias(net.variables), np.zeros(CLASSES))
    logits = head_logits(net, net.variables, jnp.asarray(net.features(images)))
    close(logits, net.logits(images))
    detector = si_jax.make_detector(name, net).fit(*train)
    assert np.isfinite(detector.score(images)).all()


def test_whole_numbers_are_floats_where_floats_are_meant(make):
    assert repr(make("ash-s", percentile=65).settings) == "{'percentile': 65.0}"


def test_published_defaults():
    published = {
        "odin": {"temperature": 1000.0, "step": 0.0014},
        "gen": {"gamma": 0.1, "top": 100},
        "ash-p": {"percentile": 65.0},
        "ash-b": {"percentile": 65.0},
        "ash-s": {"percentile": 65.0},
        "scale": {"percentile": 85.0},
        "dice": {"percentile": 90.0},
        "gradnorm": {"temperature": 1.0, "parameters": "head"},
        "i-odin": {"temperature": 1000.0, "step": 0.0014},
        "lts": {"percentile": 95.0},
        "nci": {"alpha": 0.0001},
        "mahalanobis": {"normalise": False},
        "vim": {"dim": None},
    }
    assert {name: default_options(name) for name in published} == published
    assert default_options("react")["percentile"] == 90
    assert default_options("knn")["k"] == 50
    assert default_options("nnguide")["k"] == 10
    assert (default_options("vra")["low"], default_options("vra")["high"]) == (60, 95)
    adascale = {"low": 75, "high": 85, "k1": 5, "k2": 1, "weight": 10, "pixels": 0.05, "step": 0.5}
    for name in ("adascale-a", "adascale-l"):
        assert {k: default_options(name)[k] for k in adascale} == adascale
    assert default_options("rankfeat")["stages"] == 2
    assert kept_count(512, 65.0) == 512 - 333


# Errors


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gen", {"gamma": 0}, r"gamma \(=0.0\)"),
        ("gen", {"top": 0}, r"top \(=0\)"),
        ("odin", {"temperature": -1}, r"temperature \(=-1.0\)"),
        ("odin", {"step": -0.1}, r"step \(=-0.1\)"),
        ("gradnorm", {"temperature": 0}, r"temperature \(=0.0\)"),
        ("ash-s", {"percentile": 100}, r"percentile \(=100.0\)"),
        ("scale", {"percentile": 96}, r"percentile \(=96.0\) leaves none of the 10 features"),
        ("react", {"percentile": 101}, r"percentile \(=101.0\)"),
        ("dice", {"percentile": -1}, r"percentile \(=-1.0\)"),
        ("knn", {"k": 0}, r"k \(=0\)"),
        ("knn", {"max_images": 0}, r"max_images \(=0\)"),
        ("ash-s", {"percentile": "high"}, r"percentile \(='high'\) must be a number"),
        ("energy", {"temperature": True}, r"temperature \(=True\) must be a number"),
        ("vim", {"dim": FEATURES}, r"dim \(=10\) must be from 1 to 9"),
        ("gradnorm", {"parameters": "some"}, r"parameters \(='some'\) must be one of head, all"),
        ("vra", {"low": 96}, r"low \(=96.0\) must not be above high \(=95.0\)"),
        ("vra", {"high": 101}, r"high \(=101.0\)"),
        ("nnguide", {"k": 0}, r"k \(=0\)"),
        ("nci", {"alpha": -1}, r"alpha \(=-1.0\)"),
        ("lts", {"percentile": 96}, r"percentile \(=96.0\) leaves none of the 10 features"),
        ("adascale-a", {"low": 86}, r"low \(=86.0\) must not be above high \(=85.0\)"),
        ("adascale-l", {"high": 100}, r"high \(=100.0\)"),
        ("adascale-a", {"pixels": 2}, r"pixels \(=2.0\)"),
        ("adascale-l", {"step": -1}, r"step \(=-1.0\)"),
        ("temperature-scaling", {"max_images": 0}, r"max_images \(=0\)"),
        ("residual", {"dim": 10}, r"dim \(=10\) must be from 1 to 9"),
        ("i-odin", {"step": -0.1}, r"step \(=-0.1\)"),
        ("rankfeat", {"stages": 0}, r"stages \(=0\)"),
        ("rankfeat", {"taps": "head"}, "feature map"),
    ],
)
def test_options_that_make_no_sense_are_named(model, name, options, message):
    with pytest.raises(ValueError, match=message):
        si_jax.make_detector(name, model, **options)


def test_k_larger_than_the_number_of_fitting_images(model, train):
    with pytest.raises(ValueError, match=r"k \(=81\) must be at most .* 80"):
        si_jax.make_detector("knn", model, k=81).fit(*train)


@pytest.mark.parametrize("name", ["mahalanobis", "relative-mahalanobis", "she"])
def test_labels_that_do_not_serve(model, train, name):
    detector = si_jax.make_detector(name, model)
    images, labels = train
    with pytest.raises(ValueError, match="labels are needed"):
        detector.fit(images)
    with pytest.raises(ValueError, match=r"labels \(up to 4\)"):
        detector.fit(images, labels + 1)
    with pytest.raises(ValueError, match=r"1 of the 4 classes have no fitting image, class 2"):
        detector.fit(images, np.where(labels == 2, 1, labels))
    if name != "she":
        with pytest.raises(ValueError, match=r"singular: images \(=12\) are too few"):
            detector.fit(images[:12], labels[:12])
    assert detector.state is None


def test_images_that_do_not_serve(model, train):
    with pytest.raises(ValueError, match="images is empty"):
        si_jax.make_detector("dice", model).fit(train[0][:0])
    with pytest.raises(ValueError, match="span no further dimension"):
        si_jax.make_detector("vim", model).fit(train[0][:3])
    net = build(Tiny())
    net.variables["params"]["head"]["bias"] = np.full(CLASSES, np.nan, np.float32)
    with pytest.raises(ValueError, match="NaN"):
        si_jax.make_detector("dice", net).fit(train[0])


def test_rankfeat_without_a_feature_map():
    with pytest.raises(ValueError, match="needs a feature map"):
        si_jax.make_detector("rankfeat", build(Flat()))
