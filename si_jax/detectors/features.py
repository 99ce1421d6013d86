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
from si_jax.detectors.base import Fit, Inputs, Plan, State
from si_jax.detectors.fitting import Batches, mean_features, reservoir
from si_jax.detectors.head import head_logits, num_features
from si_jax.detectors.options import Count, Percentile, Range
from si_jax.model import Model
from si_jax.models import family_of
from si_jax.networks.network import HIDDEN
from si_jax.taps import Taps, select

Quantile = Annotated[float, Range("[0, 100]")]
"""A percentile of the fitting images' features."""


SQUARINGS, POWERS = 6, 256


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

    def shape(h, kept):
        return jnp.where(kept, h, 0) * jnp.exp(relative_sum(h, kept))

    return _shaped(model, percentile, shape)


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
    count = kept_count(num_features(model), percentile)

    def compute(inputs: Inputs, state: State):
        h = jax.nn.relu(inputs.forward.features)
        ratio = relative_sum(h, _largest(h, count))
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

    def cut(h, state):
        return jnp.minimum(h, state["threshold"] if threshold is None else threshold)

    return _energy(model, cut, fit if threshold is None else None)


def vra(
    model: Model, *, low: Quantile = 60.0, high: Quantile = 95.0, max_images: Count = 50_000
) -> Plan:
    """Energy without the small features, the large cut off (Xu et al., NeurIPS 2023, eq. 10).

    VRA (code: zeroQiaoba/VRA): a feature below the `low` percentile of
    the features of all fitting images becomes 0, one above the `high` percentile becomes that
    percentile. The defaults are the published ones for CIFAR-100 (for CIFAR-10: 60 and 90).
    OpenOOD and pytorch-ood raise the small ones to the percentile instead, which is not the paper's
    formula.

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
    num_features(model)

    def fit(batches: Batches) -> State:
        weights = np.asarray(model.head_weights(model.variables), np.float64)
        contribution = mean_features(batches)[:, None] * weights
        return {"kept": contribution > np.percentile(contribution, percentile)}

    def compute(inputs: Inputs, state: State):
        weights = jnp.where(state["kept"], model.head_weights(inputs.variables), 0)
        logits = head_logits(model, inputs.variables, inputs.forward.features, weights)
        return {"score": jax.nn.logsumexp(logits, axis=-1)}

    return Plan(compute, fit=fit)


def rankfeat(model: Model, *, stages: Count = 2, taps: Taps = None) -> Plan:
    """Energy without the last feature maps' rank-1 component (Song et al., NeurIPS 2022).

    RankFeat (code: KingJamesSong/RankFeat): from the feature map, as a matrix of positions times
    channels, its largest singular value's component is subtracted, and the rest of the network is
    run. The published default does so for the last two stages (there "Block 4 +
    3"), each on its own, and averages the logits. The component is found by a power iteration that
    goes on until it is that of the singular value decomposition, see `without_rank_one`.

    Args:
        stages: number of stages of a ResNet, WRN or BiT, from the last one, whose output is
            reduced; fewer where the network has fewer.
        taps: paths of the maps instead; see `si_jax.taps.select`. For a network of another
            kind the default is its last output with height and width, before the head.
    """
    taps = _maps(model, stages) if taps is None else select(model, taps)
    shapes = {call.path: call.shape or () for call in model.calls}
    for tap in taps:
        if len(shapes[tap]) != 3 or min(shapes[tap][0] * shapes[tap][1], shapes[tap][2]) < 2:
            raise ValueError(
                f"taps: the output of {tap!r} has shape {shapes[tap]}, but rankfeat needs a"
                " feature map of several positions and channels"
            )

    def compute(inputs: Inputs, state: State):
        args = (model, inputs.variables, inputs.images)
        logits = [splitting.forward(*args, edit={tap: without_rank_one}).logits for tap in taps]
        return {"score": jax.nn.logsumexp(sum(logits) / len(logits), axis=-1)}

    return Plan(compute, {"taps": list(taps)}, shared_forward=False)


def without_rank_one(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch height width channels"]:
    """Each feature map minus its best approximation of rank 1.

    The singular vector comes from a power iteration on the smaller Gram matrix `G`: that is
    squared `SQUARINGS` times, and `POWERS` times multiplied to its weightiest column, which makes
    `G^16384` in all: what is left of the second singular vector is below 1e-6 unless its value is
    within 0.05 % of the first. (A batched eigen-decomposition is slower, and stops for ever in
    jaxlib when two virtual CPU devices run it at the same time.)
    """
    a = x.astype(jnp.float32).reshape(x.shape[0], -1, x.shape[-1])
    with jax.default_matmul_precision("highest"):
        if a.shape[1] <= a.shape[2]:
            u = _top_eigenvector(jnp.einsum("bpc,bqc->bpq", a, a))
            component = u[:, :, None] * jnp.einsum("bp,bpc->bc", u, a)[:, None]
        else:
            v = _top_eigenvector(jnp.einsum("bpc,bpd->bcd", a, a))
            component = jnp.einsum("bpc,bc->bp", a, v)[:, :, None] * v[:, None]
    return (a - component).reshape(x.shape).astype(x.dtype)


def _top_eigenvector(gram: Float[Array, "batch n n"]) -> Float[Array, "batch n"]:
    """Unit eigenvector of the largest eigenvalue of each Gram matrix; 0 for a matrix of zeros."""

    def normalised(x):
        largest = jnp.max(jnp.abs(x), axis=tuple(range(1, x.ndim)), keepdims=True)
        return x / jnp.where(largest > 0, largest, 1)

    power = normalised(gram)
    for _ in range(SQUARINGS):
        power = normalised(power @ power)
    weightiest = jnp.argmax(jnp.diagonal(power, axis1=1, axis2=2), axis=-1)
    start = jnp.take_along_axis(power, weightiest[:, None, None], axis=2)[..., 0]

    def multiply(_, vector):
        return normalised(jnp.einsum("bij,bj->bi", power, vector))

    vector = jax.lax.fori_loop(0, POWERS, multiply, start)
    norm = jnp.linalg.norm(vector, axis=-1, keepdims=True)
    return vector / jnp.where(norm > 0, norm, 1)


def kept_count(features: int, percentile: float) -> int:
    """How many features ASH and SCALE keep; halves are rounded to even, as published."""
    count = features - int(np.round(features * percentile / 100))
    if not count:
        raise ValueError(f"percentile (={percentile}) leaves none of the {features} features")
    return count


def _shaped(model: Model, percentile: float, shape: Callable[[Array, Array], Array]) -> Plan:
    """Energy of the features after `shape(features, which of them are among the largest)`."""
    count = kept_count(num_features(model), percentile)
    return _energy(model, lambda h, state: shape(h, _largest(h, count)))


def _energy(model: Model, change: Callable[[Array, State], Array], fit: Fit | None = None) -> Plan:
    """Energy of the logits of the features after `change(features, state)`."""
    num_features(model)  # refuses a head that is not linear

    def compute(inputs: Inputs, state: State):
        h = change(inputs.forward.features, state)
        return {"score": jax.nn.logsumexp(head_logits(model, inputs.variables, h), axis=-1)}

    return Plan(compute, fit=fit)


def _largest(h: Float[Array, "batch features"], count: int) -> Bool[Array, "batch features"]:
    """Which features are among the `count` largest."""
    return ranks(-h) < count


def ranks(x: Float[Array, "batch n"]) -> Int[Array, "batch n"]:
    """Place of each value among those of its row, 0 for the smallest."""
    return jnp.argsort(jnp.argsort(x, axis=-1), axis=-1)


def relative_sum(
    h: Float[Array, "batch features"], kept: Bool[Array, "batch features"]
) -> Float[Array, "batch 1"]:
    """Sum of all features / sum of the kept ones; 0 where the latter is 0."""
    before = jnp.sum(h, axis=-1, keepdims=True)
    after = jnp.sum(jnp.where(kept, h, 0), axis=-1, keepdims=True)
    zero = after == 0
    return jnp.where(zero, 0.0, before / jnp.where(zero, 1, after))


def _maps(model: Model, stages: int) -> tuple[str, ...]:
    """The outputs of the last stages, in order; of a foreign network its last feature map."""
    family = family_of(model.module)
    if family is not None and (outputs := family.stages(model.module)):
        return outputs[-stages:]
    if hidden := model.outline.hidden:
        raise ValueError(f"rankfeat: {', '.join(sorted(hidden))} {HIDDEN}")
    paths = [call.path for call in model.calls]
    maps = [
        call.path
        for call in model.calls[: paths.index(model.head) if model.head else None]
        if call.shape is not None and len(call.shape) == 3 and call.shape[0] * call.shape[1] > 1
    ]
    if not maps:
        raise ValueError(
            "rankfeat needs a feature map (height, width, channels), and no sub-module of the"
            f" network has one: {', '.join(paths)}"
        )
    return (maps[-1],)
