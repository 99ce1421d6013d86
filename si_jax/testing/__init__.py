"""A battery for detectors, also for your own: `check_detector` takes the function that builds one
and raises an AssertionError that says which promise it breaks; `networks` are the small networks it
is run on.
"""

from si_jax.testing.battery import check_detector
from si_jax.testing.networks import NETWORKS, small_model

__all__ = ["NETWORKS", "check_detector", "small_model"]
