"""What S&I-C reads of an image: energy, channel-average and densities, by shared passes.

The readings are described in `si_jax.detectors.si_c.score`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from si_jax import activation, splitting
from si_jax.batching import Batched
from si_jax.detectors.base import Inputs
from si_jax.detectors.head import num_features
from si_jax.detectors.si import over_positions
from si_jax.detectors.si_c.score import COMPONENTS, LEAST
from si_jax.integration import max_logit
from si_jax.model import Model
from si_jax.taps import Taps, default_taps, select


@dataclass(frozen=True)
class Channels:
    """The D channels whose densities are read.

    `index` are their places among those of all taps together, ascending; `tap` is the number of
    each one's tap, `positions` that of the positions that its density is the mean over.
    """

    taps: tuple[str, ...]
    index: Int[np.ndarray, "channels"]
    tap: Int[np.ndarray, "channels"]
    positions: Int[np.ndarray, "channels"]


@dataclass(frozen=True)
class Reader:
    """What is read of an image, and where.

    `read` maps a batch to readings, see `si_jax.detectors.si_c.score`.
    Densities come from the `engine` `"activation"`, `"gradient"`, or `"mixed"`, some taps' from the
    one and some from the other; without them, it and `channels` are None.
    """

    read: Callable[[Inputs], dict[str, Array]]
    components: tuple[str, ...]
    channels: Channels | None
    inner: tuple[str, ...]
    engine: str | None


def canonical_components(
    components: str | Sequence[str], known: Sequence[str] = tuple(COMPONENTS)
) -> tuple[str, ...]:
    """The components asked for, each once, in the order of `known`."""
    given = components
    if isinstance(given, str):
        given = [name.strip() for name in given.split(",")]
    sequence = isinstance(given, Sequence) and len(given) > 0
    if not sequence or any(name not in known for name in given):
        raise ValueError(
            f"components (={components!r}) must be one or more of {', '.join(known)}, with commas"
            " in between"
        )
    return tuple(name for name in known if name in given)


def reader(
    model: Model,
    *,
    components: str | Sequence[str] = tuple(COMPONENTS),
    max_channels: int = 4096,
    taps: Taps = None,
    inner: Taps = None,
    seed: int = 0,
) -> Reader:
    """Decide what is read of an image, and how; arguments as for `si_c`."""
    components = canonical_components(components)
    channels, engine, positions = None, None, 1
    inner_paths: tuple[str, ...] = ()
    by_gradient: tuple[str, ...] = ()
    if "zero-deflation" in components:
        paths = default_taps(model, "si-c") if taps is None else select(model, taps)
        by_gradient = _by_gradient(model, paths)
        channels = select_channels(_shapes(model, paths), max_channels, seed)
        engine = {0: "activation", len(paths): "gradient"}.get(len(by_gradient), "mixed")
    if "channel-average" in components:
        num_features(model)  # refuses a head that is not linear
        inner_paths = default_taps(model, "si-c-inner") if inner is None else select(model, inner)
        (outer,) = default_taps(model, "outer")
        if outer != splitting.FEATURES:
            positions = math.prod(_shapes(model, [outer])[outer][:-1])

    def read(inputs):
        tapped = channels.taps if channels else ()
        gradients, active = _passes(inputs, tapped, by_gradient, inner_paths)
        logits = inputs.forward.logits
        energy = jax.nn.logsumexp(logits, axis=-1)
        readings = {"confidence": log_odds(logits), "energy": energy}
        if inner_paths:
            v2 = [over_positions(gradients[k]) ** 2 for k in inner_paths]
            v2 = jnp.mean(jnp.concatenate(v2, axis=-1), axis=-1)
            outer2 = outer_squared(logits, model.head_weights(inputs.variables), positions)
            readings["channel_average"] = _log(outer2) - _log(v2)
        if channels:
            density = [over_positions(active[k].astype(jnp.float32)) for k in tapped]
            density = jnp.concatenate(density, axis=-1)[:, channels.index]
            # a ReLU of NaN is off: the logits show that something is wrong
            readings["density"] = jnp.where(jnp.isfinite(energy)[:, None], density, jnp.nan)
        return readings

    return Reader(read, components, channels, inner_paths, engine)


def readings(
    reading: Reader, model: Model, images: np.ndarray, *, batch_size: int = 64
) -> dict[str, np.ndarray]:
    """The readings of images, to be fitted and scored without the network.

    float32 arrays: `"confidence"` (N,), `"energy"` (N,), and where the components need them
    `"channel_average"` (N,) and `"density"` (N, D).
    """
    return batched(reading, model)(
        model.prepare_images(images), batch_size=batch_size, allow_small_batch=True
    )


def select_channels(
    taps: Mapping[str, Sequence[int]], max_channels: int, seed: int = 0
) -> Channels:
    """All channels, or `max_channels` drawn at random, from each tap in proportion."""
    counts = [shape[-1] for shape in taps.values()]
    if max_channels < len(counts):
        raise ValueError(
            f"max_channels (={max_channels}) must be at least {len(counts)}, the number of taps"
        )
    quotas = counts
    if sum(counts) > max_channels:
        quotas = [max(1, max_channels * n // sum(counts)) for n in counts]
        while sum(quotas) > max_channels:
            quotas[int(np.argmax(quotas))] -= 1
    rng = np.random.default_rng(seed)
    chosen = [
        np.sort(rng.choice(n, quota, replace=False)) if quota < n else np.arange(n)
        for n, quota in zip(counts, quotas, strict=True)
    ]
    starts = np.cumsum([0, *counts[:-1]])
    positions = [int(np.prod(shape[:-1])) for shape in taps.values()]
    return Channels(
        tuple(taps),
        np.concatenate([start + c for start, c in zip(starts, chosen, strict=True)]),
        np.repeat(np.arange(len(counts)), quotas),
        np.repeat(positions, quotas),
    )


def log_odds(logits: Float[Array, "batch classes"]) -> Float[Array, "batch"]:
    """Log-odds of the predicted class: orders images as the largest softmax probability does.

    Unlike that, it does not saturate at 1 in float32.
    """
    predicted = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=bool)
    others = jnp.where(predicted, -jnp.inf, logits)
    return jnp.max(logits, axis=-1) - jax.nn.logsumexp(others, axis=-1)


def outer_squared(
    logits: Float[Array, "batch classes"],
    weights: Float[Array | np.ndarray, "features classes"],
    positions: int,
) -> Float[Array, "batch"]:
    """Mean over the channels of the absolute gradient of the sum of the log-softmax.

    Closed form of S&I-A's `outer^2` for a linear head behind an average over `positions`.
    """
    classes = weights.shape[-1]
    with jax.default_matmul_precision("highest"):
        gradient = (1 - classes * jax.nn.softmax(logits)) @ weights.T
    return jnp.mean(jnp.abs(gradient), axis=-1) / positions


def batched(reading: Reader, model: Model) -> Batched:
    """`readings` batch by batch."""
    return Batched(lambda v, x: reading.read(Inputs(model, v, x)), model.replicated)


def _passes(inputs, taps, by_gradient, inner):
    """The gradient of the features' sum at each inner tap; where each tap is active.

    One forward pass, whose linearisation serves every gradient.
    """
    by_activation = [k for k in taps if k not in by_gradient]
    linear = splitting.linearise(
        inputs.model,
        inputs.variables,
        inputs.images,
        (*inner, *by_gradient),
        watch=by_activation,
    )
    inputs.ran(linear.out)
    gradients = linear.gradient(lambda out: jnp.sum(out.features, axis=-1)) if inner else {}
    active = activation.active(linear.traced, linear.values, by_activation)
    if by_gradient:
        by_logit = linear.gradient(max_logit)
        active |= {k: by_logit[k] != 0 for k in by_gradient}
    return gradients, active


def _by_gradient(model: Model, taps: Sequence[str]) -> tuple[str, ...]:
    """Those taps that no activation follows: their densities are read off the gradient."""
    missing = activation.without_activation(model, taps)
    if len(activation.taps_without_relu(model, missing)) == len(taps):
        raise ValueError(
            "zero-deflation reads where the activation behind a tap is on, but neither a ReLU nor"
            f" GELU, SiLU or their like follows {activation.listed(taps)}: name others by taps, or"
            " leave it out by components='energy,channel-average'"
        )
    return missing


def _shapes(model: Model, paths: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Path -> shape of its output without the batch axis."""
    shapes = {call.path: call.shape or () for call in model.calls}
    return {path: shapes[path] for path in paths}


def _log(x: Float[Array, "batch"]) -> Float[Array, "batch"]:
    return jnp.log(jnp.maximum(x, LEAST))
