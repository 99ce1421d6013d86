"""The fit and the forms of S&I-C on readings made by hand, without a network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from sklearn import covariance as sklearn_covariance

from si_jax.detectors.si_c import fit as si_c_fit
from si_jax.detectors.si_c import readings as si_c_readings
from si_jax.detectors.si_c import score as si_c_score

CHANNELS = si_c_readings.select_channels({"a": (8, 8, 6), "b": (8, 8, 6)}, 99)


def made(count):
    """Readings without a network."""
    rng = np.random.default_rng(0)
    density = np.clip(0.5 + 0.1 * rng.normal(size=(count, 12)), 0, 1).astype(np.float32)
    energy, average, confidence = rng.normal(size=(3, count)).astype(np.float32)
    readings = {"confidence": confidence, "energy": energy, "channel_average": average}
    return readings | {"density": density}


def test_ledoit_wolf_is_scikit_learns():
    readings = made(1000)
    readings["density"] += 0.05 * readings["density"][:, :1]
    state = si_c_fit.fit([readings], CHANNELS, shrinkage="ledoit-wolf")
    rng = np.random.default_rng(0)
    second = np.concatenate([rng.permutation(10) < 3 for _ in range(100)])
    first = readings["density"][~second].astype(np.float64)
    expected = sklearn_covariance.ledoit_wolf_shrinkage((first - first.mean(0)) / first.std(0))
    np.testing.assert_allclose(state["shrinkage"], expected, rtol=1e-4)
    sampled = si_c_fit.fit([readings], CHANNELS, shrinkage="ledoit-wolf", max_calibration=200)
    np.testing.assert_allclose(sampled["shrinkage"], expected, rtol=0.2)
    assert len(sampled["tap_calibration"]) == 200


def test_constant_channels_are_left_out_and_a_density_at_its_mean_has_a_logarithm():
    readings = made(200)
    readings["density"][:, :6] = 0.25
    readings["density"][:, 6] = 0.5
    readings["density"][20, 6] += 1 / 64  # once, by one position
    state = si_c_fit.fit([readings], CHANNELS)
    assert (state["scale"][:6] == 0).all()
    np.testing.assert_allclose(state["scale"][6], 128, rtol=1e-6)
    new = {name: x[:5].copy() for name, x in readings.items()}
    before = si_c_score.apply(state, new)
    new["density"][:, :6] = 1
    after = si_c_score.apply(state, new)
    np.testing.assert_array_equal(after["score"], before["score"])
    np.testing.assert_array_equal(after["tap_pvalue"][:, 0], 1)
    new["density"] = np.stack([state["mean"]] * 5)
    assert np.isfinite(si_c_score.apply(state, new)["score"]).all()


def test_pvalues():
    calibrated = np.float32([[1, 5], [2, 5], [3, 5]])
    values = np.float32([[0.5, 5], [2, 4], [9, 6]])
    expected = [[1, 1], [3 / 4, 1], [1 / 4, 1 / 4]]
    for convert in (np.asarray, jnp.asarray):
        found = si_c_score.pvalues(convert(calibrated), convert(values))
        np.testing.assert_allclose(found, expected)


def test_the_forms():
    names = ("energy", "channel-average")
    state = {"median": np.float32([1, 0]), "spread": np.float32([1, 2])}
    state |= {"base_median": np.float32([0, 1]), "base_spread": np.float32([2, 1])}
    state |= {"sum_median": np.float32(-2), "sum_shortfall": np.float32(0.5)}
    readings = {
        "confidence": np.float32([4, 4, np.nan]),
        "energy": np.float32([2, -3, 1]),
        "channel_average": np.float32([100, 0, 0]),
    }
    for convert in (np.asarray, jnp.asarray):
        values = {name: convert(x) for name, x in readings.items()}
        found = si_c_score.apply(state, values, components=names)
        np.testing.assert_allclose(found["sum"], [11, -4, 0])  # 1 + 10, where 50 is cut off
        np.testing.assert_allclose(found["hinge"], [0, 4, 0])
        np.testing.assert_allclose(found["score"], [1.75, 0.5 - 0.6 * 16, np.nan], rtol=1e-6)
        other = si_c_score.apply(state, values, components=names, form="sum")
        np.testing.assert_allclose(other["score"], [11, -4, 0])


def test_log_odds_order_as_the_largest_probability_and_do_not_saturate():
    logits = np.random.default_rng(0).normal(0, 30, (50, 7)).astype(np.float32)
    exact = np.sort(logits.astype(np.float64))
    expected = exact[:, -1] - logsumexp(exact[:, :-1], axis=1)
    found = si_c_readings.log_odds(jnp.asarray(logits))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (np.asarray(jax.nn.softmax(logits)).max(-1) == 1).sum() > 5


@pytest.mark.parametrize("tied", [1, 2])
def test_the_hinge_needs_no_spread_below_the_median(tied):
    readings, components = made(100), ("energy",)
    energy = np.where(np.arange(100) % 3 == 0, 3 - tied, tied)
    readings["energy"] = energy.astype(np.float32)
    state = si_c_fit.fit([readings], components=components)
    if tied == 1:  # the median is the least value
        assert state["sum_shortfall"] == np.float32(si_c_fit.LEAST_SHORTFALL)
    assert np.isfinite(si_c_score.apply(state, readings, components=components)["score"]).all()


def test_a_constant_component_is_refused():
    for name, message in (
        ("energy", "energy does not vary"),
        ("confidence", "confidence does not vary"),
        ("density", "no density varies"),
    ):
        readings = made(100)
        readings[name][:] = 1
        with pytest.raises(ValueError, match=message):
            si_c_fit.fit([readings], CHANNELS)
