"""S&I-C: its invariances, its fits, and its limits."""

import dataclasses

import jax
import numpy as np
import pytest
from si_c_networks import NAMES, SIZE, WIDTHS

import si_jax
from si_jax.data import digits
from si_jax.detectors.si_c import readings as si_c_readings


def test_components_have_one_spelling(model):
    for given in ("zero-deflation, energy", ["zero-deflation", "energy", "energy"]):
        settings = si_jax.make_detector("si-c", model, components=given).settings
        assert settings["components"] == ["energy", "zero-deflation"]
    assert settings["engine"] == "activation"
    assert settings["taps"] == ["bn1", "bn2"]
    assert "inner" not in settings
    assert si_jax.make_detector("si-c", model, shrinkage=1).settings["shrinkage"] == 1.0


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
