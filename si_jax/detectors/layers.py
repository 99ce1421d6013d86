"""Detectors that read several layers of the network.

Their taps are, unless others are given, the outputs of the stages of a ResNet, WRN or BiT, and of
any other network those that `si_jax.taps.select` takes. A tap's channels are its last axis; the
others, which are none for a layer without positions, are its positions.
"""

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from si_jax import splitting
from si_jax.batching import Batched
from si_jax.detectors.base import Inputs, Plan, State
from si_jax.detectors.fitting import Batches, reservoir
from si_jax.detectors.gaussians import ClassMoments, nearest_class
from si_jax.detectors.options import Count, Positive, Range
from si_jax.detectors.si import over_positions
from si_jax.model import Model
from si_jax.models import family_of
from si_jax.taps import Taps, select

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
        for rows, labels in _read(model, batches, means):
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
        for (rows, predicted), held in _every_tenth(_read(model, batches, read)):
            seen[predicted[~held]] = True
            for i, g in enumerate(rows):
                for name, extreme, start in (
                    ("low", np.minimum, np.inf),
                    ("high", np.maximum, -np.inf),
                ):
                    limits = np.full((len(seen), g.shape[-1]), start, np.float32)
                    limits = state.setdefault(f"{name}_{i}", limits)
                    extreme.at(limits, predicted[~held], g[~held])
        if not seen.any():
            raise ValueError("images (=1) are too few: give two at least, and better thousands")
        for name, limits in state.items():
            limits[~seen] = getattr(limits, "min" if name[0] == "l" else "max")(axis=0)
        apart = [
            np.asarray(deviations([g[held] for g in rows], predicted[held], state))
            for (rows, predicted), held in _every_tenth(_read(model, batches, read))
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
        inputs.ran(linear.out)
        gradient = linear.gradient(lambda out: -jnp.mean(jax.nn.log_softmax(out.logits), axis=-1))
        found = []
        for tap in taps:
            g = gradient[tap].astype(jnp.float32)
            total = jnp.sum(g, axis=tuple(range(1, g.ndim - 1)))
            found.append(jax.nn.sigmoid(alpha * over_positions(linear.out.outputs[tap]) * total))
        return found

    def fit(batches: Batches) -> State:
        rows = (np.concatenate(rows, axis=-1) for rows, _ in _read(model, batches, states))
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


def _layers(model: Model, taps: Taps) -> tuple[str, ...]:
    """The taps that are asked for, or the outputs of the network's stages."""
    family = family_of(model.module)
    stages = family.stages(model.module) if family and taps is None else ()
    return select(model, stages or taps)


def _read(
    model: Model, batches: Batches, function: Callable[[Inputs], Any]
) -> Iterator[tuple[Any, np.ndarray]]:
    """(what a function of a batch gives, all of it finite, labels) of the fitting images."""
    run = Batched(lambda variables, x: function(Inputs(model, variables, x)), model.replicated)
    for out, labels in batches.each(run):
        if not all(np.isfinite(x).all() for x in jax.tree.leaves(out)):
            raise ValueError(
                "a layer gives NaN or infinite values for a fitting image: the network's weights or"
                " the images are broken"
            )
        yield out, labels


def _every_tenth(parts: Iterator[tuple[Any, np.ndarray]]) -> Iterator[tuple[Any, np.ndarray]]:
    """(what was read, whether each image is the first of ten) of each batch."""
    count = 0
    for out, labels in parts:
        yield out, (count + np.arange(len(labels))) % 10 == 0
        count += len(labels)
