"""Detectors that change or weigh the features on their way into the head, or the head's weights.

`react` and `vra` keep the features of at most `max_images` fitting images, 4 bytes a number (50000
images of 512 features are 100 MB), drawn at random with a fixed seed where there are more.
"""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from si_jax import splitting
from si_jax.detectors.base import Fit, Inputs, Plan, State, computed, head_logits
from si_jax.detectors.fitting import Batches, reservoir
from si_jax.detectors.options import Count, Percentile, Range, Step
from si_jax.model import Model

Rows = Float[Array, "batch features"]
Quantile = Annotated[float, Range("[0, 100]")]
"""A percentile of the fitting images' features."""


def ash_p(model: Model, *, percentile: Percentile = 65.0) -> Plan:
    """Energy of the features without the smaller ones (Djurisic et al., ICLR 2023, algorithm 1).

    ASH-P: as in the published code (andrijazz/ash), the pooled features that enter the head are
    shaped, and the smaller `round(n * percentile / 100)` of the `n` are pruned. The default of the
    three variants is that of the published functions, 65; for ImageNet the paper uses 60, 65 and
    90. Without pruning, ASH-P is the energy, and ASH-S still scales, by `exp(1)`.
    """
    return _shaped(model, percentile, lambda h, kept: jnp.where(kept, h, 0))


def ash_b(model: Model, *, percentile: Percentile = 65.0) -> Plan:
    """ASH-P whose `k` features become `sum(h) / k` (Djurisic et al., ICLR 2023, algorithm 2)."""

    def shape(h, kept):
        count = jnp.sum(kept, axis=-1, keepdims=True)
        return jnp.where(kept, jnp.sum(h, axis=-1, keepdims=True) / count.astype(h.dtype), 0)

    return _shaped(model, percentile, shape)


def ash_s(model: Model, *, percentile: Percentile = 65.0) -> Plan:
    """ASH-P scaled by `exp(sum before / sum after)` (Djurisic et al., ICLR 2023, algorithm 3)."""
    return _shaped(
        model, percentile, lambda h, kept: jnp.where(kept, h, 0) * jnp.exp(relative_sum(h, kept))
    )


def scale(model: Model, *, percentile: Percentile = 85.0) -> Plan:
    """Energy of all features times ASH-S's factor (Xu et al., ICLR 2024).

    On the features that enter the head (code: kai422/SCALE).
    """
    return _shaped(model, percentile, lambda h, kept: h * jnp.exp(relative_sum(h, kept)))


def lts(model: Model, *, percentile: Percentile = 95.0) -> Plan:
    """Energy of the logits times a factor of the features (Djurisic et al., 2025).

    LTS (arXiv 2409.01175; code: andrijazz/lts): `logsumexp(S f)` with `S = (s1 / s2)^2`, `s1` the
    sum of all rectified features and `s2` that of the `n - round(n * percentile / 100)` largest.
    """
    count = kept_count(model.num_features, percentile)

    def compute(inputs: Inputs, state: State):
        h = jax.nn.relu(inputs.forward.features)
        ratio = relative_sum(h, ranks(-h) < count)
        return {"score": jax.nn.logsumexp(inputs.forward.logits * ratio**2, axis=-1)}

    return Plan(compute)


def react(
    model: Model,
    *,
    percentile: Quantile = 90.0,
    threshold: float | None = None,
    max_images: Count = 50_000,
) -> Plan:
    """Energy of the features cut off at a threshold (Sun et al., NeurIPS 2021, section 3).

    Args:
        percentile: the threshold is this percentile of all features of the fitting images.
        threshold: the threshold itself; then nothing is fitted.
        max_images: fitting images whose features are kept to find the percentile.
    """

    def fit(batches: Batches) -> State:
        kept = reservoir((h for _, h, _ in batches.outputs()), max_images)
        return {"threshold": np.float32(np.percentile(kept, percentile))}

    if threshold is None:
        return _energy(model, lambda h, state: jnp.minimum(h, state["threshold"]), fit)
    return _energy(model, lambda h, state: jnp.minimum(h, threshold))


def vra(
    model: Model, *, low: Quantile = 60.0, high: Quantile = 95.0, max_images: Count = 50_000
) -> Plan:
    """Energy without the small features, the large cut off (Xu et al., NeurIPS 2023, eq. 10).

    VRA (code: zeroQiaoba/VRA): a feature below the `low` percentile of the features of all fitting
    images becomes 0, one above the `high` percentile becomes that percentile. The defaults are the
    published ones for CIFAR-100 (for CIFAR-10: 60 and 90). OpenOOD and pytorch-ood raise the small
    ones to the percentile instead, which is not the paper's formula.

    Args:
        low: percentile below which features become 0.
        high: percentile at which they are cut off.
        max_images: fitting images whose features are kept to find the percentiles.
    """
    if low > high:
        raise ValueError(f"low (={low}) must not be above high (={high})")

    def fit(batches: Batches) -> State:
        kept = reservoir((h for _, h, _ in batches.outputs()), max_images)
        return {"limits": np.percentile(kept, [low, high]).astype(np.float32)}

    def cut(h, state):
        bottom, top = state["limits"]
        return jnp.minimum(jnp.where(h < bottom, 0, h), top)

    return _energy(model, cut, fit)


def dice(model: Model, *, percentile: Percentile = 90.0) -> Plan:
    """Energy by the head's weights that contribute most (Sun & Li, ECCV 2022, section 3).

    A weight's contribution is itself times the mean of its feature over the fitting images; those
    above the percentile of all contributions are kept, the others set to 0 (as in the published
    code, deeplearning-wisc/dice).
    """

    def fit(batches: Batches) -> State:
        weights = np.asarray(model.head_weights(model.variables), np.float64)
        contribution = batches.mean_features()[:, None] * weights
        return {"kept": contribution > np.percentile(contribution, percentile)}

    def compute(inputs: Inputs, state: State):
        weights = jnp.where(state["kept"], model.head_weights(inputs.variables), 0)
        logits = head_logits(model, inputs.variables, inputs.forward.features, weights)
        return {"score": jax.nn.logsumexp(logits, axis=-1)}

    return Plan(compute, fit=fit)


def adascale(
    scaled_logits: Callable[[Inputs, splitting.Forward, Array], Array],
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
    """AdaSCALE: SCALE whose percentile depends on how the image responds to a small perturbation.

    By a percentile of the image's own (code: sudarshanregmi/AdaSCALE): the share `pixels` of the
    image's values with the smallest gradient of the largest logit is moved by `step` along its
    sign. With `h` the features before and `h'` after it, let `Q` be
    `weight * sum |h' - h| + sum relu(h')`, the first sum over the `k2` per cent largest of `h`, the
    second over the `k1` per cent, and `F` the share of the fitting images whose `Q` is at most as
    large. The percentile is `p = low + (1 - F) (high - low)`, and `r` the sum of all `relu(h)`
    relative to that of those above it, as in `scale`. The defaults are the published code's; there
    they are searched on validation sets (pairs from 60 to 99). At least one feature is taken where
    `k1` or `k2` per cent are less.

    Args:
        scaled_logits: what is made of a forward pass and of `r`: `adascale_a` or `adascale_l`.
        model: the network.
        low: percentile of the image that is most like the fitting images.
        high: that of the one that is least like them.
        k1: per cent of the features whose new value counts.
        k2: per cent of the features whose change counts.
        weight: of the change.
        pixels: share of the image's values that are moved.
        step: by how much, in units of the normalised image.
        max_images: fitting images whose `Q` is kept.
    """
    if low > high:
        raise ValueError(f"low (={low}) must not be above high (={high})")
    features = model.num_features
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
        reactions = computed(batches, lambda x: reaction(x.variables, x.images)[1][:, None])
        parts = (part for part, _ in reactions)
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
        return {"score": jax.nn.logsumexp(scaled_logits(inputs, out, ratio), axis=-1)}

    return Plan(compute, shared_forward=False, fit=fit)


def adascale_a(inputs: Inputs, out: splitting.Forward, ratio: Array) -> Array:
    """Energy of features scaled by the response to a small step (Regmi, 2025, arXiv 2503.08023).

    AdaSCALE-A: the features times `exp(r)`, see `adascale`.
    """
    return head_logits(inputs.model, inputs.variables, out.features * jnp.exp(ratio))


def adascale_l(inputs: Inputs, out: splitting.Forward, ratio: Array) -> Array:
    """AdaSCALE-A that scales the logits, by `r^2` (Regmi, 2025, arXiv 2503.08023)."""
    return out.logits * ratio**2


def kept_count(features: int, percentile: float) -> int:
    """How many features ASH and SCALE keep; halves are rounded to even, as published."""
    count = features - int(np.round(features * percentile / 100))
    if not count:
        raise ValueError(f"percentile (={percentile}) leaves none of the {features} features")
    return count


def _shaped(model: Model, percentile: float, shape: Callable[[Array, Array], Array]) -> Plan:
    """Energy of the features after `shape(features, which of them are among the largest)`."""
    count = kept_count(model.num_features, percentile)
    return _energy(model, lambda h, state: shape(h, ranks(-h) < count))


def _energy(model: Model, change: Callable[[Array, State], Array], fit: Fit | None = None) -> Plan:
    """Energy of the logits of the features after `change(features, state)`."""

    def compute(inputs: Inputs, state: State):
        h = change(inputs.forward.features, state)
        return {"score": jax.nn.logsumexp(head_logits(model, inputs.variables, h), axis=-1)}

    return Plan(compute, fit=fit)


def ranks(x: Float[Array, "batch n"]) -> Int[Array, "batch n"]:
    """Place of each value among those of its row, 0 for the smallest."""
    return jnp.argsort(jnp.argsort(x, axis=-1), axis=-1)


def relative_sum(h: Rows, kept: Bool[Array, "batch features"]) -> Float[Array, "batch 1"]:
    """Sum of all features / sum of the kept ones; 0 where the latter is 0."""
    before = jnp.sum(h, axis=-1, keepdims=True)
    after = jnp.sum(jnp.where(kept, h, 0), axis=-1, keepdims=True)
    zero = after == 0
    return jnp.where(zero, 0.0, before / jnp.where(zero, 1, after))
