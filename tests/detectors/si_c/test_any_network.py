"""What S&I-C reads of networks of all kinds."""

import numpy as np
import pytest
from si_c_networks import CLASSES, Net, Pooled, build, smooth

import si_jax
from si_jax.detectors.si_c import readings as si_c_readings
from si_jax.detectors.si_c.readings import select_channels


def resnet():
    return si_jax.load_model("digits")


def wide_resnet():
    return si_jax.build_model("wrn_16_4", CLASSES, seed=1, input_size=(8, 8), depth=10, widen=1)


@pytest.mark.parametrize("make", [lambda: build(Net()), resnet, wide_resnet])
def test_readings_are_those_of_gaia(make):
    """With the outer part in closed form, and one pass for all."""
    model = make()
    images = smooth(4, 5, model.input_size[0])
    reader = si_c_readings.reader(model, max_channels=100_000)
    found = si_c_readings.readings(reader, model, images)
    gaia = si_jax.make_detector("gaia-a", model, taps=list(reader.inner)).score(images)
    np.testing.assert_allclose(found["channel_average"], -np.log(-gaia), rtol=1e-4, atol=1e-3)
    taps, of_tap = reader.channels.taps, reader.channels.tap
    means = [found["density"][:, of_tap == k].mean(-1) for k in range(len(taps))]
    gaia = si_jax.make_detector("gaia-z", model, taps=list(taps), engine="activation")
    np.testing.assert_allclose(np.stack(means, -1), gaia.details(images)["tap_density"], atol=1e-4)


def test_the_gradient_engine():
    model = build(Pooled())
    settings = si_jax.make_detector("si-c", model).settings
    assert (settings["engine"], settings["taps"]) == ("gradient", ["norm"])
    images = smooth(60, 6)
    found = si_c_readings.readings(si_c_readings.reader(model), model, images)
    # of the first gradient: behind a max-pool, si-z's second step adds positions to it
    gaia_z = si_jax.make_detector("gaia-z", model, engine="gradient").details(images)
    np.testing.assert_allclose(found["density"].mean(-1), gaia_z["tap_density"][:, 0], atol=1e-6)
    gaia = si_jax.make_detector("gaia-a", model).score(images)
    np.testing.assert_allclose(found["channel_average"], -np.log(-gaia), rtol=1e-4)
    assert np.isfinite(si_jax.make_detector("si-c", model).fit(images).score(images)).all()
    with pytest.raises(ValueError, match="there is none behind norm"):
        si_jax.make_detector("si-c-forward", model)


def test_max_channels():
    taps = {"a": (4, 4, 30), "b": (2, 2, 2), "c": (10,)}
    whole = select_channels(taps, 42)
    np.testing.assert_array_equal(whole.index, np.arange(42))
    np.testing.assert_array_equal(whole.positions, [16] * 30 + [4] * 2 + [1] * 10)
    some = select_channels(taps, 10)
    np.testing.assert_array_equal(np.bincount(some.tap), [7, 1, 2])
    assert len(set(some.index)) == 10
    np.testing.assert_array_equal(whole.tap[some.index], some.tap)
    np.testing.assert_array_equal(select_channels(taps, 10).index, some.index)
    assert not np.array_equal(select_channels(taps, 10, seed=1).index, some.index)
    np.testing.assert_array_equal(np.bincount(select_channels(taps, 3).tap), [1, 1, 1])
    with pytest.raises(ValueError, match=r"max_channels \(=2\) must be at least 3"):
        select_channels(taps, 2)
