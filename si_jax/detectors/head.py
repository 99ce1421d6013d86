"""The classifier head as a linear map, for the detectors that change what enters it."""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import logsumexp

from si_jax import splitting
from si_jax.model import Model
from si_jax.networks.endings import no_logits


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
    """Number of features that enter the head, for a detector that uses it as a linear map.

    Raises:
        ValueError: if the head is not linear, or its output is not what the network returns.
    """
    kernel = model.head_weights(model.variables)
    count = feature_size(model)
    if kernel.shape != (count, model.num_classes):
        raise ValueError(
            f"head (={model.head!r}) has weights of shape {kernel.shape}, but the network makes"
            f" {model.num_classes} logits of {count} features: name the layer that gives the logits"
        )
    if fault := _look(model).map_fault:
        raise ValueError(fault)
    return count


def feature_size(model: Model) -> int:
    """Number of features that enter the head, whatever it makes of them.

    Raises:
        ValueError: if they are not one vector for each image.
    """
    shape = model.outline.inputs[model.head] or ()
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

    Raises:
        ValueError: with what to do.
    """
    if fault := _look(model).logits_fault:
        raise ValueError(fault)


@dataclass(frozen=True)
class _Look:
    """What is wrong with a network's outputs, in a sentence each; empty if nothing is."""

    logits_fault: str = ""
    map_fault: str = ""


_LOOKS: weakref.WeakKeyDictionary[Model, _Look] = weakref.WeakKeyDictionary()
PROBES = 4  # random images that a network is run on where its outline does not tell
TOLERANCE = 0.01  # of the sum of the absolute terms: half precision is exact to 0.004


def _look(model: Model) -> _Look:
    """Look at a model once: at its trace, and if that does not tell, at random images' outputs."""
    if model not in _LOOKS:
        abstract = any(
            isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(model.variables)
        )
        _LOOKS[model] = _Look() if abstract or _ends_in_head(model) else _probe(model)
    return _LOOKS[model]


def _ends_in_head(model: Model) -> bool:
    """Whether the network returns its linear head's output as it is, perhaps in another dtype."""
    if not any(c.path == model.head and model.framework.is_linear(c.module) for c in model.calls):
        return False

    def run(variables, images):
        out = splitting.forward(model, variables, images, record=[model.head])
        return out.logits, out.outputs[model.head]

    image = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
    jaxpr = jax.make_jaxpr(run)(model.variables, image).jaxpr
    logits, head = jaxpr.outvars
    casts = {e.outvars[0]: e.invars[0] for e in jaxpr.eqns if e.primitive.name in CASTS}
    while logits is not head and logits in casts:
        logits = casts[logits]
    return logits is head


CASTS = ("convert_element_type", "copy")


def _probe(model: Model) -> _Look:
    images = np.random.default_rng(0).integers(0, 256, (PROBES, *model.image_shape), np.uint8)
    out = model.run(images, batch_size=PROBES)
    logits, features = (out[name].astype(np.float64) for name in ("logits", "features"))
    total = logits.sum(axis=-1)
    if (logits >= 0).all() and np.allclose(total, 1, atol=1e-3):
        return _Look(no_logits("softmax"))
    if np.allclose(logsumexp(logits, axis=-1), 0, atol=1e-3):
        return _Look(no_logits("log-softmax"))
    try:
        weights = np.asarray(model.head_weights(model.variables), np.float64)
    except ValueError:
        return _Look()  # whoever needs it to be linear is told by the same error
    bias = np.asarray(model.head_bias(model.variables), np.float64)
    if features.ndim != 2 or (features.shape[-1], logits.shape[-1]) != weights.shape:
        return _Look()
    difference = np.abs(features @ weights + bias - logits)
    if (difference <= TOLERANCE * (np.abs(features) @ np.abs(weights) + np.abs(bias))).all():
        return _Look()
    return _Look(
        map_fault=f"head (={model.head!r}): its weights times its input plus its bias are not the"
        f" network's logits (off by up to {difference.max():.3g}): name the linear layer that gives"
        " them, and leave out what scales them behind it; detectors that need the logits alone,"
        " such as 'energy', serve this network"
    )
