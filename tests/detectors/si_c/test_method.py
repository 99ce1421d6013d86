"""S&I-C against NumPy written for the purpose, its invariances, and its limits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.special import logit as scipy_logit
from scipy.special import logsumexp, softmax

import si_jax
from si_jax.data import digits
from si_jax.detectors.si_c import channels
from si_jax.detectors.si_c import fit as si_c_fit
from si_jax.detectors.si_c import readings as si_c_readings
from si_jax.detectors.si_c import score as si_c_score
from si_jax.taps import default_taps

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


# Against a reference


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


def test_readings_and_numpy_give_what_the_detector_gives(model, train, images, fitted):
    """The whole way without the network, as for a study of many combinations."""
    reader = si_c_readings.reader(model)
    known = si_c_readings.readings(reader, model, train)
    parts = [{k: x[i : i + 33] for k, x in known.items()} for i in range(0, len(train), 33)]
    state = si_c_fit.fit(parts, reader.channels)
    for name, array in fitted["si-c"].state.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(state[name], array, rtol=1e-3, atol=1e-4)
    found = si_c_score.apply(state, si_c_readings.readings(reader, model, images))
    for name, array in fitted["si-c"].details(images).items():
        np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("components", ["energy", "zero-deflation", "channel-average,energy"])
def test_some_components(model, train, images, fitted, components):
    found = si_jax.make_detector("si-c", model, components=components, form="sum").fit(train)
    details, whole = found.details(images), fitted["si-c"].details(images)
    names = [name.replace("-", "_") for name in sorted(components.split(","))]
    taps = ["tap_pvalue"] if components == "zero-deflation" else []
    expected = {"channel_average": 1, "energy": 0, "zero_deflation": 2}
    always = {"score", "sum", "hinge", "confidence", "standardised"}
    assert set(details) == {*always, *names, *taps}
    columns = sorted(expected[name] for name in names)
    for name in [*names, *taps]:
        np.testing.assert_allclose(details[name], whole[name], rtol=1e-5)
    np.testing.assert_allclose(
        details["score"], whole["standardised"][:, columns].sum(axis=-1), rtol=1e-4, atol=1e-4
    )


def test_components_have_one_spelling(model):
    for given in ("zero-deflation, energy", ["zero-deflation", "energy", "energy"]):
        settings = si_jax.make_detector("si-c", model, components=given).settings
        assert settings["components"] == ["energy", "zero-deflation"]
    assert settings["engine"] == "activation"
    assert settings["taps"] == ["bn1", "bn2"]
    assert "inner" not in settings
    assert si_jax.make_detector("si-c", model, shrinkage=1).settings["shrinkage"] == 1.0


# Any network


def resnet():
    return si_jax.load_model("digits")


def wide_resnet():
    return si_jax.build_model("wrn_16_4", CLASSES, seed=1, input_size=(8, 8), depth=10, widen=1)


def bit():
    return si_jax.build_model("bit_r50x1", CLASSES, seed=2, input_size=(32, 32), units=(1, 1, 1, 1))


SLOW = [pytest.param(make, marks=pytest.mark.slow) for make in (wide_resnet, bit)]


@pytest.mark.parametrize("make", [lambda: build(Net()), resnet, *SLOW])
def test_channel_average_is_the_logarithm_of_gaia_a(make):
    """With `outer` in closed form and one pass for all."""
    model = make()
    images = smooth(4, 5, model.input_size[0])
    reader = si_c_readings.reader(model, components="channel-average")
    found = si_c_readings.readings(reader, model, images)["channel_average"]
    gaia = si_jax.make_detector("gaia-a", model, taps=list(reader.inner))
    np.testing.assert_allclose(found, -np.log(-gaia.score(images)), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("make", [lambda: build(Net()), resnet])
def test_the_outer_part_in_closed_form_is_the_gradient(make):
    model = make()
    images = smooth(5, 5, model.input_size[0])
    (outer,) = default_taps(model, "outer")
    shape = {call.path: call.shape for call in model.calls}.get(outer, (1,))
    found = si_c_readings.outer_squared(
        jnp.asarray(model.logits(images)), model.head_weights(model.variables), 1
    )
    expected = si_jax.make_detector("gaia-a", model).details(images)["outer"]
    np.testing.assert_allclose(np.sqrt(found / np.prod(shape[:-1])), expected, rtol=1e-4)


@pytest.mark.parametrize("make", [resnet, SLOW[0]])
def test_densities_are_those_of_si_z(make):
    model = make()
    images = smooth(4, 5, model.input_size[0])
    reader = si_c_readings.reader(model, components="zero-deflation")
    taps = reader.channels.taps
    si_z = si_jax.make_detector("si-z", model, taps=list(taps), engine="activation")
    found = si_c_readings.readings(reader, model, images)["density"]
    means = [found[:, reader.channels.tap == k].mean(-1) for k in range(len(taps))]
    np.testing.assert_allclose(np.stack(means, -1), si_z.details(images)["tap_density"], atol=1e-4)


@pytest.mark.parametrize("make", SLOW)
def test_the_forward_form_of_other_networks(make):
    model = make()
    images = smooth(40, 5, model.input_size[0])
    detector = si_jax.make_detector("si-c-forward", model, max_channels=64).fit(images[:30])
    assert detector.state["whiten"].shape[0] <= 64
    assert np.isfinite(detector.score(images)).all()


def test_taps_of_the_networks():
    taps = {
        "resnet34": (36, "conv1", "layer4_2/bn2", 20),
        "wrn_40_2": (37, "block1_0/bn1", "bn1", 25),
        "bit_r101x1": (10, "block4_unit01/gn1", "before_head/gn", 9),
    }
    from si_jax.evaluation import speed

    for name, (count, first, last, inner) in taps.items():
        model = speed.random_model(name)
        reader = si_c_readings.reader(model)
        assert reader.engine == "activation"
        found = reader.channels.taps
        assert (len(found), found[0], found[-1], len(reader.inner)) == (count, first, last, inner)
        assert len(reader.channels.index) <= 4096


def test_the_gradient_engine():
    model = build(Pooled())
    settings = si_jax.make_detector("si-c", model).settings
    assert (settings["engine"], settings["taps"]) == ("gradient", ["norm"])
    images = smooth(60, 6)
    found = si_c_readings.readings(si_c_readings.reader(model), model, images)
    si_z = si_jax.make_detector("si-z", model, engine="gradient").details(images)
    np.testing.assert_allclose(found["density"].mean(-1), si_z["tap_density"][:, 0], atol=1e-6)
    gaia = si_jax.make_detector("gaia-a", model).score(images)
    np.testing.assert_allclose(found["channel_average"], -np.log(-gaia), rtol=1e-4)
    assert np.isfinite(si_jax.make_detector("si-c", model).fit(images).score(images)).all()
    with pytest.raises(ValueError, match="there is none behind norm"):
        si_jax.make_detector("si-c-forward", model)


def test_max_channels():
    taps = {"a": (4, 4, 30), "b": (2, 2, 2), "c": (10,)}
    whole = channels.select_channels(taps, 42)
    np.testing.assert_array_equal(whole.index, np.arange(42))
    np.testing.assert_array_equal(whole.positions, [16] * 30 + [4] * 2 + [1] * 10)
    some = channels.select_channels(taps, 10)
    np.testing.assert_array_equal(np.bincount(some.tap), [7, 1, 2])
    assert len(set(some.index)) == 10
    np.testing.assert_array_equal(whole.tap[some.index], some.tap)
    np.testing.assert_array_equal(channels.select_channels(taps, 10).index, some.index)
    assert not np.array_equal(channels.select_channels(taps, 10, seed=1).index, some.index)
    np.testing.assert_array_equal(np.bincount(channels.select_channels(taps, 3).tap), [1, 1, 1])
    with pytest.raises(ValueError, match=r"max_channels \(=2\) must be at least 3"):
        channels.select_channels(taps, 2)


# Invariances


@pytest.mark.parametrize("name", NAMES)
def test_scores_do_not_depend_on_batches_order_or_devices(name, model, images, fitted, monkeypatch):
    detector = fitted[name]
    assert len(jax.local_devices()) == 2
    whole = detector.details(images)
    order = np.random.default_rng(0).permutation(len(images))
    for key, array in detector.details(images[order]).items():
        np.testing.assert_allclose(array, whole[key][order], rtol=1e-5, atol=1e-5)
    one_device = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one_device)
    for batch_size in (1, 7):
        alone = si_jax.make_detector(name, model, batch_size=batch_size)
        alone.load_state(detector.state)
        for key, array in alone.details(images).items():
            np.testing.assert_allclose(array, whole[key], rtol=1e-4, atol=1e-4)


def test_a_fit_does_not_depend_on_batches_or_devices(model, train, fitted, monkeypatch):
    one_device = jax.local_devices()[:1]
    for size in (7, 64, 200):
        other = si_jax.make_detector("si-c", model, batch_size=size).fit(train).state
        for name, array in fitted["si-c"].state.items():
            np.testing.assert_allclose(other[name], array, rtol=1e-4, atol=1e-4, err_msg=name)
        monkeypatch.setattr(jax, "local_devices", lambda: one_device)


def test_a_saved_fit_gives_the_same_scores(model, images, fitted, tmp_path):
    for name, detector in fitted.items():
        np.savez_compressed(tmp_path / "fit.npz", **detector.state)
        loaded = si_jax.make_detector(name, model)
        with np.load(tmp_path / "fit.npz", allow_pickle=False) as file:
            loaded.load_state({key: file[key] for key in file.files})
        np.testing.assert_array_equal(loaded.score(images), detector.score(images))


# The fit


def test_a_dead_network_has_a_logarithm(model, images):
    dead = jax.tree.map(np.copy, model.variables)
    dead["params"]["bn2"]["bias"][:] = -1e6
    readings = si_c_readings.readings(
        si_c_readings.reader(model), dataclasses.replace(model, variables=dead), images
    )
    assert np.isfinite(readings["channel_average"]).all()
    assert not readings["density"][:, WIDTHS[0] :].any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shrinkage", [0.1, "ledoit-wolf", 1.0])
def test_fifty_images_are_enough(model, train, images, name, shrinkage):
    detector = si_jax.make_detector(name, model, shrinkage=shrinkage).fit(train[:50])
    assert detector.state["tap_calibration"].shape == (15, 2)
    found = detector.details(images)
    assert np.isfinite(found["score"]).all()
    assert ((found["tap_pvalue"] > 0) & (found["tap_pvalue"] <= 1)).all()


def test_pvalues_are_uniform_in_distribution_and_small_for_noise(digits_model):
    detector = si_jax.make_detector("si-c-forward", digits_model, components="zero-deflation")
    detector.fit(digits.load("train")[0][:800])
    known = detector.details(digits.load("test")[0][:300])["tap_pvalue"]
    assert known.shape == (300, len(detector.settings["taps"]))
    assert ((known > 0) & (known <= 1)).all()
    for share in (0.1, 0.5, 0.9):
        np.testing.assert_allclose((known <= share).mean(axis=0), share, atol=0.13)
    noise = detector.details(digits.noise(60))["tap_pvalue"]
    assert (noise.min(axis=-1) <= 0.01).mean() > 0.9


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"components": "energy,heat"}, r"components \(='energy,heat'\) must be .*zero-deflation"),
        ({"components": ""}, r"components \(=''\) must be"),
        ({"components": []}, r"components \(=\[\]\) must be"),
        ({"components": 3}, r"components \(=3\) must be"),
        ({"shrinkage": 0}, r"shrinkage \(=0.0\) must be a number in \(0, 1\]"),
        ({"shrinkage": 2}, r"shrinkage \(=2.0\) must be a number in \(0, 1\]"),
        ({"shrinkage": True}, r"shrinkage \(=True\) must be a number in"),
        ({"shrinkage": float("nan")}, r"shrinkage \(=nan\) must be a number in \(0, 1\]"),
        ({"shrinkage": "oracle"}, r"shrinkage \(='oracle'\) must be"),
        ({"shrinkage": None}, r"shrinkage \(=None\) must be"),
        ({"max_channels": 0}, r"max_channels \(=0\) must be"),
        ({"max_channels": 1}, r"max_channels \(=1\) must be at least 2"),
        ({"max_calibration": 5}, r"max_calibration \(=5\) must be"),
        ({"seed": -1}, r"seed \(=-1\) must be"),
        ({"form": "no"}, r"form \(='no'\) must be one of hinge, sum"),
        ({"taps": "nowhere"}, "nowhere"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_options_that_make_no_sense_are_named(model, options, message):
    for name in NAMES:
        with pytest.raises(ValueError, match=message):
            si_jax.make_detector(name, model, **options)


def test_the_forward_form_has_no_channel_average(model):
    with pytest.raises(ValueError, match="must be one or more of energy, zero-deflation"):
        si_jax.make_detector("si-c-forward", model, components="channel-average")


def test_images_that_do_not_serve(model, train, images, with_variables):
    detector = si_jax.make_detector("si-c", model)
    with pytest.raises(ValueError, match="must be fitted first"):
        detector.score(images)
    with pytest.raises(ValueError, match="images is empty"):
        detector.fit(train[:0])
    with pytest.raises(ValueError, match=r"images \(=19\) are too few.* at least 20"):
        detector.fit(train[:19])
    with pytest.raises(ValueError, match="no density varies"):
        detector.fit(np.repeat(train[:1], 40, axis=0))
    with pytest.raises(ValueError, match="NaN"):
        detector.fit(np.full((30, SIZE, SIZE, 3), np.nan, np.float32))
    broken = jax.tree.map(np.copy, model.variables)
    broken["params"]["head"]["bias"][0] = np.nan
    for components in ("energy", "channel-average", "zero-deflation"):
        nan = si_jax.make_detector("si-c", with_variables(model, broken), components=components)
        with pytest.raises(ValueError, match="NaN or infinite"):
            nan.fit(train)
    assert detector.state is None


def test_a_network_that_breaks_later_gives_no_score(model, images, fitted, with_variables):
    broken = jax.tree.map(np.copy, model.variables)
    broken["params"]["head"]["bias"][0] = np.nan
    detector = si_jax.make_detector("si-c", with_variables(model, broken))
    detector.load_state(fitted["si-c"].state)
    run = detector._run(images, batch_size=32)
    assert np.isnan(run["score"]).all()
    with pytest.raises(ValueError, match=r"'si-c' gives .* NaN or infinite"):
        detector.score(images)
