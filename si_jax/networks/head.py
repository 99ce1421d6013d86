"""How the logits are made, read off the traced network: by a linear head, or by something else.

The head is the layer whose input, the features, becomes the logits by weights alone. That is
proven in the trace: nothing but linear operations with coefficients that no image changes lie
between the features and the logits, and no other way leads from the images to them. So the layer
may be of any class, such as a 1x1 convolution on a pooled map or a layer with LoRA.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from si_jax.networks.equations import PRODUCTS, inner, is_literal, spread
from si_jax.networks.framework import Named
from si_jax.networks.network import HIDDEN, Network, Outline

SHOWN = 12
"""Most paths that a message names."""

LINEAR = frozenset((
    "add", "add_any", "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "cumsum",
    "expand_dims", "neg", "pad", "reduce_sum", "reduce_window_sum", "reshape", "rev", "select_n",
    "slice", "split", "squeeze", "sub", "transpose",
))  # fmt: skip
"""Primitives that are linear in all operands together; `select_n` in its cases."""

OF_THE_FIRST = ("div", "dynamic_slice", "gather")
"""Primitives that are linear in their first operand where the others are constants."""


Weights = tuple[Float[Array, "features classes"], Float[Array, "classes"]]


def linear_head(network: Network, path: str) -> Callable[[Named], Weights] | None:
    """Variables, traced or real -> the linear map of a call's input to the logits; None if none."""
    look = network.outline
    x, y = look.values.get(path, (None, None))[0], look.logits
    if not _maps(look, x):
        return None
    jaxpr, consts = look.closed.jaxpr, look.closed.consts
    needed, equations = {y}, []
    for eqn in reversed(jaxpr.eqns):
        if any(v in needed and v is not x for v in eqn.outvars):
            equations.append(eqn)
            needed.update(v for v in eqn.invars if not is_literal(v))
    part = jaxpr.replace(
        eqns=equations[::-1],
        invars=[x, *jaxpr.invars[:-1]],  # without the images
        outvars=[y],
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )
    size = x.aval.size

    @jax.jit
    def weights(variables):
        leaves = jax.tree.leaves(variables)

        def logits(h):
            return jax.core.eval_jaxpr(part, consts, h, *leaves)[0][0].astype(jnp.float32)

        origin = jnp.zeros(x.aval.shape, x.aval.dtype)
        rows = jnp.eye(size, dtype=x.aval.dtype).reshape(size, *x.aval.shape)
        return jax.vmap(lambda row: jax.jvp(logits, (origin,), (row,))[1])(rows), logits(origin)

    return weights


def head_of(network: Network, head: str | None) -> str | None:
    """Path of the layer that gives the logits: the one asked for, or the linear one, or None."""
    look = network.outline
    paths = [call.path for call in network.calls]
    if head in look.hidden:
        raise ValueError(f"head (={head!r}) {HIDDEN}")
    if head is not None and head not in paths:
        raise ValueError(
            f"head (={head!r}) is not called by the network; its sub-modules and taps are:"
            f" {listed(paths)}"
        )
    path = _found(look) if head is None else head
    if path is None:
        return None
    if f"{path.partition('#')[0]}#1" in paths:
        raise ValueError(
            f"head (={path!r}) is called more than once, so its input is not one set of features:"
            " give a network that calls its last linear layer once for each image"
        )
    x, out = look.values[path]
    if not (_maps(look, x) or _maps(look, x, out)) and (found := _found(look)) is not None:
        raise ValueError(
            f"head (={path!r}) does not give the logits; what does is the linear layer {found}"
        )
    return path


def _found(look: Outline) -> str | None:
    """Path of the last call that makes the logits by weights of its own, or of what lies behind."""
    behind = None
    for path, (x, out) in reversed([*look.values.items()]):
        if _maps(look, x):
            if out is not None and _maps(look, x, out) and _maps(look, out, product=False):
                return path
            behind = behind or path
    return behind


def _maps(look: Outline, x: Any, y: Any = None, product: bool = True) -> bool:
    """Whether a variable becomes another by linear operations alone, by weights unless said so.

    Other variables that depend on the images may not enter; `y` is the logits by default.
    """
    y = look.logits if y is None else y
    if x is None or is_literal(x) or is_literal(y):
        return False
    linear = {x: False}
    spread(look.closed.jaxpr, linear, {look.closed.jaxpr.invars[-1]} - {x}, _product)
    return y in linear and linear[y] >= product


def _product(eqn: Any, out: Any, linear: Mapping, depends: Sequence[bool]) -> bool | None:
    """Whether weights were multiplied on the linear way to an output; None if it is not linear."""
    carried = [not is_literal(v) and v in linear for v in eqn.invars]
    if carried != depends or not _is_linear(eqn, carried):
        return None
    before = any(linear[v] for v, is_in in zip(eqn.invars, carried, strict=True) if is_in)
    return eqn.primitive.name in PRODUCTS or before


def _is_linear(eqn: Any, carried: Sequence[bool]) -> bool:
    """Whether an equation is linear in the operands that are `carried`."""
    name = eqn.primitive.name
    if not all(jnp.issubdtype(v.aval.dtype, jnp.floating) for v in eqn.outvars):
        return False
    if name in (*PRODUCTS, "mul"):
        return sum(carried) == 1
    if name in OF_THE_FIRST:
        return carried[0] and not any(carried[1:])
    return name in LINEAR and not (name == "select_n" and carried[0])


def listed(paths: Sequence[str]) -> str:
    """Paths for a message; of many, the last."""
    if len(paths) <= SHOWN:
        return ", ".join(paths) or "none"
    return f"{len(paths)}, the last of them {', '.join(paths[-SHOWN:])}"


PASSING = ("broadcast_in_dim", "convert_element_type", "copy", "expand_dims", "reshape")

OUTPUTS = {
    "softmax": "probabilities (a softmax)",
    "log-softmax": "log-probabilities (a log-softmax)",
    "sigmoid": "probabilities (a sigmoid)",
}
"""What a network may apply to its logits -> what it returns then."""


def no_head(network: Network) -> str:
    """What to say of a network of which no head is known, where one is needed."""
    return (
        "the network has no head: no layer's input becomes the logits by weights alone; those"
        " detectors that need the logits alone, such as 'energy', serve it; for those of features,"
        f" give Model head=, of {listed([call.path for call in network.calls])}"
    )


def no_logits(kind: str) -> str:
    """What to say of a network that ends in a key of `OUTPUTS`."""
    return (
        f"the network returns {OUTPUTS[kind]}, not logits: give one that returns the logits"
        f" themselves, what enters the {kind} (Keras: build it with classifier_activation=None, or"
        " set its last layer's activation to keras.activations.linear)"
    )


def output_activation(jaxpr: Any, output: Any) -> str | None:
    """The key of `OUTPUTS` that makes a variable; None if none does, or it is unknown."""
    makers = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
    last = _maker(makers, output)
    if last is None:
        return None
    if called := inner(last):
        place = [v is _source(makers, output) for v in last.outvars].index(True)
        return output_activation(called.jaxpr, called.jaxpr.outvars[place])
    name, operands = last.primitive.name, [_maker(makers, v) for v in last.invars]
    if name == "logistic":
        return "sigmoid"
    if name == "div" and _is_named(operands[0], "exp") and _is_sum(makers, operands[1]):
        return "softmax"
    if name == "log":
        return "log-softmax" if output_activation(jaxpr, last.invars[0]) == "softmax" else None
    if name == "sub":  # perhaps of a logarithm to which the largest logit was added again
        parts = [operands[1]]
        if _is_named(operands[1], "add"):
            parts = [_maker(makers, v) for v in operands[1].invars]
        logs = [_maker(makers, eqn.invars[0]) for eqn in parts if _is_named(eqn, "log")]
        return "log-softmax" if any(_is_sum(makers, eqn) for eqn in logs) else None
    return None


def _is_sum(makers: Mapping[Any, Any], eqn: Any) -> bool:
    """Whether an equation adds up exponentials."""
    return _is_named(eqn, "reduce_sum") and _is_named(_maker(makers, eqn.invars[0]), "exp")


def _is_named(eqn: Any, name: str) -> bool:
    return eqn is not None and eqn.primitive.name == name


def _source(makers: Mapping[Any, Any], variable: Any) -> Any:
    """A variable less what only changes its shape or its dtype."""
    while not is_literal(variable):
        eqn = makers.get(variable)
        if eqn is None or eqn.primitive.name not in PASSING:
            break
        variable = eqn.invars[0]
    return variable


def _maker(makers: Mapping[Any, Any], variable: Any) -> Any:
    source = _source(makers, variable)
    return None if is_literal(source) else makers.get(source)
