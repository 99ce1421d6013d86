"""A detector from outside the package."""

import jax.numpy as jnp
import numpy as np
import pytest

import si_jax
from si_jax.detectors import DETECTORS, Method, Plan, default_options


def mean_feature(model, *, power: float = 1.0):
    """Mean feature to a power."""

    def compute(inputs, state):
        return {"score": jnp.mean(inputs.forward.features, axis=-1) ** power}

    return Plan(compute, {"power": power})


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr("si_jax.detectors.DETECTORS", dict(DETECTORS))

    def register(name="mean-feature", build=mean_feature, **facts):
        si_jax.register_detector(name, Method(build, "mean feature", "mine", **facts))

    return register


def test_a_registered_detector_is_like_any_other(registered, tiny, tiny_images):
    registered(version=3)
    detector = si_jax.make_detector("mean-feature", tiny, power=2)
    expected = tiny.features(tiny_images).mean(axis=1) ** 2
    np.testing.assert_allclose(detector.score(tiny_images), expected, rtol=1e-4)
    assert (detector.version, detector.settings) == (3, {"power": 2.0})
    with pytest.raises(ValueError, match="does not take the option size; it takes power"):
        si_jax.make_detector("mean-feature", tiny, size=2)


def test_without_a_version_it_has_none(registered, tiny):
    registered()
    assert si_jax.make_detector("mean-feature", tiny).version is None
    assert si_jax.make_detector("msp", tiny).version == DETECTORS["msp"].version


def test_what_cannot_be_registered(registered):
    with pytest.raises(ValueError, match=r"name \(='msp'\) is taken"):
        registered("msp")
    for name in ("", "Mine", "a b", "../x", "a--b", "-a"):
        with pytest.raises(ValueError, match="must be lower-case letters"):
            registered(name)
    for build in (lambda model, size: None, lambda model, *, size: None):
        with pytest.raises(ValueError, match="'size' must be a keyword with a default"):
            registered(build=build)
    assert "mean-feature" not in DETECTORS
    assert default_options("msp") == {}
