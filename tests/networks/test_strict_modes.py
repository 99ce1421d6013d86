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

MODES = {
    "rank_promotion": lambda: jax.numpy_rank_promotion("raise"),
    "dtype_promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "leaks": jax.checking_leaks,
    "no_jit": jax.disable_jit,
    "NaN": lambda: jax.debug_nans(True),
}


def scores(model, name):
    images = random_images(model, 3, seed=1)
    detector = si_jax.make_detector(name, model, batch_size=4, **OPTIONS.get(name, {}))
    if detector.needs_fit:
        fit = random_images(model, 40, seed=2)
        detector.fit(fit, np.arange(40) % model.num_classes, progress=False)
    return detector.score(images, progress=False)


@pytest.fixture(scope="module")
def plain():
    model = networks.small_model()
    return {name: scores(model, name) for name in DETECTORS}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", DETECTORS)
def test_scores_are_the_same(name, mode, plain):
    with MODES[mode]():
        found = scores(networks.small_model(), name)
    np.testing.assert_allclose(found, plain[name], rtol=1e-4, atol=1e-6)
