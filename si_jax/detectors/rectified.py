"""Detectors that change the features, or the head's weights, by what training images show.

`react` and `vra` keep the features of at most `max_images` fitting images, 4 bytes a number (50000
images of 512 features are 100 MB), drawn at random with a fixed seed where there are more.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from si_jax.detectors.base import Inputs, Plan, State
from si_jax.detectors.fitting import Batches, reservoir
from si_jax.detectors.head import head_logits, num_features
from si_jax.detectors.options import Count, Percentile, Range
from si_jax.model import Model

Quantile = Annotated[float, Range("[0, 100]")]
"""A percentile of the fitting images' features."""


def react(
    model: Model,
    *,
    percentile: Quantile = 90.0,
    threshold: float | None = None,
    max_images: Count = 50_000,
) -> Plan:
    """ReAct: energy of the features cut off at a threshold (Sun et al., NeurIPS 2021, section 3).

    Args:
        model: the network.
        percentile: the threshold is this percentile of all features of the fitting images.
        threshold: the threshold itself; then nothing is fitted.
        max_images: fitting images whose features are kept to find the percentile.

    Raises:
        ValueError: if the head is not linear.
    """
    num_features(model)

    def fit(batches: Batches) -> State:
        kept = reservoir((h for _, h, _ in batches.outputs()), max_images)
        return {"threshold": np.float32(np.percentile(kept, percentile))}

    def compute(inputs: Inputs, state: State):
        limit = state["threshold"] if threshold is None else threshold
        h = jnp.minimum(inputs.forward.features, limit)
        logits = head_logits(model, inputs.variables, h)
        return {"score": jax.nn.logsumexp(logits, axis=-1)}

    settings = {"percentile": percentile, "threshold": threshold, "max_images": max_images}
    return Plan(compute, settings, fit=fit if threshold is None else None)


def vra(
    model: Model, *, low: Quantile = 60.0, high: Quantile = 95.0, max_images: Count = 50_000
) -> Plan:
    """VRA: energy of the features with the small ones set to 0 and the large ones cut off.

    Xu et al., NeurIPS 2023, eq. 10 (code: zeroQiaoba/VRA): a feature below the `low` percentile of
    the features of all fitting images becomes 0, one above the `high` percentile becomes that
    percentile. The defaults are the published ones for CIFAR-100 (for CIFAR-10: 60 and 90).
    OpenOOD and pytorch-ood raise the small ones to the percentile instead, which is not the paper's
    formula.

    Args:
        model: the network.
        low: percentile below which features become 0.
        high: percentile at which they are cut off.
        max_images: fitting images whose features are kept to find the percentiles.

    Raises:
        ValueError: if the percentiles are not ascending, or the head is not linear.
    """
    if low > high:
        raise ValueError(f"low (={low}) must not be above high (={high})")
    num_features(model)

    def fit(batches: Batches) -> State:
        kept = reservoir((h for _, h, _ in batches.outputs()), max_images)
        return {"limits": np.percentile(kept, [low, high]).astype(np.float32)}

    def compute(inputs: Inputs, state: State):
        bottom, top = state["limits"]
        h = inputs.forward.features
        h = jnp.minimum(jnp.where(h < bottom, 0, h), top)
        return {"score": jax.nn.logsumexp(head_logits(model, inputs.variables, h), axis=-1)}

    return Plan(compute, {"low": low, "high": high, "max_images": max_images}, fit=fit)


def dice(model: Model, *, percentile: Percentile = 90.0) -> Plan:
    """DICE: energy by the head's weights that contribute most (Sun & Li, ECCV 2022, section 3).

    A weight's contribution is itself times the mean of its feature over the fitting images; those
    above the percentile of all contributions are kept, the others set to 0 (as in the published
    code, deeplearning-wisc/dice).

    Raises:
        ValueError: if the head is not linear.
    """
    num_features(model)

    def fit(batches: Batches) -> State:
        total, count = np.zeros(()), 0
        for _, h, _ in batches.outputs():
            total, count = total + h.sum(axis=0, dtype=np.float64), count + len(h)
        weights = np.asarray(model.head_weights(model.variables), np.float64)
        contribution = (total / count)[:, None] * weights
        return {"kept": contribution > np.percentile(contribution, percentile)}

    def compute(inputs: Inputs, state: State):
        weights = jnp.where(state["kept"], model.head_weights(inputs.variables), 0)
        logits = head_logits(model, inputs.variables, inputs.forward.features, weights)
        return {"score": jax.nn.logsumexp(logits, axis=-1)}

    return Plan(compute, {"percentile": percentile}, fit=fit)
