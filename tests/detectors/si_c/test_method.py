"""S&I-C: its fits and its limits."""

import dataclasses

import jax
import numpy as np
import pytest
from si_c_networks import WIDTHS

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


def test_a_dead_network_has_a_logarithm(model, images):
    dead = jax.tree.map(np.copy, model.variables)
    dead["params"]["bn2"]["bias"][:] = -1e6
    readings = si_c_readings.readings(
        si_c_readings.reader(model), dataclasses.replace(model, variables=dead), images
    )
    assert np.isfinite(readings["channel_average"]).all()
    assert not readings["density"][:, WIDTHS[0] :].any()


@pytest.mark.parametrize(("name", "shrinkage"), [("si-c", "ledoit-wolf"), ("si-c-forward", 1.0)])
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


def test_images_that_do_not_serve(model, train, with_variables):
    detector = si_jax.make_detector("si-c", model)
    with pytest.raises(ValueError, match=r"images \(=19\) are too few.* at least 20"):
        detector.fit(train[:19])
    with pytest.raises(ValueError, match="no density varies"):
        detector.fit(np.repeat(train[:1], 40, axis=0))
    broken = jax.tree.map(np.copy, model.variables)
    broken["params"]["head"]["bias"][0] = np.nan
    for components in ("energy", "channel-average", "zero-deflation"):
        nan = si_jax.make_detector("si-c", with_variables(model, broken), components=components)
        with pytest.raises(ValueError, match="NaN or infinite"):
            nan.fit(train)
    assert detector.state is None
