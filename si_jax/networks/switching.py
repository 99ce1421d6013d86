"""Whether anything behind a variable of a traced computation can switch its gradient off."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from si_jax.networks.equations import BROADCAST, Equations, inner, is_literal, is_relu, outputs

SMOOTH = frozenset((
    "add", "add_any", "broadcast_in_dim", "concatenate", "conv_general_dilated",
    "convert_element_type", "copy", "div", "dot_general", "dynamic_slice", "exp", "expand_dims",
    "gather", "integer_pow", "log", "mul", "neg", "pad", "pow", "reduce_precision", "reduce_sum",
    "reshape", "rev", "rsqrt", "slice", "split", "sqrt", "square", "squeeze", "sub", "transpose",
))  # fmt: skip
"""Primitives through which a gradient gets, or not, whatever the values are."""


def without_relu(equations: Equations, x: Any) -> bool:
    """Whether no image can switch the gradient at `x` off at some positions and not at others.

    So it is if only smooth operations lie behind it, and activations such as GELU, whose
    gradient is never zero. False also where it is not certain, as behind a saturating `tanh`.
    """
    return _smooth(equations, {x}, set()) is not None


def _smooth(
    equations: Equations, smooth: set[Any], moved: set[Any]
) -> tuple[set[Any], set[Any]] | None:
    """What depends on the variables `smooth`, by smooth operations alone, and on `moved`.

    None if something depends on `smooth` by others, so that its gradient might be zero.
    """
    skipped: set[int] = set()
    smooth, moved, waiting = set(), set(moved), list(smooth)
    rest = iter(equations.jaxpr.eqns)
    while True:
        while waiting:
            variable = waiting.pop()
            smooth.add(variable)
            activation = equations.activation(variable)
            if activation and not activation.switches:
                skipped |= activation.equations
                waiting.append(activation.output)
        eqn = next(rest, None)
        if eqn is None:
            return smooth, moved | smooth
        if id(eqn) in skipped:
            continue
        operands = [v for v in eqn.invars if not is_literal(v)]
        moves = any(v in moved or v in smooth for v in operands) and not _asks_for_infinity(eqn)
        if not _differentiable(eqn) or not any(v in smooth for v in operands):
            moved.update(eqn.outvars if moves else ())
        elif is_relu(eqn) and _under_root(equations, eqn.outvars[0]):  # a variance
            waiting += eqn.outvars
        elif called := inner(eqn):
            pairs = [*zip(called.jaxpr.invars, eqn.invars, strict=True)]
            reached = _smooth(
                Equations(called),
                {own for own, v in pairs if not is_literal(v) and v in smooth},
                {own for own, v in pairs if not is_literal(v) and v in moved},
            )
            if reached is None:
                return None
            for v, own in zip(eqn.outvars, called.jaxpr.outvars, strict=True):
                if not is_literal(own):
                    waiting += [v] if own in reached[0] else []
                    moved.update([v] if own in reached[1] else [])
        elif _passes(eqn, any(v in moved and v not in smooth for v in operands)):
            waiting += eqn.outvars
        elif not all(_stopped(equations, v) for v in eqn.outvars):  # as a softmax's maximum is
            return None
        else:
            moved.update(eqn.outvars)


def _asks_for_infinity(eqn: Any) -> bool:
    """Whether an equation asks what values are infinite, as a softmax with a mask may: none is."""
    infinite = any(is_literal(v) and np.isinf(v.val).all() for v in eqn.invars)
    return eqn.primitive.name in ("eq", "ne") and infinite


def _under_root(equations: Equations, variable: Any) -> bool:
    """Whether all that becomes of a variable is the square root of it and a constant."""
    passing = (*BROADCAST, "add", "convert_element_type", "copy")
    users = equations.users.get(variable, ())
    return bool(users) and all(
        eqn.primitive.name in ("sqrt", "rsqrt")
        or (eqn.primitive.name in passing and _under_root(equations, eqn.outvars[0]))
        for eqn in users
    )


def _stopped(equations: Equations, variable: Any) -> bool:
    """Whether no gradient comes back through a variable."""
    if variable in outputs(equations.jaxpr):
        return False
    return all(
        eqn.primitive.name == "stop_gradient"
        or not _differentiable(eqn)
        or all(_stopped(equations, v) for v in eqn.outvars)
        for eqn in equations.users.get(variable, ())
    )


def _passes(eqn: Any, switched: bool) -> bool:
    """Whether a gradient passes an equation whatever the values are.

    `switched` is whether an operand depends on the values without a gradient, as `x > 0` does.
    """
    name = eqn.primitive.name
    return name in ("add", "sub") or (not switched and (name in SMOOTH or name == "select_n"))


def _differentiable(eqn: Any) -> bool:
    """Whether a gradient can come back through an equation at all."""
    if eqn.primitive.name == "stop_gradient":
        return False
    return any(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in eqn.outvars)
