"""Integrating: attribution gradients along an adversarial path at each tap.

For each tap on its own, with `z` its activation and `y0` the pseudo-label of the image:

    g[t]   = d A(z[t]) / dz                                    attribution gradient
    z[t+1] = z[t] + step_size * sign(d CE(f(z[t]), y0) / dz)   adversarial step

and the integrated gradient is the sum or the product of g[0] ... g[T-1].
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from si_jax import splitting
from si_jax.model import Model
from si_jax.splitting import Forward

Target = Callable[[Forward], Float[Array, "batch"]]
"""Attribution target: a forward pass -> one number per image, whose gradient is taken."""

PRESETS: dict[str, dict[str, Any]] = {
    "published": {"steps": 2, "step_size": 0.001, "combine": "add", "objective": "ce"},
    "published-defaults": {
        "steps": 2,
        "step_size": 1 / 255,
        "combine": "multiply",
        "objective": "ce",
    },
}
"""Settings of the published run script, and the defaults of the published evaluation script."""

COMBINE: dict[str, Callable[[Array, Array], Array]] = {"add": jnp.add, "multiply": jnp.multiply}


@dataclass(frozen=True)
class Path:
    """The adversarial path and what is made of the gradients along it.

    Attributes:
        steps: T, the number of gradients; T = 1 takes no adversarial step.
        step_size: alpha, in the units of the activation.
        combine: `"add"` or `"multiply"`.
        objective: what the adversarial step ascends: `"ce"`, the cross-entropy with the
            pseudo-label, or `"max"`, the attribution target itself.
    """

    steps: int = 2
    step_size: float = 0.001
    combine: str = "add"
    objective: str = "ce"

    def __post_init__(self):
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps (={self.steps!r}) must be a whole number of at least 1")
        if not 0 <= self.step_size < float("inf"):
            raise ValueError(f"step_size (={self.step_size}) must be finite and not negative")
        if self.combine not in COMBINE:
            raise ValueError(f"combine (={self.combine!r}) must be 'add' or 'multiply'")
        if self.objective not in ("ce", "max"):
            raise ValueError(f"objective (={self.objective!r}) must be 'ce' or 'max'")


class Trace(NamedTuple):
    """The gradients at one tap, at every step.

    Attributes:
        attribution: (steps, batch, ...) gradient of the attribution target.
        ascent: (steps, batch, ...) gradient whose sign is the adversarial direction.
    """

    attribution: Float[Array, "steps batch *tap"]
    ascent: Float[Array, "steps batch *tap"]


def max_logit(out: Forward) -> Float[Array, "batch"]:
    """The largest logit; ties give the first."""
    index = jnp.argmax(out.logits, axis=-1)
    return jnp.take_along_axis(out.logits, index[:, None], axis=-1)[:, 0]


def log_softmax_sum(out: Forward) -> Float[Array, "batch"]:
    """Sum over the classes of the log-softmax."""
    return jnp.sum(jax.nn.log_softmax(out.logits), axis=-1)


def integrate(
    model: Model,
    variables: Mapping[str, Any],
    images: Float[Array, "batch height width channels"],
    taps: Sequence[str],
    *,
    target: Target,
    path: Path,
    tap_chunk: int = 12,
) -> dict[str, Float[Array, "batch *tap"]]:
    """Integrated gradients at every tap, each tap split on its own.

    All taps share one forward and two backward passes for the first step. The later steps run
    `tap_chunk` taps at a time, stacked along the batch; what comes before the first tap of a chunk
    is not computed again. Memory grows with `tap_chunk` times the batch, work a little with
    `tap_chunk`, and compilation with the number of chunks.

    Args:
        model: the network.
        variables: its variables.
        images: normalised images.
        taps: paths, in the network's order, see `splitting.select`; or `splitting.FEATURES`.
        target: attribution target.
        path: the adversarial path.
        tap_chunk: taps that are perturbed at the same time.

    Returns:
        Path of the tap -> integrated gradient, in the tap's shape.
    """
    combine = COMBINE[path.combine]
    traces = _walk(model, variables, images, taps, target, path, tap_chunk, combine)
    return {tap: combined for tap, (combined, _) in traces.items()}


def gradients_along_path(
    model: Model,
    variables: Mapping[str, Any],
    images: Float[Array, "batch height width channels"],
    taps: Sequence[str],
    *,
    target: Target,
    path: Path,
    tap_chunk: int = 12,
) -> dict[str, Trace]:
    """Every gradient of every step, for inspection; arguments as for `integrate`."""
    traces = _walk(model, variables, images, taps, target, path, tap_chunk, None)
    return {tap: Trace(*trace) for tap, (_, trace) in traces.items()}


def first_gradients(
    model: Model,
    variables: Mapping[str, Any],
    images: Float[Array, "batch height width channels"],
    taps: Sequence[str],
    *,
    target: Target,
) -> dict[str, Float[Array, "batch *tap"]]:
    """Attribution gradients at the unperturbed image: one forward and one backward pass."""
    return _first_step(model, variables, images, taps, target, ascent=None, record=())[0]


def _walk(model, variables, images, taps, target, path, tap_chunk, combine):
    """Tap -> (combined gradient, None), or (None, all gradients) where `combine` is None."""
    last = path.steps - 1
    trace = combine is None
    ascent = path.objective if last or trace else None
    chunks = [taps[i : i + tap_chunk] for i in range(0, len(taps), tap_chunk)]
    before = [splitting.before(model, chunk[0]) for chunk in chunks]
    needed = {*taps, *before[-1]} if last else set()
    g, up, labels, outputs = _first_step(
        model, variables, images, taps, target, ascent=ascent, record=needed
    )
    if not last:
        return {k: (None, (g[k][None], up[k][None])) if trace else (g[k], None) for k in taps}

    results = {}
    for chunk, prefix in zip(chunks, before, strict=True):
        known = {p: outputs[p] for p in prefix}
        split = _split_gradients(model, variables, images, chunk, known, target, labels)

        def move(z, up):
            return {k: z[k] + path.step_size * jnp.sign(up[k]) for k in z}

        def step(carry, _, split=split, move=move):
            z, up, combined = carry
            z = move(z, up)
            g, up = split(z, path.objective)
            if trace:
                return (z, up, None), (g, up)
            return (z, up, jax.tree.map(combine, combined, g)), None

        z, g0, up0 = ({k: tree[k] for k in chunk} for tree in (outputs, g, up))
        if trace:
            _, later = jax.lax.scan(step, (z, up0, None), length=last)
            stacked = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), (g0, up0), later)
            results |= {k: (None, (stacked[0][k], stacked[1][k])) for k in chunk}
            continue
        # The last step's direction is never used, so that step is taken outside the scan.
        carry = (z, up0, g0)
        if last > 1:
            carry, _ = jax.lax.scan(step, carry, length=last - 1)
        z, up0, combined = carry
        g0, _ = split(move(z, up0), None)
        results |= {k: (combine(combined[k], g0[k]), None) for k in chunk}
    return results


def _first_step(model, variables, images, taps, target, *, ascent, record):
    """Gradients of all taps by one linearisation: attribution, ascent, pseudo-labels, outputs."""
    record = {*record, *taps}
    shapes = jax.eval_shape(
        lambda v, x: splitting.forward(model, v, x, record=taps).outputs, variables, images
    )

    def outputs_of(offsets):
        edit = {k: lambda out, k=k: out + offsets[k] for k in taps}
        out = splitting.forward(model, variables, images, record=record, edit=edit)
        labels = jnp.argmax(out.logits, axis=-1)
        return (target(out), _cross_entropy(out, labels)), (labels, out.outputs)

    offsets = {k: jnp.zeros(shapes[k].shape, shapes[k].dtype) for k in taps}
    values, pullback, (labels, outputs) = jax.vjp(outputs_of, offsets, has_aux=True)
    g, up = _pull(pullback, values, ascent)
    return g, up, labels, outputs


def _split_gradients(model, variables, images, chunk, known, target, labels):
    """(activations at the taps of `chunk`, objective) -> (attribution, ascent) at each of them.

    Row `i` of the stacked batch is the network with only tap `i` of the chunk replaced.
    """

    def row(i, z):
        edit = {k: lambda out, k=k, j=j: jnp.where(i == j, z[k], out) for j, k in enumerate(chunk)}
        out = splitting.forward(model, variables, images, edit=edit, known=known)
        return target(out), _cross_entropy(out, labels)

    def split(z, ascent):
        rows = jax.vmap(row, in_axes=(0, None))
        values, pullback = jax.vjp(lambda z: rows(jnp.arange(len(chunk)), z), z)
        return _pull(pullback, values, ascent)

    return split


def _pull(pullback, values, ascent):
    """Gradients of the attribution target and of what the step ascends (None: nothing)."""
    one, zero = jnp.ones_like(values[0]), jnp.zeros_like(values[0])
    (g,) = pullback((one, zero))
    if ascent is None:
        return g, None
    return g, g if ascent == "max" else pullback((zero, one))[0]


def _cross_entropy(out: Forward, labels: Int[Array, "batch"]) -> Float[Array, "batch"]:
    log_p = jax.nn.log_softmax(out.logits)
    return -jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]
