"""S&I-C against NumPy written for the purpose; what it reads of networks, and its limits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.special import logit as scipy_logit
from scipy.special import logsumexp, softmax

import si_jax
from si_jax.detectors.si_c import readings as si_c_readings
from si_jax.detectors.si_c.readings import select_channels

pytestmark = pytest.mark.usefixtures("one_device")  # programs compile faster
SIZE, WIDTHS, CLASSES = 6, (7, 9), 5
NAMES = ("si-c", "si-c-forward")


class Net(nn.Module):
    """Two 1x1 convolutions, each with a BatchNorm and a ReLU, so that all can be done by hand."""

    @nn.compact
    def __call__(self, x):
        for number, width in enumerate(WIDTHS, 1):
            x = nn.Dense(width, name=f"conv{number}")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True, name=f"bn{number}")(x))
        return nn.Dense(CLASSES, name="head")(x.mean(axis=(1, 2)))


class Pooled(nn.Module):
    """A norm that no ReLU follows at once."""

    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm(name="norm")(nn.Conv(6, (3, 3), name="conv")(x))
        x = nn.relu(nn.max_pool(x, (2, 2), strides=(2, 2)))
        return nn.Dense(CLASSES, name="head")(x.mean(axis=(1, 2)))


def build(module, seed=0, size=SIZE):
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, size, size, 3)))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 2, leaf.shape).astype(np.float32)
        scale = 0.3 if leaf.ndim == 1 else 1.5 / np.sqrt(np.prod(leaf.shape[:-1]))
        return rng.normal(0, scale, leaf.shape).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    return si_jax.Model(module, variables, (size, size), (0.5,) * 3, (0.25,) * 3, head="head")


def smooth(count, seed, size=SIZE):
    """Images with a colour of their own and some texture."""
    rng = np.random.default_rng(seed)
    colour = rng.integers(30, 226, (count, 1, 1, 3))
    return np.clip(colour + rng.normal(0, 40, (count, size, size, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def model():
    return build(Net())


@pytest.fixture(scope="module")
def train():
    return smooth(200, 1)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(2)
    return np.concatenate([smooth(20, 3), rng.integers(0, 256, (9, SIZE, SIZE, 3), np.uint8)])


@pytest.fixture(scope="module")
def fitted(model, train):
    return {name: si_jax.make_detector(name, model).fit(train) for name in NAMES}


def read_by_hand(model, images):
    """Energy, channel-average and densities in float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), model.variables["params"])
    stats = jax.tree.map(lambda x: np.asarray(x, np.float64), model.variables["batch_stats"])
    x = (images / 255 - 0.5) / 0.25
    masks, slopes = [], []
    for k in ("1", "2"):
        norm, stat = params[f"bn{k}"], stats[f"bn{k}"]
        slope = norm["scale"] / np.sqrt(stat["var"] + 1e-5)
        x = x @ params[f"conv{k}"]["kernel"] + params[f"conv{k}"]["bias"]
        x = (x - stat["mean"]) * slope + norm["bias"]
        masks.append(x > 0)
        slopes.append(slope)
        x = np.maximum(x, 0)
    weights = params["head"]["kernel"]
    logits = x.mean(axis=(1, 2)) @ weights + params["head"]["bias"]
    gradient2 = masks[1] / SIZE**2
    gradient1 = masks[0] * ((gradient2 * slopes[1]) @ params["conv2"]["kernel"].T)
    v = [np.abs(g.mean(axis=(1, 2))) for g in (gradient1, gradient2)]
    p = softmax(logits, axis=-1)
    outer2 = np.abs((1 - CLASSES * p) @ weights.T).mean(axis=-1)
    return {
        "confidence": scipy_logit(p.max(axis=-1)),
        "energy": logsumexp(logits, axis=-1),
        "channel_average": np.log(outer2) - np.log((np.concatenate(v, axis=-1) ** 2).mean(-1)),
        "density": np.concatenate([m.mean(axis=(1, 2)) for m in masks], axis=-1),
    }


def fit_by_hand(readings, shrinkage=0.1):
    """A function of readings that gives the three components, and the calibration part."""
    rng = np.random.default_rng(0)
    count = len(readings["energy"])
    second = np.concatenate([rng.permutation(10) < 3 for _ in range(count // 10)])
    first = readings["density"][~second]
    mean = first.mean(axis=0)
    sigma = np.maximum(first.std(axis=0), 0.5 / SIZE**2)
    assert (first.std(axis=0) > 0).all()
    u = (first - mean) / sigma
    inverse = np.linalg.inv(
        (1 - shrinkage) * np.cov(u.T, bias=True) + shrinkage * np.eye(u.shape[-1])
    )

    def components(readings):
        u = (readings["density"] - mean) / sigma
        m = -0.5 * np.log(np.einsum("ni,ij,nj->n", u, inverse, u))
        taps = np.stack([np.mean(part**2, axis=-1) for part in np.split(u, [WIDTHS[0]], 1)], -1)
        return np.stack([readings["energy"], readings["channel_average"], m], axis=-1), taps

    return components, second


def standardised_by_hand(values, new):
    low, median, high = np.quantile(values, [0.05, 0.5, 0.95], axis=0)
    return (new - median) / ((high - low) / 3.29)


def hinge_form_by_hand(known, new, known_sum, new_sum):
    """Confidence less the squared hinge; `known` of the calibration images."""
    base = [
        standardised_by_hand(known[name], new[name]) * share
        for name, share in (("confidence", 0.75), ("energy", 0.25))
    ]
    median = np.quantile(known_sum, 0.5)
    shortfall = np.mean(median - known_sum[known_sum < median])
    return sum(base) - 0.6 * (np.maximum(0, median - new_sum) / shortfall) ** 2


def test_against_numpy(model, train, images, fitted):
    known, new = read_by_hand(model, train), read_by_hand(model, images)
    components, second = fit_by_hand(known)
    held = {name: x[second] for name, x in known.items()}
    values, taps = components(held)
    raw, abnormality = components(new)
    z, held_z = standardised_by_hand(values, raw), standardised_by_hand(values, values)
    found = fitted["si-c"].details(images)
    np.testing.assert_allclose(found["confidence"], new["confidence"], rtol=1e-4, atol=1e-5)
    for i, name in enumerate(("energy", "channel_average", "zero_deflation")):
        np.testing.assert_allclose(found[name], raw[:, i], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["standardised"], z, rtol=1e-3, atol=1e-3)
    expected = hinge_form_by_hand(held, new, held_z.sum(axis=-1), z.sum(axis=-1))
    np.testing.assert_allclose(found["score"], expected, rtol=1e-3, atol=5e-3)
    assert (found["hinge"] > 0).any() and (found["hinge"] == 0).any()
    assert found["score"].dtype == found["tap_pvalue"].dtype == np.float32
    expected = (1 + (taps[None] >= abnormality[:, None]).sum(axis=1)) / (1 + len(taps))
    np.testing.assert_allclose(found["tap_pvalue"], expected, atol=1e-6)
    assert (z[:, 2] > 0).any()
    other = si_jax.make_detector("si-c", model, form="sum")
    other.load_state(fitted["si-c"].state)
    np.testing.assert_allclose(other.score(images), z.sum(axis=-1), rtol=1e-3, atol=2e-3)
    two, held_two = z[:, [0, 2]].sum(axis=-1), held_z[:, [0, 2]].sum(axis=-1)
    found = fitted["si-c-forward"].details(images)
    expected = hinge_form_by_hand(held, new, held_two, two)
    np.testing.assert_allclose(found["score"], expected, rtol=1e-3, atol=5e-3)
    assert set(found) == {
        "score", "sum", "hinge", "confidence", "energy", "zero_deflation", "standardised",
        "tap_pvalue",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("components", "names", "columns"),
    [
        ("zero-deflation", ["zero_deflation", "tap_pvalue"], [2]),
        ("channel-average,energy", ["energy", "channel_average"], [0, 1]),
    ],
)
def test_some_components(model, train, images, fitted, components, names, columns):
    found = si_jax.make_detector("si-c", model, components=components, form="sum").fit(train)
    details, whole = found.details(images), fitted["si-c"].details(images)
    assert set(details) == {"score", "sum", "hinge", "confidence", "standardised", *names}
    for name in names:
        np.testing.assert_allclose(details[name], whole[name], rtol=1e-5)
    expected = whole["standardised"][:, columns].sum(axis=-1)
    np.testing.assert_allclose(details["score"], expected, rtol=1e-4, atol=1e-4)


NETWORKS = {
    "pooled": lambda: build(Pooled()),
    "resnet": lambda: si_jax.load_model("digits"),
    "wide resnet": lambda: si_jax.build_model(
        "wrn_16_4", CLASSES, seed=1, input_size=(8, 8), depth=10, widen=1
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_readings_are_those_of_gaia(name):
    """In one pass for all, with the outer part in closed form."""
    model = NETWORKS[name]()
    images = smooth(4, 5, model.input_size[0])
    reader = si_c_readings.reader(model, max_channels=100_000)
    found = si_c_readings.readings(reader, model, images)
    gaia = si_jax.make_detector("gaia-a", model, taps=list(reader.inner)).score(images)
    np.testing.assert_allclose(found["channel_average"], -np.log(-gaia), rtol=1e-4, atol=1e-3)
    taps, of_tap = reader.channels.taps, reader.channels.tap
    means = [found["density"][:, of_tap == k].mean(-1) for k in range(len(taps))]
    # of the first gradient: behind a max-pool, si-z's second step adds positions to it
    engine = "gradient" if name == "pooled" else "activation"
    gaia = si_jax.make_detector("gaia-z", model, taps=list(taps), engine=engine).details(images)
    np.testing.assert_allclose(np.stack(means, -1), gaia["tap_density"], atol=1e-4)


def test_a_norm_that_no_relu_follows_at_once_is_read_by_the_gradient():
    model, images = build(Pooled()), smooth(60, 6)
    detector = si_jax.make_detector("si-c", model)
    assert (detector.settings["engine"], detector.settings["taps"]) == ("gradient", ["norm"])
    assert np.isfinite(detector.fit(images).score(images)).all()
    with pytest.raises(ValueError, match="there is none behind norm"):
        si_jax.make_detector("si-c-forward", model)


def test_max_channels():
    taps = {"a": (4, 4, 30), "b": (2, 2, 2), "c": (10,)}
    whole, some = select_channels(taps, 42), select_channels(taps, 10)
    np.testing.assert_array_equal(whole.index, np.arange(42))
    np.testing.assert_array_equal(whole.positions, [16] * 30 + [4] * 2 + [1] * 10)
    np.testing.assert_array_equal(np.bincount(some.tap), [7, 1, 2])
    assert len(set(some.index)) == 10
    np.testing.assert_array_equal(whole.tap[some.index], some.tap)
    np.testing.assert_array_equal(select_channels(taps, 10).index, some.index)
    assert not np.array_equal(select_channels(taps, 10, seed=1).index, some.index)
    np.testing.assert_array_equal(np.bincount(select_channels(taps, 3).tap), [1, 1, 1])
    with pytest.raises(ValueError, match=r"max_channels \(=2\) must be at least 3"):
        select_channels(taps, 2)


def test_components_have_one_spelling(model):
    for given in ("zero-deflation, energy", ["zero-deflation", "energy", "energy"]):
        settings = si_jax.make_detector("si-c", model, components=given).settings
        assert settings["components"] == ["energy", "zero-deflation"]
    assert (settings["engine"], settings["taps"]) == ("activation", ["bn1", "bn2"])
    assert "inner" not in settings


def test_a_dead_network_has_a_logarithm(model, images):
    dead = jax.tree.map(np.copy, model.variables)
    dead["params"]["bn2"]["bias"][:] = -1e6
    readings = si_c_readings.readings(
        si_c_readings.reader(model), dataclasses.replace(model, variables=dead), images
    )
    assert np.isfinite(readings["channel_average"]).all()
    assert not readings["density"][:, WIDTHS[0] :].any()


def test_images_that_do_not_serve(model, train, with_variables):
    detector = si_jax.make_detector("si-c", model)
    with pytest.raises(ValueError, match=r"images \(=19\) are too few.* at least 20"):
        detector.fit(train[:19])
    with pytest.raises(ValueError, match="no density varies"):
        detector.fit(np.repeat(train[:1], 40, axis=0))
    broken = jax.tree.map(np.copy, model.variables)
    broken["params"]["head"]["bias"][0] = np.nan
    nan = with_variables(model, broken)  # that no density shows
    with pytest.raises(ValueError, match="NaN or infinite"):
        si_jax.make_detector("si-c", nan, components="zero-deflation").fit(train)
    assert detector.state is None
