"""Detectors that read several layers of the network, or change their outputs.

Their taps are, unless others are given, the outputs of the stages of a ResNet, WRN or BiT, and of
any other network those that `si_jax.taps.select` takes. A tap's channels are its last axis; the
others, which are none for a layer without positions, are its positions.
"""

from collections.abc import Iterator
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from si_jax import splitting
from si_jax.detectors.base import Inputs, Plan, Read, State, computed
from si_jax.detectors.fitting import Batches, reservoir
from si_jax.detectors.gaussians import ClassMoments, nearest_class
from si_jax.detectors.options import Count, Positive, Range
from si_jax.detectors.si import over_positions
from si_jax.model import Model
from si_jax.models import family_of
from si_jax.models.family import Maps
from si_jax.networks.network import HIDDEN
from si_jax.taps import Taps, select

SQUARINGS, POWERS = 6, 256
LIMITS = {"low": (np.minimum, np.inf), "high": (np.maximum, -np.inf)}
LEAST_BOUND = 1e-6  # added to the bounds by which deviations are divided, as published


def multi_mahalanobis(model: Model, *, taps: Taps = None) -> Plan:
    """Mahalanobis distance, summed over layers (Lee et al., NeurIPS 2018, section 2).

    Minus the squared distance to the nearest class mean (code: pokaxpoka/deep_Mahalanobis_detector)
    of the means of the channels over the positions, each tap fitted as `mahalanobis` is. All taps
    weigh the same, as in pytorch-ood, and the image is not moved: the paper learns weights and a
    step from out-of-distribution images. (pytorch-ood does not divide the scatter by the number of
    images, which changes no order.)

    Args:
        taps: the layers.
    """
    taps = _layers(model, taps)

    def means(inputs: Inputs):
        out = splitting.forward(model, inputs.variables, inputs.images, record=taps)
        return [over_positions(out.outputs[tap]) for tap in taps]

    def fit(batches: Batches) -> State:
        fitted = [ClassMoments(model.num_classes) for _ in taps]
        for rows, labels in computed(batches, means):
            for moments, h in zip(fitted, rows, strict=True):
                moments.add(h, labels)
        states = enumerate(moments.state() for moments in fitted)
        return {f"{key}_{i}": x for i, state in states for key, x in state.items()}

    def compute(inputs: Inputs, state: State):
        keys = ("mean", "whiten", "white_class_means")
        distances = [
            nearest_class(h, {key: state[f"{key}_{i}"] for key in keys})
            for i, h in enumerate(means(inputs))
        ]
        return {"score": -sum(distances)}

    return Plan(compute, {"taps": list(taps)}, shared_forward=False, fit=fit)


def gram(model: Model, *, orders: Count = 10, taps: Taps = None) -> Plan:
    """Minus how far Gram matrices leave the predicted class's range (Sastry & Oore, ICML 2020).

    By the sums of their rows (code: VectorInstitute/gram-ood-detection): with `F` a tap's map and
    `F^p` its power, element by element, `g` is the p-th root, with its sign, of the row sums of
    `F^p F^p'`, for `p` from 1 to `orders`. It counts `max(0, low - g) / |low + 1e-6|` below, and
    likewise above, the range of the fitting images with the same predicted class (of all of them
    for a class that is never predicted); the sum of a tap is divided by its mean over every tenth
    fitting image, of which the ranges know nothing. The published code divides by the largest
    probability too, the paper does not. pytorch-ood takes the ranges of the labels, and up to as
    many orders as there are taps.

    Args:
        orders: the largest power.
        taps: the layers; the paper takes every convolution and block.
    """
    taps = _layers(model, taps)

    def read(inputs: Inputs):
        out = splitting.forward(model, inputs.variables, inputs.images, record=taps)
        rows = [gram_sums(out.outputs[tap], orders) for tap in taps]
        return rows, jnp.argmax(out.logits, axis=-1)

    def deviations(rows, predicted, state):
        found = []
        for i, g in enumerate(rows):
            low, high = (state[f"{name}_{i}"][predicted] for name in ("low", "high"))
            below = jnp.maximum(low - g, 0) / jnp.abs(low + LEAST_BOUND)
            above = jnp.maximum(g - high, 0) / jnp.abs(high + LEAST_BOUND)
            found.append(jnp.sum(below + above, axis=-1))
        return jnp.stack(found, axis=-1)

    def fit(batches: Batches) -> State:
        state: dict[str, np.ndarray] = {}
        seen = np.zeros(model.num_classes, bool)
        for (rows, predicted), held in _every_tenth(computed(batches, read)):
            seen[predicted[~held]] = True
            for i, g in enumerate(rows):
                for name, (extreme, start) in LIMITS.items():
                    limits = np.full((len(seen), g.shape[-1]), start, np.float32)
                    limits = state.setdefault(f"{name}_{i}", limits)
                    extreme.at(limits, predicted[~held], g[~held])
        if not seen.any():
            raise ValueError("images (=1) are too few: give two at least, and better thousands")
        for name, limits in state.items():
            limits[~seen] = LIMITS[name.split("_")[0]][0].reduce(limits, axis=0)
        apart = [
            np.asarray(deviations([g[held] for g in rows], predicted[held], state))
            for (rows, predicted), held in _every_tenth(computed(batches, read))
        ]
        expected = np.concatenate(apart).mean(axis=0)
        return {**state, "expected": np.where(expected > 0, expected, 1).astype(np.float32)}

    def compute(inputs: Inputs, state: State):
        rows, predicted = read(inputs)
        apart = deviations(rows, predicted, {k: jnp.asarray(x) for k, x in state.items()})
        return {"score": -jnp.sum(apart / state["expected"][None], axis=-1)}

    return Plan(compute, {"taps": list(taps)}, shared_forward=False, fit=fit)


def gram_sums(x: Float[Array, "batch *space channels"], orders: int) -> Float[Array, "batch sums"]:
    """Roots of the row sums of a map's Gram matrices of all orders, order by order.

    A map is divided by its largest value first, so that no power overflows; a row sum is that of
    the channel times the sum of all channels, which spares the matrix.
    """
    x = x.astype(jnp.float32).reshape(x.shape[0], -1, x.shape[-1])
    largest = jnp.max(jnp.abs(x), axis=(1, 2), keepdims=True)
    x = x / jnp.where(largest > 0, largest, 1)
    sums = []
    for order in range(1, orders + 1):
        power = x**order
        rows = jnp.sum(power * jnp.sum(power, axis=-1, keepdims=True), axis=1)
        sums.append(largest[:, 0] ** 2 * jnp.sign(rows) * jnp.abs(rows) ** (1 / order))
    return jnp.concatenate(sums, axis=-1)


def nac(
    model: Model,
    *,
    alpha: Positive = 100.0,
    bins: Annotated[int, Range("[4, inf)")] = 50,
    least: Count = 50,
    max_images: Count = 1000,
    taps: Taps = None,
) -> Plan:
    """How usual the channels' activations times gradients are (Liu et al., ICLR 2024).

    NAC-UE, neuron activation coverage (code: BierOne/ood_coverage). A channel's state is
    `sigmoid(alpha z g)`, `z` its mean over the positions and `g` the sum over them of the gradient
    of KL(uniform || softmax). The states of the fitting images are counted in bins that are narrow
    around 1/2, and a state's coverage is the count of its bin divided by `least`, at most 1. The
    score is the mean over the taps of the channels' mean coverage.

    The published code sums `z` where this takes the mean, which is a factor of `alpha`; it searches
    `alpha`, the bins and the least count for each layer on out-of-distribution images, where one
    value serves all taps here: those of its CIFAR-10 network's last layer, as in pytorch-ood, which
    averages `z g` over the positions instead, in bins that are narrow at 0 and at 1.

    Args:
        alpha: steepness of the sigmoid.
        bins: the published number, two more than the bins that can hold something.
        least: images that a bin must hold to be covered.
        max_images: fitting images that are counted, drawn at random where there are more.
        taps: the layers.
    """
    taps = _layers(model, taps)
    edges = bin_edges(bins)

    def states(inputs: Inputs):
        linear = splitting.linearise(model, inputs.variables, inputs.images, taps)
        inputs.forward = linear.out
        gradient = linear.gradient(lambda out: -jnp.mean(jax.nn.log_softmax(out.logits), axis=-1))
        found = []
        for tap in taps:
            g = gradient[tap].astype(jnp.float32)
            total = jnp.sum(g, axis=tuple(range(1, g.ndim - 1)))
            found.append(jax.nn.sigmoid(alpha * over_positions(linear.out.outputs[tap]) * total))
        return found

    def fit(batches: Batches) -> State:
        rows = (np.concatenate(rows, axis=-1) for rows, _ in computed(batches, states))
        places = np.searchsorted(edges, reservoir(rows, max_images), side="right") - 1
        counts = np.stack([np.bincount(column, minlength=len(edges)) for column in places.T])
        return {"coverage": np.minimum(counts / least, 1).astype(np.float32)}

    def compute(inputs: Inputs, state: State):
        found, start, scores = states(inputs), 0, []
        for rows in found:
            channels = start + jnp.arange(rows.shape[-1])
            places = jnp.searchsorted(jnp.asarray(edges), rows, side="right") - 1
            scores.append(jnp.mean(state["coverage"][channels, places], axis=-1))
            start += rows.shape[-1]
        return {"score": sum(scores) / len(scores)}

    return Plan(compute, {"taps": list(taps)}, shared_forward=False, fit=fit)


def bin_edges(bins: int) -> Float[np.ndarray, "edges"]:
    """Where bins begin, from 0 on, as published: logarithms to base 1000, mirrored at 1/2."""
    left = np.log(np.linspace(1, np.sqrt(1000), bins // 2)) / np.log(1000)
    return np.concatenate([left[:-1], 1 - left[::-1]])[:-1].astype(np.float32)


def rankfeat(model: Model, *, stages: Count = 2, taps: Taps = None) -> Plan:
    """Energy without the last feature maps' rank-1 component (Song et al., NeurIPS 2022).

    RankFeat (code: KingJamesSong/RankFeat): from the feature map, as a matrix of positions times
    channels, its largest singular value's component is subtracted, and the rest of the network is
    run. The published default does so for the last two stages (there "Block 4 + 3"), each on its
    own, and averages the logits. The component is found by a power iteration that goes on until it
    is that of the singular value decomposition, see `without_rank_one`.

    Args:
        stages: number of stages of a ResNet, WRN or BiT, from the last one, whose output is
            reduced; fewer where the network has fewer.
        taps: paths of the maps instead; see `si_jax.taps.select`. For a network of another kind the
            default is its last output with height and width, before the head.
    """
    shapes = {call.path: call.shape or () for call in model.calls}
    if taps is not None:
        chosen = select(model, taps)
    elif not (chosen := _stages(model)[-stages:]):
        if hidden := model.outline.hidden:
            raise ValueError(f"rankfeat: {', '.join(sorted(hidden))} {HIDDEN}")
        paths = list(shapes)
        before = paths[: paths.index(model.head)] if model.head else paths
        maps = [k for k in before if len(shapes[k]) == 3 and shapes[k][0] * shapes[k][1] > 1]
        if not maps:
            raise ValueError(
                f"rankfeat needs a feature map, which no sub-module has: {', '.join(paths)}"
            )
        chosen = (maps[-1],)
    for tap in chosen:
        if len(shapes[tap]) != 3 or min(shapes[tap][0] * shapes[tap][1], shapes[tap][2]) < 2:
            raise ValueError(
                f"taps: {tap!r} of shape {shapes[tap]} is no feature map, which rankfeat needs"
            )

    def compute(inputs: Inputs, state: State):
        args = (model, inputs.variables, inputs.images)
        logits = [splitting.forward(*args, edit={tap: without_rank_one}).logits for tap in chosen]
        return {"score": jax.nn.logsumexp(sum(logits) / len(logits), axis=-1)}

    return Plan(compute, {"taps": list(chosen)}, shared_forward=False)


def without_rank_one(x: Maps) -> Maps:
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


def _layers(model: Model, taps: Taps) -> tuple[str, ...]:
    """The taps that are asked for, or the outputs of the network's stages."""
    return select(model, (_stages(model) if taps is None else ()) or taps)


def _stages(model: Model) -> tuple[str, ...]:
    """The outputs of the stages, in order; none of a foreign network."""
    family = family_of(model.module)
    return family.stages(model.module) if family else ()


def _every_tenth(parts: Iterator[Read]) -> Iterator[Read]:
    """(what was read, whether each image is the first of ten) of each batch."""
    count = 0
    for out, labels in parts:
        yield out, (count + np.arange(len(labels))) % 10 == 0
        count += len(labels)
