"""The classifier head as a linear map, for the detectors that change what enters it."""

import weakref
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float
from scipy.special import logsumexp

from si_jax.model import Model
from si_jax.networks.head import no_head, no_logits


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
        return features @ weights + model.head_bias(variables)[None]


def check_linear(model: Model) -> None:
    """Refuse a network whose head is not the linear map from the features to the logits."""
    model.head_weights(model.variables)
    check_vector(model)


def check_vector(model: Model) -> None:
    """Refuse a network whose head takes no vector, whatever it makes of it."""
    if not model.head:
        raise ValueError(no_head(model))
    if len(shape := model.feature_shape) != 1:
        raise ValueError(
            f"head (={model.head!r}) takes {'x'.join(map(str, shape))} numbers an image, not a"
            " vector: this detector needs a network that pools over its positions before the head;"
            " those that need the logits alone, such as 'energy', serve this one"
        )


_FAULTS: weakref.WeakKeyDictionary[Model, str] = weakref.WeakKeyDictionary()
PROBES = 4  # random images that a network is run on where its equations do not show it


def check_logits(model: Model) -> None:
    """Refuse a network whose outputs are no logits: probabilities, or their logarithms.

    Most are refused by `Model` already, which sees how a network ends; this sees what it returns.
    """
    if model not in _FAULTS:
        fault = ""
        if model.linear_head is None and model.is_concrete:
            images = np.random.default_rng(0).integers(
                0, 256, (PROBES, *model.image_shape), np.uint8
            )
            logits = model.run(images, batch_size=PROBES)["logits"].astype(np.float64)
            if (logits >= 0).all() and np.allclose(logits.sum(axis=-1), 1, atol=1e-3):
                fault = no_logits("softmax")
            elif np.allclose(logsumexp(logits, axis=-1), 0, atol=1e-3):
                fault = no_logits("log-softmax")
        _FAULTS[model] = fault
    if _FAULTS[model]:
        raise ValueError(_FAULTS[model])
