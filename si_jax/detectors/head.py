"""The classifier head as a linear map, for the detectors that change what enters it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from si_jax import splitting
from si_jax.model import Model


def head_bias(model: Model, variables: Mapping[str, Any]) -> Float[Array | np.ndarray, "classes"]:
    """The bias of the classifier head; zeros where it has none.

    Raises:
        ValueError: if the module at `head` is no linear layer.
    """
    kernel = model.head_weights(variables)  # refuses a head that is not linear
    node = variables["params"]
    for name in model.head.split("/"):
        node = node[name]
    return node.get("bias", jnp.zeros(kernel.shape[-1], kernel.dtype))


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
        return features @ weights + head_bias(model, variables)


def num_features(model: Model) -> int:
    """Number of features that enter the head.

    Raises:
        ValueError: if the head is not linear.
    """
    model.head_weights(model.variables)
    return splitting.abstract_forward(model).features.shape[-1]
