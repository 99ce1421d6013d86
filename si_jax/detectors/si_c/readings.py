"""What S&I-C reads of an image by shared passes, as described in `si_jax.detectors.si_c.score`."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from si_jax import activation, splitting
from si_jax.batching import Batched
from si_jax.detectors.base import Inputs, check_linear, product
from si_jax.detectors.si import over_positions
from si_jax.detectors.si_c.score import ALL, LEAST
from si_jax.integration import max_logit
from si_jax.model import Model
from si_jax.taps import Taps, default_taps, select

Names = str | Sequence[str]
Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Channels:
    """The D channels whose densities are read."""

    taps: tuple[str, ...]
    index: Int[np.ndarray, "channels"]  # their places among those of all taps, ascending
    tap: Int[np.ndarray, "channels"]  # the number of each one's tap
    positions: Int[np.ndarray, "channels"]  # how many of them its density is the mean over


@dataclass(frozen=True)
class Reader:
    """What is read of an image, and where; without densities, `channels` and `engine` are None."""

    read: Callable[[Inputs], dict[str, Array]]  # readings, see `si_jax.detectors.si_c.score`
    components: tuple[str, ...]
    channels: Channels | None
    inner: tuple[str, ...]
    engine: str | None  # of the densities: "activation", "gradient", or "mixed" for both


def canonical_components(components: Names, known: Sequence[str] = ALL) -> tuple[str, ...]:
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
    components: Names = ALL,
    max_channels: int = 4096,
    taps: Taps = None,
    inner: Taps = None,
    seed: int = 0,
) -> Reader:
    """Decide what is read of an image, and how; arguments as for `si_c`."""
    components = canonical_components(components)
    shapes = {call.path: call.shape or () for call in model.calls}
    channels, engine, positions = None, None, 1
    inner_paths: tuple[str, ...] = ()
    by_gradient: tuple[str, ...] = ()
    by_activation: tuple[str, ...] = ()
    if "zero-deflation" in components:
        paths = default_taps(model, "si-c") if taps is None else select(model, taps)
        by_gradient = activation.without_activation(model, paths)
        if len(activation.taps_without_relu(model, by_gradient)) == len(paths):
            raise ValueError(
                "zero-deflation reads where the activation behind a tap is on, but neither a ReLU"
                f" nor GELU, SiLU or their like follows {activation.listed(paths)}: name others by"
                " taps, or leave it out by components='energy,channel-average'"
            )
        by_activation = tuple(k for k in paths if k not in by_gradient)
        channels = select_channels({k: shapes[k] for k in paths}, max_channels, seed)
        engine = {0: "activation", len(paths): "gradient"}.get(len(by_gradient), "mixed")
    if "channel-average" in components:
        check_linear(model)
        inner_paths = default_taps(model, "si-c-inner") if inner is None else select(model, inner)
        (outer,) = default_taps(model, "outer")
        if outer != splitting.FEATURES:
            positions = math.prod(shapes[outer][:-1])

    def read(inputs):
        args = (inputs.model, inputs.variables, inputs.images)
        # one forward pass, whose linearisation serves every gradient
        linear = splitting.linearise(*args, (*inner_paths, *by_gradient), watch=by_activation)
        inputs.forward = linear.out
        logits = linear.out.logits
        energy = jax.nn.logsumexp(logits, axis=-1)
        readings = {"confidence": log_odds(logits), "energy": energy}
        if inner_paths:
            gradients = linear.gradient(lambda out: jnp.sum(out.features, axis=-1))
            v2 = [over_positions(gradients[k]) ** 2 for k in inner_paths]
            v2 = jnp.mean(jnp.concatenate(v2, axis=-1), axis=-1)
            weights = model.head_weights(inputs.variables)
            outer2 = product(1 - weights.shape[-1] * jax.nn.softmax(logits), weights.T)
            outer2 = jnp.mean(jnp.abs(outer2), axis=-1) / positions
            log_outer2, log_v2 = (jnp.log(jnp.maximum(x, LEAST)) for x in (outer2, v2))
            readings["channel_average"] = log_outer2 - log_v2
        if channels:
            active = activation.active(linear.traced, linear.values, by_activation)
            slopes = linear.gradient(max_logit) if by_gradient else {}
            active |= {k: slopes[k] != 0 for k in by_gradient}
            density = jnp.concatenate([over_positions(active[k]) for k in channels.taps], axis=-1)
            # a ReLU of NaN is off: the logits show that something is wrong
            finite = jnp.isfinite(energy)[:, None]
            readings["density"] = jnp.where(finite, density[:, channels.index], jnp.nan)
        return readings

    return Reader(read, components, channels, inner_paths, engine)


def readings(reading: Reader, model: Model, images: np.ndarray, *, batch_size: int = 64) -> dict:
    """The readings of images, float32, to be fitted and scored without the network."""
    images = model.prepare_images(images)
    return batched(reading, model)(images, batch_size=batch_size, allow_small_batch=True)


def select_channels(taps: Shapes, max_channels: int, seed: int = 0) -> Channels:
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
        start + (np.sort(rng.choice(n, quota, replace=False)) if quota < n else np.arange(n))
        for start, n, quota in zip(np.cumsum([0, *counts[:-1]]), counts, quotas, strict=True)
    ]
    positions = [int(np.prod(shape[:-1])) for shape in taps.values()]
    return Channels(
        tuple(taps),
        np.concatenate(chosen),
        np.repeat(np.arange(len(counts)), quotas),
        np.repeat(positions, quotas),
    )


def log_odds(logits: Float[Array, "batch classes"]) -> Float[Array, "batch"]:
    """Log-odds of the predicted class; orders as its probability, which float32 rounds to 1."""
    predicted = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=bool)
    others = jnp.where(predicted, -jnp.inf, logits)
    return jnp.max(logits, axis=-1) - jax.nn.logsumexp(others, axis=-1)


def batched(reading: Reader, model: Model) -> Batched:
    """`readings` batch by batch."""
    return Batched(lambda v, x: reading.read(Inputs(model, v, x)), model.replicated)
