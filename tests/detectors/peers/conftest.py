"""A small network, images, a fit for each peer; helpers lie beside the tests."""

import functools
import sys
from pathlib import Path

import numpy as np
import pytest

import si_jax

sys.path.insert(0, str(Path(__file__).parent))

from peer_networks import CLASSES, SMALLER, Tiny, build


@pytest.fixture(autouse=True)
def on_one_device(one_device):
    """Programs for one device compile faster; the battery runs all on two."""


@pytest.fixture(scope="session")
def model():
    return build(Tiny())


@pytest.fixture(scope="session")
def images():
    rng = np.random.default_rng(1)
    smooth = rng.integers(0, 256, (70, 2, 2, 3)).repeat(4, axis=1).repeat(4, axis=2)
    return np.clip(smooth + rng.integers(-40, 40, (70, 8, 8, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def train(images):
    rng = np.random.default_rng(2)
    noise = rng.integers(-30, 30, (80, 8, 8, 3))
    fit_images = np.clip(images[rng.integers(0, 40, 80)] + noise, 0, 255).astype(np.uint8)
    return fit_images, np.arange(80) % CLASSES


@pytest.fixture(scope="session")
def head(model):
    params = model.variables["params"]["head"]
    return np.asarray(params["kernel"], np.float64), np.asarray(params["bias"], np.float64)


@pytest.fixture(scope="session")
def h(model, images):
    return model.features(images).astype(np.float64)


@pytest.fixture(scope="session")
def h_train(model, train):
    return model.features(train[0]).astype(np.float64)


@pytest.fixture(scope="session")
def make(model, train):
    @functools.cache
    def make(name, **options):
        options = {**SMALLER.get(name, {}), **options}
        detector = si_jax.make_detector(name, model, **options)
        return detector.fit(*train) if detector.needs_fit else detector

    return make


@pytest.fixture(scope="session")
def score(make, images):
    return lambda name, **options: make(name, **options).score(images)
