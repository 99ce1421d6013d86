"""Detectors under the modes of JAX by which people look for mistakes in their own code."""

import contextlib

import jax
import numpy as np
import pytest
import same_network

import si_jax
from si_jax.detectors import DETECTORS
from si_jax.testing import networks
from si_jax.testing.battery import random_images

OPTIONS = {"knn": {"k": 5}, "lts": {"percentile": 60}}
FEW = ("msp", "react", "knn", "gaia-z", "si-a")


@contextlib.contextmanager
def strict(promotion=True, leaks=True):
    """All that go together: NaN, tracers that outlive their trace, shapes and dtypes."""
    with contextlib.ExitStack() as modes:
        modes.enter_context(jax.debug_nans(True))
        if leaks:  # which takes long
            modes.enter_context(jax.checking_leaks())
        if promotion:
            modes.enter_context(jax.numpy_rank_promotion("raise"))
            modes.enter_context(jax.numpy_dtype_promotion("strict"))
        yield


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def scores(model, name):
    images = random_images(model, 3, seed=1)
    detector = si_jax.make_detector(name, model, batch_size=4, **OPTIONS.get(name, {}))
    if detector.needs_fit:
        fit = random_images(model, 40, seed=2)
        detector.fit(fit, np.arange(40) % model.num_classes, progress=False)
    return detector.score(images, progress=False)


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_runs_under_strict_modes(name):
    model = networks.small_model()
    with strict(leaks=name in FEW):
        found = scores(model, name)
    assert np.isfinite(found).all()
    if name in FEW:
        np.testing.assert_allclose(found, scores(model, name), rtol=1e-4)


@pytest.mark.parametrize("framework", same_network.OTHERS)
def test_networks_of_every_framework_run_under_strict_modes(framework, linen_model):
    if framework not in ("nnx", "function"):
        pytest.importorskip(framework)
    model = same_network.OTHERS[framework]()
    promotion = framework in ("nnx", "equinox")  # the layers of the others promote themselves
    for name in ("react", "gaia-z"):
        expected = scores(linen_model, name)
        with strict(promotion, leaks=name == "gaia-z"):
            found = scores(model, name)
        np.testing.assert_allclose(found, expected, rtol=1e-3, err_msg=name)


@pytest.mark.parametrize("name", FEW)
def test_scores_without_jit(name):
    model = networks.small_model()
    with jax.disable_jit():
        found = scores(model, name)
    np.testing.assert_allclose(found, scores(model, name), rtol=1e-4)
