"""Detectors under the modes of JAX by which people look for mistakes in their own code.

`tests/detectors/test_battery.py` runs every detector under them, on a network in Linen.
"""

import jax
import pytest
import same_network

import si_jax
from si_jax.testing import check_detector
from si_jax.testing.battery import random_images

EVERY_KIND = ("msp", "knn", "react", "gaia-z", "si-z", "si-c")
"""A detector of each kind of program: logits, a fit, a head, supports, gradients, densities."""

PROMOTING = ("keras", "torch")
"""Frameworks whose own layers add arrays of other ranks and dtypes."""

pytestmark = pytest.mark.usefixtures("quick_to_compile", "unchecked")


@pytest.fixture(scope="module", params=same_network.NETWORKS)
def network(request):
    """(framework, the network in it)"""
    return request.param, same_network.model(request.param)


def check(model, name):
    options = {"k": 5} if name == "knn" else {}
    check_detector(
        lambda model, **more: si_jax.make_detector(name, model, **options, **more),
        model,
        invariance=False,
    )


@pytest.mark.usefixtures("debug_nans")
@pytest.mark.parametrize("name", EVERY_KIND)
def test_the_battery_under_strict_modes(network, name, request):
    framework, model = network
    if framework not in PROMOTING:
        request.getfixturevalue("strict_promotion")
    check(model, name)


def test_no_tracer_outlives_its_trace(network):
    _, model = network
    with jax.checking_leaks():
        check(model, "msp")
        si_jax.make_detector("gaia-z", model).score(random_images(model, 8, seed=1))


@pytest.mark.parametrize("name", ["msp", "react"])
def test_the_battery_without_jit(network, name):
    with jax.disable_jit():
        check(network[1], name)
