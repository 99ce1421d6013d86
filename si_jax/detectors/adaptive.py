"""AdaSCALE: SCALE whose percentile depends on how the image responds to a small perturbation."""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from si_jax import splitting
from si_jax.batching import Batched
from si_jax.detectors.base import Inputs, Plan, State
from si_jax.detectors.features import ranks, relative_sum
from si_jax.detectors.fitting import Batches, reservoir
from si_jax.detectors.head import head_logits, num_features
from si_jax.detectors.options import Count, Percentile, Range, Step
from si_jax.model import Model


def adascale_a(
    model: Model,
    *,
    low: Percentile = 75.0,
    high: Percentile = 85.0,
    k1: Percentile = 5.0,
    k2: Percentile = 1.0,
    weight: Step = 10.0,
    pixels: Annotated[float, Range("[0, 1]")] = 0.05,
    step: Step = 0.5,
    max_images: Count = 5000,
) -> Plan:
    """Energy of features scaled by the response to a small step (Regmi, 2025, arXiv 2503.08023).

    AdaSCALE-A, energy of the features times `exp(r)`, `r` by a percentile of the image's own (code:
    sudarshanregmi/AdaSCALE): the share `pixels` of the image's values with the smallest gradient of
    the largest logit is moved by `step` along its sign. With `h` the features before and `h'` after
    it, `Q = weight * sum |h' - h| + sum relu(h')`, the first sum over the `k2` per cent largest of
    `h`, the second over the `k1` per cent. Let `F` be the share of the fitting images whose `Q` is
    at most as large. The percentile is `p = low + (1 - F) (high - low)`, and `r` the sum of all
    `relu(h)` relative to that of those above it, as in `scale`. The defaults are the published
    code's; there they are searched on validation sets (pairs from 60 to 99). At least one feature
    is taken where `k1` or `k2` per cent are less.

    Args:
        low: percentile of the image that is most like the fitting images.
        high: that of the one that is least like them.
        k1: per cent of the features whose new value counts.
        k2: per cent of the features whose change counts.
        weight: of the change.
        pixels: share of the image's values that are moved.
        step: by how much, in units of the normalised image.
        max_images: fitting images whose `Q` is kept.
    """

    def logits(variables, out, ratio):
        return head_logits(model, variables, out.features * jnp.exp(ratio))

    return _adascale(model, logits, low, high, k1, k2, weight, pixels, step, max_images)


def adascale_l(
    model: Model,
    *,
    low: Percentile = 75.0,
    high: Percentile = 85.0,
    k1: Percentile = 5.0,
    k2: Percentile = 1.0,
    weight: Step = 10.0,
    pixels: Annotated[float, Range("[0, 1]")] = 0.05,
    step: Step = 0.5,
    max_images: Count = 5000,
) -> Plan:
    """AdaSCALE-A that scales the logits, by `r^2` (Regmi, 2025, arXiv 2503.08023).

    AdaSCALE-L; options and errors as for `adascale_a`.
    """

    def logits(variables, out, ratio):
        return out.logits * ratio**2

    return _adascale(model, logits, low, high, k1, k2, weight, pixels, step, max_images)


def _adascale(
    model: Model, logits: Callable, low, high, k1, k2, weight, pixels, step, max_images
) -> Plan:
    if low > high:
        raise ValueError(f"low (={low}) must not be above high (={high})")
    features = num_features(model)
    first, second = (max(1, int(features * k / 100)) for k in (k1, k2))
    moved_values = int(np.prod(model.image_shape) * pixels)

    def reaction(variables, images):
        """Forward pass of the images, and `Q`."""

        def largest(images):
            out = splitting.forward(model, variables, images)
            return jnp.sum(jnp.max(out.logits, axis=-1)), out

        (_, out), gradient = jax.value_and_grad(largest, has_aux=True)(images)
        flat = jnp.abs(gradient).reshape(images.shape[0], -1)
        chosen = (ranks(flat) < moved_values).reshape(images.shape)
        moved = images + jnp.where(chosen, step * jnp.sign(gradient), 0)
        after = splitting.forward(model, variables, moved).features
        order = ranks(-out.features)
        change = jnp.sum(jnp.where(order < second, jnp.abs(after - out.features), 0), axis=-1)
        value = jnp.sum(jnp.where(order < first, jax.nn.relu(after), 0), axis=-1)
        return out, weight * change + value

    def fit(batches: Batches) -> State:
        run = Batched(lambda v, x: reaction(v, model.normalise(x))[1][:, None], model.replicated)
        parts = (reactions for reactions, _ in batches.each(run.batch))
        return {"reactions": np.sort(reservoir(parts, max_images)[:, 0])}

    def compute(inputs: Inputs, state: State):
        out, reacted = reaction(inputs.variables, inputs.images)
        known = state["reactions"]
        share = jnp.searchsorted(jnp.asarray(known), reacted, side="right").astype(reacted.dtype)
        share = share / len(known)
        percentile = low + (1 - share) * (high - low)
        count = features - jnp.round(features * percentile / 100)
        kept = ranks(-out.features) < count.astype(int)[:, None]
        ratio = relative_sum(jax.nn.relu(out.features), kept)
        scaled = logits(inputs.variables, out, ratio)
        return {"score": jax.nn.logsumexp(scaled, axis=-1)}

    return Plan(compute, shared_forward=False, fit=fit)
