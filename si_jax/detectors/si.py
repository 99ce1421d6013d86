"""Splitting & Integrating, and GAIA, of which it is the extension.

Two scores of the integrated gradients `a`: zero-deflation (the share of positions where `a` is
not zero) and channel-average (the mean of `a`, relative to that at the network's end). With one
step they are GAIA's.

The engines of zero-deflation, from the cheapest to the dearest (cost in forward passes, by FLOPs,
of a CIFAR ResNet34 with 36 taps):

- `activation` (1.01): where the ReLU behind each tap is on. Exact for one step, and for any number
  that is added up, since a unit that is off is never moved. It could differ from `gradient` in one
  way: a unit that is on while everything behind it is off; see `si_jax.activation`.
- `gradient` (2.0): where the first gradient is not zero, for the same settings and any taps.
- `closed` (3.0): two steps that are multiplied. The product is not zero where the first gradient is
  not, and the ReLU behind the tap is still on after the step. Taps that no ReLU follows are left to
  `general`.
- `general` (38 with two steps): every step's gradient at every tap, as the definition says.

`auto` takes the cheapest of those that serve the settings and the taps.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Annotated, Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from si_jax import activation, splitting
from si_jax.detectors.base import Inputs, Plan, State
from si_jax.detectors.head import num_features
from si_jax.detectors.options import Count, OneOf, Range, Step
from si_jax.integration import (
    COMBINE,
    PRESETS,
    AscentPath,
    integrate_from,
    log_softmax_sum,
    max_logit,
)
from si_jax.model import Model
from si_jax.splitting import FEATURES
from si_jax.taps import Taps, default_taps, select

Engine = Literal["auto", "general", "gradient", "activation", "closed"]
Preset = Annotated[str, OneOf(PRESETS)]
GAIA = AscentPath(steps=1)


def si_z(
    model: Model,
    *,
    preset: Preset = "published",
    steps: Count | None = None,
    step_size: Step | None = None,
    combine: Annotated[str, OneOf(COMBINE)] | None = None,
    objective: Literal["ce", "max"] | None = None,
    engine: Engine = "auto",
    taps: Taps = None,
    variant: str | None = None,
    tap_chunk: Count = 12,
) -> Plan:
    """S&I zero-deflation.

    Minus the mean over all channels of all taps of `d^2`, where `d` is the share of positions at
    which the integrated gradient of the largest logit is not zero (paper, section 4; `preset`
    gives what `steps`, `step_size`, `combine` and `objective` do not).

    Args:
        model: the network.
        preset: a key of `si_jax.integration.PRESETS`.
        steps: number of gradients that are integrated.
        step_size: length of the adversarial step, in the units of the activation.
        combine: `"add"` or `"multiply"`.
        objective: what the adversarial step ascends, `"ce"` or `"max"`.
        engine: `"activation"`, `"gradient"`, `"closed"`, `"general"` or `"auto"`, the cheapest of
            these that serves the other options; see `si_jax.detectors.si`.
        taps: see `si_jax.taps.select`; None for the network's own.
        variant: a named variant of the network's own taps.
        tap_chunk: taps perturbed at the same time by the general engine; bounds its memory.

    Raises:
        ValueError: if an option is unknown, or the engine cannot serve the others.
    """
    path = _path(preset, steps, step_size, combine, objective)
    return _zero_deflation(model, path, "si-z", engine, taps, variant, tap_chunk)


def gaia_z(
    model: Model, *, engine: Engine = "auto", taps: Taps = None, variant: str | None = None
) -> Plan:
    """GAIA zero-deflation (Chen et al., NeurIPS 2023, section 4.1): one step, norms as taps."""
    return _zero_deflation(model, GAIA, "gaia-z", engine, taps, variant, tap_chunk=12)


def si_a(
    model: Model,
    *,
    preset: Preset = "published",
    steps: Count | None = None,
    step_size: Step | None = None,
    combine: Annotated[str, OneOf(COMBINE)] | None = None,
    objective: Literal["ce", "max"] | None = None,
    select: Annotated[float, Range("(0, 1]")] = 0.9,
    engine: Engine = "auto",
    taps: Taps = None,
    outer: str | None = None,
    tap_chunk: Count = 12,
) -> Plan:
    """S&I channel-average.

    Minus the mean over all channels of all inner taps of `(v / outer)^2`. `v` is the absolute mean
    over the positions of the integrated gradient of the selected features' sum; `outer` is the
    root of the mean over the channels of the same for the sum of the log-softmax, at the tap at
    the network's end (paper, section 4).

    Args:
        model: the network.
        preset: a key of `si_jax.integration.PRESETS`.
        steps: number of gradients that are integrated.
        step_size: length of the adversarial step, in the units of the activation.
        combine: `"add"` or `"multiply"`.
        objective: what the adversarial step ascends, `"ce"` or `"max"`.
        select: share of the features that enter the sum, those with the largest column sums of
            the head's weights; 1.0 takes all, as the earlier revision of the published code does.
        engine: `"general"`, `"gradient"` (one step only) or `"auto"`.
        taps: inner taps; None for the network's own.
        outer: path of the outer tap; None for the network's own.
        tap_chunk: taps perturbed at the same time by the general engine; bounds its memory.

    Raises:
        ValueError: if an option is unknown, or the engine cannot serve the others.
    """
    path = _path(preset, steps, step_size, combine, objective)
    return _channel_average(model, path, select, engine, taps, outer, tap_chunk)


def gaia_a(
    model: Model, *, engine: Engine = "auto", taps: Taps = None, outer: str | None = None
) -> Plan:
    """GAIA channel-average (Chen et al., NeurIPS 2023, section 4.2): one step, all features."""
    return _channel_average(model, GAIA, 1.0, engine, taps, outer, tap_chunk=12)


def _path(preset, steps, step_size, combine, objective) -> AscentPath:
    given = {"steps": steps, "step_size": step_size, "combine": combine, "objective": objective}
    return replace(
        AscentPath(**PRESETS[preset]), **{k: v for k, v in given.items() if v is not None}
    )


def _engine(engine: str, fitting: Sequence[str], why: str) -> str:
    """The engine to use: the first of those that give this very score, or the one asked for."""
    if engine == "auto":
        return fitting[0]
    if engine not in fitting:
        serving = ", ".join(name for name in get_args(Engine) if name in fitting)
        raise ValueError(f"engine={engine!r} does not serve {why}; the engines that do: {serving}")
    return engine


def _zero_deflation(model, path, role, engine, taps, variant, tap_chunk) -> Plan:
    if taps is not None and variant is not None:
        raise ValueError("taps and variant exclude each other: give one of them")
    taps = default_taps(model, role, variant) if taps is None else select(model, taps)
    if constant(model, role, taps):
        raise ValueError(
            f"{role} counts where gradients vanish, but no ReLU lies behind"
            f" {activation.listed(taps)}: every image would have the same score; use si-c, which"
            " reads the inputs of GELU and SiLU as well, gaia-a, or a detector of logits or"
            " features, such as energy or knn"
        )
    steppable: tuple[str, ...] = ()
    if path.steps == 1 or path.combine == "add":
        if engine == "activation":
            activation.check(model, taps)
        fitting = ["gradient", "general"]
        if engine != "gradient" and not activation.without_relu(model, taps):
            fitting.insert(0, "activation")
    else:
        fitting = ["general"]
        if path.steps == 2 and (steppable := activation.steppable(model, taps)):
            fitting.insert(0, "closed")
    engine = _engine(engine, fitting, f"{role} with combine={path.combine!r}, steps={path.steps}")

    def density(on):
        return over_positions(on.astype(jnp.float32))

    def densities(args):
        if engine == "activation":
            return {k: density(on) for k, on in activation.active(*args, taps).items()}
        linear = splitting.linearise(*args, taps)
        if engine == "gradient":
            return {k: density(g != 0) for k, g in linear.gradient(max_logit).items()}
        masks = {}
        if engine == "closed":
            masks = activation.active_after_step(args[0], linear, steppable, path)
        others = [k for k in taps if k not in masks]
        options = {"path": path, "tap_chunk": tap_chunk, "reduce": lambda a: density(a != 0)}
        integrated = integrate_from(linear, others, target=max_logit, **options)
        return {k: density(on) for k, on in masks.items()} | integrated

    def compute(inputs: Inputs, state: State):
        found = densities((inputs.model, inputs.variables, inputs.images))
        channels = jnp.concatenate([found[k] for k in taps], axis=-1)
        return {
            "score": -jnp.mean(channels**2, axis=-1),
            "tap_density": jnp.stack([jnp.mean(found[k], axis=-1) for k in taps], axis=-1),
        }

    settings = {**asdict(path), "engine": engine, "tap_chunk": tap_chunk, "taps": list(taps)}
    return Plan(compute, settings, shared_forward=False)


def constant(model: Model, role: str, taps: Sequence[str] | None = None) -> bool:
    """Whether zero-deflation gives every image one score: no ReLU lies behind any of its taps.

    Args:
        model: the network.
        role: `"si-z"` or `"gaia-z"`, whose own taps it is about unless others are given.
        taps: paths of others.
    """
    taps = default_taps(model, role) if taps is None else taps
    return len(activation.never_off(model, taps)) == len(taps)


def _channel_average(model, path, share, engine, taps, outer, tap_chunk) -> Plan:
    taps = default_taps(model, "inner") if taps is None else select(model, taps)
    if outer is None:
        (outer_tap,) = default_taps(model, "outer")
    elif outer == FEATURES:
        outer_tap = FEATURES
    else:
        (outer_tap,) = select(model, outer)
    num_features(model)  # refuses a head that is not linear
    fitting = ("gradient", "general") if path.steps == 1 else ("general",)
    engine = _engine(engine, fitting, f"channel-average with steps={path.steps}")

    def compute(inputs: Inputs, state: State):
        args = (inputs.model, inputs.variables, inputs.images)
        selected = selected_features(model.head_weights(inputs.variables), share)

        def feature_sum(out):
            return jnp.sum(out.features * selected, axis=-1)

        linear = splitting.linearise(*args, (*taps, outer_tap))
        options = {"path": path, "tap_chunk": tap_chunk, "reduce": over_positions}
        inner = integrate_from(linear, taps, target=feature_sum, **options)
        end = integrate_from(linear, [outer_tap], target=log_softmax_sum, **options)
        scale = jnp.mean(jnp.abs(end[outer_tap]), axis=-1)  # outer^2
        v2 = [inner[k] ** 2 for k in taps]
        return {
            "score": -jnp.mean(jnp.concatenate(v2, axis=-1), axis=-1) / scale,
            "tap_average": jnp.stack([jnp.mean(v, axis=-1) for v in v2], axis=-1),
            "outer": jnp.sqrt(scale),
        }

    settings = {
        **asdict(path),
        "select": share,
        "engine": engine,
        "tap_chunk": tap_chunk,
        "taps": list(taps),
        "outer": outer_tap,
    }
    return Plan(compute, settings, shared_forward=False)


def selected_features(
    weights: Float[Array, "features classes"], share: float
) -> Float[Array, "features"]:
    """1 for the floor(share * features) features with the largest sum of weights, else 0."""
    count = max(1, math.floor(share * weights.shape[0]))
    chosen = jnp.argsort(-jnp.sum(weights, axis=-1), stable=True)[:count]
    return jnp.zeros(weights.shape[0], weights.dtype).at[chosen].set(1)


def over_positions(x: Float[Array, "batch *space channels"]) -> Float[Array, "batch channels"]:
    """Mean over everything between the batch and the channels, in float32."""
    return jnp.mean(x.astype(jnp.float32), axis=tuple(range(1, x.ndim - 1)))
