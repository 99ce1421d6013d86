"""A small network, images, and S&I-C fitted on them; helpers lie beside the tests."""

import sys
from pathlib import Path

import numpy as np
import pytest

import si_jax

sys.path.insert(0, str(Path(__file__).parent))

from si_c_networks import NAMES, SIZE, Net, build, smooth


@pytest.fixture(autouse=True)
def on_one_device(one_device):
    """Programs for one device compile faster; the battery runs all on two."""


@pytest.fixture(scope="session")
def model():
    return build(Net())


@pytest.fixture(scope="session")
def train():
    return smooth(200, 1)


@pytest.fixture(scope="session")
def images():
    rng = np.random.default_rng(2)
    return np.concatenate([smooth(20, 3), rng.integers(0, 256, (9, SIZE, SIZE, 3), np.uint8)])


@pytest.fixture(scope="session")
def fitted(model, train):
    return {name: si_jax.make_detector(name, model).fit(train) for name in NAMES}
