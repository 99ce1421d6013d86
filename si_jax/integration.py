"""Integrating: attribution gradients along an adversarial path at each tap.

For each tap on its own, with `z` its activation and `y0` the pseudo-label of the image:

    g[t]   = d A(z[t]) / dz                                    attribution gradient
    z[t+1] = z[t] + step_size * sign(d CE(f(z[t]), y0) / dz)   adversarial step

and the integrated gradient is the sum or the product of g[0] ... g[T-1].
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from si_jax import splitting
from si_jax.checks import check_choice
from si_jax.splitting import Forward, Target

COMBINE: dict[str, Callable[[Array, Array], Array]] = {"add": jnp.add, "multiply": jnp.multiply}


@dataclass(frozen=True)
class AscentPath:
    """The adversarial path and what is made of the gradients along it, by default as published."""

    steps: int = 2  # T, the number of gradients; T = 1 takes no adversarial step
    step_size: float = 0.001  # alpha, in the units of the activation
    combine: str = "add"  # or "multiply"
    objective: str = "ce"  # ascend the cross-entropy with the pseudo-label; "max": the target

    def __post_init__(self):
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps (={self.steps!r}) must be a whole number of at least 1")
        if not 0 <= self.step_size < float("inf"):
            raise ValueError(f"step_size (={self.step_size}) must be finite and not negative")
        check_choice(COMBINE, combine=self.combine)
        check_choice(("ce", "max"), objective=self.objective)


PRESETS: dict[str, dict[str, Any]] = {
    "published": asdict(AscentPath()),
    "published-defaults": asdict(AscentPath(step_size=1 / 255, combine="multiply")),
}
"""Settings of the published run script, and the defaults of the published evaluation script."""


def max_logit(out: Forward) -> Float[Array, "batch"]:
    """The largest logit; ties give the first."""
    index = jnp.argmax(out.logits, axis=-1)
    return jnp.take_along_axis(out.logits, index[:, None], axis=-1)[:, 0]


def cross_entropy(out: Forward, labels: Int[Array, "batch"]) -> Float[Array, "batch"]:
    """Cross-entropy with the given classes."""
    log_p = jax.nn.log_softmax(out.logits)
    return -jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]


def integrate(
    linear: splitting.Linearised,
    taps: Sequence[str],
    *,
    target: Target,
    path: AscentPath,
    tap_chunk: int = 12,
    reduce: Callable[[Array], Array] = lambda gradient: gradient,
) -> dict[str, Float[Array, "batch ..."]]:
    """Integrated gradients at every tap, each tap split on its own.

    `linear` is a linearisation at these taps, and maybe at others: all share its forward pass, and
    two backward passes for the first step. The later steps run `tap_chunk` taps at a time, stacked
    along the batch, each of them from its tap on alone; what comes before it is not computed again.
    Memory grows with `tap_chunk` times the batch, and compilation with the number of chunks; the
    work is the same. `reduce` is applied to each integrated gradient, such as a mean over its
    positions, so that none is held for longer than its chunk needs.
    """
    first = _select(linear.gradient(target), taps)
    if path.steps == 1:
        return {tap: reduce(gradient) for tap, gradient in first.items()}
    combine = COMBINE[path.combine]
    upwards = direction(linear, target, path)
    ascent = _select(linear.gradient(upwards), taps)
    results: dict[str, Array] = {}
    previous: list[Array] = []
    # from the network's end on: when the long passes come, least is left to be held
    chunks = [taps[i : i + tap_chunk] for i in range(0, len(taps), tap_chunk)]
    for chunk in reversed(chunks):

        def step(carry, _):
            z, up, combined = carry
            z = _moved(z, up, path)
            gradient = linear.split(z)
            combined = jax.tree.map(combine, combined, gradient(target))
            return (z, gradient(upwards), combined), None

        z = _after(previous, _select(linear.out.outputs, chunk))
        start = (z, _select(ascent, chunk), _select(first, chunk))
        # the last step's direction is never used, so that step is taken outside the scan
        z, up, combined = start
        if path.steps > 2:
            (z, up, combined), _ = jax.lax.scan(step, start, length=path.steps - 2)
        last = linear.split(_moved(z, up, path))(target)
        integrated = jax.tree.map(combine, combined, last)
        results |= {tap: reduce(gradient) for tap, gradient in integrated.items()}
        previous = [results[tap] for tap in chunk]
    return _select(results, taps)


def direction(linear: splitting.Linearised, target: Target, path: AscentPath) -> Target:
    """What the adversarial step ascends."""
    labels = jnp.argmax(linear.out.logits, axis=-1)
    return target if path.objective == "max" else lambda out: cross_entropy(out, labels)


def _moved(z: dict[str, Array], ascent: dict[str, Array], path: AscentPath) -> dict[str, Array]:
    """Activations after the adversarial step."""
    return {tap: z[tap] + path.step_size * jnp.sign(ascent[tap]) for tap in z}


def _after(previous: Sequence[Array], z: dict[str, Array]) -> dict[str, Array]:
    """The same activations, to be used only once `previous` is known.

    Otherwise XLA may run the passes of all chunks side by side, and hold what all of them need; an
    optimisation barrier is gone before it chooses the order. So they are made to depend on whether
    that is NaN: an image that is NaN in one chunk is so in the next ones.
    """
    if not previous:
        return z
    flags = [jnp.isnan(x).any(axis=tuple(range(1, x.ndim))) for x in previous]
    broken = jnp.stack(flags).any(axis=0)
    return {
        tap: jnp.where(broken.reshape(-1, *[1] * (array.ndim - 1)), jnp.nan, array)
        for tap, array in z.items()
    }


def _select(arrays: Mapping[str, Array], taps: Sequence[str]) -> dict[str, Array]:
    return {tap: arrays[tap] for tap in taps}
