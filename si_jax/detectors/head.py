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


def num_features(model: Model) -> int:
    """Number of features that enter the head, for a detector that uses it as a linear map."""
    model.head_weights(model.variables)
    return feature_size(model)


def feature_size(model: Model) -> int:
    """Number of features that enter the head, whatever it makes of them."""
    if not model.head:
        raise ValueError(no_head(model))
    shape = model.feature_shape
    if len(shape) != 1:
        raise ValueError(
            f"head (={model.head!r}) takes {'x'.join(map(str, shape))} numbers an image, not a"
            " vector: this detector needs a network that pools over its positions before the head;"
            " those that need the logits alone, such as 'energy', serve this one"
        )
    return shape[-1]


def check_logits(model: Model) -> None:
    """Refuse a network whose outputs are no logits: probabilities, or their logarithms.

    Most are refused by `Model` already, which sees how a network ends; this sees what it returns.
    """
    if model not in _FAULTS:
        is_seen = model.linear_head is not None or not model.is_concrete
        _FAULTS[model] = "" if is_seen else _output_fault(model)
    if _FAULTS[model]:
        raise ValueError(_FAULTS[model])


_FAULTS: weakref.WeakKeyDictionary[Model, str] = weakref.WeakKeyDictionary()
PROBES = 4  # random images that a network is run on where its equations do not show it


def _output_fault(model: Model) -> str:
    """What is wrong with a network's outputs for random images; empty if nothing is."""
    images = np.random.default_rng(0).integers(0, 256, (PROBES, *model.image_shape), np.uint8)
    logits = model.run(images, batch_size=PROBES)["logits"].astype(np.float64)
    if (logits >= 0).all() and np.allclose(logits.sum(axis=-1), 1, atol=1e-3):
        return no_logits("softmax")
    if np.allclose(logsumexp(logits, axis=-1), 0, atol=1e-3):
        return no_logits("log-softmax")
    return ""
