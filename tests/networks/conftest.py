"""One network in every framework."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import same_network


@pytest.fixture(scope="session")
def linen_model():
    return same_network.linen_model()


@pytest.fixture(scope="session", params=same_network.OTHERS)
def other(request):
    packages = {"keras": "keras", "equinox": "equinox", "torch": "torchax"}
    pytest.importorskip(packages.get(request.param, "flax"))
    return same_network.OTHERS[request.param]()
