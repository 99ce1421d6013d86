"""One network in every framework."""

import pytest
import same_network


@pytest.fixture(scope="session")
def linen_model():
    return same_network.model("linen")


@pytest.fixture(scope="session", params=[k for k in same_network.NETWORKS if k != "linen"])
def other(request):
    return same_network.model(request.param)
