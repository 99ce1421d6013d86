"""One network in every framework."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import same_network


@pytest.fixture(scope="session")
def linen_model():
    return same_network.model("linen")


@pytest.fixture(scope="session", params=[k for k in same_network.NETWORKS if k != "linen"])
def other(request):
    return same_network.model(request.param)
