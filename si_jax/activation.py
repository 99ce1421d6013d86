"""Gradient-free densities: where the ReLU that follows a tap is on.

If a tap reaches the logits only through ReLUs, with nothing but element-wise affine operations
(a residual sum, a BatchNorm) in between, its gradient is zero exactly where those ReLUs are off,
and not zero elsewhere unless everything behind happens to be off. Whether that is so is read off
the traced computation, so it holds for any network.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from si_jax import splitting
from si_jax.model import Model

AFFINE = ("add", "sub", "mul", "convert_element_type", "copy", "add_any")


def active(
    model: Model,
    variables: Mapping[str, Any],
    images: Float[Array, "batch height width channels"],
    taps: Sequence[str],
) -> dict[str, Bool[Array, "batch *tap"]]:
    """Where the ReLU behind each tap is on: one forward pass; see `forward`."""
    return forward(model, variables, images, taps)[1]


def forward(
    model: Model,
    variables: Mapping[str, Any],
    images: Float[Array, "batch height width channels"],
    taps: Sequence[str],
    offsets: Mapping[str, Float[Array, "batch ..."]] | None = None,
) -> tuple[splitting.Forward, dict[str, Bool[Array, "batch ..."]]]:
    """One forward pass: its logits and features, and where the ReLU behind each tap is on.

    A tap that is itself the input of the linear head counts as on where the weight of the largest
    logit is not zero, which is exact.

    Args:
        model: the network.
        variables: its variables.
        images: normalised images.
        taps: paths whose ReLUs are looked for.
        offsets: path -> what is added to that sub-module's output, so that the pass can be
            differentiated there.

    Raises:
        ValueError: if some tap is not followed by a ReLU; the message names them all.
    """
    arguments = (variables, images, dict(offsets or {}))

    def run(variables, images, offsets):
        edit = {path: lambda out, path=path: out + offsets[path] for path in offsets}
        out = splitting.forward(model, variables, images, record=taps, edit=edit)
        return [out.logits, out.features, *(out.outputs[k] for k in taps)]

    closed = jax.make_jaxpr(run)(*arguments)
    jaxpr = closed.jaxpr
    logits, features, *tapped = jaxpr.outvars
    wanted = [logits, features]
    relus: dict[str, list[Any]] = {}
    for tap, var in zip(taps, tapped, strict=True):
        if not _is_cast_of(jaxpr, features, var):
            relus[tap] = _relu_inputs(jaxpr, var)
            wanted += relus[tap]
    missing = [tap for tap, inputs in relus.items() if not inputs]
    if missing:
        raise ValueError(
            f"engine='activation' needs a ReLU behind every tap; there is none behind"
            f" {', '.join(missing)}: use engine='gradient' or engine='general'"
        )
    wanted = list(dict.fromkeys(wanted))
    part = jaxpr.replace(
        outvars=wanted, debug_info=jaxpr.debug_info.with_unknown_names(), effects=jaxpr.effects
    )
    leaves = jax.tree.leaves(arguments)
    values = dict(zip(wanted, jax.core.eval_jaxpr(part, closed.consts, *leaves), strict=True))
    largest = jnp.argmax(values[logits], axis=-1)
    results = {}
    for tap in taps:
        if tap in relus:
            masks = [values[var] > 0 for var in relus[tap]]
            results[tap] = jnp.any(jnp.stack(masks), axis=0)
        else:
            results[tap] = model.head_weights(variables).T[largest] != 0
    return splitting.Forward(values[logits], values[features], {}), results


def check(model: Model, taps: Sequence[str]) -> None:
    """Refuse taps that no ReLU follows, before any image is scored.

    Raises:
        ValueError: if some tap is not followed by a ReLU; the message names them all.
    """
    image = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
    jax.eval_shape(lambda v, x: active(model, v, x, taps), model.variables, image)


def _relu_inputs(jaxpr: Any, tap: Any) -> list[Any]:
    """Inputs of all ReLUs right behind `tap`; none if anything else than a ReLU consumes it."""
    carriers, inputs = {tap}, []
    for eqn in jaxpr.eqns:
        operands = [v for v in eqn.invars if not _is_literal(v) and v in carriers]
        if not operands:
            continue
        if _is_relu(eqn):
            inputs.append(operands[0])
        elif eqn.primitive.name in AFFINE and len(operands) == 1 and _same_shape(eqn, tap):
            carriers.add(eqn.outvars[0])
        else:
            return []
    return inputs


def _is_cast_of(jaxpr: Any, var: Any, source: Any) -> bool:
    """Whether `var` is `source`, perhaps in another dtype."""
    casts = (eqn for eqn in jaxpr.eqns if eqn.primitive.name == "convert_element_type")
    return var is source or any(e.outvars[0] is var and e.invars[0] is source for e in casts)


def _same_shape(eqn: Any, tap: Any) -> bool:
    return eqn.outvars[0].aval.shape == tap.aval.shape


def _is_relu(eqn: Any) -> bool:
    """Whether an equation is max(x, 0), however often it is wrapped."""
    if eqn.primitive.name == "max":
        return any(_is_literal(v) and not np.any(v.val) for v in eqn.invars)
    inner = eqn.params.get("call_jaxpr") or eqn.params.get("jaxpr")
    equations = getattr(getattr(inner, "jaxpr", inner), "eqns", ())
    return len(equations) == 1 and len(eqn.invars) == 1 and _is_relu(equations[0])


def _is_literal(var: Any) -> bool:
    return hasattr(var, "val")
