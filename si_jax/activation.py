"""Where the activation behind a tap is on: what S&I-C's densities are read off.

If a tap reaches an activation through nothing but element-wise affine operations (a residual sum, a
BatchNorm), the position is on where the activation's input is positive; for GELU, SiLU and their
like too (see `si_jax.networks.equations`). A tap may also be the output of one of these, as that of
a layer of Keras is to which `activation="gelu"` was given. What lies behind the activation makes no
difference, so that a unit is on whether or not a max-pool passes it on; where gradients are not
zero is another question, see `si_jax.support`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from si_jax import splitting
from si_jax.model import Model
from si_jax.networks.equations import BROADCAST, Equations, inner, is_literal, is_relu, outputs
from si_jax.networks.network import Network
from si_jax.splitting import Traced

AFFINE = ("add", "sub", "mul", "convert_element_type", "copy", "add_any")


@dataclass(frozen=True)
class Gate:
    """What lies between a tap and the activations right behind it: `equations` of one place each.

    `before` is whether the tap is itself the output of GELU, SiLU or their like.
    """

    equations: tuple[Any, ...]
    inputs: tuple[tuple[Any, tuple[int, ...]], ...]  # of activations, and the tap's axes' order
    operands: tuple[Any, ...]  # what else the equations take
    before: bool = False

    def on(self, traced: Traced, tap: Any, values: Mapping[Any, Any]) -> Bool[Array, "batch *tap"]:
        """Where any of the activations is on, and depends on the tap."""
        if self.before:
            return _on(values[self.inputs[0][0]])
        jaxpr = traced.closed.jaxpr.replace(
            constvars=[], invars=[tap, *self.operands], eqns=list(self.equations)
        )
        operands = [values[v] for v in self.operands]

        def run(z):
            inputs = splitting.evaluate(jaxpr, [v for v, _ in self.inputs], [z, *operands])
            orders = [order for _, order in self.inputs]
            return [x.transpose(np.argsort(o)) for x, o in zip(inputs, orders, strict=True)]

        z = values[tap]
        inputs, slopes = jax.jvp(run, (z,), (jnp.ones_like(z),))
        masks = [_on(x) & (slope != 0) for x, slope in zip(inputs, slopes, strict=True)]
        return jnp.any(jnp.stack(masks), axis=0)


def _on(x: Array) -> Array:
    """Where a ReLU's input is positive, or not finite, lest a broken pass look like a quiet one."""
    return (x > 0) | ~jnp.isfinite(x)


def active(
    traced: Traced, values: Mapping[Any, Any], taps: Sequence[str]
) -> dict[str, Bool[Array, "batch ..."]]:
    """Where the activation behind each tap is on, by the equations of a pass and their values."""
    gates = _gates(traced, taps)
    return {tap: gate.on(traced, traced.taps[tap], values) for tap, gate in gates.items() if gate}


def without_activation(model: Model, taps: Sequence[str]) -> tuple[str, ...]:
    """Those taps that no ReLU, GELU, SiLU or their like follows, or makes."""
    gates = _gates(splitting.outline(model, taps), taps)
    return tuple(tap for tap, gate in gates.items() if gate is None)


def taps_with_activation(model: Network, taps: Sequence[str]) -> tuple[str, ...]:
    """Taps that a ReLU, GELU, SiLU or their like follows, or makes; of each such the first tap."""
    gates = _gates(splitting.outline(model, taps), taps)
    first = {gate.inputs: tap for tap, gate in reversed(gates.items()) if gate}
    return tuple(tap for tap, gate in gates.items() if gate and first[gate.inputs] == tap)


def taps_without_relu(model: Model, taps: Sequence[str]) -> tuple[str, ...]:
    """Those taps whose gradient no image switches off, see `without_relu`."""
    traced = splitting.outline(model, taps)
    equations = Equations(traced.closed)
    return tuple(tap for tap in taps if without_relu(equations, traced.taps[tap]))


def listed(taps: Sequence[str]) -> str:
    """Names of taps for a message; of many, the first and the last."""
    if not taps:
        return "any sub-module"
    return ", ".join(taps) if len(taps) < 6 else f"{taps[0]} to {taps[-1]} ({len(taps)} taps)"


def _gates(traced: Traced, taps: Sequence[str]) -> dict[str, Gate | None]:
    """Path -> what lies between that tap and its activations; None where that is more."""
    equations = Equations(traced.closed)
    return {tap: _gate(traced, tap, equations) for tap in taps}


def _gate(traced: Traced, tap: str, look: Equations) -> Gate | None:
    start = traced.taps[tap]
    carriers: dict[Any, tuple[int, ...]] = {}  # variable -> the order of the tap's axes in it
    skipped: set[int] = set()
    equations, inputs, operands = [], [], []

    def carry(variable, order):
        carriers[variable] = order
        if activation := look.activation(variable):
            inputs.append((variable, order))
            skipped.update(activation.equations)

    carry(start, tuple(range(start.aval.ndim)))
    for eqn in traced.closed.jaxpr.eqns:
        variables = [v for v in eqn.invars if not is_literal(v)]
        carried = [v for v in variables if v in carriers]
        if id(eqn) in skipped or not carried:
            continue
        out, order = eqn.outvars[0], carriers[carried[0]]
        if is_relu(eqn):
            inputs.append((carried[0], order))
        elif eqn.primitive.name == "transpose":
            equations.append(eqn)
            carry(out, tuple(order[axis] for axis in eqn.params["permutation"]))
        elif (
            eqn.primitive.name in AFFINE
            and len(carried) == 1
            and out.aval.shape == tuple(start.aval.shape[axis] for axis in order)
        ):
            equations.append(eqn)
            operands += [v for v in variables if v is not carried[0]]
            carry(out, order)
        else:
            break
    else:
        if inputs and (traced.logits is start or traced.logits not in carriers):
            return Gate(tuple(equations), tuple(inputs), tuple(dict.fromkeys(operands)))
    if (x := look.input_of(start)) is not None:
        return Gate((), ((x, tuple(range(start.aval.ndim))),), (), before=True)
    return None


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
    """Whether a gradient passes whatever the values are; `switched`: an operand is like `x > 0`."""
    name = eqn.primitive.name
    return name in ("add", "sub") or (not switched and (name in SMOOTH or name == "select_n"))


def _differentiable(eqn: Any) -> bool:
    """Whether a gradient can come back through an equation at all."""
    if eqn.primitive.name == "stop_gradient":
        return False
    return any(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in eqn.outvars)
