"""Splitting & Integrating, and GAIA, of which it is the extension.

Two scores of the integrated gradients `a`: zero-deflation (the share of positions where `a` is
not zero) and channel-average (the mean of `a`, relative to that at the network's end). With one
step they are GAIA's.

The engines of zero-deflation, from the cheapest to the most expensive (cost in forward passes, by
FLOPs, of a CIFAR ResNet34 with 36 taps):

- `activation` (1.05): where the first gradient is not zero, from the forward pass alone, by
  `si_jax.support`. It serves networks of the equations listed there. Exact for one step. Exact too
  for any number of steps that are added up, in images where the first gradient is not zero
  wherever the activation behind the tap has a slope: a position without one is never moved, so
  that no later gradient can add to it.
- `gradient` (2.0): the same of the first gradient itself. With one step it serves every network.
- `closed` (2.1): two steps. What lies right behind the tap is computed again after the step, up to
  the first convolution or product; what reads that is taken to do so still if `support.READERS`
  units that are on do, or if none needs to be on. Taps for which that is unknown are left to
  `general`, and taps that `activation` serves to that.
- `general` (38 with two steps): every step's gradient at every tap, as the definition says.

`auto` takes the cheapest of those that serve the settings and the taps. Where the conditions do not
hold in an image, that image is computed by `general`, whatever the engine: none gives another
number than the definition.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from si_jax import activation, integration, splitting, support
from si_jax.detectors.base import Inputs, Plan, State
from si_jax.detectors.options import Count, Range, Step
from si_jax.integration import AscentPath, integrate, max_logit
from si_jax.model import Model
from si_jax.splitting import FEATURES
from si_jax.taps import Taps, default_taps, select

Engine = Literal["auto", "general", "gradient", "activation", "closed"]
Preset = Annotated[str, tuple(integration.PRESETS)]
GAIA = AscentPath(steps=1)


def si_z(
    model: Model,
    *,
    preset: Preset = "published",
    steps: Count | None = None,
    step_size: Step | None = None,
    combine: Annotated[str, tuple(integration.COMBINE)] | None = None,
    objective: Literal["ce", "max"] | None = None,
    engine: Engine = "auto",
    taps: Taps = None,
    variant: str | None = None,
    tap_chunk: Count = 12,
) -> Plan:
    """S&I zero-deflation (S&I, ICML 2025, section 4).

    Minus the mean over all channels of all taps of `d^2`, where `d` is the share of positions at
    which the integrated gradient of the largest logit is not zero (`preset`
    gives what `steps`, `step_size`, `combine` and `objective` do not).

    Args:
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
    """
    given = {"steps": steps, "step_size": step_size, "combine": combine, "objective": objective}
    return _zero_deflation(model, _path(preset, given), "si-z", engine, taps, variant, tap_chunk)


def gaia_z(
    model: Model, *, engine: Engine = "auto", taps: Taps = None, variant: str | None = None
) -> Plan:
    """GAIA zero-deflation: one step, norms as taps (Chen et al., NeurIPS 2023, section 4.1)."""
    return _zero_deflation(model, GAIA, "gaia-z", engine, taps, variant, tap_chunk=12)


def si_a(
    model: Model,
    *,
    preset: Preset = "published",
    steps: Count | None = None,
    step_size: Step | None = None,
    combine: Annotated[str, tuple(integration.COMBINE)] | None = None,
    objective: Literal["ce", "max"] | None = None,
    select: Annotated[float, Range("(0, 1]")] = 0.9,
    engine: Engine = "auto",
    taps: Taps = None,
    outer: str | None = None,
    tap_chunk: Count = 12,
) -> Plan:
    """S&I channel-average (S&I, ICML 2025, section 4).

    Minus the mean over all channels of all inner taps of `(v / outer)^2`. `v` is the absolute mean
    over the positions of the integrated gradient of the selected features' sum; `outer` is the
    root of the mean over the channels of the same for the sum of the log-softmax, at the tap at
    the network's end.

    The options that `si_z` has too are the same.

    Args:
        select: share of the features that enter the sum, those with the largest column sums of
            the head's weights; 1.0 takes all, as the earlier revision of the published code does.
        engine: `"general"`, `"gradient"` (one step only) or `"auto"`.
        taps: inner taps; None for the network's own.
        outer: path of the outer tap; None for the network's own.
    """
    given = {"steps": steps, "step_size": step_size, "combine": combine, "objective": objective}
    return _channel_average(model, _path(preset, given), select, engine, taps, outer, tap_chunk)


def gaia_a(
    model: Model, *, engine: Engine = "auto", taps: Taps = None, outer: str | None = None
) -> Plan:
    """GAIA channel-average: one step, all features (Chen et al., NeurIPS 2023, section 4.2)."""
    return _channel_average(model, GAIA, 1.0, engine, taps, outer, tap_chunk=12)


def _path(preset: str, given: Mapping[str, Any]) -> AscentPath:
    given = {k: v for k, v in given.items() if v is not None}
    return AscentPath(**integration.PRESETS[preset] | given)


def _engine(engine: str, fitting: Sequence[str], why: str) -> str:
    """The engine to use: the first of those that give this very score, or the one asked for."""
    if engine == "auto":
        return fitting[0]
    if engine not in fitting:
        applicable = ", ".join(name for name in get_args(Engine) if name in fitting)
        raise ValueError(
            f"engine={engine!r} does not serve {why}; the engines that do: {applicable}"
        )
    return engine


def _zero_deflation(model, path, role, engine, taps, variant, tap_chunk) -> Plan:
    if taps is not None and variant is not None:
        raise ValueError("taps and variant exclude each other: give one of them")
    taps = default_taps(model, role, variant) if taps is None else select(model, taps)
    if constant(model, role, taps):
        raise ValueError(
            f"{role} counts where gradients vanish, but no ReLU lies behind"
            f" {activation.listed(taps)}: every image would have the same score; use si-c, which"
            " reads GELU and SiLU as well, gaia-a, or another detector, such as energy or knn"
        )
    fitting, bounded, stepped = _served(model, taps, path)
    engine = _engine(engine, fitting, f"{role} with combine={path.combine!r}, steps={path.steps}")

    def masks(linear, traced, values):
        """Where integrated gradients are not zero, and for each image whether that is certain."""
        tape = support.record(traced, values, model.variables, [*bounded, *stepped])
        plain = traced.outputs(values).outputs
        found, certain = {}, []
        first = linear.gradient(max_logit) if engine == "gradient" else {}
        for tap in bounded:
            found[tap] = first[tap] != 0 if first else tape.support(tap)
            if path.steps > 1:
                # one holds the other, so that equal shares are equal masks
                bound = over_positions(tape.bound(tap, plain[tap]))
                certain.append(over_positions(found[tap]) == bound)
        if stepped:
            ascent = linear.gradient(integration.direction(linear, max_logit, path))
        for tap in stepped:
            moved = plain[tap] + path.step_size * jnp.sign(ascent[tap])
            first_mask, (most, least) = tape.support(tap), tape.after_step(tap, moved)
            adding = path.combine == "add"
            found[tap] = first_mask | most if adding else first_mask & most
            certain.append((most == least) | (first_mask == adding))
        settled = [jnp.all(x, axis=tuple(range(1, x.ndim))) for x in certain]
        return found, jnp.all(jnp.stack(settled), axis=0) if settled else None

    def compute(inputs: Inputs, state: State, engine: str = engine):
        """By the density of each channel; and whether it is certain, if that may be open."""
        args = (inputs.model, inputs.variables, inputs.images)
        fast = () if engine == "general" else (*bounded, *stepped)
        alone = engine == "gradient" and path.steps == 1
        linear: Any = None
        if engine == "activation":
            traced = splitting.trace(*args, taps)
            values = dict(zip(traced.variables, traced.run(), strict=True))
        else:
            watched = bounded if engine == "closed" else ()
            linear = splitting.linearise(
                *args, [k for k in taps if k not in watched], watch=watched
            )
            traced, values = linear.traced, linear.values
        inputs.forward = traced.outputs(values)
        found, settled = {}, None
        if alone:
            found = {tap: over_positions(g != 0) for tap, g in linear.gradient(max_logit).items()}
        elif fast:
            on, settled = masks(linear, traced, values)
            found = {tap: over_positions(mask) for tap, mask in on.items()}
        if others := [tap for tap in taps if tap not in found]:

            def share(gradient):
                return over_positions(gradient != 0)

            options = {"path": path, "tap_chunk": tap_chunk, "reduce": share}
            found |= integrate(linear, others, target=max_logit, **options)
        channels = jnp.concatenate([found[tap] for tap in taps], axis=-1)
        results = {
            "score": -jnp.mean(channels**2, axis=-1),
            "tap_density": jnp.stack([jnp.mean(found[k], axis=-1) for k in taps], axis=-1),
        }
        return results if settled is None else {**results, "settled": settled}

    settings = {**asdict(path), "engine": engine, "tap_chunk": tap_chunk, "taps": list(taps)}
    exact = partial(compute, engine="general") if path.steps > 1 and engine != "general" else None
    return Plan(compute, settings, shared_forward=False, exact=exact)


def _served(model, taps, path) -> tuple[list[str], list[str], list[str]]:
    """Engines from the cheapest on; the taps known by a bound, and by a look after the step."""
    look = support.look(model, taps)
    if path.steps == 1:
        fits = not any(tap.blocked for tap in look.values())
        return ["activation"] * fits + ["gradient", "general"], [*taps] if fits else [], []
    by = {tap: "" if found.blocked else found.steps_by for tap, found in look.items()}
    adding = path.combine == "add"
    bounded = [tap for tap in taps if by[tap] == "bound" and adding]
    rest = [tap for tap in taps if by[tap] and tap not in bounded]
    stepped = rest if path.steps == 2 else []
    if len(bounded) == len(taps):
        return ["activation", "gradient", "general"], bounded, []
    fast = ["closed", *["gradient"] * adding] if bounded + stepped else []
    return [*fast, "general"], bounded, stepped


def constant(model: Model, role: str, taps: Sequence[str] | None = None) -> bool:
    """Whether zero-deflation gives every image one score: no ReLU lies behind any tap of `role`."""
    taps = default_taps(model, role) if taps is None else taps
    return len(activation.taps_without_relu(model, taps)) == len(taps)


def _channel_average(model, path, share, engine, taps, outer, tap_chunk) -> Plan:
    taps = default_taps(model, "inner") if taps is None else select(model, taps)
    if outer is None:
        (outer_tap,) = default_taps(model, "outer")
    elif outer == FEATURES:
        outer_tap = FEATURES
    else:
        (outer_tap,) = select(model, outer)
    fitting = ("gradient", "general") if path.steps == 1 else ("general",)
    engine = _engine(engine, fitting, f"channel-average with steps={path.steps}")

    def compute(inputs: Inputs, state: State):
        args = (inputs.model, inputs.variables, inputs.images)
        selected = selected_features(model.head_weights(inputs.variables), share)

        def feature_sum(out):
            return jnp.sum(out.features * selected[None], axis=-1)

        def log_softmax_sum(out):
            return jnp.sum(jax.nn.log_softmax(out.logits), axis=-1)

        linear = splitting.linearise(*args, (*taps, outer_tap))
        inputs.forward = linear.out
        options = {"path": path, "tap_chunk": tap_chunk, "reduce": over_positions}
        inner = integrate(linear, taps, target=feature_sum, **options)
        end = integrate(linear, [outer_tap], target=log_softmax_sum, **options)
        scale = jnp.mean(jnp.abs(end[outer_tap]), axis=-1)  # outer^2
        v2 = [inner[k] ** 2 for k in taps]
        return {
            "score": -jnp.mean(jnp.concatenate(v2, axis=-1), axis=-1) / scale,
            "tap_average": jnp.stack([jnp.mean(v, axis=-1) for v in v2], axis=-1),
            "outer": jnp.sqrt(scale),
        }

    settings = asdict(path) | {"select": share, "engine": engine, "tap_chunk": tap_chunk}
    settings |= {"taps": list(taps), "outer": outer_tap}
    return Plan(compute, settings, shared_forward=False)


def selected_features(weights: Float[Array, "d classes"], share: float) -> Float[Array, "d"]:
    """1 for the floor(share * features) features with the largest sum of weights, else 0."""
    count = max(1, math.floor(share * weights.shape[0]))
    chosen = jnp.argsort(-jnp.sum(weights, axis=-1), stable=True)[:count]
    return jnp.zeros(weights.shape[0], weights.dtype).at[chosen].set(1)


def over_positions(x: Shaped[Array, "batch *space channels"]) -> Float[Array, "batch channels"]:
    """Mean over everything between the batch and the channels, in float32."""
    return jnp.mean(x.astype(jnp.float32), axis=tuple(range(1, x.ndim - 1)))
