"""Gradient-free densities: where the activation that follows a tap is on.

If a tap reaches the logits only through ReLUs, with nothing but element-wise affine operations
(a residual sum, a BatchNorm) in between, its gradient is zero where those ReLUs are off, and not
zero elsewhere. Whether that is so is read off the traced computation, so it holds for any network.

There is one way in which the gradient can differ: a unit that is on while everything behind it is
off, so that no logit depends on it. Of 186 million positions of trained networks that were compared
none did (`scripts/compare_engines.py` counts them).

GELU, SiLU and their like (see `si_jax.networks.equations`) switch nothing off, so that no gradient
is zero. "On" can still mean there what it means for a ReLU, that the activation's input is
positive: that is what `smooth=True` asks for. There a tap may also be the activation's output, as
that of a layer of Keras is to which `activation="gelu"` was given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from si_jax import splitting
from si_jax.integration import AscentPath, cross_entropy, max_logit
from si_jax.model import Model
from si_jax.networks import switching
from si_jax.networks.equations import Equations, is_literal, is_relu
from si_jax.splitting import Linearised, Traced

AFFINE = ("add", "sub", "mul", "convert_element_type", "copy", "add_any")


@dataclass(frozen=True)
class Gate:
    """What lies between a tap and the ReLUs right behind it.

    Attributes:
        equations: the element-wise equations and transpositions in between, in order.
        inputs: what the ReLUs are given; at least one. With the order that the tap's axes have
            there.
        operands: what else the equations take.
        alone: whether no operand depends on the tap, so that the equations tell how the ReLUs'
            inputs move when the tap does.
        before: whether the tap is the output of GELU, SiLU or their like, and `inputs` its input.
    """

    equations: tuple[Any, ...]
    inputs: tuple[tuple[Any, tuple[int, ...]], ...]
    operands: tuple[Any, ...]
    alone: bool
    before: bool = False

    def on(
        self, traced: Traced, tap: Any, values: Mapping[Any, Any], z: Array
    ) -> Bool[Array, "batch *tap"]:
        """Where any of the ReLUs is on, and depends on the tap, if the tap's value is `z`."""
        if self.before:
            return _on(values[self.inputs[0][0]])
        jaxpr = traced.closed.jaxpr.replace(
            constvars=[], invars=[tap, *self.operands], eqns=list(self.equations)
        )
        operands = [values[v] for v in self.operands]

        def run(z):
            inputs = splitting.evaluate(jaxpr, [v for v, _ in self.inputs], [z, *operands], [])
            orders = [order for _, order in self.inputs]
            return [x.transpose(np.argsort(o)) for x, o in zip(inputs, orders, strict=True)]

        inputs, slopes = jax.jvp(run, (z,), (jnp.ones_like(z),))
        masks = [_on(x) & (slope != 0) for x, slope in zip(inputs, slopes, strict=True)]
        return jnp.any(jnp.stack(masks), axis=0)


def _on(x: Array) -> Array:
    """Where a ReLU's input is positive, or not finite, lest a broken pass look like a quiet one."""
    return (x > 0) | ~jnp.isfinite(x)


def active(
    model: Model,
    variables: Mapping[str, Any],
    images: Float[Array, "batch height width channels"],
    taps: Sequence[str],
) -> dict[str, Bool[Array, "batch *tap"]]:
    """Where the ReLU behind each tap is on: one forward pass, and nothing but that.

    A tap that is itself the input of a linear head counts as on where the weight of the largest
    logit is not zero, which is exact.

    Args:
        model: the network.
        variables: its variables.
        images: normalised images.
        taps: paths whose ReLUs are looked for.

    Raises:
        ValueError: if some tap is not followed by a ReLU; the message names them all.
    """
    traced = splitting.trace(model, variables, images, taps)
    values = dict(zip(traced.variables, traced.run(), strict=True))
    return active_in(traced, values, taps)


def active_in(
    traced: Traced, values: Mapping[Any, Any], taps: Sequence[str], *, smooth: bool = False
) -> dict[str, Bool[Array, "batch ..."]]:
    """`active` of a pass that has been run: its equations, and the values of their variables.

    With `smooth`, GELU, SiLU and their like count as ReLUs, also where a tap is their output.
    """
    _refuse(_missing(traced, taps, smooth))
    results = {}
    for tap, gate in _gates(traced, taps, smooth).items():
        var = traced.taps[tap]
        if gate is not None:
            results[tap] = gate.on(traced, var, values, values[var])
        else:
            results[tap] = _head_mask(traced, values, values[traced.logits])
    return results


def active_after_step(
    model: Model, linear: Linearised, taps: Sequence[str], path: AscentPath
) -> dict[str, Bool[Array, "batch ..."]]:
    """Where the product of the gradients of two steps is not zero, in closed form.

    That is where the first gradient is not zero and the ReLU behind the tap is still on after the
    adversarial step: one forward and two backward passes, instead of a pass behind every tap. The
    product itself is never formed, so that unlike that of the general engine it cannot underflow.

    Args:
        model: the network.
        linear: linearised at `taps`, and perhaps at more.
        taps: those for which `steppable` says so.
        path: of two steps, to be multiplied.

    Returns:
        Path of the tap -> (batch, ...) mask.
    """
    traced, values, out = linear.traced, linear.values, linear.out
    labels = jnp.argmax(out.logits, axis=-1)
    first = linear.gradient(max_logit)
    ascent = first
    if path.objective == "ce":
        ascent = linear.gradient(lambda out: cross_entropy(out, labels))
    results = {}
    for tap, gate in _gates(traced, taps).items():
        moved = out.outputs[tap] + path.step_size * jnp.sign(ascent[tap])
        if gate is not None:
            still = gate.on(traced, traced.taps[tap], values, moved)
        else:
            logits = splitting.forward(
                model, *traced.arguments, edit={tap: partial(_replaced, by=moved)}
            ).logits
            still = _head_mask(traced, values, logits)
        results[tap] = (first[tap] != 0) & still
    return results


def check(model: Model, taps: Sequence[str]) -> None:
    """Refuse taps that no ReLU follows, before any image is scored.

    Raises:
        ValueError: if some tap is not followed by a ReLU; the message names them all.
    """
    _refuse(without_relu(model, taps))


def without_relu(model: Model, taps: Sequence[str], *, smooth: bool = False) -> tuple[str, ...]:
    """Those taps that no ReLU follows, and that are not the head's input either.

    With `smooth`, GELU, SiLU and their like count as ReLUs, also where a tap is their output.
    """
    return _missing(_abstract(model, taps), taps, smooth)


def followed(model: Model, taps: Sequence[str]) -> tuple[str, ...]:
    """Those taps that a ReLU follows, or GELU, SiLU or their like, or that these make.

    Of those with the same activations, the first.
    """
    gates = _gates(_abstract(model, taps), taps, smooth=True)
    first = {gate.inputs: tap for tap, gate in reversed(gates.items()) if gate}
    return tuple(tap for tap, gate in gates.items() if gate and first[gate.inputs] == tap)


def never_off(model: Model, taps: Sequence[str]) -> tuple[str, ...]:
    """Those taps whose gradient no image switches off, see `si_jax.networks.switching`."""
    traced = _abstract(model, taps)
    equations = Equations(traced.closed)
    return tuple(tap for tap in taps if switching.never_off(equations, traced.taps[tap]))


def steppable(model: Model, taps: Sequence[str]) -> tuple[str, ...]:
    """Those taps that `active_after_step` serves.

    A ReLU follows them, and what is added on the way to it does not depend on them by another way;
    or they are the input of the head.
    """
    traced = _abstract(model, taps)
    gates = _gates(traced, taps)
    return tuple(
        tap
        for tap, gate in gates.items()
        if (gate.alone if gate is not None else _at_head(traced, tap))
    )


def _abstract(model: Model, taps: Sequence[str]) -> Traced:
    image = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
    return splitting.trace(model, model.variables, image, taps)


def listed(taps: Sequence[str]) -> str:
    """Names of taps for a message; of many, the first and the last."""
    if not taps:
        return "any sub-module"
    return ", ".join(taps) if len(taps) < 6 else f"{taps[0]} to {taps[-1]} ({len(taps)} taps)"


def _refuse(missing: Sequence[str]) -> None:
    if missing:
        raise ValueError(
            f"engine='activation' needs a ReLU behind every tap; there is none behind"
            f" {', '.join(missing)}: use engine='gradient' or engine='general'"
        )


def _missing(traced: Traced, taps: Sequence[str], smooth: bool = False) -> tuple[str, ...]:
    gates = _gates(traced, taps, smooth)
    return tuple(k for k, gate in gates.items() if gate is None and not _at_head(traced, k))


def _at_head(traced: Traced, tap: str) -> bool:
    """Whether a tap is the input of a head that is nothing but a matrix product and a bias."""
    return traced.taps[tap] in _features(traced) and _head_kernel(traced) is not None


def _features(traced: Traced) -> set[Any]:
    """The input of the head, in whichever dtypes it comes."""
    casts = [
        eqn for eqn in traced.closed.jaxpr.eqns if eqn.primitive.name == "convert_element_type"
    ]
    same = {traced.features, *(e.invars[0] for e in casts if e.outvars[0] is traced.features)}
    for eqn in casts:
        if not is_literal(eqn.invars[0]) and eqn.invars[0] in same:
            same.add(eqn.outvars[0])
    return same


def _head_kernel(traced: Traced) -> Any:
    """The matrix (features, classes) that makes the logits of the features; None if more does."""
    kernel, carriers, features = None, set(), _features(traced)
    for eqn in traced.closed.jaxpr.eqns:
        operands = [v for v in eqn.invars if not is_literal(v)]
        if eqn.outvars[0] in features:
            continue
        if any(v in features for v in operands):
            product = eqn.primitive.name == "dot_general" and operands[0] in features
            if kernel or not product or eqn.params["dimension_numbers"] != (((1,), (0,)), ((), ())):
                return None
            kernel, carriers = eqn.invars[1], {eqn.outvars[0]}
        elif any(v in carriers for v in operands):
            if eqn.primitive.name not in ("add", "convert_element_type", "copy"):
                return None
            carriers.add(eqn.outvars[0])
    return kernel if traced.logits in carriers else None


def _head_mask(
    traced: Traced, values: Mapping[Any, Any], logits: Array
) -> Bool[Array, "batch features"]:
    """Where the head's weight of the largest logit is not zero."""
    return values[_head_kernel(traced)].T[jnp.argmax(logits, axis=-1)] != 0


def _gates(traced: Traced, taps: Sequence[str], smooth: bool = False) -> dict[str, Gate | None]:
    """Path -> what lies between that tap and its ReLUs; None where that is more than a `Gate`."""
    features = _features(traced)
    equations = Equations(traced.closed)
    return {
        tap: None if traced.taps[tap] in features else _gate(traced, tap, equations, smooth)
        for tap in taps
    }


def _gate(traced: Traced, tap: str, look: Equations, smooth: bool) -> Gate | None:
    start = traced.taps[tap]
    carriers: dict[Any, tuple[int, ...]] = {}  # variable -> the order of the tap's axes in it
    dependent, skipped = set(), set()
    equations, inputs, operands, alone = [], [], [], True

    def carry(variable, order):
        carriers[variable] = order
        if smooth and (activation := look.activation(variable)):
            inputs.append((variable, order))
            dependent.update(activation.made)
            skipped.update(activation.equations)

    carry(start, tuple(range(start.aval.ndim)))
    for eqn in traced.closed.jaxpr.eqns:
        variables = [v for v in eqn.invars if not is_literal(v)]
        carried = [v for v in variables if v in carriers]
        if id(eqn) in skipped:
            continue
        if not carried:
            if any(v in dependent for v in variables):
                dependent.update(eqn.outvars)
            continue
        out, order = eqn.outvars[0], carriers[carried[0]]
        if is_relu(eqn):
            inputs.append((carried[0], order))
            dependent.update(eqn.outvars)
        elif eqn.primitive.name == "transpose":
            equations.append(eqn)
            carry(out, tuple(order[axis] for axis in eqn.params["permutation"]))
        elif (
            eqn.primitive.name in AFFINE
            and len(carried) == 1
            and out.aval.shape == tuple(start.aval.shape[axis] for axis in order)
        ):
            others = [v for v in variables if v is not carried[0]]
            alone = alone and not any(v in dependent for v in others)
            equations.append(eqn)
            operands += others
            carry(out, order)
        else:
            break
    else:
        if inputs and (traced.logits is start or traced.logits not in carriers):
            return Gate(tuple(equations), tuple(inputs), tuple(dict.fromkeys(operands)), alone)
    if smooth and (x := look.input_of(start)) is not None:
        return Gate((), ((x, tuple(range(start.aval.ndim))),), (), alone=False, before=True)
    return None


def _replaced(value: Array, by: Array) -> Array:
    return by
