"""The classifier head as a linear map, for the detectors that change what enters it."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from si_jax.model import Model


def head_logits(
    model: Model,
    variables: Mapping[str, Any],
    features: Float[Array, "batch features"],
    weights: Float[Array | np.ndarray, "features classes"] | None = None,
) -> Float[Array, "batch classes"]:
    """Logits of features, by the head's own weights or by others in their place."""
    if weights is None:
        weights = model.head_weights(variables)
    with jax.default_matmul_precision(model.precision):
        return features @ weights + model.head_bias(variables)


def num_features(model: Model) -> int:
    """Number of features that enter the head.

    Raises:
        ValueError: if the head is not linear.
    """
    return model.head_weights(model.variables).shape[0]
